"""Archive for reviewers: values by seed, configs, environments, figures and a script.

The script computes the table again from the values. For anonymous review, the archive contains no
hosts, users, folders, commands or times. The same results give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sweeps.core.findings.look_states import Looks
from sweeps.core.report import rebuild_table
from sweeps.core.report.section import Cards, ReportForms
from sweeps.core.report.table import StudyTable, table_csv
from sweeps.core.report.text_grid import csv_text
from sweeps.core.statistics.sequential import boundaries
from sweeps.core.store.study_record import StudyRecord
from toco.files import whole_file
from toco.passwords import public_text

ENVIRONMENT = (
    "commit",
    "dirty",
    "versions",
    "platform",
    "device",
    "num_threads",
    "data_manifest",
    "weights_sha256",
)
"""Parts of a trial's provenance that identify no person and no place."""
_MOMENT = (1980, 1, 1, 0, 0, 0)

LOOKS = (
    " `sequential` has the claims, their looks, and the boundaries of the repeated tests by level."
)
README = """# {title}

- `table.csv`, `table.md`, `table.tex`: the table.
- `values.csv`: the result of every trial, by cell, seed and metric. `trials.csv`: how each ended.
- `table.json`: rows, cells, comparisons that were declared before anything was run, and columns \
that are copied.{looks}
- `rebuild_table.py`: makes `table.csv` again from `values.csv` and compares; needs Python, numpy \
and scipy.
- `configs/`: the whole config of every cell. `environments.json`: versions and hardware, with the \
trials each ran.
- `figures/`: the figures of the report.
- `SHA256SUMS`: checksums, for `sha256sum -c SHA256SUMS`.
"""


def bundle_files(report: ReportForms) -> dict[str, str]:
    """Make the content of the archive's files by relative path; ``SHA256SUMS`` is the last."""
    study = report.source.study
    files = {
        "README.md": README.format(
            title=study.title, looks=LOOKS if study.sequential is not None else ""
        ),
        **rebuild_files(report.source.table, study, report.source.analysis.looks),
        "table.md": report.markdown,
        "table.tex": report.latex,
        "trials.csv": _trials(study),
        "environments.json": _json(_environments(study)),
        **_configs(study),
        **_figures(report.cards),
    }
    sums = [
        f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
        for name, text in sorted(files.items())
    ]
    return files | {"SHA256SUMS": "".join(sums)}


def rebuild_files(table: StudyTable, study: StudyRecord, looks: Looks) -> dict[str, str]:
    """Make ``table.csv`` with its input and the script that computes it again."""
    return {
        "table.csv": table_csv(table),
        "values.csv": _values(study),
        "table.json": _json(_description(table, study, looks)),
        "rebuild_table.py": Path(rebuild_table.__file__).read_text(encoding="utf-8"),
    }


def write_zip(target: Path, folder: str, files: Mapping[str, str]) -> None:
    """Write ``files`` under ``folder`` into the zip file ``target``, atomically."""
    with (
        whole_file(target) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, text in files.items():
            entry = zipfile.ZipInfo(f"{folder}/{name}", _MOMENT)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text.encode())


def _values(study: StudyRecord) -> str:
    lines = [
        (number, trial.replicate, trial.seed, metric.key, repr(value))
        for number, trials in enumerate(study.trials_by_cell)
        for trial in trials
        for metric in study.metrics
        if (value := trial.value(metric.key)) is not None
    ]
    return csv_text(("cell", "replicate", "seed", "metric", "value"), lines)


def _trials(study: StudyRecord) -> str:
    lines = [
        (
            number,
            study.cells[number].label,
            trial.replicate,
            trial.seed,
            trial.state,
            trial.step,
            trial.key,
        )
        for number, trials in enumerate(study.trials_by_cell)
        for trial in trials
    ]
    return csv_text(("cell", "label", "replicate", "seed", "state", "step", "key"), lines)


def _description(table: StudyTable, study: StudyRecord, looks: Looks) -> dict[str, Any]:
    """Make ``table.json``, the input of ``rebuild_table`` besides the values.

    It holds the design, and the columns that ``rebuild_table`` copies instead of computing.
    """
    columns = [(column.key, column.value) for column in table.columns if column.value is not None]
    copied = [(key, value) for key, value in columns if key not in rebuild_table.COMPUTED]
    rows = sorted(
        (row for block in table.blocks for row in block.rows), key=lambda row: row.planned.number
    )
    return {
        "headings": [key for key, _ in columns],
        "title": study.title,
        "design": study.design,
        "recipe": study.recipe,
        "data": study.data,
        "purpose": study.purpose,
        "significance": study.significance,
        "sequential": _looks(study, looks),
        "metrics": [
            {"key": metric.key, "title": metric.title, "higher_is_better": metric.higher_is_better}
            for metric in study.metrics
        ],
        "rows": [
            {
                "number": row.planned.number,
                "block": row.planned.block,
                "cell": row.planned.cell,
                "versus": row.planned.versus,
                "columns": {
                    measurement.metric.key: {key: value(measurement) for key, value in copied}
                    for measurement in row.measurements
                },
            }
            for row in rows
        ],
    }


def _looks(study: StudyRecord, looks: Looks) -> dict[str, Any] | None:
    """Describe the claims of a sequential study, with the looks that took place."""
    rules = study.sequential
    if rules is None:
        return None
    return {
        "looks": rules.looks,
        "spending": rules.spending,
        "futility": None if rules.futility is None else asdict(rules.futility),
        "diverged_value": rules.diverged_value,
        "margin": study.margin,
        "common": looks.common,
        "claims": [
            {
                "name": claim.claim.name,
                "outcome": claim.outcome,
                "tested": claim.outcome != "not tested",
                "comparisons": [
                    {
                        **asdict(state.comparison),
                        "looks": [look.n for look in state.looks],
                    }
                    for state in claim.comparisons
                ],
            }
            for claim in looks.claims
        ],
        # Lines of a level and the boundary of each look.
        "boundaries": boundaries(rules.looks, rules.spending).lines(),
    }


def _environments(study: StudyRecord) -> list[dict[str, Any]]:
    """List the environments of all trials, each with the keys of its trials."""
    environments: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for trial in study.trials:
        if trial.entry:
            provenance = {name: trial.entry.provenance.get(name) for name in ENVIRONMENT}
            described = {
                **provenance,
                "resources": asdict(trial.entry.resources),
                "code": trial.entry.identity["code"],
            }
            environments.setdefault(json.dumps(described, sort_keys=True), (described, []))[
                1
            ].append(trial.key)
    return [{**described, "trials": keys} for described, keys in environments.values()]


def _configs(study: StudyRecord) -> dict[str, str]:
    files = {}
    for number, trials in enumerate(study.trials_by_cell):
        config = next((trial.entry.config for trial in trials if trial.entry), None)
        if config is not None:
            files[f"configs/cell_{number:05d}.json"] = _json(_without_folders(config))
    return files


def _without_folders(node: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replace absolute paths by their last part, and remove passwords from addresses."""
    if isinstance(node, Mapping):
        return {name: _without_folders(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_without_folders(value) for value in node]
    if isinstance(node, str):
        for kind in (PurePosixPath(node), PureWindowsPath(node)):
            if kind.is_absolute() or node.startswith("~"):
                return kind.name
        return public_text(node)
    return node


def _figures(cards: Cards) -> dict[str, str]:
    drawings = {
        section.name: card.draw() for section, card in cards.sections if card.draw is not None
    }
    return {f"figures/{name}.svg": _stand_alone_svg(svg) for name, svg in drawings.items()}


def _stand_alone_svg(svg: str) -> str:
    """Make a figure of the page a file of its own.

    The colours that the page defines are added to the figure.
    """
    style = (Path(__file__).parent / "style.html.j2").read_text(encoding="utf-8")
    # The style defines each variable first for the light page; that value is taken.
    variables: dict[str, str] = {}
    for name, value in re.findall(r"(--[\w-]+):\s*([^;{}]+);", style):
        variables.setdefault(name, value)
    used = sorted(set(re.findall(r"var\((--[\w-]+)\)", svg)) & variables.keys())
    rules = " ".join(f"{name}: {variables[name]};" for name in used)
    return re.sub(
        r"(<svg[^>]*>)", lambda tag: f"{tag[1]}<style>svg {{ {rules} }}</style>", svg, count=1
    )


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
