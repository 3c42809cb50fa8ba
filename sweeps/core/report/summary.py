"""What the page says of a study besides its results: failures, running trials, the forecast, settings and hardware."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sweeps.core.design.study import Cell
from sweeps.core.plan.forecast import duration, scorecard
from sweeps.core.report.row_details import NEVER_SHARED, value_text
from sweeps.core.store.study_record import StudyRecord, TrialRecord
from toco.config import flatten
from toco.room import size

MAX_FAILURES, MAX_RUNNING = 20, 50


def failures(study: StudyRecord) -> list[dict[str, Any]]:
    """Group the trials that failed or diverged by their last line, the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[Cell, TrialRecord]]] = {}
    for cell, trials in zip(study.cells, study.trials_by_cell, strict=True):
        for trial in trials:
            if trial.state in ("failed", "diverged"):
                last = (trial.message or "no message").strip().rpartition("\n")[2]
                groups.setdefault((trial.state, last), []).append((cell, trial))
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        {
            "state": state,
            "last": last,
            "count": len(members),
            "names": [f"{cell.label}, seed {trial.seed}" for cell, trial in members[:5]],
            "attempts": max(trial.attempts for _, trial in members),
            "message": members[0][1].message or "",
        }
        for (state, last), members in ordered[:MAX_FAILURES]
    ]


def running(study: StudyRecord) -> list[tuple[str, int, int | None]]:
    """List the running trials: name, step, and the total number of steps, once a trial has ended."""
    steps = next((trial.entry.config.get("num_steps") for trial in study.trials if trial.entry), None)
    found = [
        (f"{cell.label}, seed {trial.seed}", trial.step, steps)
        for cell, trials in zip(study.cells, study.trials_by_cell, strict=True)
        for trial in trials
        if trial.state == "running"
    ]
    return found[:MAX_RUNNING]


def forecast(study: StudyRecord) -> tuple[str, ...]:
    """Compare the forecast with what happened, in sentences."""
    if study.forecast is None:
        return ()
    # The forecast left out what another study had trained before.
    entries = [trial.entry for trial in study.trials if trial.entry and trial.entry.origin.study == study.name]
    return scorecard(study.forecast, entries, None)


def facts(study: StudyRecord) -> list[tuple[str, str]]:
    """List recipe, data, versions, hardware and cost; where trials differ, all values are named."""
    entries = [trial.entry for trial in study.trials if trial.entry]
    provenance = [entry.provenance for entry in entries]
    finished = sum(trial.counts for trial in study.trials)
    facts = [
        ("Recipe", study.recipe),
        ("Data", study.data),
        ("Design", f"{study.design}, for {'effects of a size' if study.purpose == 'effect' else 'direction'}"),
        (
            "Changed from the recipe",
            ", ".join(f"{path} = {value}" for path, value in study.changes.items()) or "nothing",
        ),
        ("Seeds", ", ".join(map(str, study.seeds))),
        ("Trials", f"{finished} of {len(study.trials)} finished"),
        ("Study digest", study.digest),
    ]
    commits = (
        "unknown (not in a git checkout)" if commit is None else commit + (" with uncommitted changes" if dirty else "")
        for commit, dirty in dict.fromkeys((p.get("commit"), p.get("dirty")) for p in provenance)
    )
    facts.append(("Commit", _distinct(commits)))
    versions = (", ".join(f"{name} {v}" for name, v in p.get("versions", {}).items()) for p in provenance)
    facts.append(("Versions", _distinct(versions)))
    facts.append(("Hardware", _distinct(f"{p.get('device')}, {p.get('platform')}" for p in provenance if p)))
    facts.append(("Weights (sha256)", _distinct(p.get("weights_sha256") or "none from a file" for p in provenance)))
    manifests = (", ".join(f"{split} {v[:16]}" for split, v in p.get("data_manifest", {}).items()) for p in provenance)
    facts.append(("Data manifest (sha256)", _distinct(manifests)))
    times = [entry.wall_time_s for entry in entries if entry.wall_time_s is not None]
    if times:
        facts.append(("Time", f"{duration(sum(times))} in all trials together, {duration(max(times))} the longest"))
    memory = [entry.peak_memory_bytes for entry in entries if entry.peak_memory_bytes]
    if memory:
        facts.append(("Peak memory", f"{size(max(memory))} in one trial"))
    attempts = sum(trial.attempts for trial in study.trials)
    if attempts:
        facts.append(("Failed attempts", str(attempts)))
    return [(name, value) for name, value in facts if value]


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))


def shared_config(study: StudyRecord) -> list[tuple[str, str]]:
    """List the fields of the first config that was trained; those that the study varies read ``varies``."""
    entry = next((trial.entry for trial in study.trials if trial.entry), None)
    varied = {path for cell in study.cells for path in cell.changes} | NEVER_SHARED
    leaves = {} if entry is None else flatten(entry.config)
    return [(path, "varies" if path in varied else value_text(leaves, path)) for path in leaves]
