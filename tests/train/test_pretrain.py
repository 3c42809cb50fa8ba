import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toco.backbones import vit_nano
from toco.train.pretrain import (
    PretrainConfig,
    Pretraining,
    PretrainOutput,
    draw_batch,
    learning_rate,
    pretrain,
    pretraining_loss,
)

TINY = PretrainConfig(
    backbone=vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=32, weights=None),
    num_steps=3,
    batch_size=4,
    warmup_steps=1,
    local_block=1,
)


def test_weights_are_reproducible_and_described(tmp_path: Path) -> None:
    first = pretrain(TINY, tmp_path / "a.safetensors", command="the command", progress=False)
    pretrain(TINY, tmp_path / "b.safetensors", progress=False)
    content = first.weights.read_bytes()
    assert content == (tmp_path / "b.safetensors").read_bytes()
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert (record["command"], record["seed"], record["num_steps"]) == ("the command", 9000, 3)
    assert PretrainConfig.model_validate(record["config"]) == TINY


def test_weights_load_as_a_backbone(tmp_path: Path) -> None:
    weights = pretrain(TINY, tmp_path / "a.safetensors", progress=False).weights
    backbone = vit_nano.build(TINY.backbone.model_copy(update={"weights": str(weights)}))
    loaded = backbone.vit.state_dict()
    written = load_file(weights)
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], written[name]) for name in written)


def test_tokens_are_those_of_the_backbone() -> None:
    model = Pretraining(TINY)
    images = torch.randn(2, 3, 32, 32)
    _, expected = model.backbone.forward_blocks(images, 0)
    for ours, theirs in zip(model(images).block_tokens, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_batches_are_new_at_every_step_and_show_what_their_labels_say() -> None:
    images, labels = draw_batch(TINY, 0)
    assert images.shape == (4, 3, 32, 32)
    assert labels.shape == (4, 8)
    assert labels.sum(dim=1).min() >= 1
    assert not torch.equal(images, draw_batch(TINY, 1)[0])
    torch.testing.assert_close(images, draw_batch(TINY, 0)[0])


def test_loss_is_the_weighted_sum_of_cross_entropies() -> None:
    labels = torch.tensor([[1.0, 0.0]])
    certain, unsure = torch.tensor([[50.0, -50.0]]), torch.zeros(1, 2)
    output = PretrainOutput(
        certain, certain, [unsure[:, None].expand(1, 4, 2), certain[:, None].expand(1, 4, 2)], []
    )
    config = TINY.model_copy(update={"smooth_weights": (0.25, 1.0)})
    assert pretraining_loss(output, labels, config).item() == pytest.approx(0.25 * 0.6931472)
    output = PretrainOutput(unsure, unsure, [certain[:, None], certain[:, None]], [])
    assert pretraining_loss(output, labels, config).item() == pytest.approx(2 * 0.6931472)


def test_learning_rate_rises_and_falls() -> None:
    config = TINY.model_copy(update={"num_steps": 100, "warmup_steps": 9, "lr": 1.0})
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates.index(max(rates)) == 9
    assert rates[50] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001


def test_shipped_weights_are_those_described() -> None:
    record = json.loads(vit_nano.BUNDLED_WEIGHTS.with_suffix(".json").read_text())
    content = vit_nano.BUNDLED_WEIGHTS.read_bytes()
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(content) <= 4_000_000
    assert record["command"].startswith("python -m toco pretrain")
    config = PretrainConfig.model_validate(record["config"])
    assert config.backbone == vit_nano.Config(weights=None)
    # What the benchmark needs of them: alike at the end, not before.
    assert record["patch_similarity"][-1] > 0.85 > record["patch_similarity"][6]


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="beyond the 3 blocks"):
        PretrainConfig(backbone=TINY.backbone, local_block=3)
    with pytest.raises(ValueError, match="starts from random weights"):
        PretrainConfig(backbone=vit_nano.Config())
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        pretrain(TINY, tmp_path / "weights.pt", progress=False)
