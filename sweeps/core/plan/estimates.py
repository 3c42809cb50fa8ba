"""Duration of single trials, from a probe or from finished trainings.

Finished trainings of the same kind are the better source: they ran together with others, as the
coming ones will. A probe ran alone, so its time is the lower end of an interval.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.core.plan.probe import Cost, evaluations, kind
from sweeps.core.store.forecast_record import Range
from sweeps.core.store.ledger_entry import LedgerEntry
from toco.config import diff
from toco.train.run_config import RunConfig

START_S = 6.0
"""Seconds from the start of a process to its first step, where no probe measured it.

Most of this time goes into importing torch.
"""
SPREAD = 0.1
"""Fraction of the likely time that an interval has at least on either side.

A choice: a few times that are nearly equal by chance do not make a prediction exact.
"""
SLOW_DOWN = 1.6
"""Largest factor by which other trainings slow a training on CPU cores down.

Measured only for two trainings at once on a machine of two cores: 1.0 to 1.6, of which this is the
upper end. Trainings share caches, memory and, on virtual machines, cores. So the factor depends on
the machine, and for more trainings at once it is a guess. Finished trainings in the ledger, which
ran together with others, replace it.
"""
SIMILAR = 3
"""Number of similar trainings that are needed where none of the same kind exists.

With fewer, their spread says little about another kind.
"""
# Settings that decide most of the cost. The method changes it little.
_SIMILAR_FIELDS = (
    "num_steps",
    "batch_size",
    "evaluate_every",
    "precision",
    "data",
    "backbone",
    "evaluate",
)

Kind = Literal["train", "evaluate", "rescore"]


@dataclass(frozen=True, slots=True)
class Work:
    """The remaining work of one trial.

    Attributes:
        config: The trial.
        kind: ``train`` from ``steps_done`` on; ``evaluate`` stored checkpoints; ``rescore`` stored
            histograms, whose cost is negligible.
        steps_done: Step of the checkpoint that it continues or forks from.
    """

    config: RunConfig
    kind: Kind = "train"
    steps_done: int = 0


@dataclass(frozen=True, slots=True)
class Past:
    """A finished training, with the digests of its kind and of its similar trainings."""

    kind: str
    similar: str
    time_s: float
    peak_memory_bytes: int


class Estimator:
    """Predict the seconds of a trial.

    Attributes:
        setup_s: Seconds from the start of its process to its first step.
    """

    def __init__(
        self, costs: Sequence[Cost], past: Sequence[Past], concurrent: int, gpus: float
    ) -> None:
        self._costs = costs
        self._cost_of = {kind(cost.config): cost for cost in costs}
        self._past = past
        self.setup_s = costs[0].setup_s if costs else START_S
        self._slow_down = 1.0 if concurrent == 1 else SLOW_DOWN if gpus == 0 else max(1 / gpus, 1.0)
        self._used: dict[str, int] = {}
        self._rates: dict[str, tuple[str, Range | None]] = {}

    def seconds(self, work: Work) -> Range | None:
        """Predict the seconds of ``work``; ``None`` where unknown.

        The start of its process is not included.
        """
        source, training_s = self._training(work.config)
        if work.kind == "evaluate":
            return self._evaluation(work.config, training_s)
        self._used[source] = self._used.get(source, 0) + 1
        return None if training_s is None else training_s.scaled(self._share_left(work))

    def nearest(self, config: RunConfig) -> Cost:
        """Return the probed training that differs in the fewest settings."""
        config_kind = kind(config)
        if config_kind not in self._cost_of:
            self._cost_of[config_kind] = min(
                self._costs, key=lambda cost: len(diff(cost.config, config))
            )
        return self._cost_of[config_kind]

    def basis(self) -> str:
        """Name the sources of the estimates."""
        texts = {
            "same": "finished trainings of the same settings",
            "similar": "finished trainings of other settings of this recipe",
            "probe": "a probe",
            "nothing": "nothing: there is neither a probe nor a finished training like them",
        }
        parts = [
            f"{self._used[source]} from {text}"
            for source, text in texts.items()
            if source in self._used
        ]
        text = f"Times of trainings: {', '.join(parts)}." if parts else ""
        if "probe" in self._used and self._slow_down > 1:
            text += (
                " A probe runs alone; with others at once a training may take up to "
                f"{self._slow_down:.1f} times as long."
            )
        return text

    def _training(self, config: RunConfig) -> tuple[str, Range | None]:
        """Return the source of an estimate and the seconds of a complete training."""
        config_kind = kind(config)
        if config_kind not in self._rates:
            self._rates[config_kind] = self._whole_training(config, config_kind)
        return self._rates[config_kind]

    def _whole_training(self, config: RunConfig, config_kind: str) -> tuple[str, Range | None]:
        if same_kind := [training for training in self._past if training.kind == config_kind]:
            return "same", _range(same_kind)
        if self._costs:
            return "probe", self._from_probe(config, config_kind)
        similar_key = _similar(config)
        similar = [training for training in self._past if training.similar == similar_key]
        return ("similar", _range(similar)) if len(similar) >= SIMILAR else ("nothing", None)

    def _from_probe(self, config: RunConfig, config_kind: str) -> Range:
        probed = config_kind in {kind(cost.config) for cost in self._costs}
        likely_s = self.nearest(config).training_s(config)
        # A training that was not probed costs as much as one of the probed ones; which one is
        # unknown.
        all_s = [likely_s] if probed else [cost.training_s(config) for cost in self._costs]
        alone = Range(min(all_s) * (1 - SPREAD), likely_s, max(all_s) * (1 + SPREAD))
        return Range(alone.low, alone.likely * self._slow_down**0.5, alone.high * self._slow_down)

    def _share_left(self, work: Work) -> float:
        if work.steps_done == 0:
            return 1.0
        if self._costs:
            cost = self.nearest(work.config)
            return cost.training_s(work.config, work.steps_done) / cost.training_s(work.config)
        return 1 - work.steps_done / work.config.num_steps

    def _evaluation(self, config: RunConfig, training_s: Range | None) -> Range | None:
        """Predict the seconds to evaluate stored checkpoints.

        Without a probe only an upper bound is known: the time of a training includes its
        evaluations.
        """
        if self._costs:
            alone = Range(1 - SPREAD, self._slow_down**0.5, self._slow_down * (1 + SPREAD))
            return alone.scaled(self.nearest(config).evaluation_s * config.evaluate.average_last)
        if training_s is None:
            return None
        most = training_s.high * min(
            config.evaluate.average_last / evaluations(config, config.num_steps), 1.0
        )
        return Range(0.0, most / 2, most)


def comparable(
    history: Iterable[LedgerEntry], cpus: float, gpus: float, costs: Sequence[Cost]
) -> Iterable[Past]:
    """Yield the complete trainings of ``history`` that used these resources and this device.

    Where no probe names the device, that of the newest training counts.
    """
    device = costs[0].device if costs else None
    for entry in history:
        origin, resources = entry.origin, entry.resources
        # Derived and forked trials did not train from the first step on.
        is_complete = (
            entry.status == "finished" and origin.derived_from is None and not origin.forked_at
        )
        if (
            not is_complete
            or entry.wall_time_s is None
            or (resources.cpus, resources.gpus) != (cpus, gpus)
        ):
            continue
        try:
            config = RunConfig.model_validate(entry.config)
        except ValueError:
            continue  # of another version of the code
        device = device or entry.provenance["device"]
        if entry.provenance["device"] == device and entry.step == config.num_steps:
            peak = entry.peak_memory_bytes or 0
            yield Past(kind(config), _similar(config), float(entry.wall_time_s), peak)


def _similar(config: RunConfig) -> str:
    """Return a text that is equal for trainings of about the same cost.

    Of the optimizer's settings only the frozen layers count: their backward pass is left out.
    """
    settings = config.model_dump(mode="json", include=set(_SIMILAR_FIELDS))
    frozen_layers = config.optim.frozen_layers
    return json.dumps({**settings, "frozen_layers": frozen_layers}, sort_keys=True)


def _range(past: Sequence[Past]) -> Range:
    """Return the median and the 10 % and 90 % quantiles, at least ``SPREAD`` apart from it."""
    times_s = sorted(training.time_s for training in past)
    likely = statistics.median(times_s)
    low, *_, high = (
        statistics.quantiles(times_s, n=10, method="inclusive") if len(times_s) > 1 else times_s * 2
    )
    return Range(min(low, likely * (1 - SPREAD)), likely, max(high, likely * (1 + SPREAD)))
