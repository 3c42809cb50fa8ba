"""Averages over the steps between two training rows of ``metrics.jsonl``."""

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
"""The host reads the values of a GPU's step this many steps later, so that the GPU has work."""


class DivergedError(RuntimeError):
    """A loss or a gradient is infinite or NaN; the message names the terms and the step."""


@runtime_checkable
class _Waitable(Protocol):
    """An object to wait for, such as a CUDA event."""

    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Pending:
    """Values of a step that are being copied to the host.

    Attributes:
        step: The step.
        names: Names of the values, in order.
        checked: How many values, from the first, must be finite.
        values: The values, and at the end whether a rank was asked to stop.
        copy_event: Event after the copy; ``None`` where the values are on the host already.
    """

    step: int
    names: list[str]
    checked: int
    values: Tensor
    copy_event: _Waitable | None


class Averages:
    """Means over the steps between two training rows, with a check that they are finite.

    On a CPU the values of a step are read at the next step, on a GPU a few steps later. The host
    therefore waits for the GPU's newest step only at training rows, evaluations and checkpoints.

    Attributes:
        stop_was_set: Whether any rank had been asked to stop, as of the last step that was read.
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
        """Add the losses of a step, as means over the ranks, and check those of earlier steps."""
        self.check(_LAG_STEPS - 1 if gradient_norm.is_cuda else 0)
        checked_values = output.losses | {"gradient_norm": gradient_norm}
        named_values = checked_values | output.counts | {"loss_total": output.total}
        values = [value.detach() for value in named_values.values()] + [
            gradient_norm.new_full((), float(stop_is_set))
        ]
        means = distributed.mean(torch.stack(values))
        self._pending.append(
            _Pending(step, list(named_values), len(checked_values), *_to_host(means))
        )

    def add_time(self, time_s: float) -> None:
        """Add the seconds that a step took on the host."""
        self._add("train/step_time_s", time_s)

    def take(self) -> dict[str, float]:
        """Return the means over the steps since the last call, and start anew."""
        self.check()
        means = {name: total / self._numbers[name] for name, total in self._sums.items()}
        self._sums, self._numbers = {}, {}
        return means

    def check(self, but_last: int = 0) -> None:
        """Read the steps that were added, but for the last ``but_last`` of them.

        Raises:
            DivergedError: A loss or the norm of the gradients is not finite.
        """
        while len(self._pending) > but_last:
            self._read(self._pending.popleft())

    def _read(self, pending: _Pending) -> None:
        if pending.copy_event is not None:
            pending.copy_event.synchronize()
        *values, stop_was_set = pending.values.tolist()
        self.stop_was_set = self.stop_was_set or stop_was_set > 0
        named_values = list(zip(pending.names, values, strict=True))
        faults = [
            f"{name} is {value}"
            for name, value in named_values[: pending.checked]
            if not math.isfinite(value)
        ]
        if faults:
            raise DivergedError(
                f"At step {pending.step}, {' and '.join(faults)}. Any checkpoint is from "
                "before it; try a lower optim.lr."
            )
        for name, value in named_values:
            self._add(f"train/{name}", value)

    def state(self) -> dict[str, Tensor]:
        """Return sum and number of each value since the last training row, for a checkpoint."""
        return {
            name: torch.tensor([total, self._numbers[name]], dtype=torch.float64)
            for name, total in self._sums.items()
        }

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._numbers[name] = self._numbers.get(name, 0) + 1


def _to_host(values: Tensor) -> tuple[Tensor, _Waitable | None]:
    """Start to copy ``values`` to the host; return the copy, and an event after it on a GPU."""
    if not values.is_cuda:
        return values, None
    host = torch.empty_like(values, device="cpu", pin_memory=True)
    host.copy_(values, non_blocking=True)
    copy_event = torch.cuda.Event()
    copy_event.record()
    return host, copy_event
