"""The trials of a search in Optuna's journal, which outlives its driver.

A trial is asked for, runs, and is told to be complete or pruned. Optuna calls a trial without a
result pruned: it was stopped at a rung, or it diverged. So proposals keep away from values that
diverged. An unfinished trial continues with the same values before a new one is asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from sweeps.core.design.search_space import SearchPlan
from sweeps.core.store.first_writer import keep_aside
from sweeps.core.store.folder_record import HISTORY
from sweeps.core.store.ledger_entry import LedgerEntry
from toco.files import append, is_sealed, printable, record_text, write_text

logger = logging.getLogger(__name__)

RUNGS = "rungs"
"""Attribute of a trial: its metrics at each rung, by step, and ``stopped_at``."""
MESSAGE = "message"
"""Attribute of a trial: why it has no result although no rung stopped it."""
KEY = "key"
"""Attribute of a trial: its key in the ledger."""

_ENDED = {TrialState.COMPLETE, TrialState.PRUNED}
_STUDY = "search"


class Journal(BaseJournalBackend):
    """Optuna's log, one record a line, each with its line number and its own digest.

    Every trial depends on the lines before it. So a journal ends before its first damaged line:
    later trials are asked for again, and results that the ledger has are not computed again.

    Only the process that holds the search's lease appends lines; others may read meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._logs: list[dict[str, Any]] = []
        self._end = 0
        """Number of bytes of the complete lines."""
        self.fault: str | None = None
        """Description of the damage; nothing after it is read."""

    def read_logs(self, log_number_from: int) -> Sequence[dict[str, Any]]:
        """Return the logs from the given number on.

        A last line without its line end was cut off by a crash or is being written. It is neither a
        line nor a fault.
        """
        if self.fault is None and self._path.is_file():
            with self._path.open("rb") as file:
                file.seek(self._end)
                *lines, _ = file.read().split(b"\n")
            for line in lines:
                log = _log(line, len(self._logs))
                if log is None:
                    self.fault = (
                        f"{printable(self._path)} is damaged in line {len(self._logs) + 1}: its "
                        "bytes are not those that were written."
                    )
                    break
                self._logs.append(log)
                self._end += len(line) + 1
        return self._logs[log_number_from:]

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Append lines. When this returns, all of them are on disk; after an error, none is."""
        self.read_logs(0)
        append(self._path, "".join(_lines(logs, len(self._logs))).encode())

    def repair(self) -> None:
        """End the file after its last complete line, so that lines can follow.

        A damaged journal is stored in ``history/``.
        """
        self.read_logs(0)
        if self.fault is not None:
            kept_path = keep_aside(self._path, self._path.parent / HISTORY, "damaged")
            write_text(self._path, "".join(_lines(self._logs, 0)))
            logger.warning(
                "%s The journal is kept as %s. The search goes on from the line before: later "
                "trials are asked for again, and results that the ledger has are not computed "
                "again.",
                self.fault,
                printable(kept_path),
            )
            self.fault = None
        elif self._path.is_file() and self._path.stat().st_size > self._end:
            logger.warning(
                "The last line of %s is incomplete, which loses one event of the search.",
                printable(self._path),
            )
            os.truncate(self._path, self._end)


class SearchTrials:
    """Ask Optuna for trials and tell it how they ended.

    For one process at a time: the one that holds the search's lease.
    """

    def __init__(self, journal: Path, plan: SearchPlan, check: Callable[[], None]) -> None:
        """Open the journal, or begin it with the recipe's own values as the first trial.

        Args:
            journal: The file.
            plan: The search.
            check: Called before every change of the journal; raises where the search's lease is
                lost.
        """
        check()
        self._plan = plan
        self._check = check
        journal.parent.mkdir(parents=True, exist_ok=True)
        lines = Journal(journal)
        lines.repair()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = _storage(lines)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=_STUDY,
            directions=[objective.direction for objective in plan.study.objectives],
            load_if_exists=True,
        )
        if (
            plan.start
            and not self._asked
            and not any(trial.state is TrialState.WAITING for trial in self._trials())
        ):
            self._study.enqueue_trial(dict(plan.start))

    def unfinished(self) -> list[FrozenTrial]:
        """Return the trials that were asked for and did not end.

        A trial that a rung had stopped is told to be pruned now.
        """
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            if trial.user_attrs.get(RUNGS, {}).get("stopped_at") is not None:
                self._tell(trial.number, state=TrialState.PRUNED)
            elif not self._is_whole(trial):
                # The driver was lost while it asked. The trial is asked for again, with another
                # number.
                self._tell(trial.number, state=TrialState.FAIL)
        return [trial for trial in self._trials() if trial.state is TrialState.RUNNING]

    def ended(self) -> list[int]:
        """Return the numbers of the trials that ended."""
        return [trial.number for trial in self._trials() if trial.state in _ENDED]

    def planned(self) -> list[int]:
        """Return the numbers of all trials, those that will still be asked for included."""
        trials = self._trials()
        asked = [trial.number for trial in trials if self._is_whole(trial)]
        following = sum(trial.state is not TrialState.WAITING for trial in trials)
        return asked + list(
            range(following, following + max(self._plan.study.num_trials - len(asked), 0))
        )

    @property
    def is_full(self) -> bool:
        """Whether all trials of the search were asked for."""
        return self._asked >= self._plan.study.num_trials

    def ask(self) -> FrozenTrial | None:
        """Return the next trial; ``None`` where all were asked for."""
        if self.is_full:
            return None
        self._check()
        asked = self._asked
        # The seed depends on the number of the trial: a sampler with a fixed seed would repeat its
        # proposals after each restart of the driver.
        seed = int.from_bytes(
            hashlib.sha256(f"{self._plan.study.seed}/{asked}".encode()).digest()[:4], "big"
        )
        self._study.sampler = TPESampler(
            n_startup_trials=self._plan.study.num_random, seed=seed, multivariate=True
        )
        trial = self._study.ask(dict(self._plan.study.space))
        return self._trial(trial.number)

    def set_key(self, number: int, key: str) -> None:
        """Store the key of a trial in the ledger, unless it is stored already."""
        trial = self._trial(number)
        if trial.user_attrs.get(KEY) != key and trial.state not in _ENDED:
            self._set(trial, KEY, key)

    def reached(self, number: int, step: int, metrics: Mapping[str, Any]) -> bool:
        """Record an evaluation of a running trial; return whether the trial continues.

        A rung is judged once: a trial that continues from a later checkpoint is not judged there
        again.
        """
        trial = self._trial(number)
        judged = trial.user_attrs.get(RUNGS, {"reached": {}, "stopped_at": None})
        if (
            step not in self._plan.rungs
            or trial.state is not TrialState.RUNNING
            or str(step) in judged["reached"]
        ):
            return bool(judged["stopped_at"] is None)
        others = [
            other.user_attrs[RUNGS]["reached"][str(step)]
            for other in self._trials()
            # Equal values are the same training, which competes with others and not with itself.
            if other.params != trial.params
            and str(step) in other.user_attrs.get(RUNGS, {}).get("reached", {})
        ]
        keys = [
            objective.key for objective in self._plan.study.objectives if objective.is_evaluated
        ]
        values = {key: metrics.get(key) for key in keys}
        goes_on = self._plan.goes_on(values, others)
        reached = {**judged["reached"], str(step): values}
        # One line of the journal: either the trial reached the rung and was judged, or it did not
        # reach it.
        self._set(trial, RUNGS, {"reached": reached, "stopped_at": None if goes_on else step})
        if not goes_on:
            self._tell(number, state=TrialState.PRUNED)
        return goes_on

    def stop(self, number: int, step: int) -> None:
        """Record that a rung has stopped this trial, or another one with the same values."""
        trial = self._trial(number)
        if trial.state not in _ENDED:
            self._set(trial, RUNGS, {"reached": {}, "stopped_at": step})
            self._tell(number, state=TrialState.PRUNED)

    def finish(self, number: int, entry: LedgerEntry) -> None:
        """Record the ledger's entry of a trial.

        A trial that diverged, or that lacks the value of an objective, gets no result.
        """
        trial = self._trial(number)
        if trial.state in _ENDED:
            return
        values = {
            objective.key: objective.value(entry.measured)
            for objective in self._plan.study.objectives
        }
        missing = [key for key, value in values.items() if value is None]
        if entry.status != "finished":
            self._drop(trial, entry.message or entry.status)
        elif missing:
            self._drop(trial, f"Its result has no finite {', '.join(missing)}.")
        else:
            self._tell(number, [value for value in values.values() if value is not None])

    @property
    def _asked(self) -> int:
        return sum(map(self._is_whole, self._trials()))

    def _is_whole(self, trial: FrozenTrial) -> bool:
        """Return whether the trial has all its values.

        If not, its driver was lost while it asked, or the trial waits to be asked for.
        """
        return trial.params.keys() == self._plan.study.space.keys()

    def _drop(self, trial: FrozenTrial, message: str) -> None:
        self._set(trial, MESSAGE, message)
        self._tell(trial.number, state=TrialState.PRUNED)

    def _tell(
        self, number: int, values: Sequence[float] | None = None, state: TrialState | None = None
    ) -> None:
        self._check()
        self._study.tell(number, values, state)

    def _set(self, trial: FrozenTrial, name: str, value: Any) -> None:  # noqa: ANN401 - any JSON
        self._check()
        self._storage.set_trial_user_attr(trial._trial_id, name, value)

    def _trial(self, number: int) -> FrozenTrial:
        return self._trials()[number]

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def read_study(journal: Path) -> tuple[optuna.Study | None, str | None]:
    """Read the Optuna study in a journal and the description of its damage.

    Both are ``None`` where the journal has not begun. Nothing is written, so that a running driver
    can continue.
    """
    lines = Journal(journal)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.load_study(study_name=_STUDY, storage=_storage(lines))
    except KeyError:
        study = None
    return study, lines.fault


def _storage(journal: Journal) -> JournalStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(journal)


def _lines(logs: Sequence[dict[str, Any]], start: int) -> Iterator[str]:
    return (record_text({"line": number, "log": log}) for number, log in enumerate(logs, start))


def _log(line: bytes, number: int) -> dict[str, Any] | None:
    """Return the log in a line; ``None`` where the line is damaged or has another number."""
    record = json.loads(line) if is_sealed(line) else {}
    log: dict[str, Any] | None = record.get("log") if record.get("line") == number else None
    return log
