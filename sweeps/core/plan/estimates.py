"""How long single trials take: measured by a probe, or by finished trainings.

Finished trainings of the same kind know best: they ran beside others, as the coming ones will. A
probe ran alone, so what it tells is an interval that begins there.
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
"""Start of a process until it trains, where no probe has measured it: most of it is importing torch."""
SPREAD = 0.1
"""Nothing is foretold better than this fraction to either side."""
SLOW_DOWN = 1.6
"""At most this many times longer takes a training on CPU cores beside others than alone. Measured for two trainings at
once on a machine of two cores only: 1.0 to 1.6 times, of which this is the upper end. Caches,
memory and, on virtual machines, cores are shared, so that it depends on the machine; with more
trainings at once it is a guess. Finished trainings in the ledger, which ran beside others, replace
it."""
SIMILAR = 3
"""Trainings that are only similar count from this many on."""
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
    """What is left of one trial.

    Attributes:
        config: The trial.
        kind: ``train`` from ``steps_done`` on; ``evaluate`` stored checkpoints; ``rescore`` stored
            histograms, which costs nothing worth foretelling.
        steps_done: Steps of its last checkpoint, its own or one that it forks from.
    """

    config: RunConfig
    kind: Kind = "train"
    steps_done: int = 0


@dataclass(frozen=True, slots=True)
class Past:
    """A finished training."""

    kind: str
    similar: str
    time_s: float
    peak_memory_bytes: int


class Estimator:
    """Seconds of a trial.

    Attributes:
        setup_s: Seconds until its process trains.
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
        """Seconds of ``work`` without the start of its process; ``None`` where nothing is known."""
        source, whole = self._training(work.config)
        if work.kind == "evaluate":
            return self._evaluation(work.config, whole)
        self._used[source] = self._used.get(source, 0) + 1
        return None if whole is None else whole.scaled(self._share_left(work))

    def nearest(self, config: RunConfig) -> Cost:
        """The probed training that differs in the fewest settings."""
        wanted = kind(config)
        if wanted not in self._cost_of:
            self._cost_of[wanted] = min(
                self._costs, key=lambda cost: len(diff(cost.config, config))
            )
        return self._cost_of[wanted]

    def basis(self) -> str:
        """Where the estimates came from."""
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
            text += f" A probe runs alone; beside others a training may take up to {self._slow_down:.1f} times as long."
        return text

    def _training(self, config: RunConfig) -> tuple[str, Range | None]:
        """Seconds of a whole training, and what says so."""
        wanted = kind(config)
        if wanted not in self._rates:
            self._rates[wanted] = self._whole_training(config, wanted)
        return self._rates[wanted]

    def _whole_training(self, config: RunConfig, wanted: str) -> tuple[str, Range | None]:
        if same := [one for one in self._past if one.kind == wanted]:
            return "same", _range(same)
        if self._costs:
            return "probe", self._from_probe(config, wanted)
        wanted = _similar(config)
        similar = [one for one in self._past if one.similar == wanted]
        return ("similar", _range(similar)) if len(similar) >= SIMILAR else ("nothing", None)

    def _from_probe(self, config: RunConfig, wanted: str) -> Range:
        probed = wanted in {kind(cost.config) for cost in self._costs}
        likely_s = self.nearest(config).training_s(config)
        # One that was not probed costs what one of the others costs, and nobody knows which.
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

    def _evaluation(self, config: RunConfig, whole: Range | None) -> Range | None:
        """Of the stored checkpoints; without a probe all that is known is that a training's evaluations are in it."""
        if self._costs:
            alone = Range(1 - SPREAD, self._slow_down**0.5, self._slow_down * (1 + SPREAD))
            return alone.scaled(self.nearest(config).evaluation_s * config.evaluate.average_last)
        if whole is None:
            return None
        most = whole.high * min(
            config.evaluate.average_last / evaluations(config, config.num_steps), 1.0
        )
        return Range(0.0, most / 2, most)


def comparable(
    history: Iterable[LedgerEntry], cpus: float, gpus: float, costs: Sequence[Cost]
) -> Iterable[Past]:
    """Whole trainings, made with these resources, on the newest one's device where a probe does not name it."""
    device = costs[0].device if costs else None
    for entry in history:
        origin, resources = entry.origin, entry.resources
        # Neither derived nor forked: these did not train from the first step on.
        whole = entry.status == "finished" and origin.derived_from is None and not origin.forked_at
        if (
            not whole
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
    """Equal for trainings that differ in the method or the optimizer alone."""
    return json.dumps(config.model_dump(mode="json", include=set(_SIMILAR_FIELDS)), sort_keys=True)


def _range(past: Sequence[Past]) -> Range:
    """Median and the 10 % and 90 % quantiles, at least ``SPREAD`` apart from it."""
    times_s = sorted(one.time_s for one in past)
    likely = statistics.median(times_s)
    low, *_, high = (
        statistics.quantiles(times_s, n=10, method="inclusive") if len(times_s) > 1 else times_s * 2
    )
    return Range(min(low, likely * (1 - SPREAD)), likely, max(high, likely * (1 + SPREAD)))
