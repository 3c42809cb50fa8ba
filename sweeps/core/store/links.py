"""Hard links, which cost nothing, where the file system has them."""

from __future__ import annotations

import os
import shutil


def link_or_copy(source: str, target: str) -> None:
    """Make ``target`` a link to ``source``, or a copy where there can be none; a ``copy_function`` of ``copytree``."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
