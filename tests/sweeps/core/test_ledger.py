import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sweeps.core.ledger import LONGEST_TRACEBACK, Ledger, link_first

KEYS = [f"{number:02x}{number:018x}" for number in range(40)]


def entry(key, training_key="c" * 20, status="finished", config="d" * 16, recipe="shapes_nano", **values):
    return {
        "format_version": 1,
        "key": key,
        "training_key": training_key,
        "status": status,
        "identity": {"config": config},
        "origin": {"recipe": recipe},
        "metrics": {"val/seg_miou": 0.1 + 0.2},
        **values,
    }


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "results")


def path_of(ledger, key):
    return ledger.storage / "ledger" / key[:2] / f"{key}.json"


def test_an_entry_comes_back_as_it_was_written(ledger):
    assert ledger.entry(KEYS[0]) is None
    assert ledger.write(entry(KEYS[0]))
    assert ledger.entry(KEYS[0]) == entry(KEYS[0])
    assert ledger.run_dir(KEYS[0]) == ledger.storage / "runs" / KEYS[0]
    assert [path.name for path in path_of(ledger, KEYS[0]).parent.iterdir()] == [f"{KEYS[0]}.json"]


def test_the_first_entry_stays(ledger):
    assert ledger.write(entry(KEYS[0], step=1))
    assert not ledger.write(entry(KEYS[0], step=2))
    assert ledger.entry(KEYS[0])["step"] == 1


def test_the_content_of_entries_has_a_digest_that_knows_every_byte(ledger):
    assert ledger.content_digest(KEYS[:1]) is None
    for key in KEYS[:2]:
        ledger.write(entry(key))
    digest = ledger.content_digest(KEYS[:2])
    assert digest == ledger.content_digest(KEYS[:2])
    assert len({digest, ledger.content_digest(KEYS[:1]), ledger.content_digest(KEYS[1::-1])}) == 3
    path_of(ledger, KEYS[0]).unlink()
    ledger.write(entry(KEYS[0], step=2))
    assert ledger.content_digest(KEYS[:2]) not in (None, digest)


@pytest.mark.parametrize("damage", [lambda text: text[:-30], lambda text: b"", lambda text: b"\0" * len(text)])
def test_a_damaged_entry_is_none_and_can_be_written_again(ledger, damage, caplog):
    ledger.write(entry(KEYS[0]))
    path = path_of(ledger, KEYS[0])
    path.write_bytes(damage(path.read_bytes()))
    assert ledger.entry(KEYS[0]) is None
    assert f"{path}, which is damaged" in caplog.text
    assert ledger.finished_keys(KEYS) == set()
    assert ledger.by_training("c" * 20) == []
    assert ledger.write(entry(KEYS[0], step=2))
    assert ledger.entry(KEYS[0])["step"] == 2
    assert ledger.finished_keys(KEYS) == {KEYS[0]}


def test_an_entry_under_a_wrong_name_is_none(ledger, caplog):
    ledger.write(entry(KEYS[0]))
    path = path_of(ledger, KEYS[1])
    path.parent.mkdir(parents=True)
    path.write_bytes(path_of(ledger, KEYS[0]).read_bytes())
    assert ledger.entry(KEYS[1]) is None
    assert f"is the entry of {KEYS[0]}" in caplog.text


def test_another_format_is_refused(ledger):
    ledger.write(entry(KEYS[0], format_version=2))
    with pytest.raises(ValueError, match=r"has format version 2; this program reads 1"):
        ledger.entry(KEYS[0])


def test_finished_keys_are_those_with_an_entry(ledger):
    for number, key in enumerate(KEYS[::2]):
        ledger.write(entry(key, status="diverged" if number % 3 else "finished"))
    for key in KEYS[1::2]:
        ledger.add_failure(key, "lost", "Traceback")
    assert ledger.finished_keys(KEYS) == set(KEYS[::2])
    assert ledger.finished_keys(KEYS[:3]) == {KEYS[0], KEYS[2]}
    assert ledger.finished_keys([]) == set()


def test_failures_add_up(ledger):
    assert ledger.failures(KEYS[0]) == []
    ledger.add_failure(KEYS[0], "the worker was lost", "")
    ledger.add_failure(KEYS[0], "ValueError", "first line\n" + "x" * LONGEST_TRACEBACK + "last line")
    one, other = ledger.failures(KEYS[0])
    assert one["reason"] == "the worker was lost"
    assert one["time"] <= other["time"]
    assert one["time"].endswith("+00:00")
    assert other["traceback"].endswith("xlast line")
    assert len(other["traceback"]) == LONGEST_TRACEBACK
    assert ledger.entry(KEYS[0]) is None


def test_trainings_are_found_by_their_key(ledger):
    ledger.write(entry(KEYS[2]))
    ledger.write(entry(KEYS[1]))
    ledger.write(entry(KEYS[3], status="diverged"))
    ledger.write(entry(KEYS[4], training_key="e" * 20))
    assert ledger.by_training("c" * 20) == [entry(KEYS[1]), entry(KEYS[2])]
    assert ledger.by_training("f" * 20) == []
    # As a crash between marker and entry leaves it.
    path_of(ledger, KEYS[1]).unlink()
    assert ledger.by_training("c" * 20) == [entry(KEYS[2])]


def test_the_nearest_are_those_of_the_same_config_the_newest_last(ledger):
    for age, key in enumerate([KEYS[3], KEYS[1], KEYS[2]]):
        ledger.write(entry(key))
        os.utime(path_of(ledger, key), (1000 - age, 1000 - age))
    ledger.write(entry(KEYS[4], config="0" * 16))
    assert [found["key"] for found in ledger.nearest("d" * 16)] == [KEYS[2], KEYS[1], KEYS[3]]


def test_history_is_the_newest_of_a_recipe(ledger):
    assert list(ledger.history("shapes_nano")) == []
    for age, key in enumerate(KEYS[:6]):
        ledger.write(entry(key, recipe="voc_deit_b" if age == 1 else "shapes_nano"))
        ledger.add_failure(key, "lost", "")
        os.utime(path_of(ledger, key), (1000 - age, 1000 - age))
    assert [found["key"] for found in ledger.history("shapes_nano")] == [KEYS[0], *KEYS[2:6]]
    assert [found["key"] for found in ledger.history("shapes_nano", limit=2)] == [KEYS[0], KEYS[2]]


def test_a_moved_ledger_is_the_same(ledger, tmp_path):
    for key in KEYS[:4]:
        ledger.write(entry(key))
    moved = Ledger(ledger.storage.rename(tmp_path / "elsewhere"))
    assert moved.finished_keys(KEYS) == set(KEYS[:4])
    assert [found["key"] for found in moved.by_training("c" * 20)] == KEYS[:4]


@pytest.mark.parametrize("storage", ["s3://bucket/results", "gs://bucket", "file:///results", "abfs://a@b/c"])
@pytest.mark.parametrize("form", [Path, str])
def test_an_address_is_refused(storage, form):
    with pytest.raises(ValueError, match="a ledger needs a folder"):
        Ledger(form(storage))


def test_a_file_system_without_links_is_refused(ledger, monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ValueError, match="without hard links"):
        ledger.write(entry(KEYS[0]))
    assert ledger.entry(KEYS[0]) is None
    assert list(path_of(ledger, KEYS[0]).parent.iterdir()) == []


def test_a_link_whose_answer_was_lost_counts(tmp_path, monkeypatch):
    real = os.link

    def link(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "as NFS says when the request comes twice")

    source = tmp_path / "source"
    source.touch()
    monkeypatch.setattr(os, "link", link)
    assert link_first(source, tmp_path / "target")


def test_one_of_many_writers_wins(ledger):
    for key in KEYS[:10]:
        start, won = threading.Barrier(16), []

        def write(number, key=key, start=start, won=won):
            start.wait()
            if Ledger(ledger.storage).write(entry(key, step=number)):
                won.append(number)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert ledger.entry(key)["step"] == won[0]


WRITER = """
import json, sys
from pathlib import Path
from sweeps.core.ledger import Ledger
ledger, entry = Ledger(Path(sys.argv[1])), json.loads(sys.argv[2])
for number in range(10**6):
    key = f"{number % 256:02x}{number:018x}"
    ledger.write({**entry, "key": key, "padding": "x" * 20000})
    ledger.add_failure(key[:2] + "0" * 18, "lost", "x" * 5000)
    print(key, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_files(ledger, tmp_path):
    for kill in range(3):
        storage = tmp_path / str(kill)
        command = [sys.executable, "-c", WRITER, str(storage), json.dumps(entry("", training_key=""))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            written = [writer.stdout.readline().strip() for _ in range(5 + 7 * kill)]
            writer.send_signal(signal.SIGKILL)
            written += writer.stdout.read().split()
        killed = Ledger(storage)
        assert killed.finished_keys(written) == set(written)
        for path in storage.glob("ledger/??/*.json"):
            if not path.name.startswith("."):
                assert json.loads(path.read_text())["format_version"] == 1
        assert set(written) <= {found["key"] for found in killed.nearest("d" * 16)}
