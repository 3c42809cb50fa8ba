"""Disk room for a training: checked before it starts, and reported when it runs out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from toco.files import is_no_room, printable
from toco.room import NoRoomError, sentence_of, shortage
from toco.train.optim_config import OptimConfig

_TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})


def checkpoint_bytes(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: OptimConfig
) -> int:
    """Compute the bytes of a checkpoint: the model, and the moments of all trained parameters."""
    trained: list[Tensor] = [
        parameter for group in optimizer.param_groups for parameter in group["params"]
    ]
    tensors: list[Tensor] = [*model.state_dict().values(), *trained * config.num_moments()]
    return sum(value.nbytes for value in tensors)


def check_room(run_dir: Path, checkpoint_size: int, keep: int) -> None:
    """Check that the checkpoints of a training fit on the disk of its folder.

    Args:
        run_dir: The run folder, which exists.
        checkpoint_size: Bytes of one checkpoint.
        keep: Checkpoints that are kept; one more exists while the next is written.

    Raises:
        NoRoomError: The checkpoints do not fit, also when the existing ones of the run count as
            room; or the disk takes no more files.
    """
    stored = sum(file.stat().st_size for file in run_dir.glob("checkpoints/step_*/*"))
    problem = shortage(run_dir, max((keep + 1) * checkpoint_size - stored, 1))
    if problem is not None:
        raise NoRoomError(
            f"{problem} Or lower keep_checkpoints, which is {keep}, or take a folder on another "
            "disk."
        )


@contextmanager
def explain_disk_errors(run_dir: Path, checkpoint_size: int) -> Iterator[None]:
    """Turn errors about a full disk or too many open files into a sentence.

    Raises:
        NoRoomError: In place of an ``OSError`` about ``run_dir`` or about no file. A full disk
            elsewhere keeps its own error.
    """
    try:
        yield
    except NoRoomError:
        raise
    except OSError as error:
        if error.errno in _TOO_MANY_FILES:
            raise NoRoomError(
                f"The training in {printable(run_dir)} may open no more files ({error.strerror}). "
                "Raise the limit (ulimit -n), or lower num_workers; --resume goes on from the "
                "last checkpoint.",
                error.errno,
            ) from error
        is_elsewhere = (
            error.filename is not None and run_dir not in Path(os.fsdecode(error.filename)).parents
        )
        if not is_no_room(error) or is_elsewhere:
            raise
        raise NoRoomError(
            f"{sentence_of(run_dir, checkpoint_size, error)} The last checkpoint is whole, and "
            "--resume goes on from it.",
            error.errno or errno.ENOSPC,
        ) from error
