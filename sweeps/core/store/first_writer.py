"""Files that several drivers may write at once: the first whole one stays, on a local disk and on NFS."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from toco.files import partial_name, sync, write_text

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def write_first(path: Path, text: str, is_whole: Callable[[bytes], bool]) -> bool:
    """Write a file unless a whole one has that name; durable when this returns.

    Of all who write at once, on whichever machine, one succeeds. A damaged file is replaced: of
    several who replace one at the same moment, any may be the last, and the file is whole.

    Args:
        path: The file. Its folder is made.
        text: Its content, for which ``is_whole`` holds.
        is_whole: Whether the bytes of a file are those that its writer gave it.

    Returns:
        Whether ``text`` was given that name.

    Raises:
        ValueError: The file system has no hard links.
    """
    own = partial_name(path)
    try:
        write_text(own, text)
        while not link_first(own, path):
            if is_whole_file(path, is_whole):
                return False
            _remove_damaged(path, is_whole)
        sync(path.parent)
        return True
    finally:
        own.unlink(missing_ok=True)


def keep_aside(path: Path, folder: Path, suffix: str) -> Path:
    """Give a file another name in ``folder``, such as ``study.json.damaged-1``, which no file had; returns that name.

    Raises:
        FileNotFoundError: There is no such file; somebody else may have kept it aside.
        ValueError: The file system has no hard links.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while not link_first(path, kept := folder / f"{path.name}.{suffix}-{number}"):
        number += 1
    path.unlink(missing_ok=True)
    sync(folder)
    return kept


def link_first(source: Path, target: Path) -> bool:
    """Give ``source`` the name ``target`` too, unless something has that name; says whether ``target`` is ``source``.

    Of all who try at once, on whichever machine, one succeeds.

    Raises:
        ValueError: The file system has no hard links.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        # On NFS the answer to a link that was made may be lost, and the request is then sent again.
        try:
            return source.samefile(target)
        except FileNotFoundError:
            return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise ValueError(
            f"{target.parent} is on a file system without hard links ({error.strerror}), by which two drivers keep out "
            "of each other's way. Give a --storage on a local disk or on NFS."
        ) from error
    return True


def is_whole_file(path: Path, is_whole: Callable[[bytes], bool]) -> bool:
    """Whether there is such a file and it is whole."""
    try:
        return is_whole(path.read_bytes())
    except FileNotFoundError:
        return False


def _remove_damaged(path: Path, is_whole: Callable[[bytes], bool]) -> None:
    """Take a damaged file away; a whole one that somebody wrote since it was looked at gets its name back."""
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
