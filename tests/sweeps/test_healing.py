"""Files of a finished study are damaged, and the same command makes the same table, byte for byte,
and says so.
"""

import json
import shutil

import pytest

from sweeps.core.report import report as report_writer
from sweeps.core.report.page import Page
from tests.sweeps.core.damages import DAMAGES, damage
from tests.sweeps.test_main import place  # noqa: F401 - a fixture
from toco.files import SEAL, read_record

TRIALS = 10


@pytest.fixture
def finished(place, monkeypatch):  # noqa: F811 - the fixture
    """A finished study, whose page is not drawn, and its table."""
    monkeypatch.setattr(report_writer, "page", lambda *_: Page("the page", {}, ()))
    found = place("run")
    assert found.exit_code == 0, found.output
    assert place.trained == TRIALS
    return place


def table(place):  # noqa: F811
    (path,) = place.storage.glob("fake-*/table.csv")
    return path.read_bytes()


def one(place, pattern):  # noqa: F811
    return sorted(place.storage.glob(pattern))[0]


def run(place):  # noqa: F811
    found = place("run")
    assert found.exit_code == 0, found.output
    assert "Traceback" not in found.output
    return found


def test_a_damaged_entry_is_entered_again_from_its_run_folder(finished):
    before = table(finished)
    entry = one(finished, "ledger/??/*.json")
    for name in DAMAGES:
        damage(entry, name)
        planned = finished("plan").output
        assert "10 trials, 9 of them ended" in planned, name
        assert "1 of them although the ledger has their settings: the entry in the" in planned
        run(finished)
        assert (table(finished), finished.trained) == (before, TRIALS), name
        assert read_record(entry)["key"] == entry.stem
    assert "10 trials, 10 of them ended" in finished("plan").output


def test_a_trial_whose_entry_and_run_folder_are_damaged_is_trained_again(finished):
    before = table(finished)
    entry = one(finished, "ledger/??/*.json")
    cases = [
        ("result.json", "nested brackets"),
        ("config.json", "a changed digit"),
        ("provenance.json", "nothing"),
    ]
    for number, (record, name) in enumerate(cases, start=1):
        damage(entry, name)
        damage(finished.storage / "runs" / entry.stem / record, name)
        run(finished)
        assert (table(finished), finished.trained) == (before, TRIALS + number), record


@pytest.mark.parametrize(
    "pattern",
    [
        "finished/*.json",
        "fake-*/study.json",
        "fake-*/mlflow.json",
        "fake-*/progress.json",
        "fake-*/table.csv",
    ],
)
def test_whatever_is_damaged_beside_the_ledger_the_table_is_the_same(finished, pattern):
    before = table(finished)
    (folder,) = finished.storage.glob("fake-*")
    for name in ("a changed digit", "a changed name of a key", "nested brackets", "no UTF-8"):
        for file in finished.storage.glob(pattern):
            content = file.read_bytes()
            file.write_bytes(DAMAGES[name](content) if file.suffix == ".json" else content[:-10])
        if not pattern.startswith("finished"):
            shutil.rmtree(finished.storage / "finished")
        run(finished)
        assert (table(finished), finished.trained) == (before, TRIALS), name
    if pattern.endswith("study.json"):
        assert {path.name for path in (folder / "history").iterdir()} == {
            f"study.json.damaged-{number}" for number in range(1, 5)
        }


@pytest.mark.parametrize("verb", ["plan", "status", "report", "diff", "sync"])
def test_no_verb_ends_in_a_traceback_where_everything_is_damaged(finished, verb):
    files = [path for path in finished.storage.rglob("*.json*") if path.is_file()]
    for number, path in enumerate(files):
        path.write_bytes([*DAMAGES.values()][number % len(DAMAGES)](path.read_bytes()))
    found = finished(verb)
    assert isinstance(found.exception, SystemExit | None), found.output
    assert "Traceback" not in found.output
    if verb == "plan":
        assert "10 trials, 0 of them ended" in found.output


def test_lost_markers_are_made_again(finished):
    shutil.rmtree(finished.storage / "ledger" / "trainings")
    shutil.rmtree(finished.storage / "ledger" / "configs")
    shutil.rmtree(finished.storage / "finished")
    run(finished)
    assert len(list(finished.storage.glob("ledger/trainings/*/*/*"))) == TRIALS
    assert len(list(finished.storage.glob("ledger/configs/*/*/*"))) == TRIALS


def test_a_storage_of_version_0_4_is_named_and_what_is_needed_runs_again(finished):
    before = table(finished)
    (folder,) = finished.storage.glob("fake-*")
    # As version 0.4 wrote them: without digests, and under keys of its own.
    for path in [*finished.storage.glob("ledger/??/*.json")]:
        old = {**read_record(path), "format_version": 1, "key": path.stem[::-1]}
        renamed = finished.storage / "ledger" / path.stem[::-1][:2] / f"{path.stem[::-1]}.json"
        renamed.parent.mkdir(exist_ok=True)
        renamed.write_text(json.dumps(old, separators=(",", ":")) + "\n")
        path.unlink()
        (marker,) = finished.storage.glob(f"ledger/configs/*/*/{path.stem}")
        marker.rename(marker.with_name(path.stem[::-1]))
    study = folder / "study.json"
    old = {**json.loads(study.read_text()), "format_version": 2}
    del old[SEAL]
    study.write_text(json.dumps(old))
    shutil.rmtree(finished.storage / "runs")
    planned = finished("plan").output
    assert "10 trials, 0 of them ended" in planned
    assert "10 of them although the ledger has their settings" in planned
    assert "version 0.4 entered them, without a digest" in planned
    assert "The ledger has 10 results of version 0.4, which do not count" in planned
    run(finished)
    assert (table(finished), finished.trained) == (before, 2 * TRIALS)
    assert (folder / "history" / "study.json.format-2-1").is_file()
