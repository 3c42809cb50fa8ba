"""Predict the time and cost of a study's remaining trials.

The prediction follows from single trials, is printed in sentences, and is compared with the real
cost at the end.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sweeps.core.plan.estimates import Estimator, Work, comparable
from sweeps.core.plan.probe import Cost
from sweeps.core.store.forecast_record import Forecast, Most, Range
from sweeps.core.store.ledger_entry import LedgerEntry
from toco.room import size
from toco.train.run_config import RunConfig


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
    """Predict the cost of ``works``, started in this order.

    Args:
        works: The remaining work.
        concurrent: Trials at once.
        cpus: CPU cores of a trial.
        gpus: GPUs of a trial, also a part of one.
        costs: Costs from a probe on the machine where the trials will run.
        history: Entries of the ledger of the same recipe, newest first.
        price_per_hour: Price of a GPU hour, or of a CPU core hour where trials have no GPU; in any
            currency.
    """
    # Costs and entries hold resolved configs, so these are resolved, too.
    device = "cuda" if gpus else "cpu"
    works = [replace(work, config=_resolved(work.config, device)) for work in works]
    usable = [cost for cost in costs if (gpus > 0) != cost.device.startswith("CPU")]
    past = list(comparable(history, cpus, gpus, usable))
    estimator = Estimator(usable, past, concurrent, gpus)
    estimates = [(work, estimator.seconds(work)) for work in works if work.kind != "rescore"]
    estimated = [(work, estimate) for work, estimate in estimates if estimate is not None]
    trainings = [work for work in works if work.kind == "train"]
    basis = estimator.basis()
    if costs and not usable:
        basis += (
            f" The probe ran on {costs[0].device}, where the trials will not run, and is left out."
        )
    peaks = [cost.peak_memory_bytes for cost in usable] or [
        training.peak_memory_bytes for training in past
    ]
    peak = max(peaks, default=0) or None
    # Count trainings and their disk and memory, which are known even if no time is.
    counts = Forecast(
        trainings=len(trainings),
        resumed=sum(work.steps_done > 0 for work in trainings),
        evaluations=len(works) - len(trainings),
        concurrent=concurrent,
        disk_bytes=sum(estimator.nearest(work.config).run_bytes for work in trainings)
        if usable
        else None,
        memory_bytes=None if peak is None else peak * min(concurrent, len(estimates)),
        trial_memory_bytes=peak,
        basis=basis,
    )
    if len(estimated) < len(estimates):
        return counts
    # Add up the times.
    setup_s = estimator.setup_s
    hours = sum(setup_s + estimate.likely for _, estimate in estimated) / 3600
    money = None if price_per_hour is None else hours * (gpus or cpus) * price_per_hour
    times_s = [estimate.likely for work, estimate in estimated if work.kind == "train"]
    wall_s = Range(
        makespan([setup_s + estimate.low for _, estimate in estimated], concurrent),
        makespan([setup_s + estimate.likely for _, estimate in estimated], concurrent),
        makespan([setup_s + estimate.high for _, estimate in estimated], concurrent),
    )
    return replace(
        counts,
        wall_s=wall_s,
        training_s=statistics.fmean(times_s) if times_s else None,
        cpu_hours=hours * cpus,
        gpu_hours=hours * gpus,
        money=money,
    )


def with_looks(present: Forecast, later: Sequence[Forecast]) -> Forecast:
    """Return the forecast of a sequential study.

    Args:
        present: Forecast of the trials that the present look lacks.
        later: Forecast of each look that may follow, if every open claim stays open.
    """
    looks = (present, *later)
    trainings = sum(look.trainings for look in looks)
    walls_s = [look.wall_s.likely for look in looks if look.wall_s is not None]
    most = Most(trainings)
    if len(walls_s) == len(looks):
        # A look begins when the one before is complete.
        most = Most(
            trainings,
            sum(walls_s),
            sum(look.cpu_hours or 0.0 for look in looks),
            sum(look.gpu_hours or 0.0 for look in looks),
        )
    return replace(present, most=most)


def training_seconds(
    configs: Sequence[RunConfig],
    *,
    concurrent: int,
    cpus: float,
    gpus: float,
    costs: Sequence[Cost],
    history: Iterable[LedgerEntry],
) -> tuple[float, ...] | None:
    """Predict the likely seconds of whole trainings, with the start of their processes.

    The result is ``None`` where one of them is unknown. See :func:`forecast` for the arguments.
    """
    usable = [cost for cost in costs if (gpus > 0) != cost.device.startswith("CPU")]
    estimator = Estimator(usable, [*comparable(history, cpus, gpus, usable)], concurrent, gpus)
    device = "cuda" if gpus else "cpu"
    ranges = [estimator.seconds(Work(_resolved(config, device))) for config in configs]
    known = [estimator.setup_s + each.likely for each in ranges if each is not None]
    return tuple(known) if len(known) == len(ranges) else None


def describe(predicted: Forecast, start: datetime) -> tuple[str, ...]:
    """Describe a prediction in sentences, for a study that starts at ``now``."""
    counts = f"{_count(predicted.trainings, 'training')} to run"
    counts += " for the present look" if predicted.most is not None else ""
    counts += (
        f", {_count(predicted.evaluations, 'trial')} evaluated without training"
        if predicted.evaluations
        else ""
    )
    if not predicted.trainings + predicted.evaluations:
        return ("Nothing is left to run.",)
    if predicted.wall_s is None:
        return (
            f"{counts}, {predicted.concurrent} at once.",
            *_most_text(predicted, start),
            predicted.basis,
        )
    wall = predicted.wall_s
    likely_end, latest_end = (
        start + timedelta(seconds=seconds) for seconds in (wall.likely, wall.high)
    )
    lines = [
        f"{counts}, {predicted.concurrent} at once: about {duration(wall.likely)} "
        f"({duration(wall.low)} to {duration(wall.high)}), done about {likely_end:%Y-%m-%d %H:%M}, "
        f"at the latest {latest_end:%Y-%m-%d %H:%M}."
    ]
    spent = held(predicted.gpu_hours, predicted.cpu_hours)
    spent += f", {predicted.money:.2f} at the given price" if predicted.money is not None else ""
    spent += f", {size(predicted.disk_bytes)} of disk" if predicted.disk_bytes is not None else ""
    spent += (
        f", {size(predicted.memory_bytes)} of memory for the trials at once"
        if predicted.memory_bytes is not None
        else ""
    )
    return (*lines, f"{spent}.", *_most_text(predicted, start), predicted.basis)


def held(gpu_hours: float | None, cpu_hours: float | None) -> str:
    """Format hours of GPUs, or of CPU cores where trials have no GPU.

    >>> held(0.0, 2.25)
    '2.2 CPU hours'
    """
    return f"{gpu_hours:.1f} GPU hours" if gpu_hours else f"{cpu_hours or 0.0:.1f} CPU hours"


def _most_text(predicted: Forecast, start: datetime) -> list[str]:
    """Say what a sequential study costs at most; nothing where no look follows."""
    most = predicted.most
    if most is None or most.trainings == predicted.trainings:
        return []
    text = f"If every open claim stays open up to the last look: {most.trainings} trainings"
    if most.wall_s is not None:
        end = start + timedelta(seconds=most.wall_s)
        text += (
            f", {held(most.gpu_hours, most.cpu_hours)}, about {duration(most.wall_s)}, done about "
            f"{end:%Y-%m-%d %H:%M}"
        )
    return [f"{text}."]


def scorecard(
    predicted: Forecast,
    entries: Iterable[LedgerEntry],
    wall_s: float | None,
    rounds: Sequence[int] = (),
) -> tuple[str, ...]:
    """Compare the forecast with the real cost, in sentences.

    The forecast of a sequential study is for one look. It is compared with all looks that ran, each
    of which takes as much longer as it has more rounds of trainings.

    Args:
        predicted: The forecast.
        entries: Entries of the ledger of the predicted trainings, as far as they have ended.
        wall_s: Seconds that the study took; ``None`` where an interruption makes that unknown.
        rounds: Number of trainings that ran, by look of a sequential study.
    """
    trained = [entry for entry in entries if entry.origin.derived_from is None]
    lines = []
    wall = predicted.wall_s
    if wall is not None and predicted.most is not None:
        waves = [
            sum(math.ceil(number / predicted.concurrent) for number in numbers)
            for numbers in ((predicted.trainings,), rounds)
        ]
        wall = wall.scaled(waves[1] / waves[0]) if all(waves) else None
    if wall_s is not None and wall is not None:
        inside = wall.low <= wall_s <= wall.high
        num_looks = sum(number > 0 for number in rounds)
        looks = f" for the {num_looks} looks that ran" if num_looks > 1 else ""
        lines.append(
            f"Predicted{looks} {duration(wall.likely)} ({duration(wall.low)} to "
            f"{duration(wall.high)}), took {duration(wall_s)}: {_compared(wall_s, wall.likely)}, "
            f"{'inside' if inside else 'outside'} the range."
        )
    times_s = [entry.wall_time_s for entry in trained if entry.wall_time_s is not None]
    # The time of a resumed training includes its earlier steps, which were not predicted.
    if predicted.training_s is not None and times_s and not predicted.resumed:
        mean_s = statistics.fmean(times_s)
        lines.append(
            f"A training: predicted {duration(predicted.training_s)}, took {duration(mean_s)} on "
            f"average over {len(times_s)}: {_compared(mean_s, predicted.training_s)}."
        )
    if predicted.most is not None:
        lines.append(
            f"Trainings: predicted {predicted.trainings} for the look at the start and at most "
            f"{predicted.most.trainings} for all looks, ended {len(trained)}."
        )
    elif len(trained) != predicted.trainings:
        lines.append(f"Trainings: predicted {predicted.trainings}, ended {len(trained)}.")
    if (each := predicted.trial_memory_bytes) is not None and trained:
        peak = max(entry.peak_memory_bytes or 0 for entry in trained)
        lines.append(
            f"Memory of a trial: predicted {size(round(each))}, took at most {size(peak)}."
        )
    return tuple(lines)


def makespan(times_s: Sequence[float], concurrent: int) -> float:
    """Return the seconds until all trials have ended, with ``concurrent`` of them at once.

    The next trial starts when one ends.

    >>> makespan([3.0, 1.0, 1.0, 2.0], 2)
    4.0
    """
    ends = [0.0] * concurrent
    for time_s in times_s:
        heapq.heappush(ends, heapq.heappop(ends) + time_s)
    return max(ends)


def duration(seconds: float) -> str:
    """Format seconds for a reader.

    >>> [duration(s) for s in (4.2, 95, 1000, 9000, 200_000)]
    ['4 s', '95 s', '17 min', '2.5 h', '2.3 days']
    """
    steps = ((120, 1, "s", 0), (5400, 60, "min", 0), (48 * 3600, 3600, "h", 1))
    for limit, unit, name, digits in steps:
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86400:.1f} days"


def _resolved(config: RunConfig, device: str) -> RunConfig:
    method = config.method.resolved(device, config.views.crop_size_px)
    return config.model_copy(update={"method": method, "device": device})


def _compared(took: float, predicted: float) -> str:
    if not predicted:
        return "nothing was predicted"
    percent = 100 * (took / predicted - 1)
    return (
        "as predicted"
        if abs(percent) < 0.5
        else f"{abs(percent):.0f} % {'longer' if percent > 0 else 'shorter'}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
