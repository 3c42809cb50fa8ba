"""Files that several drivers may write at once: the first complete one stays.

This holds on a local disk and on NFS.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from toco.files import partial_name, sync, write_text

# Errors of a file system that has no hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def write_first(path: Path, text: str, is_whole: Callable[[bytes], bool]) -> bool:
    """Write a file unless a complete one has that name; durable when this returns.

    Of all processes that write at once, on any machine, exactly one succeeds. A damaged file is
    replaced. If several processes replace it at the same moment, any of them may be the last, and
    the file is complete.

    Args:
        path: The file. Its folder is created.
        text: The content, for which ``is_whole`` holds.
        is_whole: Returns whether the bytes of a file are complete and undamaged.

    Returns:
        Whether the file has the content ``text`` from this call.

    Raises:
        ValueError: The file system has no hard links.
    """
    temporary = partial_name(path)
    try:
        write_text(temporary, text)
        while not link_first(temporary, path):
            if is_whole_file(path, is_whole):
                return False
            _remove_damaged(path, is_whole)
        sync(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def keep_aside(path: Path, folder: Path, suffix: str) -> Path:
    """Move a file to a new name in ``folder``, such as ``study.json.damaged-1``; return that name.

    Raises:
        FileNotFoundError: The file does not exist; another process may have moved it.
        ValueError: The file system has no hard links.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while not link_first(path, new_path := folder / f"{path.name}.{suffix}-{number}"):
        number += 1
    path.unlink(missing_ok=True)
    sync(folder)
    return new_path


def link_first(source: Path, target: Path) -> bool:
    """Link ``target`` to ``source`` unless ``target`` exists; return whether the two are one file.

    Of all processes that try at once, on any machine, exactly one succeeds.

    Raises:
        ValueError: The file system has no hard links.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        # On NFS the answer to a successful request may be lost. Then the request is sent again and
        # fails.
        try:
            return source.samefile(target)
        except FileNotFoundError:
            return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise ValueError(
            f"{target.parent} is on a file system without hard links ({error.strerror}), which "
            "keep two drivers from running the same trial. Give a --storage on a local disk or "
            "on NFS."
        ) from error
    return True


def is_whole_file(path: Path, is_whole: Callable[[bytes], bool]) -> bool:
    """Return whether a file exists and is complete."""
    try:
        return is_whole(path.read_bytes())
    except FileNotFoundError:
        return False


def _remove_damaged(path: Path, is_whole: Callable[[bytes], bool]) -> None:
    """Remove a damaged file.

    If another process has replaced it by a complete one meanwhile, that one gets its name back.
    """
    taken = partial_name(path)
    try:
        path.rename(taken)
    except FileNotFoundError:
        return
    try:
        if is_whole(taken.read_bytes()):
            link_first(taken, path)
    finally:
        taken.unlink()
