"""A training with stochastic depth: what it draws depends on seed, step and image alone."""

import pytest
import torch
from safetensors.torch import load_file

from toco.backbones import vit_nano
from toco.cam.regions import draw_keys
from toco.config import digest, replace
from toco.train import checkpoint
from toco.train.dry_run import check_can_run
from toco.train.inputs import open_data
from toco.train.loop import train
from toco.train.optim import build_optimizer
from toco.train.parts import build_loader, build_method
from toco.train.pretrain import PretrainConfig
from toco.train.run_folder import RunFolder
from toco.train.step import TrainingStep
from toco.types import Shard

STEP = 5
"""All terms of the tiny config count."""


@pytest.fixture(scope="module")
def dropping(config):
    # Half of the paths of the last block: what was not drawn again would be seen at once.
    return replace(config, {"backbone.drop_path": 0.5})


def losses_of(config, shard, step=STEP):
    """Losses of a step, by name, and the state of the generator after it."""
    train_set, _ = open_data(config)
    method = build_method(config, len(train_set.class_names))
    train_step = TrainingStep(method, build_optimizer(method, config.optim), config)
    batch = next(build_loader(config, train_set, shard).batches(step, 1))
    output = train_step.losses(batch, step)
    return {name: loss.item() for name, loss in output.losses.items()}, train_step


def test_ranks_drop_the_paths_that_one_process_drops(dropping, config):
    """In all passes: global views with and without maps, CAMs of mirrored images, local crops."""
    dropping = replace(dropping, {"method.cam_scales": [1.0, 0.5]})
    together, *parts = (
        losses_of(dropping, shard)[0] for shard in (Shard(), Shard(0, 2), Shard(1, 2))
    )
    assert together.keys() >= {"classification", "ptc", "ctc", "segmentation", "energy"}
    for name, value in together.items():
        assert value == pytest.approx(sum(part[name] for part in parts) / 2, rel=1e-4), name
    assert together != losses_of(replace(dropping, {"backbone.drop_path": 0.0}), Shard())[0]


def test_a_step_draws_its_own_paths_and_the_same_ones_again(dropping):
    first, again = (losses_of(dropping, Shard())[0] for _ in range(2))
    assert first == again
    assert first != losses_of(replace(dropping, {"seed": 1}), Shard())[0]


def test_the_step_ends_with_its_losses(dropping):
    _, train_step = losses_of(dropping, Shard())
    with pytest.raises(ValueError, match="none has begun"):
        train_step.method.backbone(torch.zeros(4, 3, 32, 32))
    train_step.method.eval().backbone(torch.zeros(3, 3, 32, 32))


def test_without_stochastic_depth_the_method_alone_draws(config):
    """Every number of the generator goes where it went before there was stochastic depth."""
    _, train_step = losses_of(config, Shard())
    method, step_seed = train_step.method, config.seed * 1_000_003 + STEP
    seen = []
    real = method.training_losses

    def training_losses(batch, step, generator):
        seen.append(generator.get_state())
        output = real(batch, step, generator)
        seen.append(generator.get_state())
        return output

    train_step._training_losses = training_losses
    train_set, _ = open_data(config)
    batch = next(build_loader(config, train_set).batches(STEP, 1))
    train_step.losses(batch, STEP)
    expected = torch.Generator().manual_seed(step_seed)
    assert torch.equal(seen[0], expected.get_state())
    draw_keys(4, (32, 32), 16, expected)
    assert torch.equal(seen[1], expected.get_state())


class CrashError(Exception):
    pass


class CrashAt:
    def __init__(self, step):
        self.step = step

    def on_evaluation(self, step, metrics, checkpoint):
        if step == self.step:
            raise CrashError


def tensors(run_dir):
    return load_file(run_dir / "checkpoints" / checkpoint.folder_name(6) / checkpoint.TENSORS)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(dropping, config, tmp_path):
    train(dropping, tmp_path / "whole", progress=False)
    with pytest.raises(CrashError):
        train(dropping, tmp_path / "cut", progress=False, observer=CrashAt(4))
    train(dropping, tmp_path / "cut", progress=False, resume=True)
    train(config, tmp_path / "without", progress=False)
    whole, cut, without = (tensors(tmp_path / name) for name in ("whole", "cut", "without"))
    names = whole.keys() - {"averages/train/step_time_s"}
    assert names == cut.keys() - {"averages/train/step_time_s"}
    assert [name for name in names if not torch.equal(whole[name], cut[name])] == []
    assert names == without.keys() - {"averages/train/step_time_s"}
    assert any(not torch.equal(whole[name], without[name]) for name in names)
    rows = [RunFolder(tmp_path / name).metrics()[-1]["values"] for name in ("whole", "cut")]
    assert rows[0] == rows[1]


def test_an_evaluation_is_that_of_the_same_weights_without_stochastic_depth(dropping, config):
    methods = [build_method(settings, 2).eval() for settings in (dropping, config)]
    images = torch.randn(2, 3, 32, 32)
    ours, theirs = (method.predict(images, (1.0, 0.5), flip=True) for method in methods)
    assert torch.equal(ours.cams.cam, theirs.cams.cam)
    assert torch.equal(ours.segmentation_logits, theirs.segmentation_logits)


def test_a_rate_is_part_of_the_digest_and_sizes_that_fit_stay_fit(dropping, config):
    assert digest(dropping) != digest(config)
    check_can_run(dropping)
    # A fault after passes that drop paths: they did not end the check.
    with pytest.raises(ValueError, match=r"A training step .* empty at scale 0.01"):
        check_can_run(replace(dropping, {"method.par.scale": 0.01}))


def test_a_compiled_step_cannot_drop_paths(dropping):
    replace(dropping, {"compile": True, "backbone.drop_path": 0.0})
    with pytest.raises(
        ValueError, match=r"compile is true and backbone\.drop_path is 0\.5, .* compile to false"
    ):
        replace(dropping, {"compile": True})


def test_a_pretraining_drops_no_paths():
    with pytest.raises(ValueError, match=r"backbone\.drop_path is 0\.1"):
        PretrainConfig(backbone=vit_nano.Config(weights=None, drop_path=0.1))
