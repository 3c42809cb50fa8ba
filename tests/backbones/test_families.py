"""Every family against timm's own forward pass, which is a second implementation of the same
network.
"""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from toco.backbones import _swin, swin, vit, vit_nano
from toco.backbones._timm import _compare_pixels
from toco.backbones._vit import ViT
from toco.backbones._weights import load_file

from tests.backbones.families import FAMILIES, SMALL, network, twin  # isort: skip
from timm import create_model  # isort: skip

VITS = [name for name in FAMILIES if name != "swin"]


def as_tokens(maps):
    return maps.flatten(2).transpose(1, 2)


def at_size(reference, height, width):
    """``reference`` made for images of that size, with its positions interpolated as the official
    encoder does it.
    """
    positions, grid, prefix = (
        reference.pos_embed,
        reference.patch_embed.grid_size,
        reference.num_prefix_tokens,
    )
    reference.set_input_size((height, width))
    if positions is not None:
        prefix = 0 if reference.no_embed_class else prefix
        old = positions[:, prefix:].transpose(1, 2).unflatten(2, grid)
        new = F.interpolate(
            old, size=reference.patch_embed.grid_size, mode="bicubic", align_corners=False
        )
        reference.pos_embed = torch.nn.Parameter(
            torch.cat([positions[:, :prefix], as_tokens(new)], dim=1)
        )
    return reference


@pytest.mark.parametrize("grid", [None, (3, 5), (6, 4)], ids=str)
@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_vits_equal_timm(name, grid):
    """At the size that they are made for and at others; registers and distillation tokens are in no
    map.
    """
    reference, backbone = network(name), twin(name)
    patch = backbone.patch_size_px
    height, width = (
        reference.patch_embed.img_size if grid is None else (side * patch for side in grid)
    )
    if grid is not None:
        reference = at_size(reference, height, width)
    # In float64, in which our layers for the CPU leave the work to torch's.
    reference, backbone = reference.double(), backbone.double()
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    final, blocks = reference.forward_intermediates(images, output_fmt="NCHW")
    if isinstance(reference.norm, torch.nn.Identity):
        final = reference.fc_norm(final)
    out = backbone(images, aux_block=1)
    expected = final[:, 0], final[:, reference.num_prefix_tokens :], blocks[1]
    found = out.class_token, as_tokens(out.features), out.aux_features
    for ours, theirs in zip(found, expected, strict=True):
        # Bit by bit where nothing is interpolated.
        tolerance = {"atol": 0, "rtol": 0} if grid is None else {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("size", [(96, 96), (192, 160), (48, 80)], ids=str)
@torch.no_grad()
def test_swin_equals_timm_made_for_the_size(size):
    """One that covers a grid is not shifted.

    On a grid below the window timm has a smaller one, and we have not.
    """
    reference, backbone = network("swin", img_size=size, strict_img_size=True), twin("swin")
    shapes = {name: value.shape for name, value in reference.state_dict().items()}
    same = {
        name: value
        for name, value in backbone.swin.state_dict().items()
        if value.shape == shapes[name]
    }
    reference.load_state_dict(same, strict=False)
    images = torch.randn(2, 3, *size)
    out, blocks = backbone.forward_blocks(images, aux_block=4)
    stages = reference.forward_intermediates(images, intermediates_only=True)
    for block, stage in zip((0, 2, 4), stages, strict=False):
        torch.testing.assert_close(blocks[block], as_tokens(stage), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.aux_features, stages[2], atol=1e-5, rtol=1e-4)
    if min(size) >= 96:
        final = reference.forward_features(images)
        torch.testing.assert_close(out.class_token, final.mean((1, 2)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out.class_token, reference.forward_head(final, pre_logits=True))


def test_maps_of_swin_share_a_grid():
    """Final tokens, on half the grid, are laid onto it without a shift; of an odd grid the last is
    cut.
    """
    backbone = twin("swin")
    assert (backbone.depth, backbone.first_aux_block, backbone.patch_size_px) == (7, 3, 16)
    assert [backbone.aux_width(block) for block in (3, 4, 5, 6)] == [32, 32, 64, 64]
    final = torch.arange(3.0)[None, :, None, None].expand(1, 3, 3, 1)
    maps = _swin._on_grid(final, (5, 6))
    assert maps.shape == (1, 1, 5, 6)
    torch.testing.assert_close(maps[0, 0, :, 0], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75]))
    assert not any(
        p.requires_grad for n, p in backbone.named_parameters() if "relative_position" in n
    )
    with pytest.raises(ValueError, match="blocks 3 to 6"):
        backbone(torch.zeros(1, 3, 64, 64), aux_block=2)


def test_every_record_says_that_swin_has_no_class_token():
    assert swin.Config().model_dump()["class_token"] == "pooled"  # noqa: S105 - not a password
    assert "NO CLASS TOKEN" in swin.__doc__.splitlines()[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_a_group_of_their_own_and_positions_are_frozen(name):
    backbone = twin(name)
    norms = {id(parameter) for parameter in backbone.norm_parameters()}
    for path, parameter in backbone.named_parameters():
        parent = type(backbone.get_submodule(path.rpartition(".")[0])).__name__
        assert (id(parameter) in norms) == ("Norm" in parent and "Block" not in parent), path
        is_position = any(part in path for part in ("pos_embed", "rope.", "relative_position"))
        assert parameter.requires_grad != is_position, path


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("resnet18", "could not create 'resnet18' as a ViT"),
        ("beit_base_patch16_224", "could not create"),
        (
            "swin_tiny_patch4_window7_224",
            "'swin_tiny_patch4_window7_224' cannot be a backbone: it is a SwinTransformer",
        ),
        ("vit_tiny_r_s16_p8_224", "plain patch embedding"),
    ],
)
def test_what_is_no_vit_with_a_class_token_is_refused(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        vit.build(vit.Config(model=model, weights=None))


@pytest.mark.parametrize("model", ["vit_base_patch16_siglip_224", "vit_medium_patch16_gap_240"])
def test_networks_without_a_class_token_are_refused(model):
    with pytest.raises(ValueError, match="has no class token, which ToCo contrasts"):
        ViT(create_model(model, img_size=32, **SMALL))


def test_what_is_no_swin_is_refused():
    with pytest.raises(ValueError, match="could not create 'vit_tiny_patch16_224' as a Swin"):
        swin.build(swin.Config(model="vit_tiny_patch16_224", weights=None))


@torch.no_grad()
def test_a_backbone_converts_pixels_to_its_own_normalisation():
    """A white and a black image, by hand; with ImageNet's own values nothing is done."""
    config = vit_nano.Config(
        depth=2, weights=None, pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.5, 0.25, 0.2)
    )
    backbone = vit_nano.build(config)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    for level, expected in ((1.0, (1.0, 2.4, 3.5)), (0.0, (-1.0, -1.6, -1.5))):
        images = (torch.full((1, 3, 8, 8), level) - mean) / std
        torch.testing.assert_close(backbone.renormalise(images)[0, :, 0, 0], torch.tensor(expected))
    plain = vit_nano.build(vit_nano.Config(depth=2, weights=None))
    assert plain.renormalise(images) is images
    plain.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 16, 16)
    converted = plain(backbone.renormalise(images), 0)
    torch.testing.assert_close(backbone(images, 0).features, converted.features)
    with pytest.raises(ValueError, match="greater than 0"):
        vit_nano.Config(pixel_std=(0.5, 0.5, 0.0))


def test_weights_made_with_other_pixels_are_told(caplog):
    config = vit.Config(model="vit_base_patch16_clip_224.openai")
    clip = network("clip")
    clip.pretrained_cfg = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}
    with caplog.at_level(logging.WARNING):
        _compare_pixels(
            config.model_copy(
                update={"pixel_mean": (0.48, 0.46, 0.41), "pixel_std": (0.27, 0.26, 0.28)}
            ),
            clip,
        )
        assert not caplog.messages
        _compare_pixels(config, clip)
    assert "pixel_mean=[0.48, 0.46, 0.41]" in caplog.text


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_weights_of_every_family_load_from_a_file(tmp_path, name):
    """Heads of the pretraining are left out; a norm of pooled tokens becomes the final norm."""
    source, path = network(name), tmp_path / "weights.safetensors"
    state = source.state_dict() | {
        "head.weight": torch.zeros(3, 48),
        "attn_pool.latent": torch.zeros(1),
    }
    save_file({key: value.clone() for key, value in state.items()}, path)
    backbone, loaded = twin(name), twin(name)
    target = loaded.swin if name == "swin" else loaded.vit
    for parameter in target.parameters():
        parameter.zero_()
    load_file(target, path)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        loaded(images, 5 if name == "swin" else 1).features,
        backbone(images, 5 if name == "swin" else 1).features,
    )


@pytest.mark.parametrize("name", ["vit", "deit_distilled", "deit3", "dinov2_registers"])
def test_positions_of_another_grid_keep_what_stands_before_them(tmp_path, name):
    """A constant grid stays constant, and the class token's position stays as it is."""
    source, path = network(name), tmp_path / "weights.safetensors"
    larger = network(
        name, img_size=source.patch_embed.img_size[0] + 2 * source.patch_embed.patch_size[0]
    )
    prefix = source.pos_embed.shape[1] - source.patch_embed.num_patches
    assert prefix == {"vit": 1, "deit_distilled": 2}.get(name, 0)
    with torch.no_grad():
        source.pos_embed[:, prefix:] = torch.arange(48.0)
    save_file(source.state_dict(), path)
    load_file(larger, path)
    torch.testing.assert_close(larger.pos_embed[:, :prefix], source.pos_embed[:, :prefix])
    torch.testing.assert_close(
        larger.pos_embed[0, prefix:], torch.arange(48.0).expand(larger.patch_embed.num_patches, -1)
    )


@torch.no_grad()
def test_a_file_as_the_authors_released_it_is_converted(tmp_path):
    """DINOv2 with registers: other names, a position for the class token, a token for masking."""
    target = network("dinov2_registers")
    state = copy.deepcopy(target.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    position = torch.randn(1, 1, 48)
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.zeros(1, 48)
    save_file(state, tmp_path / "dinov2.safetensors")
    expected = twin("dinov2_registers")
    for parameter in target.parameters():
        parameter.zero_()
    load_file(target, tmp_path / "dinov2.safetensors")
    images = torch.randn(1, 3, 70, 70)
    torch.testing.assert_close(
        ViT(target).eval()(images, 1).features, expected(images, 1).features, atol=1e-5, rtol=1e-4
    )
    state["patch_embed.proj.weight"] = torch.zeros(48, 3, 16, 16)
    save_file(state, tmp_path / "other_patch.safetensors")
    with pytest.raises(
        ValueError, match=r"kernel of shape \(48, 3, 16, 16\), expected \(48, 3, 14, 14\)"
    ):
        load_file(target, tmp_path / "other_patch.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"text.weight": torch.zeros(3)}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="does not fit this backbone"):
        load_file(network("clip"), tmp_path / "text.safetensors")
