"""What is left of drivers that are gone: published where it can be, and never deleted before."""

import errno

import pytest

from sweeps.core.store import runs as runs_module
from sweeps.core.store.leases import Leases
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.runs import Runs, leave, recover, seal
from toco.train import records

KEY = "0123456789abcdef0123"


@pytest.fixture
def runs(tmp_path):
    return Runs(Ledger(tmp_path))


def finished_snapshot(runs, session="dead", key=KEY):
    """A finished trial that its driver has not published."""
    snapshot = runs.sessions / session / "experiment" / key / "checkpoint_000000"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "provenance.json", "result.json"):
        records.write(snapshot / name, {"status": "finished", "step": 10})
    seal(snapshot)
    return snapshot


def no_space(*_):
    raise OSError(errno.ENOSPC, "no space left on device")


def test_what_a_driver_left_is_published_and_deleted(runs, tmp_path):
    snapshot = finished_snapshot(runs)
    with Leases(tmp_path, "b") as leases:
        recover(runs, leases, runs.sessions / "own")
        assert not leases.holds(KEY)
    assert runs.status(KEY) == "finished"
    assert not snapshot.parents[2].exists()


def test_what_cannot_be_published_is_left_for_the_next_driver(runs, tmp_path, monkeypatch):
    snapshot = finished_snapshot(runs)
    with Leases(tmp_path, "b") as leases:
        with monkeypatch.context() as patched:
            patched.setattr(runs_module, "_copy", no_space)
            recover(runs, leases, runs.sessions / "own")
        assert snapshot.is_dir()
        assert runs.status(KEY) is None
        recover(runs, leases, runs.sessions / "own")
    assert runs.status(KEY) == "finished"


def test_what_another_driver_holds_is_left_to_it(runs, tmp_path):
    held, free = finished_snapshot(runs), finished_snapshot(runs, key=KEY[::-1])
    with Leases(tmp_path, "b") as first, Leases(tmp_path, "c") as second:
        second.acquire([KEY])
        recover(runs, first, runs.sessions / "b")
        assert held.is_dir()
        assert not free.exists()
        recover(runs, second, runs.sessions / "c")
        assert second.holds(KEY)
    assert runs.status(KEY) == "finished"
    assert not list(runs.sessions.iterdir())


def test_a_driver_that_ends_keeps_only_what_it_could_not_publish(runs):
    unpublished, published = (
        finished_snapshot(runs, "own"),
        finished_snapshot(runs, "own", KEY[::-1]),
    )
    runs.publish(KEY[::-1], published)
    own = runs.sessions / "own"
    leave(runs, own)
    assert unpublished.is_dir()
    assert not published.exists()
    runs.publish(KEY, unpublished)
    leave(runs, own)
    assert not own.exists()


def test_the_end_of_a_diverged_trial_is_not_taken_back(runs, tmp_path):
    diverged = finished_snapshot(runs)
    records.write(diverged / "result.json", {"status": "diverged", "step": 10})
    runs.publish(KEY, diverged)
    running = tmp_path / "running"
    running.mkdir()
    (running / "config.json").write_text("{}")
    runs.publish(KEY, running)
    assert runs.status(KEY) == "diverged"
