"""One run trained by several processes, the ranks: each has its share of every batch, and all hold the same network.

torchrun starts the ranks, or :mod:`toco.train.ranks` does. Gradients and logged losses are means
over the ranks, and as every loss is a mean over groups of images, these are the values that one
process finds, up to rounding.
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
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from toco.methods import Method
from toco.processes import MachineError
from toco.tensors import Batch, StepOutput
from toco.train.run_config import RunConfig
from toco.types import Shard

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=10)
"""Longest that a rank waits for the others; the first may be drawing pictures meanwhile."""
_FAILURE = "toco/failure"
"""Key of the store under which the first rank that fails says why."""
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class RankError(MachineError):
    """Another rank failed; the message is its."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among those that train a run.

    Attributes:
        rank: 0 to ``world_size - 1``; rank 0 writes the run folder.
        world_size: Number of ranks.
        local_rank: The same among those on this machine; its GPU has this number.
        local_world_size: Ranks on this machine.
        rendezvous: How the ranks find each other, as :func:`torch.distributed.init_process_group`
            takes it.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    rendezvous: str = "env://"

    @classmethod
    def of_torchrun(cls) -> Place | None:
        """What torchrun says in the environment; ``None`` where it started no further process.

        Raises:
            ValueError: It says only half of it.
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
                f"WORLD_SIZE is above 1, but {', '.join(missing)} are not set. Start the ranks with torchrun, or "
                "unset WORLD_SIZE to train in one process."
            )
        rank, world_size, local_rank, local_world_size = (
            int(os.environ[name]) for name in names[:4]
        )
        return cls(rank, world_size, local_rank, local_world_size)


@contextmanager
def joined(config: RunConfig, place: Place | None) -> Iterator[Shard]:
    """Be one of the ranks that train ``config``; alone where ``place`` is ``None``.

    Raises:
        ValueError: The config cannot be trained by so many ranks, or there are fewer GPUs than
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
        # Nobody else has to reach these ports.
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
        # torch says of a rank that is gone nothing but that its connection is.
        is_lost = type(error) is RuntimeError or isinstance(error, dist.DistError)
        if is_lost and store.check([_FAILURE]):
            raise RankError(store.get(_FAILURE).decode()) from error
        # No farewell: it waits for work that the others will not do. The end of this process ends
        # theirs.
        store.set(_FAILURE, f"Rank {place.rank} of {place.world_size} failed: {error}")
        raise
    dist.destroy_process_group()


def own_share() -> Shard:
    """The share of this process of work that the processes of torchrun divide without a word to each other.

    Each takes a GPU of its machine, where there are any; processes beyond their number share them
    in turn.
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
            f"device is {device}, but {place.world_size} ranks need a GPU each; set device to auto or cuda."
        )
    if (number := torch.cuda.device_count()) < place.local_world_size:
        raise ValueError(
            f"{place.local_world_size} ranks were started on this machine, where torch sees {number} GPUs; "
            "start one rank a GPU."
        )
    torch.cuda.set_device(place.local_rank)


def check_shares(config: RunConfig, world_size: int) -> None:
    """See that ``world_size`` ranks can have equal shares of a batch without a change of what is computed.

    Raises:
        ValueError: They cannot.
    """
    if world_size == 1:
        return
    group: int | None = config.method.loss_group_size
    if group is None:
        raise ValueError(
            f"method.loss_group_size is null, so that the losses are of a whole batch, which {world_size} ranks cannot "
            "share. Train with one, or set a group size, which is another recipe."
        )
    if config.batch_size % (world_size * group):
        raise ValueError(
            f"batch_size {config.batch_size}, the images of all {world_size} ranks together, is not a multiple of "
            f"{world_size} ranks x method.loss_group_size {group}. Take another number of ranks; another batch_size is "
            "another recipe."
        )


def shard() -> Shard:
    """The share of this process."""
    return Shard(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Shard()


def from_first(value: Callable[[], T]) -> T:
    """What ``value`` returns on rank 0; it is called there only."""
    if not dist.is_initialized():
        return value()
    # The list is torch's way to hand out what the others receive.
    found = [value() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def mean(values: Tensor) -> Tensor:
    """Mean of ``values`` over the ranks, on their device, without waiting for it there."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def averaging(method: Method) -> Callable[[Batch, int, torch.Generator], StepOutput]:
    """``method.training_losses``, whose ``backward`` leaves gradients that are means over the ranks."""
    if not dist.is_initialized():
        return method.training_losses
    # Terms join late, and until then some parameters have no gradient.
    return DistributedDataParallel(_Losses(method), find_unused_parameters=True)


class _Losses(nn.Module):
    """What torch's wrapper can wrap."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        return self.method.training_losses(batch, step, generator)
