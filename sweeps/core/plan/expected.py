"""The expected cost of a sequential study, by simulation of its own claims, rows and looks.

Every configuration gets normal values, independent between seeds, configurations and metrics, so
that each paired difference has the standard deviation 1. Rows with a shared base share its noise.
``replay`` then decides as in the real study.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.core.design.claims import Tests
from sweeps.core.findings.replay import replay
from sweeps.core.statistics.paired import Floats

MAX_STUDIES = 400
"""Simulated studies at most. A study of ten rows takes two to three milliseconds."""
MIN_STUDIES = 100
"""Simulated studies at least, so that their spread is known."""
PRECISION = 0.01
"""Standard error of the trainings, as a part of their number, at which the simulation ends."""

Place = tuple[int, str]
"""Row number and metric key of a comparison."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of the trials of a study, and where they run.

    Attributes:
        served_by: By configuration, the configuration whose training serves its trials: itself, or
            one from which it differs only in the evaluation.
        training_s: Seconds of a training of each configuration, with the start of its process;
            ``None`` where unknown.
        concurrent: Trainings at once.
        ahead: Whether free workers begin trainings of the next look.
    """

    served_by: tuple[int, ...]
    training_s: tuple[float, ...] | None
    concurrent: int
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Course:
    """What a study costs from its first training to its end.

    Attributes:
        trainings: Number of trainings.
        wasted: Number of these that ran ahead and were not needed.
        training_s: Seconds of all trainings together; ``None`` where unknown.
        wall_s: Seconds from start to end; ``None`` where unknown.
    """

    trainings: float
    wasted: float
    training_s: float | None
    wall_s: float | None


@dataclass(frozen=True, slots=True)
class Expected:
    """The mean over simulated studies.

    Attributes:
        shown: Share of the claims that end as shown.
        course: The mean cost.
        error: Standard error of the number of trainings.
        num_seeds: Mean number of seeds by configuration.
        studies: Number of simulated studies.
    """

    shown: float
    course: Course
    error: float
    num_seeds: tuple[float, ...]
    studies: int


def claimed(tests: Tests, sizes: Mapping[str, float] | float) -> dict[Place, float]:
    """Return the effect of every comparison if all claims are true.

    Args:
        tests: The claims.
        sizes: Size of the effects in standard deviations of a paired difference, by metric key or
            of all metrics. The claims give the signs.
    """
    effects: dict[Place, float] = {}
    for claim in tests.claims:
        for item in claim.comparisons:
            size = sizes[item.metric] if isinstance(sizes, Mapping) else sizes
            effects.setdefault((item.row, item.metric), (item.direction or 1) * size)
    return effects


def expect(tests: Tests, effects: Mapping[Place, float], costs: Costs) -> Expected:
    """Simulate a sequential study.

    Args:
        tests: Claims, rows and looks of the study.
        effects: Difference of each comparison, in standard deviations of a paired difference.
        costs: Costs of its trials.
    """
    sequential = tests.sequential
    assert sequential is not None  # noqa: S101 - only such a study has looks
    courses: dict[tuple[int, ...], Course] = {}
    ran, shown, seeds = [], [], []
    for values in _studies(tests, effects, sequential.cap):
        looks = replay(tests, values)
        if looks.num_seeds not in courses:
            courses[looks.num_seeds] = course(tests, looks.num_seeds, costs)
        ran.append(courses[looks.num_seeds])
        seeds.append(looks.num_seeds)
        shown.append(statistics.fmean(claim.outcome == "shown" for claim in looks.claims))
        counts = [each.trainings for each in ran]
        if len(ran) >= MIN_STUDIES:
            error = statistics.stdev(counts) / math.sqrt(len(counts))
            if error <= PRECISION * statistics.fmean(counts) or len(ran) >= MAX_STUDIES:
                break
    has_cost = costs.training_s is not None
    return Expected(
        statistics.fmean(shown),
        Course(
            statistics.fmean(counts),
            statistics.fmean(each.wasted for each in ran),
            statistics.fmean(each.training_s or 0.0 for each in ran) if has_cost else None,
            statistics.fmean(each.wall_s or 0.0 for each in ran) if has_cost else None,
        ),
        error,
        tuple(map(statistics.fmean, zip(*seeds, strict=True))),
        len(ran),
    )


def largest(tests: Tests, costs: Costs, num_looks: int | None = None) -> Course:
    """Return the cost if no claim is decided before the last look.

    Args:
        tests: Claims, rows and looks of the study.
        costs: Costs of its trials.
        num_looks: Number of looks after which the study stops; ``None`` for all.
    """
    sequential = tests.sequential
    assert sequential is not None  # noqa: S101 - only such a study has looks
    tested = _tested(tests)
    counts = tuple(
        min(number, sequential.looks[(num_looks or 0) - 1 if cell in tested else 0])
        for cell, number in enumerate(tests.num_seeds)
    )
    return course(tests, counts, costs)


def course(tests: Tests, num_seeds: Sequence[int], costs: Costs) -> Course:
    """Compute the cost of a study from the seeds that its configurations got.

    A look waits for all of its trainings. Evaluations of other trainings cost nothing here.

    Args:
        tests: Claims, rows and looks of the study.
        num_seeds: Number of seeds by configuration, each of them of a look.
        costs: Costs of its trials.
    """
    sequential = tests.sequential
    assert sequential is not None  # noqa: S101 - only such a study has looks
    looks, tested = sequential.looks, {costs.served_by[cell] for cell in _tested(tests)}
    # Trainings as (configuration, seed), look by look; of a shared training each seed once.
    trained = dict.fromkeys(costs.served_by, 0)
    for cell, number in enumerate(num_seeds):
        trained[costs.served_by[cell]] = max(trained[costs.served_by[cell]], number)
    rounds = [
        [(cell, seed) for cell, number in trained.items() for seed in range(low, min(number, high))]
        for low, high in zip((0, *looks), looks, strict=False)
    ]
    rounds = [needed for needed in rounds if needed]
    times_s = costs.training_s or (1.0,) * len(num_seeds)
    # A heap with the time at which each worker becomes free.
    free, ends_s, end = [0.0] * costs.concurrent, {}, 0.0
    for place, needed in enumerate(rounds):
        for job in needed:
            if job not in ends_s:
                ends_s[job] = heapq.heappop(free) + times_s[job[0]]
                heapq.heappush(free, ends_s[job])
        end = max(ends_s[job] for job in needed)
        # Each row of this look that a claim needs could go on, as far as anybody knows.
        if costs.ahead and place + 1 < len(looks):
            cells = dict.fromkeys(cell for cell, _ in needed if cell in tested)
            seeds = range(looks[place], looks[place + 1])
            for job in ((cell, seed) for cell in cells for seed in seeds):
                if free[0] >= end:
                    break
                ends_s[job] = heapq.heappop(free) + times_s[job[0]]
                heapq.heappush(free, ends_s[job])
        free = [max(time_s, end) for time_s in free]
        heapq.heapify(free)
    num_needed = sum(map(len, rounds))
    has_cost = costs.training_s is not None
    return Course(
        len(ends_s),
        len(ends_s) - num_needed,
        sum(times_s[cell] for cell, _ in ends_s) if has_cost else None,
        max(free) if has_cost else None,
    )


def percent(share: float) -> str:
    """Format a simulated share, which is never certain.

    >>> [percent(share) for share in (0.004, 0.42, 0.998)]
    ['0 %', '42 %', '> 99 %']
    """
    return f"{100 * share:.0f} %" if share < 0.995 else "> 99 %"


def _tested(tests: Tests) -> set[int]:
    return tests.cells_of(item for claim in tests.claims for item in claim.comparisons)


def _studies(
    tests: Tests, effects: Mapping[Place, float], cap: int
) -> Iterator[Callable[[int, int], Mapping[str, float | None]]]:
    """Yield the results of simulated studies, always the same ones."""
    metrics = list(dict.fromkeys(metric for _, metric in effects))
    means = _means(tests, effects, metrics)
    generator = np.random.default_rng(0)
    while True:
        # The difference of two configurations has the variance 1.
        noise = generator.standard_normal((len(tests.num_seeds), cap, len(metrics)))
        values = (means[:, None, :] + noise / math.sqrt(2)).tolist()

        def results(
            cell: int, replicate: int, values: list[list[list[float]]] = values
        ) -> Mapping[str, float | None]:
            return dict(zip(metrics, values[cell][replicate], strict=True))

        yield results


def _means(tests: Tests, effects: Mapping[Place, float], metrics: Sequence[str]) -> Floats:
    """Return means by configuration and metric whose differences are ``effects``.

    Where comparisons form a circle, no means can have all differences, and the nearest are taken.
    """
    means = np.zeros((len(tests.num_seeds), len(metrics)))
    for place, metric in enumerate(metrics):
        rows = [(row, effect) for (row, key), effect in effects.items() if key == metric]
        matrix = np.zeros((len(rows), len(tests.num_seeds)))
        for line, (number, _) in enumerate(rows):
            row = tests.rows[number]
            assert row.versus is not None  # noqa: S101 - a comparison has a base
            matrix[line, row.cell] += 1
            matrix[line, tests.rows[row.versus].cell] -= 1
        means[:, place] = np.linalg.lstsq(matrix, np.array([effect for _, effect in rows]))[0]
    return means
