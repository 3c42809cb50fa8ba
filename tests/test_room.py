import errno
import os
from types import SimpleNamespace

import pytest

from toco.room import NoRoomError, explain_shortage, sentence_of, shortage


@pytest.fixture
def disk(monkeypatch):
    """A disk of blocks of 1000 bytes, of which 5000 are free."""
    disk = SimpleNamespace(f_bavail=5000, f_frsize=1000, f_files=10, f_favail=3)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    return disk


def test_what_is_free_is_held_against_what_is_needed(tmp_path, disk):
    folder = tmp_path / "not" / "there" / "yet"
    assert shortage(folder, 5_000_000) is None
    assert shortage(folder, 8_000_000) == (
        f"{folder} has no room: 5 MB are free, and about 8 MB are needed. Make room there."
    )
    assert shortage(folder, 0) is None
    disk.f_bavail = 20
    assert "20 kB are free, and about 1 MB are needed" in shortage(folder, 0)


def test_files_may_run_out_before_bytes(tmp_path, disk):
    disk.f_favail = 0
    assert (
        shortage(tmp_path, 0)
        == f"{tmp_path} has no room: its disk has no free inodes. Delete files there."
    )
    # Some file systems make inodes as they need them, and count none.
    disk.f_files = 0
    assert shortage(tmp_path, 0) is None


def test_a_quota_is_no_property_of_the_disk(tmp_path, disk):
    error = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert sentence_of(tmp_path, 2_000_000, error) == (
        f"{tmp_path} has no room: Disk quota exceeded. About 2 MB are needed. Make room there, or "
        f"raise its quota."
    )
    disk.f_bavail = 1
    assert "1 kB are free" in sentence_of(tmp_path, 2_000_000, error)


def test_an_error_without_a_file_tells_folder_and_bytes(tmp_path, disk):
    full, other = (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
    )
    # The folder has room, so another disk is full.
    with (
        pytest.raises(OSError, match="No space left") as raised,
        explain_shortage(tmp_path, 4_000_000),
    ):
        raise full
    assert raised.value is full
    disk.f_bavail = 4
    with (
        pytest.raises(NoRoomError, match="4 kB are free, and about 5 MB are needed"),
        explain_shortage(tmp_path, 5_000_000),
    ):
        raise full
    with (
        pytest.raises(OSError, match="Input/output") as raised,
        explain_shortage(tmp_path, 4_000_000),
    ):
        raise other
    assert raised.value is other
