"""Run folders: what is published, in which order, and how they enter the ledger."""

import json
import shutil
from contextlib import suppress

import pytest

from sweeps.core.store import runs as runs_module
from sweeps.core.store.identity import Identity
from sweeps.core.store.leases import LostLeaseError
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.ledger_entry import Origin
from sweeps.core.store.runs import CONTENTS, Runs, link_or_copy, newest_step, repair, seal
from tests.sweeps.core.damages import DAMAGES, damage
from toco.files import sha256
from toco.train import checkpoint, records

KEY = "0123456789abcdef0123"


@pytest.fixture
def runs(tmp_path):
    return Runs(Ledger(tmp_path / "results"))


def snapshot(root, step, finished=False):
    """A snapshot after ``step``: rows 10, 20, ... with the checkpoint of the last."""
    path = root / f"snapshot_{step}_{finished}"
    checkpoint = path / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "tensors.safetensors").write_text(f"tensors after {step}")
    records.write(checkpoint / "state.json", {"step": step})
    records.write(path / "config.json", {"config": {"num_steps": 30}})
    records.write(path / "provenance.json", {"commit": None})
    rows = [json.dumps({"step": row, "kind": "val"}) + "\n" for row in range(10, step + 1, 10)]
    (path / "metrics.jsonl").write_text("".join(rows))
    for row in range(10, step + 1, 10):
        (path / "evaluations").mkdir(exist_ok=True)
        (path / "evaluations" / f"step_{row:08d}.json").write_text("{}")
    if finished:
        records.write(path / "result.json", {"status": "finished", "step": step})
    return path


def files(path):
    return {
        str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()
    }


def test_a_run_folder_follows_its_snapshots(runs, tmp_path):
    for step, finished in ((10, False), (20, False), (30, False), (30, True)):
        published = snapshot(tmp_path, step, finished)
        runs.publish(KEY, published)
        assert files(runs.ledger.run_dir(KEY)) == files(published)
        assert runs.status(KEY) == ("finished" if finished else None)
        assert newest_step(runs.ledger.run_dir(KEY)) == step


def stopped_and_evaluated(root):
    """Two snapshots of step 20: the training was stopped before its evaluation, and after it."""
    stopped, evaluated = snapshot(root / "stopped", 20), snapshot(root / "evaluated", 20)
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text(lines[0])
    (stopped / "evaluations" / "step_00000020.json").unlink()
    for path, count in ((stopped, 1), (evaluated, 2)):
        state = path / "checkpoints" / "step_00000020" / "state.json"
        records.write(state, {"step": 20, "rows": {"count": count, "sha256": "0" * 64}})
    return stopped, evaluated


def test_a_snapshot_with_the_evaluation_of_its_step_replaces_one_without(runs, tmp_path):
    stopped, evaluated = stopped_and_evaluated(tmp_path)
    runs.publish(KEY, stopped)
    assert files(runs.ledger.run_dir(KEY)) == files(stopped)
    assert not runs.is_published(KEY, evaluated)
    runs.publish(KEY, evaluated)
    assert files(runs.ledger.run_dir(KEY)) == files(evaluated)
    # A lost driver may hand the older one over again.
    assert runs.is_published(KEY, stopped)
    runs.publish(KEY, stopped)
    assert files(runs.ledger.run_dir(KEY)) == files(evaluated)


def test_a_folder_in_the_place_of_a_file_makes_way(runs, tmp_path):
    runs.publish(KEY, snapshot(tmp_path, 10))
    misplaced = runs.ledger.run_dir(KEY) / "evaluations" / "step_00000010.json"
    misplaced.unlink()
    (misplaced / "inner").mkdir(parents=True)
    published = snapshot(tmp_path, 20)
    runs.publish(KEY, published)
    assert files(runs.ledger.run_dir(KEY)) == files(published)


def test_it_outlives_the_snapshot_that_tune_deletes(runs, tmp_path):
    published = snapshot(tmp_path, 10)
    expected = files(published)
    runs.publish(KEY, published)
    shutil.rmtree(published)
    assert files(runs.ledger.run_dir(KEY)) == expected


def test_an_older_snapshot_changes_nothing(runs, tmp_path):
    newer = snapshot(tmp_path, 20)
    runs.publish(KEY, newer)
    runs.publish(KEY, snapshot(tmp_path, 10))
    assert files(runs.ledger.run_dir(KEY)) == files(newer)


def test_a_finished_training_is_never_touched_again(runs, tmp_path):
    finished = snapshot(tmp_path, 20, finished=True)
    runs.publish(KEY, finished)
    runs.publish(KEY, snapshot(tmp_path, 20))
    runs.publish(KEY, snapshot(tmp_path, 30))
    assert files(runs.ledger.run_dir(KEY)) == files(finished)


def resumable_step(run_dir):
    """The step that a training would go on from: every row up to it must be there."""
    step = newest_step(run_dir)
    for folder in (run_dir / "checkpoints").glob("step_*"):
        assert {path.name for path in folder.iterdir()} == {"tensors.safetensors", "state.json"}
    rows = [
        json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row for row in rows if row <= step] == list(range(10, step + 1, 10))
    return step


@pytest.mark.parametrize("dies_at", range(6))
def test_a_driver_that_dies_while_publishing_leaves_a_folder_to_go_on_from(
    runs, tmp_path, monkeypatch, dies_at
):
    runs.publish(KEY, snapshot(tmp_path, 10))
    left = dies_at

    def fragile(function):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            function(*arguments)

        return call

    final = snapshot(tmp_path, 20, finished=True)
    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "_copy", fragile(runs_module._copy))
        patch.setattr(runs_module, "_link_folder", fragile(runs_module._link_folder))
        with pytest.raises(KeyboardInterrupt):
            runs.publish(KEY, final)
    assert resumable_step(runs.ledger.run_dir(KEY)) in (10, 20)
    assert runs.status(KEY) is None
    runs.publish(KEY, final)
    assert files(runs.ledger.run_dir(KEY)) == files(final)


def test_checkpoints_are_links_where_the_file_system_has_them_and_copies_where_not(
    runs, tmp_path, monkeypatch
):
    first, second = snapshot(tmp_path, 10), snapshot(tmp_path, 20)
    runs.publish(KEY, first)
    tensors = runs.ledger.run_dir(KEY) / "checkpoints" / "step_00000010" / "tensors.safetensors"
    assert tensors.samefile(first / "checkpoints" / "step_00000010" / "tensors.safetensors")
    monkeypatch.setattr(
        runs_module.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here"))
    )
    runs.publish(KEY, second)
    assert files(runs.ledger.run_dir(KEY)) == files(second)


@pytest.mark.parametrize("damage", ["", "[30]", "{}", None])
def test_a_damaged_checkpoint_does_not_count_and_is_replaced(runs, tmp_path, damage):
    runs.publish(KEY, snapshot(tmp_path, 20))
    run_dir = runs.ledger.run_dir(KEY)
    damaged = run_dir / "checkpoints" / "step_00000030"
    damaged.mkdir()
    if damage is not None:
        (damaged / "state.json").write_text(damage)
    assert newest_step(run_dir) == 20
    newest = snapshot(tmp_path, 30)
    runs.publish(KEY, newest)
    assert newest_step(run_dir) == 30
    assert files(run_dir) == files(newest)


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("file", ["result.json", "config.json", "provenance.json"])
def test_a_run_folder_with_a_damaged_record_has_not_ended_and_is_made_whole_again(
    runs, tmp_path, file, name
):
    finished = snapshot(tmp_path, 20, finished=True)
    runs.publish(KEY, finished)
    damage(runs.ledger.run_dir(KEY) / file, name)
    assert runs.status(KEY) is None
    assert not settle(runs)
    runs.publish(KEY, finished)
    assert runs.status(KEY) == "finished"
    assert settle(runs)
    assert runs.ledger.entry(KEY).config == {"num_steps": 30}


IDENTITY = Identity(KEY, KEY[::-1], {"config": "c" * 16, "training_config": "d" * 16, "seed": 3})


def settle(runs):
    return runs.settle(
        KEY, IDENTITY, Origin("example", "shapes_nano"), {"cpus": 1.0, "gpus": 0.0, "world_size": 1}
    )


def test_a_run_that_has_ended_enters_the_ledger_once(runs, tmp_path):
    assert not settle(runs)
    runs.publish(KEY, snapshot(tmp_path, 10))
    assert not settle(runs)
    assert runs.ledger.entry(KEY) is None
    runs.ledger.add_failure(KEY, "its worker process is gone", "trace")
    runs.publish(KEY, snapshot(tmp_path, 20, finished=True))
    assert settle(runs)
    entry = runs.ledger.entry(KEY)
    assert (entry.status, entry.step, entry.attempts) == ("finished", 20, 1)
    assert entry.training_key == IDENTITY.training_key
    assert entry.run == f"runs/{KEY}"
    assert settle(runs)
    assert runs.ledger.entry(KEY) == entry


def test_a_training_that_a_signal_stopped_has_not_ended(runs, tmp_path):
    stopped = snapshot(tmp_path, 10)
    records.write(stopped / "result.json", {"status": "stopped", "step": 10})
    runs.publish(KEY, stopped)
    assert runs.status(KEY) is None
    assert not settle(runs)


def real_checkpoint(folder, step):
    """A snapshot with a checkpoint whose hash is right."""
    path = snapshot(folder, step)
    tensors = path / "checkpoints" / f"step_{step:08d}" / checkpoint.TENSORS
    tensors.write_bytes((8).to_bytes(8, "little") + b"{}      ")
    state = {"step": step, "digest": "d", "rows": None}
    records.write(tensors.parent / checkpoint.STATE, {**state, "sha256": sha256(tensors)})
    return path


def test_what_a_lost_driver_had_received_is_published_and_what_was_cut_off_is_not(runs, tmp_path):
    runs.publish(KEY, snapshot(tmp_path, 10))
    session = tmp_path / "session"
    for number, step in enumerate((20, 30)):
        target = session / KEY / f"checkpoint_{number:06d}"
        shutil.copytree(real_checkpoint(tmp_path, step), target)
        seal(target)
    tensors = target / "checkpoints" / "step_00000030" / checkpoint.TENSORS
    tensors.write_bytes(b"x" * tensors.stat().st_size)
    assert runs.recover(tmp_path / "none" / KEY)
    assert runs.recover(session / KEY)
    assert newest_step(runs.ledger.run_dir(KEY)) == 20
    # Whatever it was sealed with stays behind.
    assert not (runs.ledger.run_dir(KEY) / CONTENTS).exists()


@pytest.mark.parametrize(
    "cut_off", ["metrics.jsonl", "evaluations/step_00000020.json", "result.json", CONTENTS, None]
)
def test_a_snapshot_that_was_cut_off_at_any_file_is_left(runs, tmp_path, cut_off):
    runs.publish(KEY, snapshot(tmp_path, 10))
    before = files(runs.ledger.run_dir(KEY))
    target = tmp_path / "session" / KEY / "checkpoint_000001"
    shutil.copytree(real_checkpoint(tmp_path, 20), target)
    records.write(target / "result.json", {"status": "finished", "step": 20})
    seal(target)
    if cut_off:
        (target / cut_off).write_bytes(b"")
    runs.recover(tmp_path / "session" / KEY)
    if cut_off:
        assert files(runs.ledger.run_dir(KEY)) == before
    else:
        assert runs.status(KEY) == "finished"


def test_a_seal_does_not_reach_what_its_file_is_linked_to(tmp_path):
    first, second = snapshot(tmp_path, 10), tmp_path / "second"
    seal(first)
    shutil.copytree(first, second, copy_function=link_or_copy)
    (second / "metrics.jsonl").unlink()
    sealed = (first / CONTENTS).read_text()
    seal(second)
    assert (first / CONTENTS).read_text() == sealed
    assert CONTENTS not in json.loads((second / CONTENTS).read_text())


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "ended"},
        {"step": "20"},
        {"metrics": {"val/cam_miou": "high"}},
        {"wall_time_s": [1.0]},
        {"message": 3},
    ],
)
def test_a_result_with_a_value_of_another_kind_counts_as_missing_and_is_written_again(
    runs, tmp_path, wrong, caplog
):
    finished = snapshot(tmp_path, 20, finished=True)
    runs.publish(KEY, finished)
    result = runs.ledger.run_dir(KEY) / "result.json"
    records.write(result, {"status": "finished", "step": 20} | wrong)
    assert runs.status(KEY) is None
    assert not settle(runs)
    assert f"{result} is not a record of its kind: {next(iter(wrong))}" in caplog.text
    again = tmp_path / "again"
    shutil.copytree(runs.ledger.run_dir(KEY), again)
    repair(again)
    assert not (again / "result.json").exists()
    runs.publish(KEY, finished)
    assert settle(runs)


def test_what_a_training_dropped_is_dropped(runs, tmp_path):
    """Counts of older evaluations are large, and only the last few are kept."""
    first, second = snapshot(tmp_path, 10), snapshot(tmp_path, 20, finished=True)
    for path, step in ((first, 10), (second, 20)):
        (path / "evaluations" / f"step_{step:08d}.npz").write_text("counts")
    runs.publish(KEY, first)
    (runs.ledger.run_dir(KEY) / ".metrics.jsonl.partial").write_text("cut off")
    runs.publish(KEY, second)
    assert files(runs.ledger.run_dir(KEY)) == files(second)


def test_an_evaluation_ends_what_was_begun_as_a_training(runs, tmp_path):
    """It has no checkpoint, so that it looks older than what is there."""
    runs.publish(KEY, snapshot(tmp_path, 10))
    evaluated = snapshot(tmp_path, 20, finished=True)
    shutil.rmtree(evaluated / "checkpoints")
    runs.publish(KEY, evaluated)
    assert runs.status(KEY) == "finished"
    assert files(runs.ledger.run_dir(KEY)) == files(evaluated)


def test_an_entry_says_which_training_it_evaluates_by_its_run_folder(runs, tmp_path):
    trained = snapshot(tmp_path, 20, finished=True)
    records.write(trained / "provenance.json", {"forked_at": 4, "reevaluated": {"run": KEY[::-1]}})
    runs.publish(KEY, trained)
    assert settle(runs)
    origin = Origin("example", "shapes_nano", derived_from=KEY[::-1], forked_at=4)
    assert runs.ledger.entry(KEY).origin == origin


@pytest.mark.parametrize(
    ("damaged", "left"),
    [
        ("result.json", {"config.json", "provenance.json"}),
        ("config.json", None),
        ("provenance.json", None),
        (None, {"config.json", "provenance.json", "result.json"}),
    ],
)
def test_what_is_damaged_is_taken_out_before_a_training_goes_on(tmp_path, damaged, left):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("config.json", "provenance.json", "result.json"):
        records.write(run_dir / name, {"status": "finished", "step": 10})
    if damaged:
        damage(run_dir / damaged, "a missing end")
    repair(run_dir)
    assert ({path.name for path in run_dir.iterdir()} if run_dir.exists() else None) == left


def test_a_driver_that_was_suspended_on_the_way_changes_nothing_more(runs, tmp_path):
    """Between any two changes of a folder another driver may take the trial over and finish it."""
    older, finished = snapshot(tmp_path, 10), snapshot(tmp_path, 20, finished=True)
    folder = runs.ledger.run_dir(KEY)
    number, was_suspended = 0, True
    while was_suspended:
        shutil.rmtree(folder, ignore_errors=True)
        asked, was_suspended = 0, False

        def check(key, number=number):
            nonlocal asked, was_suspended
            if asked == number:
                # It wakes up here, after the other one is done.
                runs.publish(key, finished)
                was_suspended = True
                raise LostLeaseError(key)
            asked += 1

        with suppress(LostLeaseError):
            runs.publish(KEY, older, check)
        if was_suspended:
            assert files(folder) == files(finished)
        number += 1
    assert number > 3
