"""Compute table.csv again from values.csv, and compare it with the stored table.csv.

Needs Python 3.10, numpy and scipy. The exit status is 1 if the two tables differ.

values.csv has the result of every trial. table.json says which configurations (cells) are rows,
which base each row is compared with, and which comparisons were declared before anything was run.
This script computes the columns in COMPUTED. It copies all others from table.json, among them the
intervals over images, which need the confusion matrices of single images.

A sequential study tests claims at looks. This script computes the test of every look, the
sequential p values, Holm's correction over the claims and the repeated intervals. It does not
compute which looks took place, and the boundaries of the repeated tests: table.json has both.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROUNDING = 1e-12
"""Standard deviations below this part of the largest value are rounding errors and count as 0.

``sweeps.core.statistics.paired`` has the same number. It is repeated, because this file runs in an
archive without the project.
"""

COMPUTED = (
    *("n", "mean", "sd", "low", "high", "mark"),
    *("pairs", "difference", "difference_low", "difference_high", "p", "p_holm", "effect_size"),
)
"""Columns of table.csv that are computed from values.csv."""

Values = dict[tuple[int, str], dict[int, float]]
"""Values by index of the seed, for each cell and metric."""


def read_values(text: str) -> Values:
    """Parse the text of values.csv."""
    values: Values = {}
    for line in csv.DictReader(io.StringIO(text)):
        of_cell = values.setdefault((int(line["cell"]), line["metric"]), {})
        of_cell[int(line["replicate"])] = float(line["value"])
    return values


def rebuilt(table: dict[str, Any], values: Values) -> str:
    """Compute the text of table.csv."""
    lines = [
        line
        for row in table["rows"]
        for line in (row_line(table, row, m["key"], values) for m in table["metrics"])
    ]
    if table["sequential"] is None:
        correct_by_holm(lines)
    else:
        replay_claims(table, lines, values)
        # Bold and underlined rows are found with the seeds that all rows have.
        values = {
            place: first_seeds(of_cell, table["sequential"]["common"])
            for place, of_cell in values.items()
        }
    for metric in table["metrics"]:
        for block in {row["block"] for row in table["rows"]}:
            of_block = [
                line
                for line in lines
                if (line["number of block"], line["metric"]) == (block, metric["key"])
                and line["role"] != "a/a"
            ]
            mark(of_block, metric, values, table["significance"])
    text = io.StringIO()
    writer = csv.DictWriter(text, table["headings"], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: printed(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def row_line(
    table: dict[str, Any], row: dict[str, Any], key: str, values: Values
) -> dict[str, Any]:
    """Compute one line, without its mark and without Holm's correction."""
    row_values = values.get((row["cell"], key), {})
    base_values = (
        {} if row["versus"] is None else values.get((table["rows"][row["versus"]]["cell"], key), {})
    )
    line: dict[str, Any] = {
        "cell": row["cell"],
        "number of block": row["block"],
        "mark": "",
        **row["columns"][key],
    }
    numbers = np.array(list(row_values.values()))
    line |= dict(
        zip(("n", "mean", "sd", "low", "high"), summary(numbers, np.abs(numbers)), strict=True)
    )
    if table["sequential"] is not None:
        common = table["sequential"]["common"]
        row_values, base_values = (first_seeds(of, common) for of in (row_values, base_values))
    return line | paired(row_values, base_values)


def first_seeds(of_cell: dict[int, float], number: int) -> dict[int, float]:
    """Return the values of the first seeds."""
    return {replicate: value for replicate, value in of_cell.items() if replicate < number}


def summary(
    values: np.ndarray, sizes: np.ndarray, confidence: float = 0.95
) -> tuple[int, float | None, float | None, float | None, float | None]:
    """Compute number, mean, standard deviation and the t interval of the mean.

    A standard deviation that is a rounding error compared with the largest of ``sizes`` is 0.
    Without spread there is no interval.
    """
    n = len(values)
    if n < 2:
        return n, float(values[0]) if n else None, None, None, None
    mean, sd = float(values.mean()), float(np.std(values, ddof=1))
    if sd <= ROUNDING * float(sizes.max()):
        return n, mean, 0.0, None, None
    low, high = stats.t.interval(confidence, n - 1, mean, stats.sem(values))
    return n, mean, sd, float(low), float(high)


def paired(
    row_values: dict[int, float], base_values: dict[int, float], confidence: float = 0.95
) -> dict[str, Any]:
    """Compute the difference paired by seed, t interval, t test and Hedges' effect size."""
    common = sorted(row_values.keys() & base_values.keys())
    first, second = (np.array([side[key] for key in common]) for side in (row_values, base_values))
    sizes = np.abs(np.concatenate([first, second]))
    n, mean, sd, low, high = summary(first - second, sizes, confidence)
    line: dict[str, Any] = {
        "pairs": n,
        "difference": mean,
        "difference_low": low,
        "difference_high": high,
    }
    line |= dict.fromkeys(("p", "p_holm", "effect_size"))
    if mean is None or sd is None:
        return line
    if sd == 0:
        # Without spread the t test has no scale. The exact sign-flip test needs none: all signs are
        # equal.
        return line | {"p": 1.0 if abs(mean) <= ROUNDING * float(sizes.max()) else 2.0 ** (1 - n)}
    line["p"] = float(stats.ttest_rel(first, second).pvalue)
    if n > 2:
        line["effect_size"] = mean / sd * hedges(n - 1)
    return line


def hedges(df: int) -> float:
    """Hedges' correction of an effect size for ``df`` degrees of freedom."""
    return (
        math.gamma(df / 2) / (math.sqrt(df / 2) * math.gamma((df - 1) / 2))
        if df < 300
        else 1 - 0.75 / df
    )


def correct_by_holm(lines: list[dict[str, Any]]) -> None:
    """Correct all declared comparisons by Holm's method.

    A comparison without a result counts as p = 1.
    """
    family = [line for line in lines if line["declared"] == "yes"]
    for line, p in zip(family, holm([line["p"] for line in family]), strict=True):
        line["p_holm"] = p


def holm(family: list[float | None]) -> list[float | None]:
    """Correct p values by Holm's method; ``None`` counts as 1 and stays ``None``."""
    values = [1.0 if p is None else p for p in family]
    places = sorted(range(len(family)), key=values.__getitem__)
    corrected: list[float | None] = [None] * len(family)
    largest = 0.0
    for number, place in enumerate(places):
        if family[place] is not None:
            largest = max(largest, min(1.0, values[place] * (len(family) - number)))
            corrected[place] = largest
    return corrected


def replay_claims(table: dict[str, Any], lines: list[dict[str, Any]], values: Values) -> None:
    """Test the claims of a sequential study, and complete the lines of their comparisons."""
    rules = table["sequential"]
    line_of = {
        (row["number"], m["key"]): line
        for (row, m), line in zip(
            ((row, m) for row in table["rows"] for m in table["metrics"]), lines, strict=True
        )
    }
    claims = [
        [comparison_evidence(table, comparison, values) for comparison in claim["comparisons"]]
        for claim in rules["claims"]
    ]
    levels = [
        claim_level(evidence, rules["margin"]) if claim["tested"] else None
        for claim, evidence in zip(rules["claims"], claims, strict=True)
    ]
    # A comparison of several claims has the numbers of the claim with the most looks.
    done: dict[tuple[int, str], int] = {}
    for number, (claim, of_claim) in enumerate(zip(rules["claims"], claims, strict=True)):
        for comparison, evidence in zip(claim["comparisons"], of_claim, strict=True):
            place = comparison["row"], comparison["metric"]
            pairs = max(comparison["looks"], default=0)
            if done.get(place, -1) >= pairs:
                continue
            done[place] = pairs
            p = None
            if claim["tested"] and pairs:
                own = min(evidence["shown"], evidence["opposite"])
                p = holm([*levels[:number], own, *levels[number + 1 :]])[number]
            line_of[place].update(evidence["test"] | {"p_holm": p})


def comparison_evidence(
    table: dict[str, Any], comparison: dict[str, Any], values: Values
) -> dict[str, Any]:
    """Compute the last test of a comparison, and the smallest levels at which it has crossed.

    The levels are for the claimed sign, for the opposite sign, and for "no difference".
    """
    rules, key = table["sequential"], comparison["metric"]
    row = table["rows"][comparison["row"]]
    cells = row["cell"], table["rows"][row["versus"]]["cell"]
    found: dict[str, Any] = {
        "test": paired({}, {}),
        **dict.fromkeys(("shown", "opposite", "equal"), 1.0),
    }
    for n in comparison["looks"]:
        look = rules["looks"].index(n)
        # In the seeds of a look, a value is missing where the training diverged.
        row_values, base_values = (
            {
                place: values.get((cell, key), {}).get(place, rules["diverged_value"])
                for place in range(n)
            }
            for cell in cells
        )
        test = paired(row_values, base_values, 1 - boundary(rules, look, 0.05))
        crossing = level(rules, look, test["p"])
        is_claimed = comparison["direction"] * test["difference"] > 0
        sign = "shown" if is_claimed or comparison["direction"] == 0 else "opposite"
        found[sign] = min(found[sign], crossing)
        margin = rules["margin"]
        if margin is not None and abs(test["difference"]) < margin:
            differences = np.array([row_values[place] - base_values[place] for place in range(n)])
            found["equal"] = min(
                found["equal"], level(rules, look, equivalence_p(test, differences, margin))
            )
        found["test"] = test
    return found


def equivalence_p(test: dict[str, Any], differences: np.ndarray, margin: float) -> float:
    """P value at which the two-sided interval of the difference just fits into the margin."""
    n = len(differences)
    if test["difference_low"] is None:
        return 2.0 ** (1 - n)
    room = (margin - abs(test["difference"])) / stats.sem(differences)
    return float(2 * stats.t.sf(room, n - 1))


def claim_level(evidence: list[dict[str, Any]], margin: float | None) -> float | None:
    """Return the smallest level at which a claim has any outcome; ``None`` before its first look.

    The claimed sign needs all comparisons. The opposite sign needs one, so it takes Bonferroni's
    correction; with a margin it shares its part of the level with "no difference".
    """
    if any(item["test"]["p"] is None for item in evidence):
        return None
    share = 2 if len(evidence) > 1 and margin is not None else 1
    shown: float = max(item["shown"] for item in evidence)
    opposite: float = len(evidence) * min(item["opposite"] for item in evidence)
    equal: float = max(item["equal"] for item in evidence)
    return min(1.0, shown, share * opposite, share * equal)


def boundary(rules: dict[str, Any], look: int, of_level: float) -> float:
    """Return the p value at or below which a test at a level crosses at a look."""
    levels, bounds = (np.log([line[n] for line in rules["boundaries"]]) for n in (0, look + 1))
    return float(np.exp(np.interp(np.log(of_level), levels, bounds)))


def level(rules: dict[str, Any], look: int, p: float) -> float:
    """Return the smallest level at which a p value crosses at a look."""
    if p <= 0:
        return 0.0
    levels, bounds = (np.log([line[n] for line in rules["boundaries"]]) for n in (0, look + 1))
    if np.log(p) < bounds[0]:
        return float(np.exp(levels[0] + np.log(p) - bounds[0]))
    return float(np.exp(np.interp(np.log(p), bounds, levels)))


def mark(
    lines: list[dict[str, Any]], metric: dict[str, Any], values: Values, significance: float
) -> None:
    """Mark the best rows and the second-best row.

    The best row, and all rows that are not distinguishable from it, are bold.

    The test is the one-sided paired t test with Bonferroni's correction over the other rows. The
    best of the remaining rows is marked as underlined.
    """
    measured = [line for line in lines if values.get((line["cell"], metric["key"]))]
    if not measured:
        return
    sign = 1 if metric["higher_is_better"] else -1
    means = {
        line["cell"]: sign * float(np.mean(list(values[line["cell"], metric["key"]].values())))
        for line in measured
    }
    best = max(measured, key=lambda line: means[line["cell"]])
    best_values = values[best["cell"], metric["key"]]
    for line in measured:
        test = paired(values[line["cell"], metric["key"]], best_values)
        worse = test["p"] is not None and sign * test["difference"] < 0
        if line is best or not worse or test["p"] / 2 * (len(measured) - 1) > significance:
            line["mark"] = "bold"
    others = [line for line in measured if not line["mark"]]
    if others:
        max(others, key=lambda line: means[line["cell"]])["mark"] = "underlined"


def printed(value: Any) -> str:  # noqa: ANN401 - a cell of the table
    """Format a cell of the table: fractions with six digits."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.6f}"
    return text.lstrip("-") if float(text) == 0 else text


def main() -> int:
    """Run the script."""
    folder = Path(__file__).parent
    table = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    rebuilt_text = rebuilt(table, read_values((folder / "values.csv").read_text(encoding="utf-8")))
    stored = (folder / "table.csv").read_text(encoding="utf-8")
    if rebuilt_text == stored:
        sys.stdout.write(
            f"table.csv was made again from values.csv: {rebuilt_text.count(chr(10)) - 1} lines, "
            "all the same.\n"
        )
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(
            stored.splitlines(True),
            rebuilt_text.splitlines(True),
            "table.csv",
            "made from values.csv",
        )
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
