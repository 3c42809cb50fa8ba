"""What a study's seeds can show, asked before anything is trained."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from sweeps.core.design.study import Plan
from sweeps.core.statistics.paired import detectable_effect, seeds_needed
from toco.config import digest
from toco.train.run_config import RunConfig

ENTRIES = 500
"""Newest entries that the noise is taken from."""


@dataclass(frozen=True, slots=True)
class SeedNoise:
    """Standard deviation, over seeds, of the difference of two trainings, as a fraction.

    Attributes:
        sd: The standard deviation.
        trainings: How many it comes from.
        paired: Whether it is that of differences between trainings of the same seed; otherwise that of single
            trainings times the root of two, as if seeds paired nothing.
    """

    sd: float
    trainings: int
    paired: bool


@dataclass(frozen=True, slots=True)
class MetricPower:
    """What the seeds can show of one metric. Fields are ``None`` where its noise is not known.

    Attributes:
        detectable: Smallest difference that is detected, as a fraction.
        seeds: Seeds that the study's smallest effect takes.
    """

    key: str
    title: str
    noise: SeedNoise | None
    detectable: float | None
    seeds: int | None


@dataclass(frozen=True, slots=True)
class PowerCheck:
    """What a design can answer.

    Attributes:
        comparisons: Declared ones; the family of Holm's correction.
        n: Seeds.
        detectable_sd: Smallest effect that is detected, in standard deviations of the paired difference; infinite for
            one seed.
        metrics: The metrics of the declared comparisons.
        underpowered: Whether it cannot show what it is for.
        refusal: Why it must not run as it is; ``None`` where it may.
        sentences: All of this for people.
    """

    comparisons: int
    n: int
    detectable_sd: float
    metrics: tuple[MetricPower, ...]
    underpowered: bool
    refusal: str | None
    sentences: tuple[str, ...]


def power_check(plan: Plan, noise: Mapping[str, SeedNoise], *, accept_underpowered: bool = False) -> PowerCheck:
    """Whether ``plan`` can show what it declares.

    Where the noise of a metric is known, the difference it can detect must be no larger than ``smallest_effect``. Where
    it is not, the effect it can detect must be no larger than ``largest_blind_effect`` standard deviations. A study
    with the purpose ``direction`` may be underpowered.

    Args:
        plan: The study.
        noise: By key of a metric, see :func:`seed_noise`.
        accept_underpowered: Let it run all the same.
    """
    study, declared = plan.study, plan.comparisons()
    n = len(study.seeds)
    if not declared:
        return PowerCheck(0, n, math.inf, (), False, None, ("No comparison is declared, so nothing is tested.",))
    number, significance, power = len(declared), study.significance, study.power
    detectable_sd = detectable_effect(n, number, significance, power)
    metrics = []
    for metric in study.metrics:
        if metric.key not in {key for _, key in declared}:
            continue
        if (known := noise.get(metric.key)) is None:
            metrics.append(MetricPower(metric.key, metric.title, None, None, None))
            continue
        # Infinity times a noise of zero is not a number.
        detectable = detectable_sd * known.sd if n > 1 else math.inf
        seeds = seeds_needed(study.smallest_effect, known.sd, number, significance, power)
        metrics.append(MetricPower(metric.key, metric.title, known, detectable, seeds))
    blind = [metric for metric in metrics if metric.detectable is None]
    short = [
        metric for metric in metrics if metric.detectable is not None and metric.detectable > study.smallest_effect
    ]
    too_blind = bool(blind) and detectable_sd > study.largest_blind_effect
    underpowered = bool(short) or too_blind
    sentences = [
        _design_sentence(number, n, detectable_sd, power),
        *(_metric_sentence(metric, study.smallest_effect) for metric in metrics),
    ]
    needed = [metric.seeds for metric in short if metric.seeds is not None]
    if too_blind:
        needed.append(seeds_needed(study.largest_blind_effect, 1.0, number, significance, power))
    refusal = None
    if underpowered and study.purpose == "effect" and not accept_underpowered:
        refusal = (
            f"This design cannot answer its {_comparisons(number)}: {' '.join(sentences)} It takes {max(needed)} "
            'seeds. Give more seeds, declare fewer comparisons, say purpose="direction" in the study if only the '
            "direction is asked for, or give --accept-underpowered."
        )
    elif underpowered:
        sentences.append(
            "It runs all the same: a row that it cannot decide will read underpowered, never contradicted."
        )
    return PowerCheck(number, n, detectable_sd, tuple(metrics), underpowered, refusal, tuple(sentences))


def seed_noise(entries: Iterable[Mapping[str, Any]], base: RunConfig, metric: str) -> SeedNoise | None:
    """The noise of ``metric`` known so far; ``None`` where no config has two seeds.

    Pooled over all pairs of configs that share seeds. Trainings count that differ from ``base`` in the
    method, the optimizer and the seed alone and were not made by a search; only those of the same code and data are
    compared.

    Args:
        entries: Of the ledger, newest first.
        base: Config of the study's base.
        metric: Key of the metric.
    """
    family = _family(base, base)
    by_setting: dict[str, dict[str, dict[int, float]]] = {}
    for entry in islice(entries, ENTRIES):
        value = entry["metrics"].get(metric)
        if entry["status"] != "finished" or entry["origin"].get("search") or value is None or not math.isfinite(value):
            continue
        try:
            config = RunConfig.model_validate(entry["config"])
        except ValueError:
            continue  # of another version of the code
        if _family(config, base) == family:
            cells = by_setting.setdefault(_setting(entry), {})
            cells.setdefault(digest(config.model_copy(update={"seed": 0})), {})[config.seed] = float(value)
    differences, single = _Pooled(), _Pooled()
    for cells in by_setting.values():
        for values in cells.values():
            single.add(list(values.values()))
        for left, right in combinations(cells.values(), 2):
            differences.add([left[seed] - right[seed] for seed in left.keys() & right.keys()])
    trainings = sum(len(values) for cells in by_setting.values() for values in cells.values() if len(values) > 1)
    if differences.degrees:
        return SeedNoise(differences.sd(), trainings, True)
    return SeedNoise(single.sd() * math.sqrt(2), trainings, False) if single.degrees else None


class _Pooled:
    """A variance within groups."""

    def __init__(self) -> None:
        self.squares = 0.0
        self.degrees = 0

    def add(self, values: list[float]) -> None:
        if len(values) > 1:
            self.squares += statistics.variance(values) * (len(values) - 1)
            self.degrees += len(values) - 1

    def sd(self) -> float:
        return math.sqrt(self.squares / self.degrees)


def _family(config: RunConfig, base: RunConfig) -> str:
    return digest(config.model_copy(update={"method": base.method, "optim": base.optim, "seed": 0}))


def _setting(entry: Mapping[str, Any]) -> str:
    identity = entry["identity"]
    return json.dumps([identity[part] for part in ("code", "data", "weights", "versions")], sort_keys=True)


def _design_sentence(number: int, n: int, detectable_sd: float, power: float) -> str:
    seeds = f"{n} seed{'' if n == 1 else 's'}"
    if n < 2:
        return f"{seeds.capitalize()} and {_comparisons(number)}: no effect of any size can be told from noise."
    return (
        f"{seeds.capitalize()} and {_comparisons(number)} detect an effect of {detectable_sd:.1f} standard deviations "
        f"of the paired difference with {100 * power:.0f} % power."
    )


def _metric_sentence(metric: MetricPower, smallest_effect: float) -> str:
    wanted = f"{100 * smallest_effect:g} points"
    if metric.noise is None or metric.detectable is None:
        return f"{metric.title}: the seed noise is not known yet, so nobody can say how many points that is."
    source = "paired differences" if metric.noise.paired else "the spread over seeds, unpaired"
    known = f"seed noise {100 * metric.noise.sd:.2f} points ({source}, {metric.noise.trainings} trainings)"
    shown = (
        f"{100 * metric.detectable:.2f} points can be detected"
        if math.isfinite(metric.detectable)
        else "nothing can be detected"
    )
    return f"{metric.title}: {known}: {shown}; {wanted} take {metric.seeds} seeds."


def _comparisons(number: int) -> str:
    return f"{number} declared comparison{'' if number == 1 else 's'}"
