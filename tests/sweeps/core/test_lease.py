import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from sweeps.core import lease
from sweeps.core.lease import Leases

KEY, OTHER = "a" * 20, "b" * 20


def quiet(storage, holder):
    """Leases whose heart-beats come too seldom to matter in a test: it says itself when there was one."""
    return Leases(storage, holder, beat_every_s=1000.0, expires_s=3000.0)


def left_in(storage):
    return sorted(path.name for path in (storage / "leases").rglob("*.json"))


def silence(storage, seconds=10_000):
    """Make every heart-beat so far as old as that, as if all holders had been silent."""
    past = time.time() - seconds
    for path in (storage / "leases").rglob("*.json"):
        os.utime(path, (past, past))


@contextlib.contextmanager
def elsewhere(monkeypatch):
    """What happens in the context happens on another machine."""
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_machine", lambda: "another machine")
        patch.setattr(socket, "gethostname", lambda: "far-away")
        yield


def test_a_lease_has_one_holder(tmp_path):
    with quiet(tmp_path, "the study one") as one, quiet(tmp_path, "the study two") as two:
        assert one.acquire([KEY]) == {KEY}
        assert one.acquire([KEY]) == {KEY}
        assert two.acquire([KEY, OTHER]) == {OTHER}
        assert (one.holds(KEY), two.holds(KEY)) == (True, False)
        assert (one.holds(OTHER), two.holds(OTHER)) == (False, True)
        for asked in (one, two, quiet(tmp_path, "a third")):
            assert asked.holder(KEY) == f"the study one on {socket.gethostname()} (process {os.getpid()})"
        # What somebody else holds cannot be released.
        two.release([KEY])
        assert one.holds(KEY)
        one.release([KEY])
        assert one.holder(KEY) is None
        assert two.acquire([KEY]) == {KEY}
    assert left_in(tmp_path) == []


def test_asking_writes_nothing(tmp_path):
    assert quiet(tmp_path, "somebody who asks").holder(KEY) is None
    assert not quiet(tmp_path, "somebody who asks").holds(KEY)
    quiet(tmp_path, "nobody").close()
    assert list(tmp_path.iterdir()) == []


def race(storage, keys, number=12):
    """Who gets what when many try at once: names by key."""
    start, got = threading.Barrier(number), {key: [] for key in keys}
    racers = [quiet(storage, f"racer {name}") for name in range(number)]

    def run(name):
        start.wait()
        for key in racers[name].acquire(keys):
            got[key].append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in keys:
        assert [name for name in range(number) if racers[name].holds(key)] == got[key]
    return got, racers


def test_one_of_many_gets_a_free_lease(tmp_path):
    keys = [f"{number:020x}" for number in range(30)]
    got, racers = race(tmp_path, keys)
    assert {len(names) for names in got.values()} == {1}
    for racer in racers:
        racer.close()
    assert left_in(tmp_path) == []


def test_one_of_many_takes_over(tmp_path, monkeypatch):
    keys = [f"{number:020x}" for number in range(30)]
    with elsewhere(monkeypatch):
        gone = quiet(tmp_path, "gone")
        assert gone.acquire(keys) == set(keys)
        silence(tmp_path)
        # From another machine, where nothing is known of the holders' processes.
        for _ in range(3):
            got, _ = race(tmp_path, keys)
            assert {len(names) for names in got.values()} == {1}
            assert not any(gone.holds(key) for key in keys)
            silence(tmp_path)
    got, racers = race(tmp_path, keys)
    assert {len(names) for names in got.values()} == {1}
    for racer in racers:
        racer.close()
    assert not list((tmp_path / "leases").glob("*.json"))


HOLDER = """
import sys, time
from pathlib import Path
from sweeps.core.lease import Leases
leases = Leases(Path(sys.argv[1]), "the study killed", beat_every_s=1000.0, expires_s=3000.0)
print(sorted(leases.acquire(sys.argv[2:])), flush=True)
time.sleep(1000)
"""


@pytest.fixture
def held_elsewhere(tmp_path):
    """Another process that holds both leases."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), KEY, OTHER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == str([KEY, OTHER])
        yield process
        process.kill()


@pytest.mark.slow
def test_a_killed_process_loses_its_leases_at_once(tmp_path, held_elsewhere):
    with quiet(tmp_path, "the study next") as leases:
        assert leases.acquire([KEY]) == set()
        assert leases.holder(KEY) == f"the study killed on {socket.gethostname()} (process {held_elsewhere.pid})"
        held_elsewhere.send_signal(signal.SIGKILL)
        # Not reaped: to the machine it is there until somebody asks how it ended.
        os.waitid(os.P_PID, held_elsewhere.pid, os.WEXITED | os.WNOWAIT)
        assert leases.holder(KEY) is None
        assert leases.acquire([KEY]) == {KEY}
        held_elsewhere.wait()
        assert leases.acquire([OTHER]) == {OTHER}
        leases.release([KEY])
        assert leases.holder(KEY) is None
    assert not list((tmp_path / "leases").glob("*.json"))
    # The file of the killed process goes when somebody takes a lease again.
    with quiet(tmp_path, "the study after") as after:
        after.acquire([KEY])
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_a_suspended_process_finds_its_leases_taken(tmp_path, held_elsewhere):
    held_elsewhere.send_signal(signal.SIGSTOP)
    with quiet(tmp_path, "the study next") as leases:
        assert leases.acquire([KEY, OTHER]) == set()
        silence(tmp_path)
        assert leases.acquire([KEY]) == {KEY}
        held_elsewhere.send_signal(signal.SIGCONT)
        assert leases.holds(KEY)


def test_another_process_with_the_same_number_is_another_process(tmp_path):
    with quiet(tmp_path, "the study next") as leases:
        leases.acquire([KEY])
        path = tmp_path / "leases" / f"{KEY}.json"
        content = json.loads(path.read_text())
        path.unlink()
        content["owner"] = "0" * 32
        path.write_text(json.dumps(content))
        assert leases.acquire([KEY]) == set()
        content["process"]["started"] = "1"
        # Nor does a number say anything about another machine's processes.
        path.write_text(json.dumps({**content, "process": {**content["process"], "machine": "another machine"}}))
        assert leases.acquire([KEY]) == set()
        path.write_text(json.dumps(content))
        assert leases.acquire([KEY]) == {KEY}


def test_a_silent_machine_loses_its_leases_and_a_loud_one_does_not(tmp_path, monkeypatch):
    with elsewhere(monkeypatch):
        away = quiet(tmp_path, "the study away")
        away.acquire([KEY])
    with quiet(tmp_path, "the study here") as here:
        silence(tmp_path, 2900)
        assert here.acquire([KEY]) == set()
        assert here.holder(KEY).startswith("the study away on far-away (process ")
        silence(tmp_path, 3100)
        assert here.holder(KEY) is None
        assert here.acquire([KEY]) == {KEY}
        # It wakes up: it finds out, gets nothing back, and takes nothing away.
        assert not away.holds(KEY)
        assert away.acquire([KEY]) == set()
        away.release([KEY])
        assert here.holds(KEY)
        # And if then the other one is gone, too, it may.
        silence(tmp_path)
        assert away.acquire([KEY, OTHER]) == {KEY, OTHER}
        assert away.holds(KEY)
        assert not here.holds(KEY)
        assert here.acquire([KEY, OTHER]) == set()
        away.close()
        assert here.acquire([KEY]) == {KEY}
    assert left_in(tmp_path) == []


def test_heart_beats_keep_all_leases(tmp_path):
    with Leases(tmp_path, "the study", beat_every_s=0.01) as leases:
        leases.acquire([KEY, OTHER])
        path = tmp_path / "leases" / f"{KEY}.json"
        silence(tmp_path)
        while time.time() - path.stat().st_mtime > 5000:
            time.sleep(0.01)
        assert (tmp_path / "leases" / f"{OTHER}.json").stat().st_mtime == path.stat().st_mtime


def test_the_clocks_of_machines_do_not_matter(tmp_path, monkeypatch):
    with elsewhere(monkeypatch):
        away = quiet(tmp_path, "the study away")
        away.acquire([KEY])
    with quiet(tmp_path, "the study here") as here:
        monkeypatch.setattr(time, "time", lambda: 1e10)
        assert here.acquire([KEY]) == set()


def test_what_is_left_of_a_release_that_was_cut_off_means_nothing(tmp_path, monkeypatch):
    with elsewhere(monkeypatch):
        away = quiet(tmp_path, "the study away")
        away.acquire([KEY])
    silence(tmp_path)
    with quiet(tmp_path, "the study here") as here, quiet(tmp_path, "the study next") as after:
        assert here.acquire([KEY]) == {KEY}
        (tmp_path / "leases" / f"{KEY}.json").unlink()
        assert here.holder(KEY) is None
        assert after.acquire([KEY]) == {KEY}
        assert not here.holds(KEY)
        after.release([KEY])
        # The first holder must not begin a chain that goes on with its successor of then.
        assert away.acquire([KEY]) == {KEY}
        assert away.holds(KEY)
        away.close()
        assert after.holder(KEY) is None


def test_a_late_successor_of_a_chain_that_ended_gets_nothing(tmp_path, monkeypatch):
    with elsewhere(monkeypatch):
        away = quiet(tmp_path, "the study away")
        away.acquire([KEY])
    silence(tmp_path)
    with quiet(tmp_path, "the study here") as here, quiet(tmp_path, "the study late") as late:
        real, looks = late._chain, []

        def chain(key):
            looks.append(real(key))
            if len(looks) == 1:
                # Between its look and its link, somebody takes the lease over, ends, and the next begins.
                here.acquire([KEY])
                here.release([KEY])
                here.acquire([KEY])
            return looks[-1]

        monkeypatch.setattr(late, "_chain", chain)
        assert late.acquire([KEY]) == set()
        monkeypatch.undo()
        assert here.holds(KEY)
        assert [path.name for path in (tmp_path / "leases").glob("*.json")] == [f"{KEY}.json"]


def test_a_file_that_is_no_lease_is_named(tmp_path):
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / f"{KEY}.json").write_text("{}")
    with quiet(tmp_path, "the study") as leases, pytest.raises(ValueError, match=rf"{KEY}\.json says in no known way"):
        leases.acquire([KEY])


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a ledger needs a folder"):
        Leases("s3://bucket", "the study")
    with pytest.raises(ValueError, match="needs a heart-beat at least twice"):
        Leases(tmp_path, "the study", beat_every_s=30, expires_s=60)
