"""A damaged file of a run folder is as if it were missing: a resumed training ends as the
undisturbed one.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from toco.__main__ import main
from toco.config import digest, replace
from toco.evaluate import read_confusions
from toco.train import checkpoint, records
from toco.train.loop import train
from toco.train.run_folder import RunFolder
from toco.train.trained import open_trained

STATE = f"checkpoints/{checkpoint.folder_name(4)}/{checkpoint.STATE}"
TENSORS = f"checkpoints/{checkpoint.folder_name(4)}/{checkpoint.TENSORS}"


@pytest.fixture(scope="module")
def averaging(config):
    return replace(config, {"evaluate.average_last": 2})


@pytest.fixture(scope="module")
def finished(averaging, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    train(averaging, run_dir, recipe="test", progress=False)
    return run_dir


@pytest.fixture
def killed(finished, tmp_path):
    """The run as a kill after step 6 and before its checkpoint would leave it: checkpoints of steps
    2 and 4.
    """
    run_dir = tmp_path / "killed"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / checkpoint.folder_name(6))
    (run_dir / "result.json").unlink()
    return run_dir


def flip(file, position, bits=1):
    content = bytearray(file.read_bytes())
    content[position] ^= bits
    file.write_bytes(content)


def change(file, old, new):
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


def in_row(step, kind, old, new):
    """Changes bytes of one row."""

    def damage(run_dir):
        lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines):
            row = json.loads(line)
            if (row["step"], row["kind"]) == (step, kind):
                assert old in line
                lines[number] = line.replace(old, new, 1)
        (run_dir / "metrics.jsonl").write_bytes(b"".join(lines))

    return damage


def of_file(name, content):
    return lambda run_dir: (run_dir / name).write_bytes(content)


def tensors_of_another_run(run_dir):
    tensors = load_file(run_dir / TENSORS)
    save_file({name: torch.zeros_like(value) for name, value in tensors.items()}, run_dir / TENSORS)


def row_of_step_2_missing(run_dir):
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_bytes(b"".join(lines[:2] + lines[3:]))


def cut_off(run_dir):
    (run_dir / "metrics.jsonl").write_bytes((run_dir / "metrics.jsonl").read_bytes()[:-20])


FROM_4, FROM_2, ANEW = 4, 2, None
DAMAGES = {
    "a row after the checkpoint": (in_row(5, "train", b'"kind"', b'#kind"'), FROM_4, None),
    "the last row, cut off": (cut_off, FROM_4, None),
    "a row's key": (
        in_row(4, "val", b'"kind"', b'#kind"'),
        FROM_2,
        "metrics.jsonl is damaged in line",
    ),
    "a row's number": (
        in_row(4, "val", b'_miou":0.', b'_miou":1.'),
        FROM_2,
        "metrics.jsonl is damaged in line",
    ),
    "a row of the first step": (
        in_row(1, "train", b"train", b"train\xff"),
        ANEW,
        "metrics.jsonl is damaged in line 1",
    ),
    "a missing row": (row_of_step_2_missing, ANEW, "metrics.jsonl lacks rows"),
    "no rows": (
        lambda run_dir: (run_dir / "metrics.jsonl").unlink(),
        ANEW,
        "metrics.jsonl lacks rows",
    ),
    "rows cut short": (of_file("metrics.jsonl", b'{"format'), ANEW, "metrics.jsonl lacks rows"),
    "a state's key": (
        lambda run_dir: change(run_dir / STATE, b'"sha256"', b'"sha257"'),
        FROM_2,
        STATE,
    ),
    "a state's step": (
        lambda run_dir: change(run_dir / STATE, b'"step": 4', b'"step": 3'),
        FROM_2,
        STATE,
    ),
    "a state that is no UTF-8": (lambda run_dir: flip(run_dir / STATE, 4, 128), FROM_2, STATE),
    "a state that is a list": (of_file(STATE, b"[]"), FROM_2, STATE),
    "a state of deep brackets": (of_file(STATE, b"[" * 100_000), FROM_2, STATE),
    "a state without its keys": (of_file(STATE, b'{"format_version": 1}'), FROM_2, STATE),
    "a state of other types": (
        of_file(STATE, b'{"format_version": 1, "step": "4", "digest": 1, "sha256": null}'),
        FROM_2,
        STATE,
    ),
    "an empty state": (of_file(STATE, b""), FROM_2, STATE),
    "no state": (lambda run_dir: (run_dir / STATE).unlink(), FROM_2, STATE),
    "a folder for a state": (
        lambda run_dir: ((run_dir / STATE).unlink(), (run_dir / STATE).mkdir()),
        FROM_2,
        STATE,
    ),
    "a bit of a tensor": (lambda run_dir: flip(run_dir / TENSORS, -1), FROM_2, TENSORS),
    "no tensors": (lambda run_dir: (run_dir / TENSORS).unlink(), FROM_2, TENSORS),
    "tensors of another run": (tensors_of_another_run, FROM_2, TENSORS),
    "all checkpoints": (
        lambda run_dir: [flip(file, 0) for file in run_dir.glob("checkpoints/*/*")],
        ANEW,
        STATE,
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_passed_over_with_the_name_of_its_file(killed, caplog, name):
    damage, step, named = DAMAGES[name]
    damage(killed)
    found = RunFolder(killed).newest()
    assert (None if found is None else found[0].step) == step
    if named is None:
        assert not caplog.records
    else:
        assert str(killed / named) in caplog.text
    if found is not None:
        assert [row["step"] for row in found[1] if row["kind"] == "train"] == list(
            range(1, step + 1)
        )


RESUMED = ["a row's key", "no rows", "a state that is a list", "the last row, cut off"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_training_resumed_after_damage_equals_the_undisturbed_one(
    averaging, finished, killed, name
):
    DAMAGES[name][0](killed)
    train(averaging, killed, resume=True, progress=False)
    assert_same(killed, finished)


def assert_same(run_dir, finished):
    """Rows, result, evaluations and the last checkpoint, without durations."""

    def rows(folder):
        return [
            (
                row["step"],
                row["kind"],
                {key: value for key, value in row["values"].items() if "time" not in key},
            )
            for row in RunFolder(folder).metrics()
        ]

    assert rows(run_dir) == rows(finished)
    for name in ("metrics", "last_metrics", "averaged_evaluations"):
        assert RunFolder(run_dir).result()[name] == RunFolder(finished).result()[name]
    for file in sorted((finished / "evaluations").iterdir()):
        assert (run_dir / "evaluations" / file.name).read_bytes() == file.read_bytes()
    ours, theirs = (
        load_file(folder / "checkpoints" / checkpoint.folder_name(6) / checkpoint.TENSORS)
        for folder in (run_dir, finished)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if "time" not in key)


def test_a_damaged_result_is_no_result(averaging, finished, tmp_path, caplog):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    change(run_dir / "result.json", b'"finished"', b'"finishex"')
    assert RunFolder(run_dir).result() is None
    assert str(run_dir / "result.json") in caplog.text
    assert (
        train(averaging, run_dir, resume=True, progress=False).metrics
        == RunFolder(finished).result()["metrics"]
    )
    assert_same(run_dir, finished)


@pytest.mark.parametrize(
    "content", [b"[]", b'{"format_version": 1, "con', b'{"format_version": 1}', b"[" * 100_000]
)
def test_a_damaged_config_is_a_sentence_wherever_it_is_read(killed, tmp_path, content):
    (killed / "config.json").write_bytes(content)
    for arguments in (
        ["predict", str(killed), "--split", "val", "--out", str(tmp_path / "out")],
        ["evaluate", str(killed)],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert str(killed / "config.json") in result.output
        assert "Restore it from a copy, or train again in another folder." in result.output


def test_a_damaged_config_is_written_again_where_the_rest_shows_that_the_run_is_the_same(
    averaging, finished, killed, caplog
):
    (killed / "config.json").write_bytes(b'{"format_version": 2')
    train(averaging, killed, recipe="test", resume=True, progress=False)
    assert f"{killed / 'config.json'} is not JSON" in caplog.text
    assert records.read(killed / "config.json") == records.read(finished / "config.json")
    assert_same(killed, finished)


def test_a_damaged_config_of_another_run_stays(averaging, killed):
    (killed / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"config.json is missing. The rest of the folder does not show"
    ):
        train(replace(averaging, {"seed": 1}), killed, resume=True, progress=False)
    (killed / "provenance.json").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"config.json is missing. The rest of the folder does not show"
    ):
        train(averaging, killed, resume=True, progress=False)
    assert len(checkpoint.all_in(killed / "checkpoints")) == 2


@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"{")]
)
def test_a_damaged_provenance_does_not_stop_a_training_whose_inputs_are_known(
    averaging, finished, killed, damage
):
    damage(killed / "provenance.json")
    train(averaging, killed, resume=True, progress=False)
    assert_same(killed, finished)
    provenance = RunFolder(killed).provenance()
    assert provenance["restored"] is True
    assert provenance["data_manifest"] == RunFolder(finished).provenance()["data_manifest"]


def test_a_run_on_other_data_is_refused_without_its_provenance_too(
    averaging, killed, data_root, tmp_path
):
    (killed / "provenance.json").unlink()
    other = tmp_path / "data"
    shutil.copytree(data_root, other)
    names = [f"image{i:02}" for i in reversed(range(12))]
    (other / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    with pytest.raises(ValueError, match="train_data differ"):
        train(replace(averaging, {"data.root": str(other)}), killed, resume=True, progress=False)


def test_a_provenance_that_nothing_replaces_is_a_sentence(averaging, killed):
    content = records.read(killed / "config.json")
    records.write(killed / "config.json", content | {"inputs": None})
    (killed / "provenance.json").unlink()
    with pytest.raises(ValueError, match=r"the data and weights of the run are unknown\. Restore"):
        train(averaging, killed, resume=True, progress=False)


def test_a_checkpoint_of_another_run_is_refused(averaging, killed):
    newest = killed / STATE
    content = records.read(newest)
    records.write(newest, content | {"digest": "0" * 16})
    sentence = re.escape(
        f"{newest.parent} is a checkpoint of another run: its config has the digest {'0' * 16}"
    )
    with pytest.raises(ValueError, match=sentence):
        train(averaging, killed, resume=True, progress=False)
    with pytest.raises(ValueError, match=sentence):
        open_trained(killed)
    assert newest.is_file()


def test_a_checkpoint_under_another_steps_name_is_passed_over(killed):
    (killed / STATE).parent.rename(killed / "checkpoints" / checkpoint.folder_name(5))
    found = RunFolder(killed).newest()
    assert found is not None
    assert found[0].step == 2


def test_a_damaged_evaluation_is_refused_by_name(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.evaluation(4) == RunFolder(finished).evaluation(4)
    change(tmp_path / "run/evaluations/step_00000004.json", b"0.", b"1.")
    with pytest.raises(
        ValueError, match=re.escape(str(tmp_path / "run/evaluations/step_00000004.json"))
    ):
        folder.evaluation(4)


def test_no_flipped_bit_of_the_counts_changes_what_is_read(finished, tmp_path):
    """The archive has a check sum of each of its arrays."""
    whole = (finished / "evaluations/step_00000006.npz").read_bytes()
    expected = read_confusions(finished / "evaluations/step_00000006.npz").arrays()
    file = tmp_path / "counts.npz"
    for position in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            found = read_confusions(file).arrays()
        except ValueError:
            continue
        assert all(np.array_equal(found[name], expected[name]) for name in expected), position


def unseal(run_dir):
    """Make the run folder what toco 0.4 would have written: version 1, without digests."""
    for file in (*run_dir.glob("*.json"), *run_dir.glob("checkpoints/*/state.json")):
        content = records.read(file) | {"format_version": 1}
        for later in ("inputs", "rows"):
            content.pop(later, None)
        file.write_text(json.dumps(content, indent=2))
    for file in run_dir.glob("evaluations/*.json"):
        file.write_text(json.dumps(records.read(file), indent=1))
    rows = [{**row, "format_version": 1} for row in RunFolder(run_dir).metrics()]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_of_the_version_before_is_used_as_it_is(averaging, finished, tmp_path, caplog):
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    unseal(old)
    trained = open_trained(old)
    assert (trained.step, trained.digest) == (6, digest(averaging.resolved()))
    assert RunFolder(old).metrics()[-1]["values"] == RunFolder(finished).metrics()[-1]["values"]
    assert (
        train(averaging, old, resume=True, progress=False).metrics
        == RunFolder(finished).result()["metrics"]
    )
    said = [record.message for record in caplog.records if "0.4 or before" in record.message]
    assert len([message for message in said if message.startswith(f"{old} ")]) == 1


def test_an_unfinished_run_of_the_version_before_is_not_trained_on(averaging, killed):
    unseal(killed)
    with pytest.raises(
        ValueError, match=r"unfinished run of toco 0\.4 or before.* train again in another folder"
    ):
        train(averaging, killed, resume=True, progress=False)
    assert len(checkpoint.all_in(killed / "checkpoints")) == 2


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_made_no_step_does_not_block_its_folder(
    averaging, finished, tmp_path, caplog, resume
):
    run_dir = tmp_path / "run"
    folder = RunFolder(run_dir)
    failed = replace(averaging, {"seed": 1}).resolved()
    folder.create(failed, "test", ("a", "b"), RunFolder(finished).provenance())

    train(averaging, run_dir, recipe="test", resume=resume, progress=False)
    assert (
        f"{run_dir} holds a run of another config that made no step; it is replaced." in caplog.text
    )
    assert_same(run_dir, finished)
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(averaging, run_dir, progress=False)


def test_a_row_or_a_checkpoint_protects_a_run(averaging, killed):
    shutil.rmtree(killed / "checkpoints")
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(averaging, killed, progress=False)
    with pytest.raises(ValueError, match=r"seed \(0 -> 1\)"):
        train(replace(averaging, {"seed": 1}), killed, resume=True, progress=False)
