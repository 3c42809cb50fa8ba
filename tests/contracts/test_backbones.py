"""Every entry of toco.backbones keeps the contract; a new file is tested because it exists."""

import pytest
import torch

from toco.backbones import Backbone, BackboneConfig
from toco.registry import available, load

SMALLEST = {"vit": {"model": "vit_tiny_patch16_224"}}


@pytest.fixture(scope="module", params=available("toco.backbones"))
def backbone(request):
    module = load("toco.backbones", request.param)
    assert issubclass(module.Config, BackboneConfig)
    config = module.Config(weights=None, **SMALLEST.get(request.param, {}))
    assert config.name == request.param
    assert module.weights_path(config) is None
    built = module.build(config).eval()
    assert isinstance(built, Backbone)
    return built


@pytest.mark.parametrize("patches", [(2, 3), (4, 4)])
@torch.no_grad()
def test_tokens_have_the_documented_shapes_at_any_size(backbone, patches):
    height, width = (n * backbone.patch_size_px for n in patches)
    out = backbone(torch.randn(2, 3, height, width), backbone.depth - 2)
    assert out.class_token.shape == (2, backbone.width)
    assert out.features.shape == out.aux_features.shape == (2, backbone.width, *patches)


@torch.no_grad()
def test_blocks_are_counted_from_0_and_the_last_is_the_final_one(backbone):
    images = torch.randn(1, 3, 2 * backbone.patch_size_px, 2 * backbone.patch_size_px)
    tokens = backbone.block_tokens(images)
    assert len(tokens) == backbone.depth
    last = backbone(images, backbone.depth - 1)
    torch.testing.assert_close(last.aux_features, last.features)
    torch.testing.assert_close(tokens[-1], last.features.flatten(2).transpose(1, 2))
    for block in (-1, backbone.depth):
        with pytest.raises(ValueError, match=f"blocks 0 to {backbone.depth - 1}"):
            backbone(images, block)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(backbone):
    images = torch.randn(3, 3, 2 * backbone.patch_size_px, 2 * backbone.patch_size_px)
    together = backbone(images, 0).features
    alone = torch.cat([backbone(image[None], 0).features for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
