"""Write a study's table and page beside its ``study.json``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sweeps.core.report import figures, table
from sweeps.core.report.gallery import gallery
from sweeps.core.report.study_record import StudyRecord, read_study_record


@dataclass(frozen=True, slots=True)
class StudyReport:
    """What was written.

    Attributes:
        text: The table with its captions, for a terminal.
        page: ``report.html``.
        files: All of ``table.md``, ``table.csv`` and ``report.html``.
    """

    text: str
    page: Path
    files: tuple[Path, ...]


def write_report(study_dir: Path) -> StudyReport:
    """Write ``table.md``, ``table.csv`` and ``report.html`` of the study as it stands, which may be unfinished.

    Raises:
        ValueError: ``study_dir`` is not a study's folder.
    """
    study = read_study_record(study_dir)
    captions = table.captions(study)
    found = table.finding(study)
    remarks = [*([found] if found else []), *captions]
    text = "\n\n".join([study.title, table.text_table(study, "simple"), "\n".join(map(_wrapped, remarks))])
    markdown = [f"# {study.title}", table.text_table(study, "pipe"), "\n".join(f"- {line}" for line in remarks)]
    contents = {
        "table.md": "\n\n".join(markdown) + "\n",
        "table.csv": table.data_frame(study).to_csv(index=False),
        "report.html": _page(study, found),
    }
    for name, content in contents.items():
        partial = study_dir / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(study_dir / name)
    return StudyReport(text, study_dir / "report.html", tuple(study_dir / name for name in contents))


def _wrapped(line: str) -> str:
    return textwrap.fill(line, width=110, subsequent_indent="  ")


def _page(study: StudyRecord, found: str | None) -> str:
    environment = Environment(
        loader=PackageLoader("sweeps.core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    published = table.paper_metrics(study)
    summaries = [[table.summarise(cell.metric(metric.key)) for metric in study.metrics] for cell in study.cells]
    best = [
        max((row[i].mean for row in summaries if row[i] is not None), default=None)  # type: ignore[union-attr]
        for i in range(len(study.metrics))
    ]
    rows = [
        {
            "cell": cell,
            "num_seeds": table.num_seeds(cell, study),
            "ours": [
                None
                if summary is None
                else {
                    "mean": table.printed(summary.mean, metric),
                    "std": None if summary.std is None else table.printed(summary.std, metric),
                    "is_best": metric.is_percent and len(study.cells) > 1 and summary.mean == highest,
                }
                for summary, metric, highest in zip(row, study.metrics, best, strict=True)
            ],
            "paper": [table.printed(cell.paper[m.key], m) if m.key in cell.paper else None for m in published],
        }
        for cell, row in zip(study.cells, summaries, strict=True)
    ]
    return environment.get_template("report.html.j2").render(
        study=study,
        finding=found,
        heading=table.row_heading(study),
        rows=rows,
        published=published,
        meanings=table.meanings(study),
        not_voc=table.NOT_VOC if study.data == "shapes" else None,
        curve=figures.curve_over_rows(study),
        similarity=figures.similarity_over_blocks(study),
        training=figures.training_curves(study),
        gallery=gallery(study),
        facts=_facts(study),
        trials=[_trial_row(study, cell_label, trial) for cell_label, trial in _labelled_trials(study)],
        config=_shared_config(study),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _labelled_trials(study: StudyRecord) -> list[tuple[str, Any]]:
    return [(cell.label, trial) for cell in study.cells for trial in cell.trials]


def _trial_row(study: StudyRecord, label: str, trial: Any) -> dict[str, Any]:  # noqa: ANN401
    result = (trial.run.result if trial.run else None) or {}
    values = [trial.value(metric.key) for metric in study.metrics]
    return {
        "label": label,
        "seed": trial.seed,
        "state": trial.state,
        "step": result.get("step"),
        "values": [None if v is None else table.printed(v, m) for v, m in zip(values, study.metrics, strict=True)],
        "time": duration(result["wall_time_s"]) if result.get("wall_time_s") is not None else None,
        "digest": trial.run.digest if trial.run else None,
    }


def _facts(study: StudyRecord) -> list[tuple[str, str]]:
    """What was run, on what; where the trainings differ all values are named."""
    runs = [trial.run for trial in study.trials if trial.run is not None]
    results = [run.result for run in runs if run.result is not None]
    finished = sum(trial.counts for trial in study.trials)
    facts = [
        ("Recipe", study.recipe),
        ("Data", study.data),
        (
            "Changed from the recipe",
            ", ".join(f"{path} = {value}" for path, value in study.changes.items()) or "nothing",
        ),
        ("Seeds", ", ".join(map(str, study.seeds))),
        ("Trainings", f"{finished} of {len(study.trials)} finished"),
        ("Study digest", study.digest),
    ]
    provenance = [run.provenance for run in runs]
    commits = (
        None if p.get("commit") is None else p["commit"] + (" with uncommitted changes" if p.get("dirty") else "")
        for p in provenance
    )
    facts.append(("Commit", _distinct(commit or "unknown (not in a git checkout)" for commit in commits)))
    versions = (", ".join(f"{name} {v}" for name, v in p.get("versions", {}).items()) for p in provenance)
    facts.append(("Versions", _distinct(versions)))
    facts.append(("Hardware", _distinct(f"{p.get('device')}, {p.get('platform')}" for p in provenance)))
    facts.append(("Weights (sha256)", _distinct(p.get("weights_sha256") or "none from a file" for p in provenance)))
    manifests = (", ".join(f"{split} {v[:16]}" for split, v in p.get("data_manifest", {}).items()) for p in provenance)
    facts.append(("Data manifest (sha256)", _distinct(manifests)))
    facts.append(("Protocol", _distinct((run.last_evaluation or {}).get("protocol") or "" for run in runs)))
    times = [result["wall_time_s"] for result in results if result.get("wall_time_s") is not None]
    if times:
        facts.append(("Time", f"{duration(sum(times))} in all trainings together, {duration(max(times))} the longest"))
    memory = [result["peak_memory_bytes"] for result in results if result.get("peak_memory_bytes")]
    if memory:
        facts.append(("Peak memory", f"{max(memory) / 2**20:.0f} MiB in one training"))
    return [(name, value) for name, value in facts if value]


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))


def _shared_config(study: StudyRecord) -> list[tuple[str, str]]:
    """The config's leaves of the first training there is; those that differ between trainings say so."""
    configs = [trial.run.parameters for trial in study.trials if trial.run is not None]
    if not configs:
        return []
    return [
        (path, json.dumps(value) if all(c.get(path) == value for c in configs) else "varies")
        for path, value in configs[0].items()
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(s) for s in (4.2, 75, 3725)]
    ['4 s', '1 min 15 s', '1 h 2 min']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
