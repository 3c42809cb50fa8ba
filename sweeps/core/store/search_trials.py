"""The trials of a search as Optuna keeps them, in a journal that outlives its driver.

A trial is asked for, runs, and is told to be complete or pruned, as Optuna calls those without a
result: stopped at a rung, or diverged, so that proposals keep away from what diverged, too. One
that was asked for and not told goes on with the same values before another is asked for.
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
"""Attribute of a trial: what it reached at each rung, by step, and ``stopped_at``."""
MESSAGE = "message"
"""Attribute of a trial: why it has no result although no rung stopped it."""
KEY = "key"
"""Attribute of a trial: its key in the ledger."""

_ENDED = {TrialState.COMPLETE, TrialState.PRUNED}
_STUDY = "search"


class Journal(BaseJournalBackend):
    """What Optuna logs, one record a line, each with its place and its own digest.

    Every trial follows from the lines before it. A journal therefore ends before its first damaged
    line: what came after is asked for again, and results that the ledger has are not computed
    again.

    Only the process that holds the search's lease appends lines; others may read meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._logs: list[dict[str, Any]] = []
        self._end = 0
        """Bytes of the whole lines."""
        self.fault: str | None = None
        """What is damaged, in a sentence; nothing after it is read."""

    def read_logs(self, log_number_from: int) -> Sequence[dict[str, Any]]:
        """Logs of the whole lines from the given one on.

        A last line without its end was cut off by a crash, or is being written: it is no line and
        no fault.
        """
        if self.fault is None and self._path.is_file():
            with self._path.open("rb") as file:
                file.seek(self._end)
                *lines, _ = file.read().split(b"\n")
            for line in lines:
                log = _log(line, len(self._logs))
                if log is None:
                    self.fault = (
                        f"{printable(self._path)} is damaged in line {len(self._logs) + 1}: its bytes are not those "
                        "that were written."
                    )
                    break
                self._logs.append(log)
                self._end += len(line) + 1
        return self._logs[log_number_from:]

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Append lines; they are on disk when this returns, or none of them is there."""
        self.read_logs(0)
        append(self._path, "".join(_lines(logs, len(self._logs))).encode())

    def repair(self) -> None:
        """End the file after its last whole line, so that lines can follow; a damaged one is kept in ``history/``."""
        self.read_logs(0)
        if self.fault is not None:
            kept = keep_aside(self._path, self._path.parent / HISTORY, "damaged")
            write_text(self._path, "".join(_lines(self._logs, 0)))
            logger.warning(
                "%s The journal is kept as %s. The search goes on from the line before: later trials are asked for "
                "again, and results that the ledger has are not computed again.",
                self.fault,
                printable(kept),
            )
            self.fault = None
        elif self._path.is_file() and self._path.stat().st_size > self._end:
            logger.warning(
                "The last line of %s is torn, which loses one event of the search.",
                printable(self._path),
            )
            os.truncate(self._path, self._end)


class SearchTrials:
    """Asks for trials and tells how they ended. For one process at a time: that which holds the search's lease."""

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
        """Trials that were asked for and did not end; those that a rung had stopped are told so now."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            if trial.user_attrs.get(RUNGS, {}).get("stopped_at") is not None:
                self._tell(trial.number, state=TrialState.PRUNED)
            elif not self._is_whole(trial):
                # Its driver was lost while it asked. It is asked for again, by another number.
                self._tell(trial.number, state=TrialState.FAIL)
        return [trial for trial in self._trials() if trial.state is TrialState.RUNNING]

    def ended(self) -> list[int]:
        """Numbers of the trials that ended."""
        return [trial.number for trial in self._trials() if trial.state in _ENDED]

    def planned(self) -> list[int]:
        """Numbers of all trials, those included that are still to be asked for."""
        known = self._trials()
        asked = [trial.number for trial in known if self._is_whole(trial)]
        following = sum(trial.state is not TrialState.WAITING for trial in known)
        return asked + list(
            range(following, following + max(self._plan.study.num_trials - len(asked), 0))
        )

    @property
    def is_full(self) -> bool:
        """Whether as many trials were asked for as the search is to have."""
        return self._asked >= self._plan.study.num_trials

    def ask(self) -> FrozenTrial | None:
        """The next trial; ``None`` where there are as many as the search is to have."""
        if self.is_full:
            return None
        self._check()
        asked = self._asked
        # Of this number alone: a sampler that began anew with its driver would propose again what
        # it had proposed.
        seed = int.from_bytes(
            hashlib.sha256(f"{self._plan.study.seed}/{asked}".encode()).digest()[:4], "big"
        )
        self._study.sampler = TPESampler(
            n_startup_trials=self._plan.study.num_random, seed=seed, multivariate=True
        )
        trial = self._study.ask(dict(self._plan.study.space))
        return self._trial(trial.number)

    def set_key(self, number: int, key: str) -> None:
        """Note the key of a trial in the ledger, where it is not known yet."""
        trial = self._trial(number)
        if trial.user_attrs.get(KEY) != key and trial.state not in _ENDED:
            self._set(trial, KEY, key)

    def reached(self, number: int, step: int, metrics: Mapping[str, Any]) -> bool:
        """An evaluation of a running trial; says whether the trial goes on.

        A rung is judged once: a trial that goes on from a checkpoint behind it is not asked there
        again.
        """
        trial = self._trial(number)
        known = trial.user_attrs.get(RUNGS, {"reached": {}, "stopped_at": None})
        if (
            step not in self._plan.rungs
            or trial.state is not TrialState.RUNNING
            or str(step) in known["reached"]
        ):
            return bool(known["stopped_at"] is None)
        others = [
            other.user_attrs[RUNGS]["reached"][str(step)]
            for other in self._trials()
            # The same values are the same training, which competes with others and not with itself.
            if other.params != trial.params
            and str(step) in other.user_attrs.get(RUNGS, {}).get("reached", {})
        ]
        keys = [
            objective.key for objective in self._plan.study.objectives if objective.is_evaluated
        ]
        found = {key: metrics.get(key) for key in keys}
        goes_on = self._plan.goes_on(found, others)
        reached = {**known["reached"], str(step): found}
        # One line of the journal: either the trial was there and was judged, or it was not there.
        self._set(trial, RUNGS, {"reached": reached, "stopped_at": None if goes_on else step})
        if not goes_on:
            self._tell(number, state=TrialState.PRUNED)
        return goes_on

    def stop(self, number: int, step: int) -> None:
        """A rung has stopped this trial, or another one of the same values."""
        trial = self._trial(number)
        if trial.state not in _ENDED:
            self._set(trial, RUNGS, {"reached": {}, "stopped_at": step})
            self._tell(number, state=TrialState.PRUNED)

    def finish(self, number: int, entry: LedgerEntry) -> None:
        """The ledger has an entry of a trial. One that diverged, or has no value of an objective, has no result."""
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
        """Whether the trial has all its values: else its driver was lost while it asked, or it waits to be asked."""
        return trial.params.keys() == self._plan.study.space.keys()

    def _drop(self, trial: FrozenTrial, message: str) -> None:
        self._set(trial, MESSAGE, message)
        self._tell(trial.number, state=TrialState.PRUNED)

    def _tell(
        self, number: int, values: Sequence[float] | None = None, state: TrialState | None = None
    ) -> None:
        self._check()
        self._study.tell(number, values, state)

    def _set(self, trial: FrozenTrial, name: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
        self._check()
        self._storage.set_trial_user_attr(trial._trial_id, name, value)

    def _trial(self, number: int) -> FrozenTrial:
        return self._trials()[number]

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def read_study(journal: Path) -> tuple[optuna.Study | None, str | None]:
    """What a journal holds, and what is damaged in it, in a sentence; both ``None`` where there is none yet.

    Writes nothing, so that a running driver may go on.
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
    """The log in a line; ``None`` where it is damaged or not the line of that number."""
    record = json.loads(line) if is_sealed(line) else {}
    log: dict[str, Any] | None = record.get("log") if record.get("line") == number else None
    return log
