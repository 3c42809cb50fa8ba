"""What is left of a study will cost, foretold from finished trainings and from a probe, and later held against it.

Finished trainings of the same kind know best: they ran beside others, as the coming ones will. A probe ran alone, so
what it foretells is an interval that begins there.
"""

from __future__ import annotations

import heapq
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal

from sweeps.core.plan.probe import Cost, evaluations, kind
from sweeps.core.store.ledger_entry import LedgerEntry
from toco.config import diff
from toco.room import size
from toco.train.run_config import RunConfig

START_S = 6.0
"""Start of a process until it trains, where no probe has measured it: most of it is importing torch."""
SPREAD = 0.1
"""Nothing is foretold better than this fraction to either side."""
SLOW_DOWN = 1.6
"""At most this many times longer takes a training on CPU cores beside others than alone. Measured for two trainings at
once on a machine of two cores only: 1.0 to 1.6 times, of which this is the upper end. Caches, memory and, on virtual
machines, cores are shared, so that it depends on the machine; with more trainings at once it is a guess. Finished
trainings in the ledger, which ran beside others, replace it."""
HISTORY = 500
"""Newest entries that are looked at."""
SIMILAR = 3
"""Trainings that are only similar count from this many on."""
_SIMILAR_FIELDS = ("num_steps", "batch_size", "evaluate_every", "precision", "data", "backbone", "evaluate")

Kind = Literal["train", "evaluate", "rescore"]


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of one trial.

    Attributes:
        config: The trial.
        kind: ``train`` from ``steps_done`` on; ``evaluate`` stored checkpoints; ``rescore`` stored histograms, which
            costs nothing worth foretelling.
        steps_done: Steps of its last checkpoint, its own or one that it forks from.
    """

    config: RunConfig
    kind: Kind = "train"
    steps_done: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """A likely value between two bounds."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is left of a study will cost. Fields are ``None`` where nothing is known.

    Attributes:
        trainings: To begin or to go on with.
        resumed: Of these, how many go on from a checkpoint.
        evaluations: Cells that are evaluated from what other trainings stored, without training; rescored ones, too.
        concurrent: Trials at once.
        wall_s: Seconds to the end.
        training_s: Mean seconds of a training from where it is now, without the start of its process.
        cpu_hours: CPU cores held, times hours.
        gpu_hours: GPUs held, times hours.
        money: Price of ``gpu_hours``, or of ``cpu_hours`` where trials have no GPU.
        disk_bytes: Run folders of the trainings.
        memory_bytes: Of all trials that run at once; of the GPU, where they have one.
        trial_memory_bytes: The most that one training was measured to need, by a probe or in the past.
        basis: Where this comes from, in sentences.
    """

    trainings: int
    resumed: int
    evaluations: int
    concurrent: int
    wall_s: Range | None
    training_s: float | None
    cpu_hours: float | None
    gpu_hours: float | None
    money: float | None
    disk_bytes: int | None
    memory_bytes: int | None
    trial_memory_bytes: int | None
    basis: str

    @property
    def trial_bytes(self) -> int:
        """Bytes of one training's run folder; 0 where nothing is known."""
        return 0 if self.disk_bytes is None else -(-self.disk_bytes // max(self.trainings, 1))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for ``study.json``."""
        return asdict(self)

    def sentences(self, now: datetime) -> tuple[str, ...]:
        """For people; ``now`` is when the study would start."""
        counts = f"{_count(self.trainings, 'training')} to run"
        counts += f", {_count(self.evaluations, 'cell')} evaluated without training" if self.evaluations else ""
        if not self.trainings + self.evaluations:
            return ("Nothing is left to run.",)
        if self.wall_s is None:
            return (f"{counts}, {self.concurrent} at once.", self.basis)
        wall = self.wall_s
        done, last = (now + timedelta(seconds=seconds) for seconds in (wall.likely, wall.high))
        lines = [
            f"{counts}, {self.concurrent} at once: about {duration(wall.likely)} ({duration(wall.low)} to "
            f"{duration(wall.high)}), done about {done:%Y-%m-%d %H:%M}, at the latest {last:%Y-%m-%d %H:%M}."
        ]
        spent = f"{self.gpu_hours:.1f} GPU hours" if self.gpu_hours else f"{self.cpu_hours:.1f} CPU hours"
        spent += f", {self.money:.2f} at the given price" if self.money is not None else ""
        spent += f", {size(self.disk_bytes)} of disk" if self.disk_bytes is not None else ""
        spent += f", {size(self.memory_bytes)} of memory at once" if self.memory_bytes is not None else ""
        return (*lines, f"{spent}.", self.basis)


def forecast(
    works: Sequence[Work],
    *,
    concurrent: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    costs: Sequence[Cost] = (),
    history: Iterable[LedgerEntry] = (),
    price_per_hour: float | None = None,
) -> Forecast:
    """Foretell what ``works``, started in this order, will cost.

    Args:
        works: What is left.
        concurrent: Trials at once.
        cpus: CPU cores of a trial.
        gpus: GPUs of a trial, also a part of one.
        costs: From a probe, made where the trials will run.
        history: Entries of the ledger, newest first, of the same recipe.
        price_per_hour: Of a GPU, or of a CPU core where trials have no GPU; in any currency.
    """
    # Costs and entries hold configs as a machine resolved them.
    device = "cuda" if gpus else "cpu"
    works = [replace(work, config=_resolved(work.config, device)) for work in works]
    usable = [cost for cost in costs if (gpus > 0) != cost.device.startswith("CPU")]
    past = list(_comparable(history, cpus, gpus, usable))
    estimator = _Estimator(usable, past, concurrent, gpus)
    estimates = [(work, estimator.seconds(work)) for work in works if work.kind != "rescore"]
    known = [(work, estimate) for work, estimate in estimates if estimate is not None]
    trainings = [work for work in works if work.kind == "train"]
    basis = estimator.basis()
    if costs and not usable:
        basis += f" The probe ran on {costs[0].device}, where the trials will not run, and is left out."
    peaks = [cost.peak_memory_bytes for cost in usable] or [one.peak_memory_bytes for one in past]
    peak = max(peaks, default=0) or None
    common: dict[str, Any] = {
        "trainings": len(trainings),
        "resumed": sum(work.steps_done > 0 for work in trainings),
        "evaluations": len(works) - len(trainings),
        "concurrent": concurrent,
        "disk_bytes": sum(estimator.nearest(work.config).run_bytes for work in trainings) if usable else None,
        "memory_bytes": None if peak is None else peak * min(concurrent, len(estimates)),
        "trial_memory_bytes": peak,
    }
    if len(known) < len(estimates):
        nothing: dict[str, Any] = dict.fromkeys(("wall_s", "training_s", "cpu_hours", "gpu_hours", "money"))
        return Forecast(**common, **nothing, basis=basis)
    setup_s = estimator.setup_s
    hours = sum(setup_s + estimate.likely for _, estimate in known) / 3600
    money = None if price_per_hour is None else hours * (gpus or cpus) * price_per_hour
    times_s = [estimate.likely for work, estimate in known if work.kind == "train"]
    wall_s = Range(
        makespan([setup_s + estimate.low for _, estimate in known], concurrent),
        makespan([setup_s + estimate.likely for _, estimate in known], concurrent),
        makespan([setup_s + estimate.high for _, estimate in known], concurrent),
    )
    return Forecast(
        **common,
        wall_s=wall_s,
        training_s=statistics.fmean(times_s) if times_s else None,
        cpu_hours=hours * cpus,
        gpu_hours=hours * gpus,
        money=money,
        basis=basis,
    )


def scorecard(foretold: Mapping[str, Any], entries: Iterable[LedgerEntry], wall_s: float | None) -> tuple[str, ...]:
    """The forecast beside what happened, in sentences.

    Args:
        foretold: ``Forecast.to_json``.
        entries: Of the ledger, of the trainings that the forecast was of, as far as they have ended.
        wall_s: Seconds that the study took; ``None`` where it was interrupted, so that nobody knows.
    """
    trained = [entry for entry in entries if entry.origin.derived_from is None]
    lines = []
    if wall_s is not None and (wall := foretold["wall_s"]) is not None:
        inside = wall["low"] <= wall_s <= wall["high"]
        lines.append(
            f"Foretold {duration(wall['likely'])} ({duration(wall['low'])} to {duration(wall['high'])}), took "
            f"{duration(wall_s)}: {_compared(wall_s, wall['likely'])}, {'inside' if inside else 'outside'} it."
        )
    times_s = [entry.wall_time_s for entry in trained if entry.wall_time_s is not None]
    # What resumed trainings took counts what was done before.
    if foretold["training_s"] is not None and times_s and not foretold["resumed"]:
        mean_s = statistics.fmean(times_s)
        lines.append(
            f"A training: foretold {duration(foretold['training_s'])}, took {duration(mean_s)} on average over "
            f"{len(times_s)}: {_compared(mean_s, foretold['training_s'])}."
        )
    if len(trained) != foretold["trainings"]:
        lines.append(f"Trainings: foretold {foretold['trainings']}, ended {len(trained)}.")
    if foretold["memory_bytes"] is not None and trained:
        peak = max(entry.peak_memory_bytes or 0 for entry in trained)
        each = foretold["memory_bytes"] / max(min(foretold["concurrent"], foretold["trainings"]), 1)
        lines.append(f"Memory of a trial: foretold {size(round(each))}, took at most {size(peak)}.")
    return tuple(lines)


def makespan(times_s: Sequence[float], concurrent: int) -> float:
    """Seconds until all have ended, if ``concurrent`` run at once and the next starts when one ends.

    >>> makespan([3.0, 1.0, 1.0, 2.0], 2)
    4.0
    """
    ends = [0.0] * concurrent
    for time_s in times_s:
        heapq.heappush(ends, heapq.heappop(ends) + time_s)
    return max(ends)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> [duration(s) for s in (4.2, 95, 1000, 9000, 200_000)]
    ['4 s', '95 s', '17 min', '2.5 h', '2.3 days']
    """
    steps = ((120, 1, "s", 0), (5400, 60, "min", 0), (48 * 3600, 3600, "h", 1))
    for limit, unit, name, digits in steps:
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86400:.1f} days"


@dataclass(frozen=True, slots=True)
class _Past:
    """A finished training."""

    kind: str
    similar: str
    time_s: float
    peak_memory_bytes: int


class _Estimator:
    """Seconds of a trial.

    Attributes:
        setup_s: Seconds until its process trains.
    """

    def __init__(self, costs: Sequence[Cost], past: Sequence[_Past], concurrent: int, gpus: float) -> None:
        self._costs = costs
        self._cost_of = {kind(cost.config): cost for cost in costs}
        self._past_of = _grouped(past, lambda one: one.kind)
        self._similar_to = _grouped(past, lambda one: one.similar)
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
        return None if whole is None else _scaled(whole, self._share_left(work))

    def nearest(self, config: RunConfig) -> Cost:
        """The probed training that differs in the fewest settings."""
        wanted = kind(config)
        if wanted not in self._cost_of:
            self._cost_of[wanted] = min(self._costs, key=lambda cost: len(diff(cost.config, config)))
        return self._cost_of[wanted]

    def basis(self) -> str:
        """Where the estimates came from."""
        texts = {
            "same": "finished trainings of the same settings",
            "similar": "finished trainings of other settings of this recipe",
            "probe": "a probe",
            "nothing": "nothing: there is neither a probe nor a finished training like them",
        }
        parts = [f"{self._used[source]} from {text}" for source, text in texts.items() if source in self._used]
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
        if same := self._past_of.get(wanted):
            return "same", _range(same)
        if self._costs:
            return "probe", self._from_probe(config, wanted)
        similar = self._similar_to.get(_similar(config), [])
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
            return _scaled(alone, self.nearest(config).evaluation_s * config.evaluate.average_last)
        if whole is None:
            return None
        most = whole.high * min(config.evaluate.average_last / evaluations(config, config.num_steps), 1.0)
        return Range(0.0, most / 2, most)


def _comparable(history: Iterable[LedgerEntry], cpus: float, gpus: float, costs: Sequence[Cost]) -> Iterable[_Past]:
    """Whole trainings, made with these resources, on the newest one's device where a probe does not name it."""
    device = costs[0].device if costs else None
    for entry in islice(history, HISTORY):
        origin, resources = entry.origin, entry.resources
        # Neither derived nor forked: these did not train from the first step on.
        whole = entry.status == "finished" and origin.derived_from is None and not origin.forked_at
        if not whole or entry.wall_time_s is None or (resources.cpus, resources.gpus) != (cpus, gpus):
            continue
        try:
            config = RunConfig.model_validate(entry.config)
        except ValueError:
            continue  # of another version of the code
        device = device or entry.provenance["device"]
        if entry.provenance["device"] == device and entry.step == config.num_steps:
            peak = entry.peak_memory_bytes or 0
            yield _Past(kind(config), _similar(config), float(entry.wall_time_s), peak)


def _resolved(config: RunConfig, device: str) -> RunConfig:
    method = config.method.resolved(device, config.views.crop_size_px)
    return config.model_copy(update={"method": method, "device": device})


def _similar(config: RunConfig) -> str:
    """Equal for trainings that differ in the method or the optimizer alone."""
    return json.dumps(config.model_dump(mode="json", include=set(_SIMILAR_FIELDS)), sort_keys=True)


def _range(past: Sequence[_Past]) -> Range:
    """Median and the 10 % and 90 % quantiles, at least ``SPREAD`` apart from it."""
    times_s = sorted(one.time_s for one in past)
    likely = statistics.median(times_s)
    low, *_, high = statistics.quantiles(times_s, n=10, method="inclusive") if len(times_s) > 1 else times_s * 2
    return Range(min(low, likely * (1 - SPREAD)), likely, max(high, likely * (1 + SPREAD)))


def _scaled(seconds: Range, factor: float) -> Range:
    return Range(seconds.low * factor, seconds.likely * factor, seconds.high * factor)


def _grouped(past: Iterable[_Past], key: Callable[[_Past], str]) -> dict[str, list[_Past]]:
    groups: dict[str, list[_Past]] = {}
    for one in past:
        groups.setdefault(key(one), []).append(one)
    return groups


def _compared(took: float, foretold: float) -> str:
    if not foretold:
        return "nothing was foretold"
    percent = 100 * (took / foretold - 1)
    return "as foretold" if abs(percent) < 0.5 else f"{abs(percent):.0f} % {'longer' if percent > 0 else 'shorter'}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
