import json
import os
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from toco.config import replace
from toco.evaluate import read_confusions
from toco.methods import _toco
from toco.train import checkpoint
from toco.train.averages import DivergedError
from toco.train.loop import train
from toco.train.parts import build_method
from toco.train.run_folder import RunFolder


class CrashError(Exception):
    pass


class InterruptAt:
    """Stands for a crash right after an evaluation."""

    def __init__(self, step):
        self.step = step

    def on_evaluation(self, step, metrics, checkpoint):
        if step == self.step:
            raise CrashError


def rows(run_dir):
    """Metrics without times."""
    lines = RunFolder(run_dir).metrics()
    for line in lines:
        del line["time_s"]
        line["values"].pop("train/step_time_s", None)
    return lines


def tensors(run_dir, step):
    return load_file(run_dir / "checkpoints" / checkpoint.folder_name(step) / checkpoint.TENSORS)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    train(replace(config, {"evaluate.num_pictures": 1}), run_dir, recipe="test", progress=False)
    return run_dir


def test_a_run_folder_is_complete(config, finished):
    folder = RunFolder(finished)
    result = folder.result()
    assert result["status"] == "finished"
    assert result["step"] == 6
    assert folder.config() == replace(config, {"evaluate.num_pictures": 1}).resolved()
    assert folder.config().method.dense_energy.filter_name == "exact"
    provenance = json.loads((finished / "provenance.json").read_text())
    assert len(provenance["data_manifest"]["train"]) == 64
    assert [(row["step"], row["kind"]) for row in rows(finished) if row["kind"] == "val"] == [
        (2, "val"),
        (4, "val"),
        (6, "val"),
    ]
    steps = [row["step"] for row in rows(finished) if row["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert result["metrics"] == rows(finished)[-1]["values"]
    assert len(list((finished / "pictures" / "step_00000006").glob("*.png"))) == 1
    evaluation = json.loads((finished / "evaluations" / "step_00000006.json").read_text())
    assert len(evaluation["patch_similarity"]) == 3


def test_terms_join_at_their_step(finished):
    first, *_, last = [row["values"] for row in rows(finished) if row["kind"] == "train"]
    assert "train/segmentation" not in first
    assert "train/segmentation" in last
    assert {
        "train/classification",
        "train/aux_classification",
        "train/ptc",
        "train/ctc",
    } <= first.keys()


@pytest.mark.parametrize("interrupted_at", [2, 4])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    config, finished, tmp_path, interrupted_at
):
    with pytest.raises(CrashError):
        train(config, tmp_path, progress=False, observer=InterruptAt(interrupted_at))
    torch.manual_seed(12345)
    train(config, tmp_path, resume=True, progress=False)
    assert rows(tmp_path) == rows(finished)
    ours, theirs = tensors(tmp_path, 6), tensors(finished, 6)
    assert ours.keys() == theirs.keys()
    different = [
        name
        for name in ours
        if not torch.equal(ours[name], theirs[name]) and name != "averages/train/step_time_s"
    ]
    assert not different


def test_resuming_forgets_what_the_last_checkpoint_does_not_know(config, finished, tmp_path):
    with pytest.raises(CrashError):
        train(config, tmp_path, progress=False, observer=InterruptAt(2))
    RunFolder(tmp_path).add_metrics(3, "train", 1.0, {"train/ptc": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "kind": "tr')
    train(config, tmp_path, resume=True, progress=False)
    assert rows(tmp_path) == rows(finished)


def test_the_counts_of_the_averaged_evaluations_are_kept_through_a_crash(config, tmp_path):
    averaging = replace(config, {"evaluate.average_last": 2})
    train(averaging, tmp_path / "whole", progress=False)
    with pytest.raises(CrashError):
        train(averaging, tmp_path / "cut", progress=False, observer=InterruptAt(4))
    folder = RunFolder(tmp_path / "cut")
    folder.counts(6).write_bytes(b"of a step that the checkpoint does not know")
    folder.remove_after(4, folder.metrics())
    assert [path.name for path in sorted(tmp_path.glob("cut/evaluations/*.npz"))] == [
        "step_00000002.npz",
        "step_00000004.npz",
    ]
    train(averaging, tmp_path / "cut", resume=True, progress=False)
    whole, cut = (sorted((tmp_path / name / "evaluations").iterdir()) for name in ("whole", "cut"))
    assert [path.name for path in cut] == [path.name for path in whole]
    assert [path.name for path in cut if path.suffix == ".npz"] == [
        "step_00000004.npz",
        "step_00000006.npz",
    ]
    assert [path.read_bytes() for path in cut] == [path.read_bytes() for path in whole]
    counted = read_confusions(folder.counts(6))
    assert counted.names == tuple(f"image{i}" for i in (12, 13, 14, 15))
    assert counted.matrices["seg"].shape == (4, 3, 3)


def test_a_finished_run_is_not_run_again(config, finished):
    before = (finished / "metrics.jsonl").stat().st_mtime_ns
    result = train(config, finished, resume=True, progress=False)
    assert result.status == "finished"
    assert (finished / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_used_folder_and_another_config_are_refused(config, finished):
    with pytest.raises(FileExistsError, match="--resume"):
        train(config, finished, progress=False)
    with pytest.raises(ValueError, match=r"seed \(0 -> 1\)"):
        train(replace(config, {"seed": 1}), finished, resume=True, progress=False)


def test_seeds_differ_and_repeat(config, finished, tmp_path):
    train(replace(config, {"seed": 1}), tmp_path / "other", progress=False)
    train(config, tmp_path / "same", progress=False)
    assert rows(tmp_path / "same") == rows(finished)
    assert rows(tmp_path / "other") != rows(finished)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(config, tmp_path, monkeypatch):
    real, calls = _toco.patch_token_contrast_loss, []

    def broken(features, pairs):
        calls.append(None)
        return real(features, pairs) * (float("nan") if len(calls) > 6 else 1.0)

    monkeypatch.setattr(_toco, "patch_token_contrast_loss", broken)
    with pytest.raises(DivergedError, match="At step 3, ptc is nan"):
        train(config, tmp_path, progress=False)
    result = RunFolder(tmp_path).result()
    assert result["status"] == "diverged"
    assert "ptc" in result["message"]
    assert checkpoint.latest(tmp_path / "checkpoints").step == 2


def test_a_gradient_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch):
    real = _toco.patch_token_contrast_loss

    def steep(features, pairs):
        # sqrt has a finite value and an infinite slope at 0.
        return real(features, pairs) + (features - features.detach()).sum().square().sqrt()

    monkeypatch.setattr(_toco, "patch_token_contrast_loss", steep)
    with pytest.raises(DivergedError, match="At step 0, gradient_norm is nan"):
        train(config, tmp_path, progress=False)
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def test_the_same_config_on_other_data_is_not_the_same_run(config, tmp_path, data_root):
    with pytest.raises(CrashError):
        train(config, tmp_path / "run", progress=False, observer=InterruptAt(2))
    other = tmp_path / "other"
    shutil.copytree(data_root, other)
    (other / "ImageSets/Segmentation/train.txt").write_text(
        "\n".join(f"image{i:02}" for i in reversed(range(12))) + "\n"
    )
    with pytest.raises(ValueError, match="train_data differ"):
        train(
            replace(config, {"data.root": str(other)}),
            tmp_path / "run",
            resume=True,
            progress=False,
        )


def test_two_processes_do_not_train_in_one_folder(config, tmp_path):
    folder = RunFolder(tmp_path)
    with folder.locked(), pytest.raises(ValueError, match="Another process is training"):
        train(config, tmp_path, progress=False)


def test_a_damaged_newest_checkpoint_costs_only_itself(config, finished, tmp_path):
    with pytest.raises(CrashError):
        train(config, tmp_path, progress=False, observer=InterruptAt(4))
    newest = tmp_path / "checkpoints" / checkpoint.folder_name(4)
    (newest / checkpoint.TENSORS).write_bytes(b"damaged")
    train(replace(config, {"keep_checkpoints": 1}), tmp_path, resume=True, progress=False)
    assert rows(tmp_path) == rows(finished)
    assert checkpoint.latest(tmp_path / "checkpoints").step == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5}, "not a multiple of method.loss_group_size 2"),
        ({"method.local_crop_size_px": 64}, "larger than views.crop_size_px 32"),
        ({"optim.warmup_steps": 6}, "is not below num_steps 6"),
        ({"optim.name": "sgd", "optim.drop_steps": [4, 6]}, "not all below num_steps 6"),
        ({"method.low_threshold": 0.8}, "above high_threshold"),
        ({"method.name": "tocco"}, "Did you mean 'toco'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_run(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, changes)


def test_frozen_layers_stay_and_the_others_train_as_without(config, tmp_path):
    short = {"num_steps": 1, "evaluate_every": 1, "optim.warmup_steps": 0}
    plain, frozen = tmp_path / "plain", tmp_path / "frozen"
    train(replace(config, short), plain, progress=False)
    train(replace(config, {**short, "optim.frozen_layers": 2}), frozen, progress=False)
    initial = build_method(config, 20).state_dict()
    after_plain, after_frozen = (
        checkpoint.read(run_dir / "checkpoints" / checkpoint.folder_name(1))
        for run_dir in (plain, frozen)
    )
    tensors_plain, tensors_frozen = after_plain.part("model"), after_frozen.part("model")
    first_layers = {
        name
        for name, parameter in build_method(config, 20).named_parameters()
        if parameter.requires_grad
        and name.startswith(
            ("backbone.vit.patch_embed.", "backbone.vit.cls_token", "backbone.vit.blocks.0.")
        )
    }
    assert len(first_layers) == 2 + 1 + 12
    for name, tensor in tensors_frozen.items():
        expected = initial if name in first_layers else tensors_plain
        assert torch.equal(tensor, expected[name]), name
    # Without freezing they train, and a frozen one has no moments.
    assert not any(torch.equal(tensors_plain[name], initial[name]) for name in first_layers)
    moments = "optimizer/exp_avg"
    num_moments = [
        sum(moments in name for name in saved.tensors) for saved in (after_plain, after_frozen)
    ]
    assert num_moments[0] - num_moments[1] == 2 * len(first_layers)


def test_a_run_with_frozen_layers_resumes_bit_for_bit(config, tmp_path):
    frozen = replace(config, {"optim.frozen_layers": 2})
    train(frozen, tmp_path / "whole", progress=False)
    with pytest.raises(CrashError):
        train(frozen, tmp_path / "again", progress=False, observer=InterruptAt(4))
    train(frozen, tmp_path / "again", progress=False, resume=True)
    whole, again = tensors(tmp_path / "whole", 6), tensors(tmp_path / "again", 6)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("interrupted_at", [2, 4])
def test_a_run_with_sgd_resumes_bit_for_bit(config, tmp_path, interrupted_at):
    # The decoder joins at step 2: its first gradient may come after the resume.
    sgd = replace(config, {"optim.name": "sgd", "optim.drop_steps": [3, 5]})
    train(sgd, tmp_path / "whole", progress=False)
    with pytest.raises(CrashError):
        train(sgd, tmp_path / "again", progress=False, observer=InterruptAt(interrupted_at))
    decoder = "optimizer/momentum_buffer/decoder."
    joined = any(name.startswith(decoder) for name in tensors(tmp_path / "again", interrupted_at))
    assert joined == (interrupted_at > 2)
    torch.manual_seed(12345)
    train(sgd, tmp_path / "again", progress=False, resume=True)
    assert rows(tmp_path / "again") == rows(tmp_path / "whole")
    rates = [
        row["values"]["train/lr"] for row in rows(tmp_path / "whole") if row["kind"] == "train"
    ]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    whole, again = tensors(tmp_path / "whole", 6), tensors(tmp_path / "again", 6)
    assert whole.keys() == again.keys()
    assert any(name.startswith(decoder) for name in whole)
    assert not any("exp_avg" in name for name in whole)
    different = [name for name in whole if not torch.equal(whole[name], again[name])]
    assert different in ([], ["averages/train/step_time_s"])


def test_a_block_that_the_backbone_lacks_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        train(replace(config, {"method.aux_block": 3}), tmp_path, progress=False)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "num_workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 0), (signal.SIGUSR1, 1)]
)
def test_the_first_signal_makes_a_checkpoint_and_ends(long_training, tmp_path, number, num_workers):
    """A terminal and a scheduler signal the whole process group, loader processes too."""
    run_dir = tmp_path / "run"
    process = long_training(run_dir, sys.executable, num_workers=num_workers)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + number, output
    result = RunFolder(run_dir).result()
    assert result["status"] == "stopped"
    assert checkpoint.latest(run_dir / "checkpoints").step == result["step"]
    assert f"stopped after step {result['step']}" in output
