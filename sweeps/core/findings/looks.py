"""The looks of a stored study: what they have decided, which trials count, what stopped them."""

from __future__ import annotations

from collections.abc import Mapping

from sweeps.core.findings.look_states import ClaimState, Looks
from sweeps.core.findings.replay import replay
from sweeps.core.store.budget_record import BudgetStop
from sweeps.core.store.study_record import StudyRecord


def looks_of(study: StudyRecord) -> Looks:
    """Replay the looks of a stored study."""

    def results(cell: int, replicate: int) -> Mapping[str, float | None] | None:
        trials = study.trials_by_cell[cell]
        trial = trials[replicate] if replicate < len(trials) else None
        if trial is None or trial.entry is None:
            return None
        return trial.entry.metrics if trial.counts else {}

    return replay(study.tests, results)


def needed_trials(study: StudyRecord) -> StudyRecord:
    """Return the study with the trials that it needs now, without those beyond its looks.

    A study that its budget has stopped needs none of its next look.
    """
    looks = looks_of(study)
    stop, counts = budget_stop(study, looks), looks.num_seeds
    if stop is not None and study.sequential is not None:
        counts = tuple(min(n, study.sequential.looks[stop.look - 1]) for n in counts)
    return study.first_seeds(counts)


def budget_stop(study: StudyRecord, looks: Looks) -> BudgetStop | None:
    """Return the stop by a budget that holds now; ``None`` where the study goes on or has ended."""
    stop = study.stopped
    if stop is None or study.running or stop.look != looks.num_done:
        return None
    return stop if looks.is_open else None


def why_not_tested(study: StudyRecord, state: ClaimState) -> str:
    """Name the trainings without a value that a claim of a sequential study needs, as a phrase."""
    reasons = []
    for comparison in state.claim.comparisons:
        row = study.rows[comparison.row]
        cells = [row.cell] if row.versus is None else [row.cell, study.rows[row.versus].cell]
        for cell in cells:
            for trial in study.trials_by_cell[cell][: state.n]:
                name = f"{study.cells[cell].label}, seed {trial.seed}"
                if trial.state == "diverged":
                    reasons.append(f"{name} diverged")
                elif trial.counts and trial.value(comparison.metric) is None:
                    reasons.append(f"{name} has no value of {comparison.metric}")
    return "; ".join(dict.fromkeys(reasons))
