"""Freed memory stays with the process, which page faults show."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from toco.train.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    tensors = [torch.ones(300_000) for _ in range(100)]  # 1.2 MB each
use()
before = faults()
for _ in range(5):
    use()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_later_steps_fault_no_pages_in():
    def count(how: str) -> int:
        output = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
        ).stdout
        return int(output)

    assert count("kept") < count("returned") / 5


def test_another_c_library_is_left_as_it_is(monkeypatch):
    from toco.train import freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", None)
    freed_memory.keep_freed_memory()
