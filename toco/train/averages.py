"""What the steps between two rows of ``metrics.jsonl`` come to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from toco.tensors import StepOutput
from toco.train import distributed

_LAG_STEPS = 4
"""So many steps later than a GPU was given them, its values are read: it has work to do while the host reads."""


class DivergedError(RuntimeError):
    """A loss or a gradient became infinite or not a number; the message names the terms and the step."""


@runtime_checkable
class _Arrival(Protocol):
    """What can be waited for: an event of CUDA."""

    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Pending:
    """Values of a step on their way to the host; ``arrived`` says when they are there, where that is not at once."""

    step: int
    names: list[str]
    checked: int
    values: Tensor
    arrived: _Arrival | None


class Averages:
    """Means between two log steps, and the watch for losses that are not finite.

    The values of a step are read at the next one, or some later on a GPU, which so never runs out
    of work for it.

    Attributes:
        stop_was_set: Whether a rank had been asked to stop, by the last step that was read.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.stop_was_set = False
        self._sums: dict[str, float] = {}
        self._numbers: dict[str, int] = {}
        for name, values in state.items():
            total, number = values.tolist()
            self._sums[name], self._numbers[name] = total, int(number)
        self._pending: deque[_Pending] = deque()

    def add(self, output: StepOutput, gradient_norm: Tensor, step: int, stop_is_set: bool) -> None:
        """Add a step's losses, means over the ranks, and check those of earlier steps."""
        self.check(_LAG_STEPS - 1 if gradient_norm.is_cuda else 0)
        checked = output.losses | {"gradient_norm": gradient_norm}
        named = checked | output.counts | {"loss_total": output.total}
        values = [value.detach() for value in named.values()] + [
            gradient_norm.new_full((), float(stop_is_set))
        ]
        means = distributed.mean(torch.stack(values))
        self._pending.append(_Pending(step, list(named), len(checked), *_to_host(means)))

    def add_time(self, time_s: float) -> None:
        """Add what a step took on the host."""
        self._add("train/step_time_s", time_s)

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        self.check()
        means = {name: total / self._numbers[name] for name, total in self._sums.items()}
        self._sums, self._numbers = {}, {}
        return means

    def check(self, but_last: int = 0) -> None:
        """Raise if a step that was added has a loss that is not finite; the last ``but_last`` are not looked at."""
        while len(self._pending) > but_last:
            self._read(self._pending.popleft())

    def _read(self, pending: _Pending) -> None:
        if pending.arrived is not None:
            pending.arrived.synchronize()
        *values, stop_was_set = pending.values.tolist()
        self.stop_was_set = self.stop_was_set or stop_was_set > 0
        named = list(zip(pending.names, values, strict=True))
        bad = [
            f"{name} is {value}"
            for name, value in named[: pending.checked]
            if not math.isfinite(value)
        ]
        if bad:
            raise DivergedError(
                f"At step {pending.step}, {' and '.join(bad)}. The last checkpoint is from before it; "
                "try a lower optim.lr."
            )
        for name, value in named:
            self._add(f"train/{name}", value)

    def state(self) -> dict[str, Tensor]:
        """Sum and number of everything added since the last log step, for a checkpoint."""
        return {
            name: torch.tensor([total, self._numbers[name]], dtype=torch.float64)
            for name, total in self._sums.items()
        }

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._numbers[name] = self._numbers.get(name, 0) + 1


def _to_host(values: Tensor) -> tuple[Tensor, _Arrival | None]:
    """``values`` in the memory of the host, without waiting for them, and an event that is there when they are."""
    if not values.is_cuda:
        return values, None
    host = torch.empty_like(values, device="cpu", pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived
