"""A run of the baseline: resumed, forked, shared by ranks and shown, as one of any method."""

import pytest
import torch
from safetensors.torch import load_file

from toco.config import replace
from toco.data.voc import open_split
from toco.demo.analysis import Analyst
from toco.demo.limits import Limits
from toco.demo.server import Demo
from toco.predict.pseudo_labels import PseudoLabelConfig, pseudo_label
from toco.train import checkpoint
from toco.train.loop import train
from toco.train.ranks import train_on_ranks
from toco.train.run_folder import RunFolder
from toco.train.trained import open_trained

CAM = {
    "method.name": "cam",
    "method.cam_scales": [1.0],
    "method.decoder_width": 8,
    "method.low_threshold": 0.3,
}
DECODER = {"method.segmentation.weight": 0.1, "method.segmentation.start_step": 3}
TIME = "train/step_time_s"


@pytest.fixture(scope="module", params=[{}, DECODER], ids=["classifier", "with a decoder"])
def cam_config(config, request):
    return replace(config, CAM | request.param)


@pytest.fixture(scope="module")
def finished(cam_config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    train(cam_config, run_dir, progress=False)
    return run_dir


class CrashError(Exception):
    pass


class CrashAtFirst:
    def on_evaluation(self, step, metrics, path):
        raise CrashError


def rows(run_dir):
    return [
        (
            row["kind"],
            row["step"],
            {name: value for name, value in row["values"].items() if name != TIME},
        )
        for row in RunFolder(run_dir).metrics()
    ]


def tensors(run_dir):
    state = load_file(run_dir / "checkpoints" / checkpoint.folder_name(6) / checkpoint.TENSORS)
    return {name: value for name, value in state.items() if name != f"averages/{TIME}"}


def assert_same(left, right):
    assert rows(left) == rows(right)
    ours, theirs = tensors(left), tensors(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_metrics_are_those_of_the_maps_there_are(cam_config, finished):
    metrics = RunFolder(finished).result()["metrics"]
    assert {name.removeprefix("val/").split("_")[0] for name in metrics} <= {
        "cam",
        "seg",
        "label",
        "patch",
    }
    assert ("val/seg_miou" in metrics) == cam_config.method.has_decoder()
    assert "val/cam_best_miou" in metrics


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(cam_config, finished, tmp_path):
    with pytest.raises(CrashError):
        train(cam_config, tmp_path, progress=False, observer=CrashAtFirst())
    torch.manual_seed(12345)
    train(cam_config, tmp_path, resume=True, progress=False)
    assert_same(tmp_path, finished)


def test_a_forked_training_equals_the_unforked_one_bit_for_bit(config, tmp_path):
    first = replace(config, CAM | DECODER)
    other = replace(first, {"method.segmentation.weight": 0.7})
    train(first, tmp_path / "first", progress=False, prefixes=tmp_path / "prefixes")
    train(other, tmp_path / "forked", progress=False, prefixes=tmp_path / "prefixes")
    train(other, tmp_path / "alone", progress=False)
    assert RunFolder(tmp_path / "forked").provenance()["forked_at"] == 3
    assert_same(tmp_path / "forked", tmp_path / "alone")


@pytest.mark.slow
def test_two_ranks_compute_what_one_process_does(config, tmp_path):
    cam_config = replace(config, CAM | DECODER)
    train(cam_config, tmp_path / "one", progress=False)
    train_on_ranks(2, train, cam_config, tmp_path / "two", progress=False)
    for (kind, step, two), (_, _, one) in zip(
        rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True
    ):
        assert two == pytest.approx(one, rel=1e-4, abs=2e-4), (kind, step)


def test_the_demo_shows_its_cam_and_its_labels(cam_config, finished):
    trained = open_trained(finished)
    analyst = Analyst(trained, 640)
    demo = Demo(analyst, "cam", "token", None, Limits())
    assert demo._about["cams"] == [{"name": "cam", "title": "CAM", "block": None}]
    assert (demo._about["low"], demo._about["high"]) == (0.3, 0.7)
    dataset = open_split(trained.config.data, "val")
    analysis = analyst.analyse(dataset.image(0))
    assert (analysis.segmentation is None) == (not cam_config.method.has_decoder())
    assert analysis.cam_maps(0).shape == (1, 32, 32)
    refined = analyst.refined_label(analysis, "cam", [0], 0.3, 0.7)
    rule = trained.config.method.label_rule()
    exported = pseudo_label(
        trained.method,
        dataset.image(0),
        dataset.class_labels(0),
        trained.config.evaluate,
        PseudoLabelConfig(
            low_threshold=rule.low_threshold, high_threshold=rule.high_threshold, par=rule.par
        ),
    )
    assert set(refined.ravel()) <= {0, 1, 255}
    assert exported.shape == dataset.image(0).shape[:2]
