"""Seeds that a study adds where its claims are open: looks, error spending and futility."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Futility:
    """When a claim is given up because the remaining seeds could hardly decide it.

    A comparison is given up if an upper bound of its effect lies below the effect that all seeds up
    to the cap would show with the probability ``power``. Giving up is not binding: it never raises
    the error rate, and its outcome is "not decidable", never "no effect".

    Attributes:
        power: Probability of the effect that the bound is compared with.
        confidence: One-sided confidence of the bound of the effect.
        from_seeds: Fewest seeds at which a claim is given up. With fewer, the standard deviation is
            mostly chance.
    """

    power: float = 0.5
    confidence: float = 0.9
    from_seeds: int = 5

    def __post_init__(self) -> None:
        for name, value in (("power", self.power), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise ValueError(f"Futility: the {name} must be between 0 and 1; got {value}.")
        if self.from_seeds < 3:
            raise ValueError(
                f"Futility needs at least three seeds for an effect size; got {self.from_seeds}."
            )


@dataclass(frozen=True, slots=True)
class Sequential:
    """Seeds in the place of a list: rows get seeds until their claims are decided.

    The study tests its claims after the first look. Only rows of open claims get the seeds of the
    next look, up to the cap. The error rate over all looks and claims is the study's significance.
    All fields are declared before the first training: other values are another study.

    Attributes:
        looks: Numbers of seeds after which the claims are tested, ascending; the last is the cap.
        spending: Exponent of the error spending function, see
            ``sweeps.core.statistics.sequential``.
        futility: When a claim is given up; ``None`` for never.
        diverged_value: Value of every metric of a training that diverged. With ``None``, a claim
            that needs such a training is not tested.
    """

    looks: tuple[int, ...] = (3, 5, 7, 10)
    spending: float = 2.0
    futility: Futility | None = field(default_factory=Futility)
    diverged_value: float | None = None

    def __post_init__(self) -> None:
        ascending = all(b > a for a, b in zip(self.looks, self.looks[1:], strict=False))
        if not self.looks or self.looks[0] < 2 or not ascending:
            raise ValueError(
                "Looks are numbers of seeds that ascend from at least 2, as in 3, 5, 7, 10; "
                f"got {list(self.looks)}."
            )
        if not self.spending > 0:
            raise ValueError(
                f"The exponent of the error spending must be positive; got {self.spending}."
            )
        if self.diverged_value is not None and not math.isfinite(self.diverged_value):
            raise ValueError(
                f"The value of a diverged training must be finite; got {self.diverged_value}."
            )

    @property
    def cap(self) -> int:
        """Largest number of seeds of a row."""
        return self.looks[-1]

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of a row up to the cap, in their order."""
        return tuple(range(self.cap))


PAPER_SEEDS = (0, 1, 2)
"""Seeds of a recipe other than the study's own, unless others are asked for.

A training of the paper's setting takes hours of a GPU, so nothing adds seeds unasked.
"""
