"""The stop of a study by its budget, as ``study.json`` stores it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetStop:
    """Why a sequential study asked for no further look.

    Attributes:
        hours: The budget, in GPU hours, or in CPU core hours where trials have no GPU.
        look: Number of looks that were over, at least 1.
        used: Hours of the study's trials in the ledger.
        needed: Predicted hours of the trials that the next look lacks.
    """

    hours: float
    look: int
    used: float
    needed: float

    @property
    def short(self) -> str:
        """The stop in a few words: ``stopped by the budget of 10 hours after look 2``."""
        return f"stopped by the budget of {self.hours:g} hours after look {self.look}"

    @property
    def sentence(self) -> str:
        """The stop with its reason and the way on."""
        return (
            f"The study is {self.short}: {self.used:.2f} hours are used, and the next look takes "
            f"about {self.needed:.2f} more. Open claims stay open. The same command with a larger "
            "--budget-hours goes on."
        )
