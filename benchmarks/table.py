"""Write ``benchmarks/results/README.md``, the summary of all JSON files in that folder.

python -m benchmarks table
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from benchmarks._record import FORMAT_VERSION, RESULTS
from toco.config import flatten
from toco.files import read_json, write_text

README = "README.md"
STEP = "step"
HEAD = """# What was measured

Written by `python -m benchmarks table` from the JSON files of this folder. `python -m benchmarks
--help` lists the benchmarks. Times are medians unless they say otherwise.
"""
STEP_TEXT = """\
One training step: the plain way (every pass of the official iteration, float32, explicit
attention) against ours, in one run with the same weights and images. The ratio is the plain median
over ours. The energy term is left out unless the phase names it; its time alone, forward and
backward, has its own columns. The peak is that of a large matrix product in the same precision,
measured in the same run. The arithmetic counts matrix products and convolutions."""
PHASES_TEXT = "Seconds by phase, plain → ours, in one step of each:"
_ABOUT = ("format_version", "name", "machine")
_GIB = 2**30


@click.command("table", help=__doc__)
@click.option(
    "--results",
    default=RESULTS,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another folder.",
)
def table(results: Path) -> None:
    """Read the results, and write the summary."""
    write_text(results / README, render(results))
    click.echo(f"wrote {results / README}")


def render(results: Path) -> str:
    """Format the summary of the JSON files in ``results``.

    Raises:
        ValueError: A file is no benchmark's result, or has another version.
    """
    by_name: dict[str, dict[str, Mapping[str, Any]]] = {}
    for file in sorted(results.glob("*.json")):
        record = read_json(file)
        if not set(_ABOUT) <= record.keys() or record["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{file} is not a result in version {FORMAT_VERSION} of the format (with "
                f"{', '.join(_ABOUT)}); measure it again with --out."
            )
        by_name.setdefault(record["name"], {})[file.name] = record
    parts = [HEAD]
    for name, records in sorted(by_name.items()):
        parts.append(f"## {name}")
        if name == STEP:
            steps, phases = _steps(list(records.values()))
            parts += [STEP_TEXT, _markdown(steps), PHASES_TEXT, _markdown(phases)]
            continue
        for file_name, record in records.items():
            parts += [f"`{file_name}`, on {_machine(record['machine'])}:", *_figures(record)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def describe(record: Mapping[str, Any]) -> str:
    """Format the figures of one result for a terminal."""
    if record["name"] == STEP:
        (step,), (phases,) = _steps([record])
        only_phases = {name: value for name, value in phases.items() if name not in step}
        tables = (tabulate(rows.items(), disable_numparse=True) for rows in (step, only_phases))
        return f"\n{PHASES_TEXT}\n".join(tables)
    return "\n\n".join(_figures(record))


def _steps(
    records: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each step, and a row of its phases."""
    steps, phases = [], []
    names = dict.fromkeys(
        name
        for record in records
        for side in ("plain", "ours")
        for name in record[side]["phases_s"]
    )
    for record in records:
        # Setting and figures.
        plain_side, our_side = record["plain"], record["ours"]
        setting = {
            "backbone": record["backbone"],
            "px": record["size_px"],
            "batch": record["batch"],
            "phase": record["phase"] + (" + energy" if record["energy"] else ""),
            "ours in": record["precision"] + (", compiled" if record["compiled"] else ""),
        }
        steps.append(
            setting
            | {
                "plain s": _short(plain_side["median_s"]),
                "ours s": _short(our_side["median_s"]),
                "ratio": f"**{record['ratio']:.2f}**",
                "of the shortest": f"{record['ratio_of_minima']:.2f}",
                "images/s": _both(plain_side["images_per_s"], our_side["images_per_s"]),
                "GFLOP/image": _both(plain_side["gflop_per_image"], our_side["gflop_per_image"]),
                "TFLOP/s": _both(plain_side["tflop_per_s"], our_side["tflop_per_s"]),
                "of the matrix peak": (
                    f"{plain_side['share_of_matrix_peak']:.0%} → "
                    f"{our_side['share_of_matrix_peak']:.0%}"
                ),
                "peak GiB": _both(
                    plain_side["peak_memory_bytes"] / _GIB, our_side["peak_memory_bytes"] / _GIB
                ),
                **{
                    f"energy {name}": f"{term['median_s']:.3g} s ({term['filter']})"
                    for name, term in record["energy_term"].items()
                },
                "on": _machine(record["machine"]),
            }
        )
        # Phases.
        seconds = {
            name: _both(*(side["phases_s"].get(name, 0.0) for side in (plain_side, our_side)))
            for name in names
        }
        phases.append(setting | seconds)
    return steps, phases


def _figures(record: Mapping[str, Any]) -> Iterable[str]:
    """Format every figure of a result: numbers in one table, each list of rows in a table."""
    figures = flatten({name: value for name, value in record.items() if name not in _ABOUT})
    tables = {
        path: value
        for path, value in figures.items()
        if value and isinstance(value, list) and isinstance(value[0], dict)
    }
    numbers = {path: value for path, value in figures.items() if path not in tables}
    if numbers:
        yield _markdown(
            [
                {"figure": path, "value": _figure_text(path, value)}
                for path, value in numbers.items()
            ]
        )
    for path, rows in tables.items():
        yield f"{path}:"
        yield _markdown(
            [
                {name: _figure_text(name, value) for name, value in flatten(row).items()}
                for row in rows
            ]
        )


def _figure_text(name: str, value: object) -> str:
    if isinstance(value, list | tuple):
        if len(value) > 1 and all(map(_is_number, value)):
            median, low, high = (
                _figure_text(name, of(value)) for of in (statistics.median, min, max)
            )
            return f"{median} ({low} to {high}, {len(value)} values)"
        return ", ".join(_figure_text(name, item) for item in value)
    if not _is_number(value):
        return str(value)
    if name.endswith("_bytes"):
        return f"{float(str(value)) / 1e6:,.1f} MB"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _both(plain_value: float, our_value: float) -> str:
    return f"{_short(plain_value)} → {_short(our_value)}"


def _short(value: float) -> str:
    """Format with three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _machine(machine: Mapping[str, Any]) -> str:
    facts = {
        "{}": machine.get("gpu") or machine.get("processor"),
        "{} cores": machine.get("cores"),
        "{} threads": machine.get("threads"),
        "torch {}": machine.get("torch"),
    }
    return ", ".join(words.format(value) for words, value in facts.items() if value is not None)


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=False, floatfmt=".3g")
