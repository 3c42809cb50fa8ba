"""Temporary folders of one process.

The folders of a killed process are removed by the next one that starts on the machine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.core.store.process_identity import Process, this_process
from toco.files import UnreadableError, write_text

_PREFIX = "toco-"
_OWNER = ".owner.json"
"""File of a temporary folder that identifies the process that made it."""
_SHORT_ROOT = Path("/tmp")  # noqa: S108 - only mkdtemp makes folders there
_LONGEST_SOCKET_FOLDER = 11
"""Bytes. The path of a socket has at most 107, and 96 follow ``TMPDIR``: ``toco-ray-PID-RANDOM``
and Ray's ``ray/session_TIME_PID/sockets/plasma_store.N``, with seven digits of each PID."""


@contextmanager
def scratch_folder(name: str, *, for_sockets: bool = False) -> Iterator[Path]:
    """Make a folder as :func:`make_scratch_folder`, and remove it at the end."""
    folder = make_scratch_folder(name, for_sockets=for_sockets)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_scratch_folder(name: str, *, for_sockets: bool = False) -> Path:
    """Make a folder for this process alone, mode 0700, below ``TMPDIR``.

    A program that replaces this process by ``exec`` is the same process.

    Args:
        name: Part of the folder's name, which is ``toco-NAME-PID-RANDOM``.
        for_sockets: Whether sockets lie below it. Then ``/tmp`` is used where the path of
            ``TMPDIR`` is too long for them.

    Raises:
        OSError: The folder cannot be made.
    """
    root = Path(tempfile.gettempdir())
    if for_sockets and len(os.fsencode(root)) > _LONGEST_SOCKET_FOLDER:
        root = _SHORT_ROOT
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-{os.getpid()}-", dir=root))
    try:
        write_text(folder / _OWNER, this_process().text(indent=None), durable=False)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def sweep_scratch() -> None:
    """Remove temporary folders of this user whose process, on this machine, has ended."""
    for root in {Path(tempfile.gettempdir()), _SHORT_ROOT}:
        for folder in root.glob(f"{_PREFIX}*"):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        return Process.read(folder / _OWNER, "It is left.").is_dead()
    except (OSError, UnreadableError):
        return False
