"""Statistical power of a study's seeds, computed before anything is trained."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Plan
from sweeps.core.plan.expected import Costs, claimed, expect, percent
from sweeps.core.statistics.paired import paired_power
from sweeps.core.statistics.power import MetricPower, Power, PowerGoal, pooled_sd
from sweeps.core.statistics.sequential import boundaries
from sweeps.core.store.ledger_entry import LedgerEntry
from toco.config import digest
from toco.train.run_config import RunConfig

COMPARED_EFFECT = 2.0
"""Effect, in standard deviations of a paired difference, for which two designs are compared.

Three seeds hardly ever show it, and ten nearly always do.
"""


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
    plan: Plan,
    noise: Mapping[str, SeedNoise],
    *,
    accept_underpowered: bool = False,
    served_by: Sequence[int] | None = None,
) -> PowerCheck:
    """Check whether the seeds of ``plan`` can decide its declared comparisons.

    A sequential study is judged by its claims and by the seeds of its last look.

    Where the noise of a metric is known, the difference it can detect must be no larger than
    ``smallest_effect``. Where it is not, the effect it can detect must be no larger than
    ``largest_blind_effect`` standard deviations. A study with the purpose ``direction`` may be
    underpowered.

    Args:
        plan: The study.
        noise: Seed noise by key of a metric, see :func:`seed_noise`.
        accept_underpowered: Let an underpowered study run.
        served_by: See ``Situation.served_by``; by default each configuration is trained.
    """
    # Compute the power for every metric that is compared.
    study, tests = plan.study, plan.tests
    declared, sequential = tests.places, study.sequential
    family = len(declared) if sequential is None else len(tests.claims)
    goal = PowerGoal(family, study.significance, study.power, study.smallest_effect)
    if sequential is not None and declared:
        # The last look alone, with the boundary of the first claim. Earlier looks can only add
        # power; giving up takes a little where effects are small.
        bounds = boundaries(sequential.looks, sequential.spending)
        last = bounds.boundary(len(sequential.looks) - 1, study.significance / family)
        goal = PowerGoal(1, last, study.power, study.smallest_effect)
    compared = [metric for metric in study.metrics if metric.key in {key for _, key in declared}]
    sds = {metric.key: noise[metric.key].sd if metric.key in noise else None for metric in compared}
    power = replace(goal.assess(len(study.all_seeds), sds), comparisons=family)
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
    tested = _comparisons(family) if sequential is None else claims_text(family)
    design = (
        [_design_sentence(power, study.power)]
        if sequential is None
        else _sequential_sentences(plan, power, sequential)
    )
    sentences = [*design, *_metric_sentences(compared, power, noise, study.smallest_effect)]
    instead = _sequential_instead(plan, served_by) if underpowered else None
    # Refuse an underpowered study that asks for effects, or say that it is underpowered.
    needed = [metric.seeds_needed for metric in short if metric.seeds_needed is not None]
    if too_blind:
        needed.append(goal.seeds_needed(study.largest_blind_effect, 1.0))
    refusal = None
    if underpowered and study.purpose == "effect" and not accept_underpowered:
        more = "seeds" if sequential is None else "seeds by --looks"
        refusal = (
            f"This design cannot answer its {tested}: {' '.join(sentences)} "
            f"It takes {max(needed)} seeds. Give more {more}, declare fewer "
            f"{'comparisons' if sequential is None else 'claims'}, say "
            'purpose="direction" in the study if only the direction is asked for, or give '
            f"--accept-underpowered.{'' if instead is None else f' {instead}'}"
        )
    elif underpowered and sequential is None:
        sentences.append(
            "It runs nevertheless: a row that it cannot decide will be called underpowered"
            + (", never contradicted." if study.purpose == "direction" else ".")
        )
        sentences += [] if instead is None else [instead]
    elif underpowered:
        sentences.append(
            "It runs nevertheless: a claim that it cannot decide ends as not decidable."
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


def _sequential_sentences(plan: Plan, power: Power, rules: Sequential) -> list[str]:
    study, family = plan.study, power.comparisons
    bounds, level = boundaries(rules.looks, rules.spending), study.significance / family
    first, last = bounds.boundary(0, level), bounds.boundary(len(rules.looks) - 1, level)
    numbers = ", ".join(map(str, rules.looks))
    return [
        f"{claims_text(family)} with {len(plan.tests.places)} comparisons "
        f"{'is' if family == 1 else 'are'} tested after {numbers} seeds. The first claim is shown "
        f"at p <= {first:.2g} at the first look, or at p <= {last:.2g} at the last one.",
        f"With at most {rules.cap} seeds, {claims_text(family)}: an effect of "
        f"{power.detectable_sd:.1f} standard deviations of the paired difference is shown with "
        f"{100 * study.power:.0f} % probability (by the last look alone).",
    ]


def _sequential_instead(plan: Plan, served_by: Sequence[int] | None) -> str | None:
    """Say what a sequential study would take in the place of a fixed list of seeds."""
    study, rules = plan.study, Sequential()
    if study.sequential is not None or len(study.all_seeds) >= rules.cap:
        return None
    served_by = tuple(served_by or range(len(plan.cells)))
    tests = replace(study, seeds=rules).resolve().tests
    expected = expect(tests, claimed(tests, COMPARED_EFFECT), Costs(served_by, None, 1))
    fixed = paired_power(
        COMPARED_EFFECT, len(study.all_seeds), len(plan.tests.places), study.significance
    )
    trained = {served_by[trial.cell]: len(plan.cells[trial.cell].seeds) for trial in plan.trials}
    return (
        f"With --sequential, at most {rules.cap} seeds: a claim whose effects are "
        f"{COMPARED_EFFECT:g} standard deviations is shown with {percent(expected.shown)} power "
        f"in {expected.course.trainings:.0f} trainings on average (fixed: {sum(trained.values())} "
        f"trainings, {100 * fixed:.0f} %)."
    )


def _metric_sentences(
    metrics: Iterable[Metric],
    power: Power,
    noise: Mapping[str, SeedNoise],
    smallest_effect: float,
) -> list[str]:
    return [
        _metric_sentence(
            metric.title, power.metrics[metric.key], noise.get(metric.key), smallest_effect
        )
        for metric in metrics
    ]


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


def claims_text(number: int) -> str:
    """Count claims as text."""
    return f"{number} claim{'' if number == 1 else 's'}"


def _comparisons(number: int) -> str:
    return f"{number} declared comparison{'' if number == 1 else 's'}"
