"""Keep freed memory for the next step, or give it back."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt in malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Ask the C library to keep what tensors on the CPU free, up to 32 MB each.

    Every step allocates the same sizes. By default glibc returns large pieces to the system, which
    zeroes them again, page by page: 5,000 page faults and a tenth of a step of the nano ViT. A
    library without ``mallopt`` is left as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    """Return to the system what tensors on the CPU have freed, where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
