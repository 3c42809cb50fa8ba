"""Statistical power of a study's seeds, computed before anything is trained."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from sweeps.core.design.study import Plan
from sweeps.core.statistics.power import MetricPower, Power, PowerGoal, pooled_sd
from sweeps.core.store.ledger_entry import LedgerEntry
from toco.config import digest
from toco.train.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class SeedNoise:
    """Standard deviation, over seeds, of the difference of two trainings, as a fraction.

    Attributes:
        sd: The standard deviation.
        trainings: Number of trainings that it is estimated from.
        paired: Whether it is estimated from differences between trainings of the same seed.
            Otherwise it is that of single trainings times the root of two: pairing by seed then
            gains nothing.
    """

    sd: float
    trainings: int
    paired: bool


@dataclass(frozen=True, slots=True)
class PowerCheck:
    """The power of a design, and whether it may run.

    Attributes:
        power: The power of its seeds.
        underpowered: Whether the seeds cannot decide the comparisons of the study.
        refusal: Why it must not run as it is; ``None`` where it may.
        sentences: The result as text.
    """

    power: Power
    underpowered: bool
    refusal: str | None
    sentences: tuple[str, ...]


def power_check(
    plan: Plan, noise: Mapping[str, SeedNoise], *, accept_underpowered: bool = False
) -> PowerCheck:
    """Check whether the seeds of ``plan`` can decide its declared comparisons.

    Where the noise of a metric is known, the difference it can detect must be no larger than
    ``smallest_effect``. Where it is not, the effect it can detect must be no larger than
    ``largest_blind_effect`` standard deviations. A study with the purpose ``direction`` may be
    underpowered.

    Args:
        plan: The study.
        noise: Seed noise by key of a metric, see :func:`seed_noise`.
        accept_underpowered: Let an underpowered study run.
    """
    # Compute the power for every metric that is compared.
    study, declared = plan.study, plan.tests.places
    goal = PowerGoal(len(declared), study.significance, study.power, study.smallest_effect)
    compared = [metric for metric in study.metrics if metric.key in {key for _, key in declared}]
    sds = {metric.key: noise[metric.key].sd if metric.key in noise else None for metric in compared}
    power = goal.assess(len(study.all_seeds), sds)
    if not declared:
        return PowerCheck(power, False, None, ("No comparison is declared, so nothing is tested.",))
    # Compare it with the effects that the study asks for.
    short = [
        metric
        for metric in power.metrics.values()
        if metric.seeds_needed is not None and metric.underpowered
    ]
    is_blind = any(metric.sd is None for metric in power.metrics.values())
    too_blind = is_blind and power.detectable_sd > study.largest_blind_effect
    underpowered = bool(short) or too_blind
    sentences = [
        _design_sentence(power, study.power),
        *(
            _metric_sentence(
                metric.title,
                power.metrics[metric.key],
                noise.get(metric.key),
                study.smallest_effect,
            )
            for metric in compared
        ),
    ]
    # Refuse an underpowered study that asks for effects, or say that it is underpowered.
    needed = [metric.seeds_needed for metric in short if metric.seeds_needed is not None]
    if too_blind:
        needed.append(goal.seeds_needed(study.largest_blind_effect, 1.0))
    refusal = None
    if underpowered and study.purpose == "effect" and not accept_underpowered:
        refusal = (
            f"This design cannot answer its {_comparisons(len(declared))}: {' '.join(sentences)} "
            f"It takes {max(needed)} seeds. Give more seeds, declare fewer comparisons, say "
            'purpose="direction" in the study if only the direction is asked for, or give '
            "--accept-underpowered."
        )
    elif underpowered:
        sentences.append(
            "It runs nevertheless: a row that it cannot decide will be called underpowered"
            + (", never contradicted." if study.purpose == "direction" else ".")
        )
    return PowerCheck(power, underpowered, refusal, tuple(sentences))


def seed_noise(entries: Iterable[LedgerEntry], base: RunConfig, metric: str) -> SeedNoise | None:
    """Estimate the seed noise of ``metric``; ``None`` where no config has two seeds.

    The noise is pooled over all pairs of configs that share seeds. A training counts if it differs
    from ``base`` only in method, optimizer and seed, and if no search made it. Only trainings with
    the same code and data are compared.

    Args:
        entries: Entries of the ledger, newest first.
        base: Config of the study's base.
        metric: Key of the metric.
    """
    # Group the values by code and data, by config, and by seed.
    family = _family(base, base)
    by_setting: dict[str, dict[str, dict[int, float]]] = {}
    for entry in entries:
        value = entry.metrics.get(metric)
        if (
            entry.status != "finished"
            or entry.origin.search
            or value is None
            or not math.isfinite(value)
        ):
            continue
        try:
            config = RunConfig.model_validate(entry.config)
        except ValueError:
            continue  # of another version of the code
        if _family(config, base) == family:
            cells = by_setting.setdefault(_setting(entry), {})
            cells.setdefault(digest(config.model_copy(update={"seed": 0})), {})[config.seed] = (
                float(value)
            )
    # Pool the spread of single configs, and of differences between configs with common seeds.
    single = [
        _spread(list(values.values())) for cells in by_setting.values() for values in cells.values()
    ]
    differences = [
        _spread([first[seed] - second[seed] for seed in first.keys() & second.keys()])
        for cells in by_setting.values()
        for first, second in combinations(cells.values(), 2)
    ]
    trainings = sum(
        len(values) for cells in by_setting.values() for values in cells.values() if len(values) > 1
    )
    if (sd := pooled_sd(filter(None, differences))) is not None:
        return SeedNoise(sd, trainings, True)
    sd = pooled_sd(filter(None, single))
    return None if sd is None else SeedNoise(sd * math.sqrt(2), trainings, False)


def _spread(values: list[float]) -> tuple[int, float] | None:
    """Return degrees of freedom and standard deviation; ``None`` for fewer than two values."""
    return (len(values) - 1, statistics.stdev(values)) if len(values) > 1 else None


def _family(config: RunConfig, base: RunConfig) -> str:
    return digest(config.model_copy(update={"method": base.method, "optim": base.optim, "seed": 0}))


def _setting(entry: LedgerEntry) -> str:
    return json.dumps(
        [entry.identity[part] for part in ("code", "data", "weights", "versions")], sort_keys=True
    )


def _design_sentence(power: Power, probability: float) -> str:
    seeds = f"{power.n} seed{'' if power.n == 1 else 's'}"
    if power.n < 2:
        return (
            f"{seeds.capitalize()} and {_comparisons(power.comparisons)}: "
            "no effect of any size can be told from noise."
        )
    return (
        f"{seeds.capitalize()} and {_comparisons(power.comparisons)} detect an effect of "
        f"{power.detectable_sd:.1f} standard deviations of the paired difference with "
        f"{100 * probability:.0f} % power."
    )


def _metric_sentence(
    title: str, power: MetricPower, noise: SeedNoise | None, smallest_effect: float
) -> str:
    effect_text = f"{100 * smallest_effect:g} points"
    if noise is None or power.detectable is None:
        return f"{title}: the seed noise is not known yet, and so neither is this effect in points."
    source = "paired differences" if noise.paired else "the spread over seeds, unpaired"
    noise_text = f"seed noise {100 * noise.sd:.2f} points ({source}, {noise.trainings} trainings)"
    detectable_text = (
        f"{100 * power.detectable:.2f} points can be detected"
        if math.isfinite(power.detectable)
        else "nothing can be detected"
    )
    return (
        f"{title}: {noise_text}: {detectable_text}; {effect_text} take {power.seeds_needed} seeds."
    )


def _comparisons(number: int) -> str:
    return f"{number} declared comparison{'' if number == 1 else 's'}"
