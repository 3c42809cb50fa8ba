import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sweeps.core.store.first_writer import link_first
from sweeps.core.store.ledger import LONGEST_TRACEBACK, Ledger, Nearest
from sweeps.core.store.ledger_entry import FORMAT_VERSION
from tests.sweeps.core.damages import DAMAGES, damage
from tests.sweeps.core.entries import make_entry
from toco.files import SEAL, is_sealed, record_text

KEYS = [f"{number:02x}{number:018x}" for number in range(40)]


def entry(
    key, training_key="c" * 20, status="finished", config="d" * 16, recipe="shapes_nano", **values
):
    content = {"identity": {"config": config}, "metrics": {"val/seg_miou": 0.1 + 0.2}, **values}
    return make_entry(
        key=key, training_key=training_key, status=status, origin={"recipe": recipe}, **content
    )


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
    assert ledger.entry(KEYS[0]).step == 1


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


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_as_if_missing_and_can_be_written_again(ledger, name, caplog):
    ledger.write(entry(KEYS[0]))
    path = path_of(ledger, KEYS[0])
    whole = path.read_bytes()
    damage(path, name)
    assert ledger.finished_keys(KEYS) == set()
    assert ledger.damaged_keys(KEYS) == {KEYS[0]}
    assert ledger.entry(KEYS[0]) is None
    assert f"{path} is damaged and counts as missing" in caplog.text
    assert ledger.by_training("c" * 20) == []
    assert ledger.nearest("d" * 16) is None
    assert list(ledger.history("shapes_nano")) == []
    assert ledger.content_digest(KEYS[:1]) is None
    assert ledger.write(entry(KEYS[0]))
    assert path.read_bytes() == whole
    assert ledger.finished_keys(KEYS) == {KEYS[0]}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_every_flipped_bit_of_an_entry_is_seen(ledger):
    ledger.write(entry(KEYS[0]))
    path = path_of(ledger, KEYS[0])
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            assert ledger.finished_keys(KEYS) == set(), (position, bit)
    path.write_bytes(whole)
    assert ledger.finished_keys(KEYS) == {KEYS[0]}


def test_an_entry_under_a_wrong_name_is_none(ledger, caplog):
    ledger.write(entry(KEYS[0]))
    path = path_of(ledger, KEYS[1])
    path.parent.mkdir(parents=True)
    path.write_bytes(path_of(ledger, KEYS[0]).read_bytes())
    assert ledger.entry(KEYS[1]) is None
    assert ledger.finished_keys(KEYS) == {KEYS[0]}
    assert f"{path} counts as missing: it is the record of {KEYS[0]}" in caplog.text
    assert ledger.write(entry(KEYS[1]))
    assert ledger.finished_keys(KEYS) == set(KEYS[:2])


def test_a_later_format_is_refused_and_not_overwritten(ledger):
    ledger.write(entry(KEYS[0]))
    path = path_of(ledger, KEYS[0])
    path.write_text(record_text({"format_version": FORMAT_VERSION + 1, "key": KEYS[0]}))
    later = path.read_bytes()
    for ask in (
        ledger.entry,
        lambda key: ledger.finished_keys([key]),
        lambda key: ledger.write(entry(key)),
    ):
        with pytest.raises(
            ValueError, match=r"has format version 3; this program reads 2. Give another --storage"
        ):
            ask(KEYS[0])
    assert path.read_bytes() == later


def write_as_version_0_4(ledger, key, **values):
    """An entry as version 0.4 wrote it, with its markers."""
    old = {**entry(key, **values).model_dump(mode="json"), "format_version": 1}
    ledger.mark(key, old["training_key"], old["identity"]["config"])
    path = path_of(ledger, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(old, separators=(",", ":")) + "\n")


def test_results_of_version_0_4_do_not_count_and_are_named(ledger, caplog):
    assert ledger.describe_old_results() is None
    for key in KEYS[:3]:
        write_as_version_0_4(ledger, key)
    ledger.write(entry(KEYS[3], config="0" * 16))
    assert ledger.finished_keys(KEYS) == {KEYS[3]}
    assert ledger.damaged_keys(KEYS) == set()
    assert ledger.by_training("c" * 20) == [entry(KEYS[3], config="0" * 16)]
    assert (
        "The ledger has 3 results of version 0.4, which do not count"
        in ledger.describe_old_results()
    )
    # They tell what is different now.
    assert ledger.nearest("d" * 16) == Nearest({"config": "d" * 16}, without_digest=True)
    assert ledger.nearest("0" * 16) == Nearest({"config": "0" * 16}, without_digest=False)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("status", "lost", "status: Input should be 'finished' or 'diverged'"),
        ("step", "9", "step: Input should be a"),
    ],
)
def test_an_entry_that_another_program_wrote_is_a_sentence(ledger, field, value, fault):
    ledger.write(entry(KEYS[0]))
    path = path_of(ledger, KEYS[0])
    record = json.loads(path.read_text())
    del record[SEAL]
    path.write_text(record_text({**record, field: value}))
    with pytest.raises(
        ValueError, match=rf"{KEYS[0]}\.json is not a record of its kind: {fault}.* Delete it\."
    ):
        ledger.entry(KEYS[0])


def test_lost_markers_are_made_again(ledger):
    ledger.write(entry(KEYS[0]))
    for folder in ("trainings", "configs"):
        shutil.rmtree(ledger.storage / "ledger" / folder)
    assert ledger.by_training("c" * 20) == []
    ledger.mark(KEYS[0], "c" * 20, "d" * 16)
    assert ledger.by_training("c" * 20) == [entry(KEYS[0])]
    assert ledger.nearest("d" * 16) is not None


@pytest.mark.parametrize("damaged", [False, True])
def test_one_of_many_healers_wins(ledger, damaged):
    for key in KEYS[:10]:
        if damaged:
            ledger.write(entry(key, step=99))
            damage(path_of(ledger, key), "a changed digit")
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
        # Each of several healers may have seen the damaged entry, but never replaces what it saw to
        # be whole.
        assert len(won) >= 1 if damaged else len(won) == 1
        assert ledger.entry(key).step in won
        assert [file.name for file in path_of(ledger, key).parent.iterdir()] == [f"{key}.json"]


def test_failures_of_two_writers_at_once_all_stay(ledger):
    start = threading.Barrier(8)

    def fail(number):
        start.wait()
        Ledger(ledger.storage).add_failure(KEYS[0], f"reason {number}", "")

    threads = [threading.Thread(target=fail, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {failure.reason for failure in ledger.failures(KEYS[0])} == {
        f"reason {number}" for number in range(8)
    }


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_failure_costs_only_itself(ledger, name, caplog):
    for reason in ("first", "second"):
        ledger.add_failure(KEYS[0], reason, "trace 0.5")
    first = sorted((ledger.storage / "ledger").rglob("*.failures/*.json"))[0]
    damage(first, name)
    assert [failure.reason for failure in ledger.failures(KEYS[0])] == ["second"]
    assert f"{first} is damaged and counts as missing" in caplog.text


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
    ledger.add_failure(
        KEYS[0], "ValueError", "first line\n" + "x" * LONGEST_TRACEBACK + "last line"
    )
    one, other = ledger.failures(KEYS[0])
    assert one.reason == "the worker was lost"
    assert one.time <= other.time
    assert one.time.endswith("+00:00")
    assert other.traceback.endswith("xlast line")
    assert len(other.traceback) == LONGEST_TRACEBACK
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


def test_the_nearest_is_the_newest_of_the_same_config(ledger):
    for age, key in enumerate([KEYS[3], KEYS[1], KEYS[2]]):
        ledger.write(entry(key, identity={"config": "d" * 16, "seed": int(key[:2], 16)}))
        os.utime(path_of(ledger, key), (1000 - age, 1000 - age))
    ledger.write(entry(KEYS[4], config="0" * 16))
    assert ledger.nearest("d" * 16) == Nearest(
        {"config": "d" * 16, "seed": 3}, without_digest=False
    )
    assert ledger.nearest("e" * 16) is None


def test_history_is_the_newest_of_a_recipe(ledger):
    assert list(ledger.history("shapes_nano")) == []
    for age, key in enumerate(KEYS[:6]):
        ledger.write(entry(key, recipe="voc_deit_b" if age == 1 else "shapes_nano"))
        ledger.add_failure(key, "lost", "")
        os.utime(path_of(ledger, key), (1000 - age, 1000 - age))
    assert [found.key for found in ledger.history("shapes_nano")] == [KEYS[0], *KEYS[2:6]]
    assert [found.key for found in ledger.history("shapes_nano", limit=2)] == [KEYS[0], KEYS[2]]


def test_a_moved_ledger_is_the_same(ledger, tmp_path):
    for key in KEYS[:4]:
        ledger.write(entry(key))
    moved = Ledger(ledger.storage.rename(tmp_path / "elsewhere"))
    assert moved.finished_keys(KEYS) == set(KEYS[:4])
    assert [found.key for found in moved.by_training("c" * 20)] == KEYS[:4]


@pytest.mark.parametrize(
    "storage", ["s3://bucket/results", "gs://bucket", "file:///results", "abfs://a@b/c"]
)
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


WRITER = """
import json, sys
from pathlib import Path
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import LedgerEntry
ledger, entry = Ledger(Path(sys.argv[1])), LedgerEntry.model_validate_json(sys.argv[2])
for number in range(10**6):
    key = f"{number % 256:02x}{number:018x}"
    ledger.write(entry.model_copy(update={"key": key, "message": "x" * 20000}))
    ledger.add_failure(key[:2] + "0" * 18, "lost", "x" * 5000)
    print(key, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_files(ledger, tmp_path):
    for kill in range(3):
        storage = tmp_path / str(kill)
        command = [
            sys.executable,
            "-c",
            WRITER,
            str(storage),
            entry("", training_key="").model_dump_json(),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            written = [writer.stdout.readline().strip() for _ in range(5 + 7 * kill)]
            writer.send_signal(signal.SIGKILL)
            written += writer.stdout.read().split()
        killed = Ledger(storage)
        assert killed.finished_keys(written) == set(written)
        for path in storage.glob("ledger/??/*.json"):
            if not path.name.startswith("."):
                assert is_sealed(path.read_bytes())
        for failure in storage.glob("ledger/??/*.failures/*.json"):
            assert failure.name.startswith(".") or is_sealed(failure.read_bytes())
        assert killed.nearest("d" * 16) is not None
