"""One training on several processes, the ranks, by data parallelism.

Each rank computes its share of every batch, and all hold the same network. torchrun starts the
ranks, or :mod:`toco.train.ranks` does. Gradients and logged losses are means over the ranks. As
every loss is a mean over groups of images, these means equal the values of a single process, up to
rounding.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from toco.methods import Method
from toco.processes import MachineError
from toco.tensors import Batch, StepOutput
from toco.train.run_config import RunConfig
from toco.types import Shard

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=10)
"""Longest wait of a rank for the others; rank 0 may be drawing pictures meanwhile."""
_CHECKSUM_BYTES = 2**16
"""Bytes of a buffer that a checksum reads at a time."""
_FAILURE = "toco/failure"
"""Key of torch's store for the message of the first rank that fails."""
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class RankError(MachineError):
    """Another rank failed; the message is the one of that rank."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a process among the ranks that train a run.

    Attributes:
        rank: 0 to ``world_size - 1``; rank 0 writes the run folder.
        world_size: Number of ranks.
        local_rank: Rank among those on this machine, and the number of the rank's GPU.
        local_world_size: Number of ranks on this machine.
        rendezvous: Address where the ranks meet, the ``init_method`` of
            :func:`torch.distributed.init_process_group`.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    rendezvous: str = "env://"

    @classmethod
    def of_torchrun(cls) -> Place | None:
        """Read the place from torchrun's environment variables; ``None`` for a single process.

        Raises:
            ValueError: Some of the variables are not set.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return None
        names = (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
        )
        if missing := [name for name in names if name not in os.environ]:
            raise ValueError(
                f"WORLD_SIZE is above 1, but {', '.join(missing)} are not set. Start the ranks "
                "with torchrun, or unset WORLD_SIZE to train in one process."
            )
        rank, world_size, local_rank, local_world_size = (
            int(os.environ[name]) for name in names[:4]
        )
        return cls(rank, world_size, local_rank, local_world_size)


@contextmanager
def joined(config: RunConfig, place: Place | None) -> Iterator[Shard]:
    """Join the process group of the ranks that train ``config``.

    Without a ``place`` there is no group, and the share is everything.

    Yields:
        The share of this rank.

    Raises:
        ValueError: The batch cannot be divided among so many ranks, or there are fewer GPUs than
            ranks.
        RankError: Another rank failed while this one waited for it.
    """
    if place is None:
        yield Shard()
        return
    check_shares(config, place.world_size)
    device = config.torch_device()
    if device.type == "cuda":
        _take_gpu(device, place)
    if place.local_world_size == place.world_size:
        # All ranks are on this machine, so no other machine needs to reach the ports.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, _LOOPBACK)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=place.rendezvous,
        rank=place.rank,
        world_size=place.world_size,
        timeout=_TIMEOUT,
    )
    store = dist.distributed_c10d._get_default_store()
    try:
        yield Shard(place.rank, place.world_size)
    except BaseException as error:
        # torch reports a lost rank as a lost connection, without the reason.
        is_lost = type(error) is RuntimeError or isinstance(error, dist.DistError)
        if is_lost and store.check([_FAILURE]):
            raise RankError(store.get(_FAILURE).decode()) from error
        # Without destroy_process_group, which would wait for collectives that the other ranks never
        # call. When this process ends, the others lose the connection and end, too.
        store.set(_FAILURE, f"Rank {place.rank} of {place.world_size} failed: {error}")
        raise
    dist.destroy_process_group()


def own_share() -> Shard:
    """Return this process's share of work for which torchrun's processes need no communication.

    The process also takes a GPU of its machine, if there is one. Where there are more processes
    than GPUs, they share the GPUs in turn.
    """
    place = Place.of_torchrun()
    if place is None:
        return Shard()
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    return Shard(place.rank, place.world_size)


def _take_gpu(device: torch.device, place: Place) -> None:
    if device.index is not None:
        raise ValueError(
            f"device is {device}, but {place.world_size} ranks need a GPU each; set device to auto "
            "or cuda."
        )
    if (number := torch.cuda.device_count()) < place.local_world_size:
        raise ValueError(
            f"{place.local_world_size} ranks were started on this machine, where torch sees "
            f"{number} GPUs; start one rank a GPU."
        )
    torch.cuda.set_device(place.local_rank)


def check_shares(config: RunConfig, world_size: int) -> None:
    """Check that ``world_size`` ranks can divide a batch equally with the losses unchanged.

    Raises:
        ValueError: The losses need whole batches, the batch cannot be divided by groups, or the
            backbone compares the images of one process.
    """
    if world_size == 1:
        return
    config.backbone.check_ranks(world_size)
    group: int | None = config.method.loss_group_size
    if group is None:
        raise ValueError(
            "method.loss_group_size is null, so the losses are means over entire batches, which "
            f"{world_size} ranks cannot divide. Train with one rank, or set a group size, which "
            "changes the recipe."
        )
    if config.batch_size % (world_size * group):
        raise ValueError(
            f"batch_size {config.batch_size}, the images of all {world_size} ranks together, is "
            f"not a multiple of {world_size} ranks x method.loss_group_size {group}. Take another "
            "number of ranks; another batch_size changes the recipe."
        )


def shard() -> Shard:
    """Return the share of this rank; all of the work without a process group."""
    return Shard(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Shard()


def from_first(value: Callable[[], T]) -> T:
    """Call ``value`` on rank 0 alone, and return its result on every rank."""
    if not dist.is_initialized():
        return value()
    # torch replaces the item of the list on the other ranks.
    items = [value() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(items, src=0)
    return items[0]  # type: ignore[return-value]


def mean(values: Tensor) -> Tensor:
    """Average ``values`` over the ranks, on their device and without a wait for it."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def averaging(method: Method) -> Callable[[Batch, int, torch.Generator], StepOutput]:
    """Wrap ``method.training_losses`` so that ``backward`` averages gradients over the ranks."""
    if not dist.is_initialized():
        return method.training_losses
    # Some terms start late, and until then their parameters have no gradient.
    losses = DistributedDataParallel(_Losses(method), find_unused_parameters=True)
    # All ranks now have the buffers of rank 0. Sent again before each step, they would hide a rank
    # that computes others.
    losses.broadcast_buffers = False
    return losses


def check_buffers(method: Method) -> None:
    """Check that all ranks hold the same persistent buffers, bit for bit.

    Every rank sends one number for each buffer, and all ranks raise the same error.

    Raises:
        ValueError: A rank has another buffer than rank 0.
    """
    persistent = method.state_dict().keys()
    buffers = {name: value for name, value in method.named_buffers() if name in persistent}
    if not dist.is_initialized() or not buffers:
        return
    weights = _byte_weights(next(iter(buffers.values())).device)
    own = torch.stack([_checksum(buffer, weights) for buffer in buffers.values()])
    of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, own)
    first, *others = (checksums.tolist() for checksums in of_ranks)
    for index, name in enumerate(buffers):
        for rank, checksums in enumerate(others, start=1):
            if checksums[index] != first[index]:
                raise ValueError(
                    f"Buffer {name} of rank {rank} differs from that of rank 0. A method must "
                    "update its buffers from the values of all ranks, in the same way on each. A "
                    "batch norm that learns has such buffers: freeze it, or train in one process."
                )


def _byte_weights(device: torch.device) -> Int64[Tensor, " n"]:
    """Draw odd numbers, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(2**62, (_CHECKSUM_BYTES,), generator=generator) | 1).to(device)


def _checksum(buffer: Tensor, weights: Int64[Tensor, " n"]) -> Int64[Tensor, ""]:
    """Sum all bytes of ``buffer``, each times a weight of its place, modulo 2^64.

    The sum of each part as long as ``weights`` is computed alone, so that no more is copied.
    """
    total = weights.new_zeros(())
    all_bytes = torch.atleast_1d(buffer).contiguous().view(torch.uint8).flatten()
    for part in all_bytes.split(len(weights)):
        # A product with an odd number keeps all 64 bits of the parts before.
        total = total * weights[0] + (part * weights[: len(part)]).sum()
    return total


class _Losses(nn.Module):
    """A module whose ``forward`` computes the losses, as DistributedDataParallel needs it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        return self.method.training_losses(batch, step, generator)
