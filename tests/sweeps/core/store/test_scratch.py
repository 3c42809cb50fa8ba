import json
import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from sweeps.core.store import process_identity, scratch
from sweeps.core.store.scratch import scratch_folder, sweep_scratch
from toco.files import read_record, write_record


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "_SHORT_ROOT", tmp_path)
    return tmp_path


def test_a_folder_is_its_owners_alone_and_goes_at_the_end(root):
    with scratch_folder("probe") as folder:
        assert folder.parent == root
        assert folder.name.startswith(f"toco-probe-{os.getpid()}-")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        sweep_scratch()
        assert folder.is_dir()
    assert list(root.iterdir()) == []


def left(root, name, **changes):
    """A folder that another process made."""
    with scratch_folder(name) as folder:
        owner = read_record(folder / ".owner.json") | changes
        kept = folder.rename(root / f"toco-{name}")
    write_record(kept / ".owner.json", owner)
    return kept


def test_what_dead_processes_left_is_removed_and_nothing_else(root, monkeypatch):
    dead = left(root, "dead", started="1")
    elsewhere = left(root, "elsewhere", started="1", machine="another container with this folder")
    torn = left(root, "torn", started="1")
    (torn / ".owner.json").write_text("{")
    unknown = root / "toco-unknown"
    unknown.mkdir()
    (root / "toco-link").symlink_to(elsewhere)
    file = root / "toco-file"
    file.write_text(json.dumps({}))
    others = left(root, "others", started="1")
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    sweep_scratch()
    assert {dead, others} <= set(root.iterdir())
    monkeypatch.setattr(os, "getuid", lambda: uid)
    sweep_scratch()
    assert set(root.iterdir()) == {elsewhere, torn, unknown, root / "toco-link", file}


def test_sockets_get_a_short_path(root, monkeypatch, tmp_path_factory):
    short = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    monkeypatch.setattr(scratch, "_SHORT_ROOT", short)
    long = root / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    try:
        with scratch_folder("ray", for_sockets=True) as folder:
            assert folder.parent == short
        with scratch_folder("ray") as folder:
            assert folder.parent == long
    finally:
        short.rmdir()


def test_the_longest_socket_of_ray_fits(monkeypatch):
    top = Path("/tmp")  # noqa: S108 - a short path is needed
    monkeypatch.setattr(scratch, "_SHORT_ROOT", top)
    session = "ray/session_2026-12-01_01-44-01_179782_1234567/sockets/plasma_store.1"
    for digits, is_used in ((6, True), (7, False)):
        temporary = top / f"{secrets.randbelow(10**digits):0{digits}}"
        temporary.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        try:
            with scratch_folder("ray", for_sockets=True) as folder:
                assert (folder.parent == temporary) == is_used
                path = folder / session
                path.parent.mkdir(parents=True)
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(path))
                # As long with a process number of seven digits.
                assert len(str(path)) + 7 - len(str(os.getpid())) <= 107
        finally:
            temporary.rmdir()


def test_a_process_knows_itself():
    process = process_identity.this_process()
    assert not process.is_dead()
    assert process.model_copy(update={"started": "1"}).is_dead()
    assert not process.model_copy(update={"started": "1", "machine": "another"}).is_dead()
