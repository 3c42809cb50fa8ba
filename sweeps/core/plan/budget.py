"""The budget of a sequential study: whether its next look may start.

The answer depends on costs alone, never on the values of results. So a budget changes no decision
about a claim.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import Situation, Task
from sweeps.core.store.budget_record import BudgetStop
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.ledger_entry import LedgerEntry


@dataclass(frozen=True, slots=True)
class Budget:
    """Hours that a study may use.

    Attributes:
        hours: GPU hours, or CPU core hours where trials have no GPU.
        launch: Resources of the coming trials.
        predicted: Forecast of the trials of the first look, before which no trial has ended; its
            hours are those of a trial as long as the ledger has none of the study.
    """

    hours: float
    launch: Launch
    predicted: Forecast

    @classmethod
    def of(cls, launch: Launch, predicted: Forecast) -> Budget | None:
        """Return the budget of a launch; ``None`` where it has no limit."""
        return None if launch.budget_hours is None else cls(launch.budget_hours, launch, predicted)

    def stop(self, situation: Situation, tasks: Iterable[Task]) -> BudgetStop | None:
        """Return why the study must not begin ``tasks``; ``None`` where it may.

        The first look is not judged here, but by :meth:`refusal`.

        Args:
            situation: The study.
            tasks: All trials that it would need, with those that have ended.
        """
        look = situation.looks().num_done
        if not look:
            return None
        used, needed = self._hours(situation, tasks)
        if used + needed <= self.hours or not needed:
            return None
        return BudgetStop(self.hours, look, used, needed)

    def refusal(self, situation: Situation) -> str | None:
        """Say why the budget is too small for the first look; ``None`` where it is not."""
        if situation.looks().num_done:
            return None
        used, needed = self._hours(situation, situation.trials().values())
        if used + needed <= self.hours:
            return None
        before = f" after {used:.2f} hours that are used" if used else ""
        return (
            f"The trials up to the first look take about {needed:.2f} hours{before}, and the "
            f"budget is {self.hours:g} hours. Give a larger --budget-hours."
        )

    def _hours(self, situation: Situation, tasks: Iterable[Task]) -> tuple[float, float]:
        """Return the hours of the study's trials in the ledger, and those that ``tasks`` lack."""
        entries = [
            entry
            for key in situation.keys
            if (entry := situation.ledger.entry(key)) is not None and entry.wall_time_s is not None
        ]
        trained = [self._held(entry) for entry in entries if entry.origin.derived_from is None]
        derived = [self._held(entry) for entry in entries if entry.origin.derived_from is not None]
        ready, waiting = situation.tasks(situation.missing(tasks))
        pasts = [trained if task.source is None else derived for task in (*ready, *waiting)]
        needed = sum(statistics.fmean(past) if past else self._predicted for past in pasts)
        return sum(trained) + sum(derived), needed

    def _held(self, entry: LedgerEntry) -> float:
        held = entry.resources.gpus if self.launch.gpus_per_trial else entry.resources.cpus
        return held * (entry.wall_time_s or 0.0) / 3600

    @property
    def _predicted(self) -> float:
        """Predicted hours of a trial; 0 where nothing is known."""
        hours = self.predicted.gpu_hours or self.predicted.cpu_hours or 0.0
        return hours / max(self.predicted.trainings + self.predicted.evaluations, 1)
