"""Runs of other methods than ToCo alone: resumed, forked, shared by ranks and shown, as any run."""

import pytest
import torch
from safetensors.torch import load_file

from toco.config import diff, replace
from toco.data.voc import open_split
from toco.demo.analysis import Analyst
from toco.demo.limits import Limits
from toco.demo.server import Demo
from toco.predict.pseudo_labels import PseudoLabelConfig, pseudo_label
from toco.train import checkpoint
from toco.train.fork import prefix_digest, prefix_step
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
# Regions of the first steps are sure enough to fill the memory.
REGIONS = {
    "method.region_contrast.weight": 0.5,
    "method.region_memory.slots": 4,
    "method.region_memory.momentum": 0.5,
    "method.region_memory.threshold": 0.2,
    "method.aggregation.centroids": 2,
    "method.aggregation.num_starts": 2,
}
# Clustering at every step, contrast from the second one on.
RCA = {
    "method.name": "rca",
    "method.aux_block": 1,
    "method.loss_group_size": 2,
    "method.cam_scales": [1.0],
    "method.decoder_width": 8,
    "method.region_contrast.start_step": 1,
    "method.region_contrast.partner": "any",
    "method.region_contrast.embedding": "none",
    "method.aggregation.kind": "linear",
    "method.aggregation.every": 1,
    **REGIONS,
}
# Contrast, clustering and decoder from the middle of the run on.
LATE = {
    "method.region_contrast.start_step": 3,
    "method.aggregation.kind": "softmax",
    "method.aggregation.every": 3,
    **REGIONS,
}
LATE_RCA = RCA | {
    "method.region_contrast.partner": "other",
    "method.region_memory.holds": "features",
    "method.region_contrast.embedding": "convs",
    **LATE,
    "method.segmentation": {"weight": 0.1, "start_step": 3},
}
TOCO = {
    "method.region_contrast.embedding": "points",
    **LATE,
    "method.segmentation.start_step": 3,
    "method.energy.start_step": 3,
}
TIME = "train/step_time_s"


@pytest.fixture(
    scope="module",
    params=[CAM, CAM | DECODER, RCA, LATE_RCA, TOCO],
    ids=["cam", "cam with a decoder", "rca", "rca with a decoder", "toco with regions"],
)
def run_config(config, request):
    return replace(config, request.param)


@pytest.fixture(scope="module")
def finished(run_config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    train(run_config, run_dir, progress=False)
    return run_dir


class CrashError(Exception):
    pass


class CrashAt:
    def __init__(self, step):
        self.step = step

    def on_evaluation(self, step, metrics, path):
        if step == self.step:
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


def test_metrics_are_those_of_the_maps_there_are(run_config, finished):
    metrics = RunFolder(finished).result()["metrics"]
    assert {f"val/{name}_best_miou" for name in ("cam", *run_config.method.further_cams())} == {
        name for name in metrics if name.endswith("cam_best_miou")
    }
    assert ("val/seg_miou" in metrics) == run_config.method.has_decoder()


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    run_config, finished, tmp_path, step
):
    with pytest.raises(CrashError):
        train(run_config, tmp_path, progress=False, observer=CrashAt(step))
    torch.manual_seed(12345)
    train(run_config, tmp_path, resume=True, progress=False)
    assert_same(tmp_path, finished)


def test_the_memory_of_regions_is_filled_clustered_and_learnt_from(run_config, finished):
    memory = {
        name.rpartition(".")[2]: value
        for name, value in tensors(finished).items()
        if "rca_parts.memory." in name
    }
    learnt = [
        values["train/region_contrast"]
        for _, _, values in rows(finished)
        if "train/region_contrast" in values
    ]
    if run_config.method.name == "cam":
        assert not memory
        assert not learnt
        return
    assert memory["slots"].isfinite().all()
    assert memory["filled"].min() > 0
    assert memory["is_clustered"].all()
    assert memory["centroids"].isfinite().all()
    assert memory["centroids"].abs().amax(dim=2).min() > 0
    assert len(learnt) == 6 - run_config.method.region_contrast.start_step
    assert min(learnt) > 0


LATE_ENERGY = {"weight": 0.1, "start_step": 4}
INERT = {
    "method.region_contrast.weight": 0.1,
    "method.region_contrast.start_step": 5,
    "method.region_contrast.temperature": 0.5,
    "method.region_contrast.beta": None,
    "method.region_contrast.partner": "any",
}


@pytest.mark.parametrize(
    ("first", "changes"),
    [
        (CAM | DECODER, {"method.segmentation.weight": 0.7}),
        (LATE_RCA, INERT | {"method.segmentation.weight": 0.7, "method.energy": LATE_ENERGY}),
        (TOCO, INERT | {"method.segmentation.weight": 0.7, "method.energy.weight": 0.0}),
    ],
    ids=["cam", "rca", "toco with regions"],
)
def test_a_forked_training_equals_the_unforked_one_bit_for_bit(config, tmp_path, first, changes):
    first = replace(config, first)
    other = replace(first, changes)
    # Every setting that is named is changed, in the whole or in a part.
    named = first.method.inert_until(3)
    changed = {path.removeprefix("method.") for path in diff(first, other)}
    assert {path.partition(".")[0] for path in named - {"dense_energy"}} >= {
        path.partition(".")[0] for path in changed
    }
    assert named & changed == {path for path in named if "." in path}
    train(first, tmp_path / "first", progress=False, prefixes=tmp_path / "prefixes")
    train(other, tmp_path / "forked", progress=False, prefixes=tmp_path / "prefixes")
    train(other, tmp_path / "alone", progress=False)
    assert RunFolder(tmp_path / "forked").provenance()["forked_at"] == 3
    assert_same(tmp_path / "forked", tmp_path / "alone")
    assert rows(tmp_path / "forked") != rows(tmp_path / "first")


MATTERS = {
    "method.region_memory.slots": 5,
    "method.region_memory.momentum": 0.6,
    "method.region_memory.threshold": 0.3,
    "method.region_memory.start": "noise",
    "method.region_memory.own_masks": False,
    "method.region_contrast.scores": "raw",
    "method.region_contrast.embedding": "none",
    "method.aggregation.kind": "linear",
    "method.aggregation.temperature": 0.1,
    "method.aggregation.centroids": 3,
    "method.aggregation.every": 4,
    "method.aggregation.num_starts": 3,
    "method.aggregation.max_iterations": 5,
}


@pytest.mark.parametrize("first", [LATE_RCA, TOCO], ids=["rca", "toco with regions"])
def test_trainings_with_other_memories_share_no_steps(config, first):
    first = replace(config, first)
    assert prefix_step(first) == 3
    for path, value in MATTERS.items():
        assert prefix_digest(replace(first, {path: value}), 3) != prefix_digest(first, 3), path


def test_steps_are_shared_until_contrast_or_decoder_joins(config):
    def late_step(first, contrast, decoder, weight=0.1):
        method = replace(
            config,
            first
            | {
                "method.region_contrast": {"weight": weight, "start_step": contrast},
                "method.segmentation": {"weight": 0.1, "start_step": decoder},
                "method.energy.weight": 0.0,
                "method.energy.start_step": decoder,
            },
        ).method
        return method.late_step()

    for first in (LATE_RCA, TOCO):
        assert late_step(first, 4, 3) == 3
        assert late_step(first, 3, 4) == 3
        # One of them from the start on leaves the other.
        assert late_step(first, 0, 4) == 4
        assert late_step(first, 4, 0) == 4
        assert late_step(first, 0, 0) is None
        assert late_step(first, 3, 4, weight=0.0) == 4


@pytest.mark.slow
def test_two_ranks_compute_what_one_process_does(config, tmp_path):
    run_config = replace(config, CAM | DECODER)
    train(run_config, tmp_path / "one", progress=False)
    train_on_ranks(2, train, run_config, tmp_path / "two", progress=False)
    for (kind, step, two), (_, _, one) in zip(
        rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True
    ):
        assert two == pytest.approx(one, rel=1e-4, abs=2e-4), (kind, step)


def test_the_demo_shows_its_cam_and_its_labels(run_config, finished):
    trained = open_trained(finished)
    analyst = Analyst(trained, 640)
    demo = Demo(analyst, "cam", "token", None, Limits())
    further = run_config.method.further_cams()
    assert [(cam["name"], cam["block"]) for cam in demo._about["cams"]] == [
        ("cam", None),
        *further.items(),
    ]
    rule = run_config.method.label_rule()
    assert (demo._about["low"], demo._about["high"]) == (rule.low_threshold, rule.high_threshold)
    dataset = open_split(trained.config.data, "val")
    analysis = analyst.analyse(dataset.image(0))
    assert (analysis.segmentation is None) == (not run_config.method.has_decoder())
    assert analysis.cam_maps(0).shape == (1 + len(further), 32, 32)
    refined = analyst.refined_label(analysis, "cam", [0], rule.low_threshold, rule.high_threshold)
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
