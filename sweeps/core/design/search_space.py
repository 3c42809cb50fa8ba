"""Searches as values: a recipe, a space of settings, objectives and rungs.

A search chooses its trials after looking at earlier trials, and trains one seed each. Its result is
a candidate for an ablation study, not a row of one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from sweeps.core.design.factors import EVALUATION, SEED_PATH, Scalar, lacking, refuse_repeats
from sweeps.core.design.study import TRAIN
from toco.config import MAX_SEED, digest, flatten, replace
from toco.registry import load

if TYPE_CHECKING:
    from toco.train.run_config import RunConfig

STEP_TIME = "step_time_s"
"""Mean time of a step, a key of ``result.json``: the cost of a training."""
COSTS = (STEP_TIME, "wall_time_s", "peak_memory_bytes")
_EVALUATED = "val/"
_SHARED = ("num_steps", "evaluate_every", SEED_PATH, "backbone.name", "backbone.weights")
_DATA = "data."
"""Settings that no search varies: trials that differ in them are not comparable."""
_TERM = ".start_step"


@dataclass(frozen=True, slots=True)
class Objective:
    """A quantity that a search maximises or minimises.

    Attributes:
        key: A metric key of the evaluation (``val/...``), or one of ``COSTS``.
        title: Name in reports.
        resolution: Relative rounding step: values are rounded to powers of ``1 + resolution``, so
            that smaller differences decide nothing; 0 for no rounding.
    """

    key: str
    title: str
    higher_is_better: bool = True
    resolution: float = 0.0

    def __post_init__(self) -> None:
        if self.resolution < 0:
            raise ValueError(
                f"The resolution of {self.key} is a fraction of its value, 0 or more, "
                f"got {self.resolution}."
            )
        if not self.is_evaluated and self.key not in COSTS:
            raise ValueError(
                f"The objective {self.key!r} is neither a metric of the evaluation "
                f"({_EVALUATED}...) nor one of {', '.join(COSTS)}."
            )

    @property
    def is_evaluated(self) -> bool:
        """Whether every evaluation measures the objective, so that rungs can use it."""
        return self.key.startswith(_EVALUATED)

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Direction in Optuna's terms."""
        return "maximize" if self.higher_is_better else "minimize"

    def value(self, measured: Mapping[str, int | float | None]) -> float | None:
        """Return the rounded value of a trial; ``None`` if it is missing or not finite.

        Args:
            measured: Metrics and costs of the trial, by key.
        """
        value = measured.get(self.key)
        return self._rounded(float(value)) if value is not None and math.isfinite(value) else None

    def _rounded(self, value: float) -> float:
        """Round to the nearest power of ``1 + resolution``.

        >>> cost = Objective("step_time_s", "cost", higher_is_better=False, resolution=0.1)
        >>> cost._rounded(0.205) == cost._rounded(0.195)
        True
        >>> cost._rounded(0.205) == cost._rounded(0.18)
        False
        """
        if not self.resolution or value <= 0:
            return value
        base = 1 + self.resolution
        return float(base ** round(math.log(value, base)))

    def at_rung(self, metrics: Mapping[str, Any]) -> float:
        """Return the value of an evaluation, signed so that larger is better.

        A value that is missing or not finite counts as minus infinity.
        """
        value = metrics.get(self.key)
        if value is None or not math.isfinite(value):
            return -math.inf
        return float(value) if self.higher_is_better else -float(value)

    def text(self, value: float) -> str:
        """Format a value: evaluated fractions in percent, all others with three digits.

        >>> Objective("val/seg_miou", "seg").text(0.5678)
        '56.8'
        >>> Objective("step_time_s", "cost", False).text(0.12345)
        '0.123'
        """
        return f"{100 * value:.1f}" if self.is_evaluated else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Rungs:
    """Evaluations at which a search stops the weaker trials (ASHA: asynchronous halving).

    A trial goes on if it is among the best trials that have reached the rung so far. Steps are
    counted from the start of the last loss term, because an earlier evaluation says nothing about
    that term. The first rung is the first evaluation at which the last term has acted for a full
    interval between evaluations. At every further rung it has acted ``reduction`` times as long.

    Attributes:
        reduction: At a rung one trial in ``reduction`` goes on, not counting ties.
        first: Step of the first rung, if it is to be later than the default.
    """

    reduction: int = 2
    first: int | None = None

    def __post_init__(self) -> None:
        if self.reduction < 2:
            raise ValueError(f"Of how many trials one goes on is at least 2, got {self.reduction}.")

    def steps(self, config: RunConfig, terms_joined: int) -> tuple[int, ...]:
        """Compute the steps of the rungs.

        Args:
            config: Config of the trainings.
            terms_joined: Step (0-based) at which the last loss term starts.

        >>> from toco.recipes.voc_deit_b import recipe
        >>> Rungs().steps(recipe(), 2001)
        (6000, 8000, 12000)

        Raises:
            ValueError: ``first`` is too early, or there is no evaluation after it.
        """
        every = config.evaluate_every

        def evaluated(step: int) -> int:
            return -(-step // every) * every

        earliest = evaluated(terms_joined + every)
        first = earliest if self.first is None else self.first
        if (
            first < earliest
            or first % every
            or (self.first is not None and first >= config.num_steps)
        ):
            raise ValueError(
                f"The first rung is after step {first}, but it has to be at an evaluation "
                f"(every {every} steps) from step {earliest} on, where the last loss term, which "
                f"joins at step {terms_joined}, has acted for an interval between evaluations, "
                f"and before the end (step {config.num_steps})."
            )
        rungs = []
        acted = every if self.first is None else first - terms_joined
        while (step := evaluated(terms_joined + acted)) < config.num_steps:
            rungs.append(step)
            acted *= self.reduction
        return tuple(dict.fromkeys(rungs))


@dataclass(frozen=True, slots=True)
class SearchStudy:
    """A search before it is resolved.

    Attributes:
        name: Name of the search's module, of its folder and of its MLflow experiment.
        title: Title in reports.
        recipe: Entry of ``toco.recipes`` that every training starts from.
        space: Optuna's distributions of the varied settings, by dotted path in ``RunConfig``.
        num_trials: Number of trainings to start, including those that a rung stops. A larger
            number continues the same search.
        objectives: Two or more objectives. They are not weighted: the result is a Pareto front.
        rungs: Rungs that stop trials early, by the objectives that every evaluation measures;
            ``None`` to stop no trial.
        seed: Seed of all trainings and of the proposals. It should not be a seed of an ablation
            study: a setting that is best with a seed by chance would be best with it again.
        num_random: Number of trials drawn at random before the sampler proposes from their
            results. The very first trial has the recipe's own values if these lie in the space.
        changes: Settings for all trainings that differ from the recipe, by dotted path.
        train: ``module:function`` that a trial calls, with the signature of
            ``toco.train.loop.train``.
    """

    name: str
    title: str
    recipe: str
    space: Mapping[str, BaseDistribution]
    num_trials: int
    objectives: tuple[Objective, ...]
    rungs: Rungs | None = Rungs()
    seed: int = 100
    num_random: int = 10
    changes: Mapping[str, Any] = field(default_factory=dict)
    train: str = TRAIN

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError(f"The search {self.name} varies nothing: its space is empty.")
        if self.num_trials < 1 or self.num_random < 1:
            raise ValueError(
                f"A search has at least one trial and one random one, "
                f"got {self.num_trials} and {self.num_random}."
            )
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"A seed is from 0 to {MAX_SEED - 1}, got {self.seed}.")
        if len(self.objectives) < 2:
            raise ValueError(
                "A search has at least two objectives: "
                "with one objective, it would sacrifice every other quantity."
            )
        refuse_repeats("objectives", [objective.key for objective in self.objectives])
        if self.rungs is not None and not any(
            objective.is_evaluated for objective in self.objectives
        ):
            raise ValueError(
                "Rungs compare evaluations, "
                f"but no objective is a metric of them ({_EVALUATED}...)."
            )
        for path, distribution in self.space.items():
            if path in _SHARED or path.startswith((EVALUATION, _DATA)):
                raise ValueError(
                    f"{path} cannot be searched: trials that differ in it cannot be compared."
                )
            if path in self.changes:
                raise ValueError(
                    f"{path} is searched, "
                    f"so it cannot be set to {self.changes[path]!r} for all trials."
                )
            if distribution.single():
                raise ValueError(
                    f"{path} has one value in the space, {distribution}: "
                    "set it for all trials instead."
                )

    def base(self) -> RunConfig:
        """Return the recipe with the search's seed and changes.

        Raises:
            ValueError: There is no such recipe or field, or a value does not fit.
        """
        recipe: RunConfig = load("toco.recipes", self.recipe).recipe()
        return replace(recipe, {**self.changes, SEED_PATH: self.seed})

    def resolve(self) -> SearchPlan:
        """Check the search and compute its rungs.

        The space is checked at the extreme values of every pair of settings.

        Raises:
            ValueError: A recipe, a path or a value is not valid.
        """
        base = self.base()
        recipe_values = flatten(base)
        for path in self.space:
            if path not in recipe_values:
                raise lacking(self.name, path, base)
        start = {
            path: recipe_values[path]
            for path, distribution in self.space.items()
            if _contains(distribution, recipe_values[path])
        }
        plan = SearchPlan(self, base, (), start if len(start) == len(self.space) else {})
        joined = max(map(terms_joined, plan.corners()))
        return (
            plan if self.rungs is None else with_fields(plan, rungs=self.rungs.steps(base, joined))
        )


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A resolved search: its settings are valid.

    Attributes:
        base: Config that every trial starts from.
        rungs: Steps of the rungs; empty if no trial is stopped early.
        start: The recipe's own values of the settings; empty if they do not all lie in the space.
    """

    study: SearchStudy
    base: RunConfig
    rungs: tuple[int, ...]
    start: Mapping[str, Scalar]

    @property
    def digest(self) -> str:
        """SHA-256 (hex, 16 digits) of everything that affects proposals and results.

        The number of trials is left out, so that a longer search continues the same folder.
        """
        study = self.study
        parts = [
            study.train,
            digest(self.base),
            {
                path: distribution_to_json(distribution)
                for path, distribution in study.space.items()
            },
            [asdict(objective) for objective in study.objectives],
            self.rungs,
            self.reduction,
            study.num_random,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        """Name of the search's folder."""
        return f"{self.study.name}-{self.digest[:8]}"

    @property
    def reduction(self) -> int | None:
        """At a rung one trial in this many goes on; ``None`` without rungs."""
        return None if self.study.rungs is None else self.study.rungs.reduction

    def corners(self) -> Iterator[RunConfig]:
        """Yield the recipe's config, then configs at the extreme values of pairs of settings."""
        yield self.base
        for values in _pairs_of_extremes(self.study.space):
            yield self.config(values)

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """Build the config of a proposal.

        Raises:
            ValueError: These values do not go together.
        """
        try:
            return replace(self.base, dict(values))
        except ValueError as error:
            settings = ", ".join(f"{path}={value}" for path, value in values.items())
            raise ValueError(
                f"The space of {self.study.name} holds settings that do not go together "
                f"({settings}): {error}"
            ) from error

    def goes_on(self, metrics: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
        """Decide whether a trial goes on after a rung.

        Args:
            metrics: Metrics of the trial at the rung.
            others: Metrics of the trials that reached the rung earlier.
        """
        reduction = self.reduction
        if reduction is None:
            return True
        evaluated = [objective for objective in self.study.objectives if objective.is_evaluated]
        points = [
            [objective.at_rung(evaluation) for objective in evaluated]
            for evaluation in (metrics, *others)
        ]
        return is_among_best(points[0], points[1:], reduction)


def is_among_best(
    point: Sequence[float], others: Sequence[Sequence[float]], reduction: int
) -> bool:
    """Whether fewer than one in ``reduction`` of all points lie in better fronts.

    Larger values are better. The first front holds the points that no other point dominates, the
    second front those that only the first front dominates, and so on. Points of one front are not
    ranked: either all of them go on, or none.

    >>> is_among_best([2.0], [[1.0], [3.0]], 2), is_among_best([1.0], [[2.0], [3.0]], 2)
    (True, False)
    """
    points = [tuple(point), *map(tuple, others)]
    limit = len(points) / reduction
    better = 0
    while better < limit:
        front = [
            candidate
            for candidate in points
            if not any(_dominates(other, candidate) for other in points)
        ]
        if points[0] in front:
            return True
        better += len(front)
        points = [candidate for candidate in points if candidate not in front]
    return False


def terms_joined(config: RunConfig) -> int:
    """Return the step (0-based) from which every loss term with a weight acts."""
    values = flatten(config)
    starts = (
        start
        for path, start in values.items()
        if path.endswith(_TERM) and values.get(f"{path.removesuffix(_TERM)}.weight", 0) > 0
    )
    return max(starts, default=0)


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    return first != second and all(
        value >= other_value for value, other_value in zip(first, second, strict=True)
    )


def _extremes(distribution: BaseDistribution) -> tuple[Scalar, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return (distribution.low, distribution.high)
    raise ValueError(
        f"{distribution} is none of Optuna's float, integer and categorical distributions."
    )


def _pairs_of_extremes(space: Mapping[str, BaseDistribution]) -> Iterator[dict[str, Scalar]]:
    """Yield the extreme values of all settings and pairs: most conflicts are pairwise."""
    extremes = {path: _extremes(distribution) for path, distribution in space.items()}
    for path, values in extremes.items():
        yield from ({path: value} for value in values)
    for first, second in itertools.combinations(extremes, 2):
        for pair in itertools.product(extremes[first], extremes[second]):
            yield dict(zip((first, second), pair, strict=True))


def _contains(distribution: BaseDistribution, value: Any) -> bool:  # noqa: ANN401 - any JSON value
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, high = (float(bound) for bound in _extremes(distribution) if bound is not None)
    return isinstance(value, int | float) and low <= value <= high
