"""What a sequential study is expected to take, as a table in the text of a plan."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from tabulate import tabulate

from sweeps.core.design.claims import Tests
from sweeps.core.design.seeds import Sequential
from sweeps.core.plan.expected import PRECISION, Costs, Course, claimed, expect, largest, percent
from sweeps.core.plan.forecast import duration
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import Situation

EFFECTS = (0.0, 1.0, 2.0, 3.0)
"""Effects of all claims, in standard deviations of a paired difference."""


def expected_lines(
    situation: Situation,
    launch: Launch,
    training_s: tuple[float, ...] | None,
    sds: Mapping[str, float],
) -> list[str]:
    """Describe what a whole study takes with looks, by simulation, at several effects.

    A study with a fixed list of seeds shows what it would take in the place of its list. No line
    is returned where nothing is tested.

    Args:
        situation: The study.
        launch: The resources.
        training_s: Seconds of a training of each configuration; ``None`` where unknown.
        sds: Standard deviation of a paired difference by metric key, where it is known.
    """
    study = situation.plan.study
    sequential = study.sequential or Sequential()
    plan = situation.plan if study.sequential else replace(study, seeds=sequential).resolve()
    tests = plan.tests
    if not tests.claims:
        return []
    costs = Costs(situation.served_by(), training_s, launch.concurrent, launch.ahead)
    keys = {key for _, key in tests.places}
    scenarios: list[tuple[str, Mapping[str, float] | float]] = [
        (f"{size:g} sd", size) for size in EFFECTS
    ]
    if all(sds.get(key) for key in keys):
        sizes = {key: study.smallest_effect / sds[key] for key in keys}
        scenarios.append((_known_text(study.smallest_effect, sizes), sizes))
    # The end is a date only where nothing has begun, because the table is of the whole study.
    start = None if situation.ledger.finished_keys(situation.keys) else datetime.now()
    lines = [["every claimed effect", "claims shown", *_headings(launch, start)]]
    for label, effects in scenarios:
        expected = expect(tests, claimed(tests, effects), costs)
        lines.append([label, percent(expected.shown), *_cells(expected.course, launch, start)])
    lines.append(["any, at most", "", *_cells(largest(tests, costs), launch, start)])
    align = ["left", *["right"] * (len(lines[0]) - 1)]
    table = tabulate(lines, tablefmt="plain", colalign=align, disable_numparse=True)
    looks = ", ".join(map(str, sequential.looks))
    head = "The whole study" if study.sequential else "With --sequential instead, the whole study"
    return [
        f"{head}, with looks after {looks} seeds, by simulation with normal noise (sd: standard "
        "deviation of a paired difference; standard error of the trainings about "
        f"{100 * PRECISION:.0f} %):",
        *textwrap.indent(table, "  ").splitlines(),
        *_budget_text(tests, costs, launch),
    ]


def _budget_text(tests: Tests, costs: Costs, launch: Launch) -> list[str]:
    """Say which look a budget reaches if no claim is decided before."""
    if launch.budget_hours is None or tests.sequential is None or costs.training_s is None:
        return []
    numbers = range(1, len(tests.sequential.looks) + 1)
    reached = sum(
        _hours(largest(tests, costs, number), launch) <= launch.budget_hours for number in numbers
    )
    return [
        f"The budget of {launch.budget_hours:g} hours reaches look {reached} of {len(numbers)} if "
        "every claim stays open, and a later one where claims are decided."
        if reached < len(numbers)
        else f"The budget of {launch.budget_hours:g} hours reaches the last look."
    ]


def _known_text(smallest: float, sizes: Mapping[str, float]) -> str:
    low, high = f"{min(sizes.values()):.2f}", f"{max(sizes.values()):.2f}"
    sd_text = low if low == high else f"{low} to {high}"
    return f"{100 * smallest:g} points ({sd_text} sd)"


def _headings(launch: Launch, start: datetime | None) -> list[str]:
    hours = "GPU hours" if launch.gpus_per_trial else "CPU hours"
    wasted = ["of them wasted"] if launch.ahead else []
    return ["trainings", *wasted, hours, "takes", *(["done about"] if start else [])]


def _cells(course: Course, launch: Launch, start: datetime | None) -> list[str]:
    texts = [f"{course.trainings:.0f}"]
    texts += [f"{course.wasted:.1f}"] if launch.ahead else []
    if course.training_s is None or course.wall_s is None:
        return [*texts, "?", "?", *(["?"] if start else [])]
    texts += [f"{_hours(course, launch):.1f}", duration(course.wall_s)]
    if start is not None:
        texts.append(f"{start + timedelta(seconds=course.wall_s):%Y-%m-%d %H:%M}")
    return texts


def _hours(course: Course, launch: Launch) -> float:
    return (course.training_s or 0.0) / 3600 * (launch.gpus_per_trial or launch.cpus_per_trial)
