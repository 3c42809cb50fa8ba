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

from sweeps.core.store import process_identity
from sweeps.core.store.leases import Leases, LostLeaseError
from toco.files import write_record

KEY, OTHER = "a" * 20, "b" * 20


class Clock:
    """Monotonic seconds that a test lets pass."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


CLOCK = Clock()


def quiet(storage, holder):
    """Leases whose heart-beats come too seldom to matter in a test: it says itself when there was
    one.
    """
    return Leases(storage, holder, beat_every_s=1000.0, expires_s=3000.0, clock=CLOCK)


def watch(seconds, keys, *waiters):
    """Let time pass while others look at leases, as often as holders show signs of life."""
    for _ in range(int(seconds / 500)):
        CLOCK.now_s += 500
        for waiter in waiters:
            for key in keys:
                waiter.silence_s(key)


def beat(*holders):
    """Signs of life."""
    for holder in holders:
        holder._renew()


def left_in(storage):
    return sorted(path.name for path in (storage / "leases").rglob("*.json"))


def age(storage, seconds):
    """Make every heart-beat so far as old as that by the storage's clock."""
    past = time.time() - seconds
    for path in (storage / "leases").rglob("*.json"):
        os.utime(path, (past, past))


def seconds_since_beats(paths):
    return [time.time() - path.stat().st_mtime for path in paths]


@contextlib.contextmanager
def elsewhere(monkeypatch):
    """What happens in the context happens on another machine."""
    with monkeypatch.context() as patch:
        patch.setattr(process_identity, "machine", lambda: "another machine")
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
            assert (
                asked.holder(KEY)
                == f"the study one on {socket.gethostname()} (process {os.getpid()})"
            )
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
    for key in keys:
        for racer in racers:
            racer.silence_s(key)
    watch(4000, keys, *racers)

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
        # From another machine, where nothing is known of the holders' processes.
        for _ in range(2):
            got, _ = race(tmp_path, keys)
            assert {len(names) for names in got.values()} == {1}
            assert not any(gone.holds(key) for key in keys)
    got, racers = race(tmp_path, keys)
    assert {len(names) for names in got.values()} == {1}
    for racer in racers:
        racer.close()
    assert not list((tmp_path / "leases").glob("*.json"))


HOLDER = """
import sys, time
from pathlib import Path
from sweeps.core.store.leases import Leases
leases = Leases(Path(sys.argv[1]), "the study killed", beat_every_s=0.05, expires_s=3000.0)
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
        assert (
            leases.holder(KEY)
            == f"the study killed on {socket.gethostname()} (process {held_elsewhere.pid})"
        )
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
    with quiet(tmp_path, "the study next") as leases:
        assert leases.acquire([KEY, OTHER]) == set()
        held_elsewhere.send_signal(signal.SIGSTOP)
        watch(4000, [KEY], leases)
        assert leases.acquire([KEY]) == {KEY}
        held_elsewhere.send_signal(signal.SIGCONT)
        assert leases.holds(KEY)


def test_another_process_with_the_same_number_is_another_process(tmp_path):
    with quiet(tmp_path, "the study next") as leases:
        leases.acquire([KEY])
        path = tmp_path / "leases" / f"{KEY}.json"
        content = json.loads(path.read_text())
        del content["record_sha256"]
        path.unlink()
        content["owner"] = "0" * 32
        write_record(path, content)
        assert leases.acquire([KEY]) == set()
        content["process"]["started"] = "1"
        # Nor does a number say anything about another machine's processes.
        write_record(
            path, {**content, "process": {**content["process"], "machine": "another machine"}}
        )
        assert leases.acquire([KEY]) == set()
        write_record(path, content)
        assert leases.acquire([KEY]) == {KEY}


def test_a_silent_machine_loses_its_leases_and_a_loud_one_does_not(tmp_path, monkeypatch):
    with elsewhere(monkeypatch):
        away = quiet(tmp_path, "the study away")
        away.acquire([KEY])
    with quiet(tmp_path, "the study here") as here:
        assert here.acquire([KEY]) == set()
        watch(2500, [KEY], here)
        assert here.silence_s(KEY) == 2500
        assert here.acquire([KEY]) == set()
        assert here.holder(KEY).startswith("the study away on far-away (process ")
        beat(away)
        assert here.silence_s(KEY) == 0
        watch(3000, [KEY], here)
        assert here.acquire([KEY]) == set()
        watch(500, [KEY], here)
        assert here.holder(KEY) is None
        assert here.acquire([KEY]) == {KEY}
        # It wakes up: it finds out, gets nothing back, and takes nothing away.
        beat(away)
        assert not away.holds(KEY)
        with pytest.raises(LostLeaseError, match=r"and the study here on .* has taken over"):
            away.check(KEY)
        assert away.acquire([KEY]) == set()
        away.release([KEY])
        assert here.holds(KEY)
        here.check(KEY)
        # And if then the other one is gone, too, it may.
        with elsewhere(monkeypatch):
            watch(4000, [KEY], away)
            assert away.acquire([KEY, OTHER]) == {KEY, OTHER}
        assert away.holds(KEY)
        assert not here.holds(KEY)
        assert here.acquire([KEY, OTHER]) == set()
        away.close()
        assert here.acquire([KEY]) == {KEY}
    assert left_in(tmp_path) == []


def test_a_waiter_that_was_suspended_itself_does_not_take_over(tmp_path, monkeypatch):
    """It did not see the signs of life of that time, and its holder may have been suspended with
    it.
    """
    with elsewhere(monkeypatch):
        away = quiet(tmp_path, "the study away")
        away.acquire([KEY])
    with quiet(tmp_path, "the study here") as here:
        assert here.acquire([KEY]) == set()
        CLOCK.now_s += 1e6
        assert here.acquire([KEY]) == set()
        assert here.silence_s(KEY) == 1000
        beat(away)
        assert here.acquire([KEY]) == set()
        assert here.silence_s(KEY) == 0


def test_heart_beats_keep_all_leases(tmp_path):
    with Leases(tmp_path, "the study", beat_every_s=0.01) as leases:
        leases.acquire([KEY, OTHER])
        paths = [tmp_path / "leases" / f"{key}.json" for key in (KEY, OTHER)]
        age(tmp_path, 10_000)
        while min(seconds_since_beats(paths)) > 5000:
            time.sleep(0.01)
        # One beat renews all leases of a holder.
        assert max(seconds_since_beats(paths)) < 5000


def test_the_clocks_of_machines_do_not_matter(tmp_path, monkeypatch):
    with elsewhere(monkeypatch):
        away = quiet(tmp_path, "the study away")
        away.acquire([KEY])
    with quiet(tmp_path, "the study here") as here:
        assert here.acquire([KEY]) == set()
        monkeypatch.setattr(time, "time", lambda: 1e10)
        # Nor does that of the storage, whichever way it is set.
        for seconds in (1e6, -1e6):
            age(tmp_path, seconds)
            assert here.acquire([KEY]) == set()


def test_who_only_reads_goes_by_the_age_of_the_last_sign_of_life(tmp_path, monkeypatch):
    with elsewhere(monkeypatch):
        quiet(tmp_path, "the study away").acquire([KEY])
    reader = quiet(tmp_path, "somebody who asks")
    assert reader.holder(KEY).startswith("the study away on far-away")
    age(tmp_path, 3100)
    assert reader.holder(KEY) is None


def test_what_is_left_of_a_release_that_was_cut_off_means_nothing(tmp_path, monkeypatch):
    with elsewhere(monkeypatch):
        away = quiet(tmp_path, "the study away")
        away.acquire([KEY])
    with quiet(tmp_path, "the study here") as here, quiet(tmp_path, "the study next") as after:
        assert here.acquire([KEY]) == set()
        watch(4000, [KEY], here)
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
    with quiet(tmp_path, "the study here") as here, quiet(tmp_path, "the study late") as late:
        for waiter in (here, late):
            waiter.silence_s(KEY)
        watch(4000, [KEY], here, late)
        real, looks = late._chain, []

        def chain(key):
            looks.append(real(key))
            if len(looks) == 1:
                # Between its look and its link, somebody takes the lease over, ends, and the next
                # begins.
                here.acquire([KEY])
                here.release([KEY])
                here.acquire([KEY])
            return looks[-1]

        monkeypatch.setattr(late, "_chain", chain)
        assert late.acquire([KEY]) == set()
        monkeypatch.undo()
        assert here.holds(KEY)
        assert [path.name for path in (tmp_path / "leases").glob("*.json")] == [f"{KEY}.json"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format_version":2,"owner":"a', b"\xff\0"]
)
def test_a_lease_that_cannot_be_read_is_gone_after_a_long_silence(tmp_path, caplog, content):
    folder = tmp_path / "leases"
    (folder / "holders").mkdir(parents=True)
    torn, holder = folder / f"{KEY}.json", folder / "holders" / "aa.json"
    torn.write_bytes(content)
    holder.write_bytes(content)
    with quiet(tmp_path, "the study") as leases, quiet(tmp_path, "another study") as other:
        # It stops nothing else, and nobody who only reads.
        assert leases.acquire([KEY, OTHER]) == {OTHER}
        assert other.acquire([KEY]) == set()
        assert (
            quiet(tmp_path, "somebody who asks").holder(KEY)
            == f"a driver whose lease {torn} cannot be read"
        )
        watch(2000, [KEY], leases)
        # Its holder may have the file open, and shows that it is there.
        os.utime(torn)
        watch(2500, [KEY], leases)
        assert leases.acquire([KEY]) == set()
        watch(1500, [KEY], leases, other)
        assert leases.acquire([KEY]) == {KEY}
        assert f"Took over from a driver whose lease {torn} cannot be read" in caplog.text
        assert other.acquire([KEY]) == set()
        for _ in range(5):
            CLOCK.now_s += 1000
            leases._sweep()
        assert f"Removed {holder}" in caplog.text
        assert not holder.exists()
        leases.release([KEY])
        assert not torn.exists()


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a ledger needs a folder"):
        Leases("s3://bucket", "the study")
    with pytest.raises(ValueError, match="needs a heart-beat at least twice"):
        Leases(tmp_path, "the study", beat_every_s=30, expires_s=60)


def test_life_is_shown_by_a_heart_beat_between_two_looks(tmp_path):
    """A driver that died a moment ago looks like a living one at first."""
    with quiet(tmp_path, "one") as holder, quiet(tmp_path, "two") as waiter:
        holder.acquire([KEY])
        assert not waiter.has_shown_life(OTHER)
        assert not waiter.has_shown_life(KEY)
        watch(1000, [KEY], waiter)
        assert not waiter.has_shown_life(KEY)
        beat(holder)
        assert waiter.has_shown_life(KEY)
        # Two missed heart-beats are one too many.
        watch(2000, [KEY], waiter)
        assert waiter.has_shown_life(KEY)
        watch(500, [KEY], waiter)
        assert not waiter.has_shown_life(KEY)
        beat(holder)
        assert waiter.has_shown_life(KEY)
