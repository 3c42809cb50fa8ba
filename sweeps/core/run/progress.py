"""The progress line of a study or a search."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from typing import TextIO

from toco.files import printable


class Progress:
    """Count trials and steps, and print a line.

    On a terminal the line is updated in place. Elsewhere a new line is printed after the end of a
    trial and every 30 s. The remaining time follows from the remaining steps and the rate of this
    start, evaluations included. Steps are known from the evaluations, so the time is unknown before
    the first one.

    Args:
        title: Begins every line.
        steps: Optimizer updates of every trial, by name.
        stream: The stream to print to; standard error by default.
        clock: Returns seconds; tests hand in their own.
    """

    def __init__(
        self,
        title: str,
        steps: Mapping[str, int],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._steps = dict(steps)
        self._stream = stream or sys.stderr
        self._clock = clock
        self._started = clock()
        self._running: Set[str] = set()
        self._ended: dict[str, bool] = {}
        # Steps done by each trial, and those of them that were done before this start.
        self._step: Counter[str] = Counter()
        self._earlier: Counter[str] = Counter()
        self._printed = float("-inf")
        self._print_by = float("inf")
        self._width = 0

    def expect(self, name: str, steps: int) -> None:
        """Add a trial of ``steps`` steps; do nothing where ``name`` is known."""
        self._steps.setdefault(name, steps)

    def resumed(self, name: str, step: int) -> None:
        """Note that ``name`` had done ``step`` steps before this start.

        They do not count for the rate.
        """
        self._step[name] = self._earlier[name] = step

    def ended_before(self, name: str) -> None:
        """Note that ``name`` had its result before this start."""
        self._step[name] = self._earlier[name] = self._steps[name]
        self._ended[name] = False

    def running(self, names: Set[str]) -> None:
        """Note that these trials run now, and no others."""
        self._running = names
        self.print()

    def reported(self, name: str, step: int) -> None:
        """Note that ``name`` has evaluated after ``step`` steps."""
        self._step[name] = max(self._step[name], step)

    def ended(self, name: str, *, failed: bool) -> None:
        """Note that ``name`` has ended."""
        self._running = self._running - {name}
        if not failed:
            self._step[name] = self._steps[name]
        self._ended[name] = failed
        # Wait a second before printing: by then the next trial runs, and the line says so.
        self._print_by = min(self._print_by, self._clock() + 1.0)

    def step_of(self, name: str) -> int:
        """Return the steps that ``name`` has done, as far as known."""
        return self._step[name]

    def eta_s(self) -> float | None:
        """Return the seconds to the end at the rate of this start; ``None`` where unknown."""
        failed = {name for name, is_failed in self._ended.items() if is_failed}
        remaining = sum(
            steps - self._step[name] for name, steps in self._steps.items() if name not in failed
        )
        steps_done = self._step.total() - self._earlier.total()
        if remaining == 0:
            return 0.0
        return (self._clock() - self._started) * remaining / steps_done if steps_done else None

    def line(self) -> str:
        """Return the present line."""
        failed = sum(self._ended.values())
        total, num_done, running = len(self._steps), len(self._ended) - failed, len(self._running)
        waiting = total - num_done - failed - running
        counts = (
            f"{num_done}/{total} trials done, {running} running, {failed} failed, {waiting} waiting"
        )
        elapsed = _duration(self._clock() - self._started)
        return f"{self._title}: {counts}, {elapsed} elapsed, {self._remaining()} remaining"

    def print(self, *, at_once: bool = False) -> None:
        """Print the line if it is due."""
        in_place = self._stream.isatty()
        due = min(self._print_by, self._printed + (1.0 if in_place else 30.0))
        if not at_once and self._clock() < due:
            return
        self._printed, self._print_by = self._clock(), float("inf")
        line = self.line()
        self._stream.write(f"\r{line.ljust(self._width)}" if in_place else f"{line}\n")
        self._width = len(line)
        self._stream.flush()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        text = printable(text, keep="\n\t")
        self._stream.write(
            f"\r{text.ljust(self._width)}\n" if self._stream.isatty() else f"{text}\n"
        )
        self.print(at_once=True)

    def close(self) -> None:
        """Print the last line and keep it."""
        self.print(at_once=True)
        if self._stream.isatty():
            self._stream.write("\n")

    def _remaining(self) -> str:
        eta_s = self.eta_s()
        if eta_s is None:
            return "unknown time"
        return f"about {_duration(eta_s)}" if eta_s else "0s"


def _duration(seconds: float) -> str:
    """Format seconds, rounded to whole ones.

    >>> _duration(3725)
    '1h02m'
    >>> _duration(65.4)
    '1m05s'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
