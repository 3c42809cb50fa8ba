"""One update of the network, for training loop, probe and benchmarks."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from toco.backbones import drawing, stochastic_depths
from toco.data.views.raw_batch import RawBatch
from toco.methods import Method
from toco.tensors import Batch, StepOutput
from toco.train import distributed
from toco.train.freed_memory import give_back_freed_memory, keep_freed_memory
from toco.train.optim import fill_missing_gradients, set_lr
from toco.train.optim_config import AdamWConfig
from toco.train.run_config import RunConfig


class TrainingStep:
    """Forward pass, backward pass and update of a method's network.

    Each of the three is a method, so that a benchmark can time it. With several ranks (see
    :mod:`toco.train.distributed`) every rank has its own object, and gradients are means over the
    ranks.

    On a CPU this process keeps freed memory from then on; see :mod:`toco.train.freed_memory`.

    Args:
        method: The method, on the device of ``config``.
        optimizer: The optimizer, from :func:`toco.train.optim.build_optimizer`.
        config: The run.
    """

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, config: RunConfig) -> None:
        self.method, self.optimizer = method, optimizer
        self._config = config
        self._device = config.torch_device()
        self._generator = torch.Generator()
        self._training_losses = distributed.averaging(method)
        self._stochastic_depths = stochastic_depths(method)
        if self._device.type == "cpu":
            keep_freed_memory()

    def __call__(self, batch: Batch | RawBatch, step: int) -> tuple[StepOutput, Tensor]:
        """Update the network once.

        Args:
            batch: This rank's share of the batch, on any device.
            step: Updates done before this one.

        Returns:
            The losses, and the norm of all gradients together.
        """
        output = self.losses(batch, step)
        self.backward(output)
        return output, self.update(step)

    def losses(self, batch: Batch | RawBatch, step: int) -> StepOutput:
        """Compute the losses of ``step``."""
        # Seeded by run and step, so that a resumed run draws the same numbers. The factor exceeds
        # any usual number of steps, so that no two pairs of seed and step have the same state.
        self._generator.manual_seed(self._config.seed * 1_000_003 + step)
        self.method.train()
        on_device = batch.to(self._device)
        num_images, shard = len(on_device.images), on_device.shard
        with drawing(self._stochastic_depths, self._generator, num_images, shard):
            return self._training_losses(on_device, step, self._generator)

    def backward(self, output: StepOutput) -> None:
        """Replace the gradients by those of the weighted sum of losses in ``output``."""
        self.optimizer.zero_grad(set_to_none=True)
        output.total.backward()

    def update(self, step: int) -> Tensor:
        """Update the parameters; return the norm of the gradients.

        The norm is not finite as soon as one gradient is not.
        """
        set_lr(self.optimizer, step, self._config.num_steps, self._config.optim)
        # SGD skips parameters without a gradient, as torch does and the official RCA.
        if isinstance(self._config.optim, AdamWConfig):
            fill_missing_gradients(self.optimizer)
        groups = self.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.step()
        return norm


def begin_peak_memory(device: torch.device) -> None:
    """Let :func:`peak_memory_bytes` count from now on: the process may have trained before.

    On a CPU this needs Linux. Elsewhere the peak remains that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed_memory()
    # Writing 5 sets the peak of the resident memory to its present value.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory since :func:`begin_peak_memory`.

    On a GPU it is the memory that torch reserved, because no other process can use it. Otherwise it
    is the resident memory of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    # On Linux ru_maxrss includes the peak of the process that started this one; VmHWM does not.
    if status.is_file() and (
        high_water := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    ):
        return int(high_water[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
