"""Every entry of toco.backbones keeps the contract, and so does a small twin of every family of
networks.

A new file is tested because it exists. That the twins compute what timm computes is
tests/backbones/test_families.py.
"""

import pytest
import torch

from toco.backbones import Backbone, BackboneConfig
from toco.methods import toco
from toco.registry import available, load
from toco.tensors import Batch, present_classes

from tests.backbones.families import FAMILIES, twin  # isort: skip

SMALLEST = {"vit": {"model": "vit_tiny_patch16_224"}, "resnet38": {"width_divisor": 16}}


def entry(name):
    module = load("toco.backbones", name)
    assert issubclass(module.Config, BackboneConfig)
    config = module.Config(weights=None, **SMALLEST.get(name, {}))
    assert config.name == name
    assert module.weights_path(config) is None
    return module.build(config)


@pytest.fixture(scope="module", params=[*available("toco.backbones"), *FAMILIES])
def backbone(request):
    torch.manual_seed(0)
    built = twin(request.param) if request.param in FAMILIES else entry(request.param)
    assert isinstance(built, Backbone)
    return built.eval()


def images(backbone, rows, columns, count=2):
    return torch.randn(count, 3, rows * backbone.patch_size_px, columns * backbone.patch_size_px)


@pytest.mark.parametrize("patches", [(2, 3), (5, 4)])
@torch.no_grad()
def test_tokens_have_the_documented_shapes_at_any_size(backbone, patches):
    for block in (backbone.depth - 2, backbone.depth - 1):
        out = backbone(images(backbone, *patches), block)
        assert out.class_token.shape == (2, backbone.width)
        assert out.features.shape == (2, backbone.width, *patches)
        assert out.aux_features.shape == (2, backbone.aux_width(block), *patches)


@torch.no_grad()
def test_what_does_not_fill_a_patch_is_not_looked_at(backbone):
    cut = images(backbone, 3, 2)
    padded = torch.nn.functional.pad(cut, (0, backbone.patch_size_px - 1, 0, 1), value=9.0)
    torch.testing.assert_close(
        backbone(padded, backbone.depth - 1).features, backbone(cut, backbone.depth - 1).features
    )
    with pytest.raises(ValueError, match="smaller than one patch"):
        backbone(cut[..., : backbone.patch_size_px - 1], backbone.depth - 1)


@torch.no_grad()
def test_all_ways_through_give_the_same(backbone):
    batch, block = images(backbone, 4, 5, count=3), backbone.depth - 2
    whole = backbone(batch, block)
    torch.testing.assert_close(backbone.aux_features(batch, block), whole.aux_features)
    with_blocks, tokens = backbone.forward_blocks(batch, block)
    for name in ("class_token", "features", "aux_features"):
        torch.testing.assert_close(getattr(with_blocks, name), getattr(whole, name))
    for num_maps in (0, 1):
        some = backbone(batch, block, num_maps)
        torch.testing.assert_close(some.class_token, whole.class_token, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(some.features, whole.features[:num_maps], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            some.aux_features, whole.aux_features[:num_maps], atol=1e-5, rtol=1e-4
        )
    assert len(tokens) == backbone.depth
    assert tokens[-1].shape[2] == backbone.width


@torch.no_grad()
def test_blocks_are_counted_from_0_and_the_last_is_the_final_one(backbone):
    batch = images(backbone, 2, 2)
    last = backbone(batch, backbone.depth - 1)
    torch.testing.assert_close(last.aux_features, last.features)
    for block in (-1, backbone.depth):
        for call in (backbone.forward, backbone.aux_features, backbone.forward_blocks):
            with pytest.raises(ValueError, match=f"blocks 0 to {backbone.depth - 1}"):
                call(batch, block)
        with pytest.raises(ValueError, match=f"blocks 0 to {backbone.depth - 1}"):
            backbone.aux_width(block)


def test_layers_are_the_parameters_in_the_order_of_the_blocks(backbone):
    layers = backbone.layers()
    assert len(layers) == backbone.depth + 1
    in_layers = [id(parameter) for layer in layers for parameter in layer]
    assert sorted(in_layers) == sorted(map(id, backbone.parameters()))
    backbone.zero_grad()
    block = backbone.depth - 2
    backbone.aux_features(images(backbone, 2, 2), block).square().sum().backward()
    *reached, last = layers
    assert all(parameter.grad is None for parameter in last)
    for layer in reached:
        assert any(parameter.grad is not None for parameter in layer)
    backbone.zero_grad()


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(backbone):
    batch, block = images(backbone, 2, 2, count=3), backbone.depth - 2
    together = backbone(batch, block)
    alone = [backbone(image[None], block) for image in batch]
    for name in ("class_token", "features", "aux_features"):
        parts = torch.cat([getattr(part, name) for part in alone])
        torch.testing.assert_close(getattr(together, name), parts, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_training_mode_draws_nothing(backbone):
    """Randomness comes in by generators, so that a resumed training is the same one."""
    batch = images(backbone, 2, 2)
    expected = backbone(batch, backbone.depth - 1).class_token
    torch.testing.assert_close(backbone.train()(batch, backbone.depth - 1).class_token, expected)
    backbone.eval()


@pytest.mark.parametrize("name", [*FAMILIES, "vgg16", "resnet38"])
def test_a_step_of_toco_reaches_every_parameter(name):
    """Patch token contrast and class token contrast on it, with finite
    gradients that are not zero.
    """
    torch.manual_seed(0)
    backbone = twin(name) if name in FAMILIES else entry(name)
    patch = backbone.patch_size_px
    config = toco.Config(
        aux_block=backbone.depth - 2,
        local_crop_size_px=2 * patch,
        num_local_crops=2,
        high_threshold=0.5,
        low_threshold=0.3,
        projection=toco.ProjectionConfig(hidden_width=16, bottleneck_width=8, output_width=8),
        decoder_width=8,
    ).resolved("cpu", 4 * patch)
    method = toco.build(config, backbone, 3)
    batch = images(backbone, 4, 4)
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    box = torch.tensor([[0, 4 * patch, 0, 4 * patch], [0, 4 * patch, patch, 4 * patch]])
    output = method.training_losses(
        Batch(batch, batch.flip(3), batch, labels, box, ("a", "b"), present_classes(labels)),
        10**6,
        torch.Generator().manual_seed(0),
    )
    assert set(output.losses) == {
        "classification",
        "aux_classification",
        "ptc",
        "ctc",
        "segmentation",
        "energy",
    }
    output.total.backward()
    assert output.counts["ptc_positive_pairs"] > 0
    assert output.counts["ptc_negative_pairs"] > 0
    groups = method.parameter_groups()
    grouped = {id(p) for group in groups.values() for p in group}
    assert grouped == {id(p) for p in method.parameters() if p.requires_grad}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.count_nonzero() > 0, name
    prediction = method.eval().predict(batch, (1.0, 0.5), flip=True)
    assert prediction.cams.cam.shape == (2, 3, 4 * patch, 4 * patch)
    assert prediction.segmentation_logits.shape == (2, 4, 4, 4)
    assert len(prediction.block_tokens) == backbone.depth
