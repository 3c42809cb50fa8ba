"""Room for what a training writes: seen before it starts, and named when it runs out."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from toco.files import is_no_room, printable

_TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})


class NoRoomError(OSError):
    """A disk, its inodes, a quota or the files that a process may open are used up. The message says what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of a checkpoint: the model, and AdamW's two moments of every parameter that is trained."""
    trained: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors: list[Tensor] = [*model.state_dict().values(), *trained, *trained]
    return sum(value.nbytes for value in tensors)


def check_room(run_dir: Path, checkpoint_size: int, keep: int) -> None:
    """See that the checkpoints of a training fit on the disk of its folder.

    Args:
        run_dir: The run folder, which is there.
        checkpoint_size: Bytes of one checkpoint.
        keep: Checkpoints that are kept; one more is there while it is written.

    Raises:
        NoRoomError: They do not fit beside those that are there already, or the disk takes no more files.
    """
    disk = os.statvfs(run_dir)
    if disk.f_files and not disk.f_favail:
        raise NoRoomError(
            errno.ENOSPC, f"The disk of {printable(run_dir)} takes no more files: its inodes are used up. Make room."
        )
    there = sum(file.stat().st_size for file in run_dir.glob("checkpoints/step_*/*"))
    needed = (keep + 1) * checkpoint_size - there
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise NoRoomError(
            errno.ENOSPC,
            f"{printable(run_dir)} has room for {_size(free)}, but {_size(needed)} are needed: keep_checkpoints "
            f"{keep} and one that is being written, of {_size(checkpoint_size)} each. Make room, lower "
            "keep_checkpoints, or take a folder on another disk.",
        )


@contextmanager
def room_in_sentences(run_dir: Path, checkpoint_size: int) -> Iterator[None]:
    """Raise what a system says of a full disk in ``run_dir``, or of too many files, as a sentence.

    Raises:
        NoRoomError: Instead of another ``OSError``.
    """
    try:
        yield
    except NoRoomError:
        raise
    except OSError as error:
        if error.errno in _TOO_MANY_FILES:
            raise NoRoomError(
                error.errno,
                f"The training in {printable(run_dir)} may open no more files ({error.strerror}). Raise the limit "
                "(ulimit -n), or lower num_workers; --resume goes on from the last checkpoint.",
            ) from error
        is_elsewhere = error.filename is not None and run_dir not in Path(os.fsdecode(error.filename)).parents
        if not is_no_room(error) or is_elsewhere:
            raise
        disk = os.statvfs(run_dir)
        inodes = ", and its inodes are used up" if disk.f_files and not disk.f_favail else ""
        raise NoRoomError(
            error.errno,
            f"{printable(run_dir)} cannot be written ({error.strerror}): a checkpoint needs {_size(checkpoint_size)}, "
            f"{_size(shutil.disk_usage(run_dir).free)} are free{inodes}. The last checkpoint is whole. Make room, and "
            "--resume goes on from it.",
        ) from error


def _size(number: int) -> str:
    """Bytes, with their size in MB.

    >>> _size(12_345_678)
    '12345678 bytes (12.3 MB)'
    """
    return f"{number} bytes ({number / 1e6:.1f} MB)"
