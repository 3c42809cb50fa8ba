"""Make table.csv again from values.csv, and compare it with the table.csv beside it; exit status 1 where they differ.

Needs Python 3.10, numpy and scipy.

values.csv has the result of every trial, table.json says which cells are rows, what each is
compared with and which comparisons were declared before anything was run. The columns in COMPUTED
are computed here; all others are copied from table.json, among them intervals over images, which
need the confusion matrices of single images.
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
"""Standard deviations below this part of the largest value are rounding: such values count as equal."""

COMPUTED = (
    *("n", "mean", "sd", "low", "high", "mark"),
    *("pairs", "difference", "difference_low", "difference_high", "p", "p_holm", "effect_size"),
)
"""Columns of table.csv that are computed from values.csv."""

Values = dict[tuple[int, str], dict[int, float]]
"""By cell and metric: by place among the seeds."""


def read_values(text: str) -> Values:
    """The values that count, of the text of values.csv."""
    values: Values = {}
    for line in csv.DictReader(io.StringIO(text)):
        of_cell = values.setdefault((int(line["cell"]), line["metric"]), {})
        of_cell[int(line["replicate"])] = float(line["value"])
    return values


def rebuilt(table: dict[str, Any], values: Values) -> str:
    """The text of table.csv."""
    lines = [
        line
        for row in table["rows"]
        for line in (row_line(table, row, m["key"], values) for m in table["metrics"])
    ]
    correct_by_holm(lines)
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
    """One line, without the mark and without Holm's correction."""
    ours = values.get((row["cell"], key), {})
    theirs = (
        {} if row["versus"] is None else values.get((table["rows"][row["versus"]]["cell"], key), {})
    )
    line: dict[str, Any] = {
        "cell": row["cell"],
        "number of block": row["block"],
        "mark": "",
        **row["columns"][key],
    }
    numbers = np.array(list(ours.values()))
    line |= dict(
        zip(("n", "mean", "sd", "low", "high"), summary(numbers, np.abs(numbers)), strict=True)
    )
    return line | paired(ours, theirs)


def summary(
    values: np.ndarray, sizes: np.ndarray
) -> tuple[int, float | None, float | None, float | None, float | None]:
    """Number, mean, standard deviation and the t interval of the mean.

    A deviation that is rounding, compared with the largest of ``sizes``, is 0; without scatter
    there is no interval.
    """
    n = len(values)
    if n < 2:
        return n, float(values[0]) if n else None, None, None, None
    mean, sd = float(values.mean()), float(np.std(values, ddof=1))
    if sd <= ROUNDING * float(sizes.max()):
        return n, mean, 0.0, None, None
    low, high = stats.t.interval(0.95, n - 1, mean, stats.sem(values))
    return n, mean, sd, float(low), float(high)


def paired(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, Any]:
    """The difference paired by place among the seeds, its t interval, the paired t test and Hedges' effect size."""
    common = sorted(ours.keys() & theirs.keys())
    first, second = (np.array([side[key] for key in common]) for side in (ours, theirs))
    sizes = np.abs(np.concatenate([first, second]))
    n, mean, sd, low, high = summary(first - second, sizes)
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
        # Nothing scatters: the t test has no scale. All signs equal is what the exact sign-flip
        # test counts.
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
    """Holm's step-down over all declared comparisons; one without a result yet counts as p = 1."""
    family = [line for line in lines if line["declared"] == "yes"]
    family.sort(key=lambda line: 1.0 if line["p"] is None else line["p"])
    largest = 0.0
    for place, line in enumerate(family):
        if line["p"] is not None:
            largest = max(largest, min(1.0, line["p"] * (len(family) - place)))
            line["p_holm"] = largest


def mark(
    lines: list[dict[str, Any]], metric: dict[str, Any], values: Values, significance: float
) -> None:
    """Bold: the best row and all that a one-sided paired t test, corrected over the others, cannot tell from it."""
    shown = [line for line in lines if values.get((line["cell"], metric["key"]))]
    if not shown:
        return
    sign = 1 if metric["higher_is_better"] else -1
    best = max(shown, key=lambda line: sign * line["mean"])
    best_values = values[best["cell"], metric["key"]]
    for line in shown:
        test = paired(values[line["cell"], metric["key"]], best_values)
        worse = test["p"] is not None and sign * test["difference"] < 0
        if line is best or not worse or test["p"] / 2 * (len(shown) - 1) > significance:
            line["mark"] = "bold"
    others = [line for line in shown if not line["mark"]]
    if others:
        max(others, key=lambda line: sign * line["mean"])["mark"] = "underlined"


def printed(value: Any) -> str:  # noqa: ANN401 - a cell of the table
    """Fractions with six digits."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.6f}"
    return text.lstrip("-") if float(text) == 0 else text


def main() -> int:
    """The script."""
    folder = Path(__file__).parent
    table = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    made = rebuilt(table, read_values((folder / "values.csv").read_text(encoding="utf-8")))
    stored = (folder / "table.csv").read_text(encoding="utf-8")
    if made == stored:
        sys.stdout.write(
            f"table.csv was made again from values.csv: {made.count(chr(10)) - 1} lines, all the same.\n"
        )
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(
            stored.splitlines(True), made.splitlines(True), "table.csv", "made from values.csv"
        )
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
