"""The study's folder: what is published, in which order, and who may write."""

import json
import shutil
import subprocess
import sys

import pytest

from sweeps.core import links, study_folder
from sweeps.core.study import Factor, Metric, Study
from sweeps.core.study_folder import StudyFolder, newest_step

NAME = "aux_block_7-seed_0-abcdef12"
INPUTS = [{"train": "aa", "val": "bb", "weights": None}]


@pytest.fixture(scope="module")
def plan():
    study = Study(
        "example", "An example", "voc_deit_b", (Factor("method.aux_block", (7,)),), (0,), (Metric("val/cam_miou", "M"),)
    )
    return study.resolve()


@pytest.fixture
def folder(tmp_path, plan):
    folder = StudyFolder(tmp_path / plan.folder_name)
    with folder.opened(plan, INPUTS):
        yield folder


def snapshot(root, step, finished=False):
    """A snapshot after ``step``: rows 10, 20, ... with the checkpoint of the last."""
    path = root / f"snapshot_{step}_{finished}"
    checkpoint = path / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "tensors.safetensors").write_text(f"tensors after {step}")
    (checkpoint / "state.json").write_text(json.dumps({"step": step}))
    (path / "config.json").write_text("{}")
    rows = [json.dumps({"step": row, "kind": "val"}) + "\n" for row in range(10, step + 1, 10)]
    (path / "metrics.jsonl").write_text("".join(rows))
    for row in range(10, step + 1, 10):
        (path / "evaluations").mkdir(exist_ok=True)
        (path / "evaluations" / f"step_{row:08d}.json").write_text("{}")
    if finished:
        (path / "result.json").write_text(json.dumps({"status": "finished", "step": step}))
    return path


def files(path):
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_a_run_folder_follows_its_snapshots(folder, tmp_path):
    for step, finished in ((10, False), (20, False), (30, False), (30, True)):
        published = snapshot(tmp_path, step, finished)
        folder.publish(NAME, published)
        assert files(folder.run_dir(NAME)) == files(published)
        assert folder.status(NAME) == ("finished" if finished else None)
        assert newest_step(folder.run_dir(NAME)) == step


def test_it_outlives_the_snapshot_that_tune_deletes(folder, tmp_path):
    published = snapshot(tmp_path, 10)
    expected = files(published)
    folder.publish(NAME, published)
    shutil.rmtree(published)
    assert files(folder.run_dir(NAME)) == expected


def test_an_older_snapshot_changes_nothing(folder, tmp_path):
    newer = snapshot(tmp_path, 20)
    folder.publish(NAME, newer)
    folder.publish(NAME, snapshot(tmp_path, 10))
    assert files(folder.run_dir(NAME)) == files(newer)


def test_a_finished_training_is_never_touched_again(folder, tmp_path):
    finished = snapshot(tmp_path, 20, finished=True)
    folder.publish(NAME, finished)
    folder.publish(NAME, snapshot(tmp_path, 20))
    folder.publish(NAME, snapshot(tmp_path, 30))
    assert files(folder.run_dir(NAME)) == files(finished)


def resumable_step(run_dir):
    """The step that a training would go on from: every row up to it must be there."""
    step = newest_step(run_dir)
    for checkpoint in (run_dir / "checkpoints").glob("step_*"):
        assert {path.name for path in checkpoint.iterdir()} == {"tensors.safetensors", "state.json"}
    rows = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if row <= step] == list(range(10, step + 1, 10))
    return step


@pytest.mark.parametrize("dies_at", range(6))
def test_a_driver_that_dies_while_publishing_leaves_a_folder_to_go_on_from(folder, tmp_path, monkeypatch, dies_at):
    folder.publish(NAME, snapshot(tmp_path, 10))
    left = dies_at

    def fragile(function):
        def call(source, target):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            function(source, target)

        return call

    final = snapshot(tmp_path, 20, finished=True)
    with monkeypatch.context() as patch:
        patch.setattr(study_folder, "_copy", fragile(study_folder._copy))
        patch.setattr(study_folder, "_link_folder", fragile(study_folder._link_folder))
        with pytest.raises(KeyboardInterrupt):
            folder.publish(NAME, final)
    assert resumable_step(folder.run_dir(NAME)) in (10, 20)
    assert folder.status(NAME) is None
    folder.publish(NAME, final)
    assert files(folder.run_dir(NAME)) == files(final)


def test_checkpoints_are_links_where_the_file_system_has_them_and_copies_where_not(folder, tmp_path, monkeypatch):
    first, second = snapshot(tmp_path, 10), snapshot(tmp_path, 20)
    folder.publish(NAME, first)
    tensors = folder.run_dir(NAME) / "checkpoints" / "step_00000010" / "tensors.safetensors"
    assert tensors.samefile(first / "checkpoints" / "step_00000010" / "tensors.safetensors")
    monkeypatch.setattr(links.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    folder.publish(NAME, second)
    assert files(folder.run_dir(NAME)) == files(second)


def test_a_second_driver_is_refused_and_a_dead_one_is_not_in_the_way(folder, plan):
    with (
        pytest.raises(ValueError, match="Another process is running the study"),
        StudyFolder(folder.path).opened(plan, INPUTS),
    ):
        pass
    program = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    other = folder.path.parent / "other"
    other.mkdir()
    subprocess.run([sys.executable, "-c", program, str(other / ".lock")], check=False)
    with StudyFolder(other).opened(plan, INPUTS):
        pass


def test_a_restart_finds_the_study_as_it_was_started(tmp_path, plan):
    folder = StudyFolder(tmp_path / "study")
    with folder.opened(plan, INPUTS):
        first = (folder.path / "study.json").read_text(), folder.start_id
    with folder.opened(plan, INPUTS):
        assert ((folder.path / "study.json").read_text(), folder.start_id) == first
    with StudyFolder(tmp_path / "elsewhere").opened(plan, INPUTS):
        assert StudyFolder(tmp_path / "elsewhere").start_id != first[1]
    content = json.loads(first[0])
    assert content["trials"][0]["name"] == plan.trials[0].name
    assert content["digest"] == plan.digest


@pytest.mark.parametrize("kind", ["train", "val", "weights"])
def test_a_folder_with_results_of_other_data_is_refused(folder, plan, tmp_path, kind):
    path = tmp_path / "study"
    with StudyFolder(path).opened(plan, INPUTS):
        before = files(path)
    with (
        pytest.raises(ValueError, match="holds results of other data or other weights"),
        StudyFolder(path).opened(plan, [{**INPUTS[0], kind: "cc"}]),
    ):
        pass
    assert files(path) == before


@pytest.mark.parametrize("damage", ["", "[30]", "{}", None])
def test_a_damaged_checkpoint_does_not_count_and_is_replaced(folder, tmp_path, damage):
    folder.publish(NAME, snapshot(tmp_path, 20))
    run_dir = folder.run_dir(NAME)
    damaged = run_dir / "checkpoints" / "step_00000030"
    damaged.mkdir()
    if damage is not None:
        (damaged / "state.json").write_text(damage)
    assert newest_step(run_dir) == 20
    newest = snapshot(tmp_path, 30)
    folder.publish(NAME, newest)
    assert newest_step(run_dir) == 30
    assert files(run_dir) == files(newest)


def test_a_damaged_result_is_none(folder, tmp_path):
    folder.publish(NAME, snapshot(tmp_path, 20, finished=True))
    (folder.run_dir(NAME) / "result.json").write_text('{"status": "fin')
    assert folder.status(NAME) is None
