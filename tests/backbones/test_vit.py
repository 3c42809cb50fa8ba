import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import toco.backbones._torchvision  # noqa: F401 - must come before timm
from toco.backbones import vit, vit_nano
from toco.backbones._vit import ViT
from toco.backbones._weights import load_file

from timm.layers.attention import Attention  # isort: skip
from timm.models import VisionTransformer  # isort: skip
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock  # isort: skip

TINY = vit_nano.Config(
    width=48, depth=4, num_heads=3, patch_size_px=16, image_size_px=64, weights=None
)
SIZES = ["64x64", "96x96", "64x96", "32x32", "128x48", "70x83"]


def tiny(arrays, config=TINY, prefix="state/"):
    backbone = vit_nano.build(config).eval()
    state = {
        name.removeprefix(prefix): torch.from_numpy(a)
        for name, a in arrays.items()
        if name.startswith(prefix)
    }
    backbone.vit.load_state_dict(
        {name: a for name, a in state.items() if not name.startswith("head.")}
    )
    return backbone


def as_tokens(features):
    return features.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_tokens_of_every_size_equal_the_official_encoder(golden, size):
    arrays = golden("vit_tiny")
    backbone = tiny(arrays)
    images = torch.from_numpy(arrays[f"in_{size}"])
    for aux_name, aux_block in (("-1", 3), ("-2", 2), ("-3", 1)):
        out = backbone(images, aux_block)
        torch.testing.assert_close(
            out.class_token, torch.from_numpy(arrays[f"cls_{size}"]), atol=5e-6, rtol=1e-5
        )
        torch.testing.assert_close(
            as_tokens(out.features),
            torch.from_numpy(arrays[f"tokens_{size}"]),
            atol=5e-6,
            rtol=1e-5,
        )
        expected = torch.from_numpy(arrays[f"aux{aux_name}_{size}"])
        torch.testing.assert_close(as_tokens(out.aux_features), expected, atol=5e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def vit_base(golden):
    """ViT-B with the weights that the golden was recorded with, drawn again: they are 340 MB."""
    arrays = golden("vit_base_seeded")
    backbone = vit.build(vit.Config(model="vit_base_patch16_224", weights=None)).eval()
    shapes = {name: value.shape for name, value in backbone.vit.state_dict().items()}
    shapes |= {"head.weight": torch.Size([1000, 768]), "head.bias": torch.Size([1000])}
    random, state = np.random.RandomState(90), {}
    for name in arrays["names_in_draw_order"].tolist():
        z = random.standard_normal(shapes[name].numel()).reshape(shapes[name])
        if "norm" in name and name.endswith("weight"):
            z = 1 + 0.1 * z
        else:
            z *= (
                0.02
                if name.endswith("bias")
                else 0.2
                if name in ("pos_embed", "cls_token")
                else 0.03
            )
        if not name.startswith("head."):
            state[name] = torch.from_numpy(z.astype(np.float32))
    backbone.vit.load_state_dict(state)
    return backbone


@pytest.mark.parametrize("size", ["224x224", "96x96", "224x320"])
@torch.no_grad()
def test_vit_base_equals_the_official_encoder(golden, vit_base, size):
    arrays = golden("vit_base_seeded")
    height, width = map(int, size.split("x"))
    pixels = (
        np.random.RandomState(91).standard_normal(3 * height * width).reshape(1, 3, height, width)
    )
    out = vit_base(torch.from_numpy(pixels.astype(np.float32)), aux_block=9)

    def summary(tokens):
        return torch.stack([tokens[0, 0], tokens[0, -1], tokens[0].mean(0)])

    expected_aux = torch.from_numpy(arrays[f"aux9_{size}_first_last_token_and_mean"])
    torch.testing.assert_close(
        summary(as_tokens(out.aux_features)), expected_aux, atol=2e-5, rtol=1e-4
    )
    expected = torch.from_numpy(arrays[f"aux-1_{size}_first_last_token_and_mean"])
    torch.testing.assert_close(summary(as_tokens(out.features)), expected, atol=2e-5, rtol=1e-4)


def test_gradients_equal_the_official_encoder(golden):
    arrays = golden("vit_tiny")
    backbone = tiny(arrays).double()
    images = torch.from_numpy(arrays["in_96x96"]).double()
    out = backbone(images, aux_block=1)
    prefix = "f64_96x96__"
    given = {
        name.removeprefix(prefix): torch.from_numpy(a)
        for name, a in arrays.items()
        if name.startswith(prefix)
    }
    torch.testing.assert_close(as_tokens(out.aux_features), given["aux-3"], atol=1e-9, rtol=1e-9)
    objective = (
        (out.class_token * given["g_cls"].double()).sum()
        + (as_tokens(out.features) * given["g_tokens"].double()).sum()
        + (as_tokens(out.aux_features) * given["g_aux"].double()).sum()
    )
    objective.backward()
    checked = 0
    for name, parameter in backbone.vit.named_parameters():
        if f"grad/{name}" in given:
            expected = given[f"grad/{name}"].double()
            error = (parameter.grad - expected).norm() / expected.norm()
            assert error < 1e-6, name
            checked += 1
    assert checked == sum(name.startswith("grad/") for name in given)


def test_block_tokens_are_the_aux_features_of_each_block(golden):
    arrays = golden("vit_tiny")
    backbone = tiny(arrays)
    images = torch.from_numpy(arrays["in_64x96"])
    with torch.no_grad():
        for index, tokens in enumerate(backbone.forward_blocks(images, 0)[1]):
            torch.testing.assert_close(tokens, as_tokens(backbone(images, index).aux_features))


class OtherAttention(Attention):
    """What is not timm's own attention takes the whole block."""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"init_values": 0.3, "qk_norm": True, "qkv_bias": False},
        {"scale_attn_norm": True, "scale_mlp_norm": True},
        {"attn_layer": OtherAttention},
        {"block_fn": ResPostBlock, "init_values": 0.3},
        {"block_fn": ParallelThingsBlock},
    ],
)
@pytest.mark.parametrize("num_maps", [0, 2, 3, 5])
def test_class_tokens_without_maps_are_those_with_them(settings, num_maps):
    """Values, and the gradient of every parameter."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=0,
        dynamic_img_size=True,
        **settings,
    )
    backbone = ViT(network).double()
    images = torch.randn(5, 3, 64, 48, dtype=torch.float64)
    weights = torch.randn(5, 48, dtype=torch.float64)
    found = []
    for cut in (None, num_maps):
        backbone.zero_grad()
        out = backbone(images, 1, cut)
        objective = (out.class_token * weights).sum() + out.features[:num_maps].square().sum()
        (objective + out.aux_features[:num_maps].square().sum()).backward()
        gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
        found.append((out, gradients))
    (whole, expected), (out, gradients) = found
    assert len(out.features) == len(out.aux_features) == num_maps
    torch.testing.assert_close(out.class_token, whole.class_token)
    torch.testing.assert_close(out.features, whole.features[:num_maps])
    torch.testing.assert_close(out.aux_features, whole.aux_features[:num_maps])
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_no_block_is_given_an_empty_batch():
    """Which attention on CUDA may refuse."""
    network = VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=0,
        dynamic_img_size=True,
    )
    sizes = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda _block, inputs: sizes.append(len(inputs[0])))
    out = ViT(network)(torch.randn(5, 3, 32, 48), 0, 0)
    assert sizes == [5], "the last block is there for class tokens alone"
    assert out.features.shape == out.aux_features.shape == (0, 48, 2, 3)


@pytest.mark.parametrize("aux_block", [0, 2, 3])
def test_aux_features_alone_are_those_of_the_whole_pass(aux_block):
    backbone = vit_nano.build(TINY).eval()
    images = torch.randn(2, 3, 64, 96)
    run = []
    for index, block in enumerate(backbone.vit.blocks):
        block.register_forward_hook(lambda *_, index=index: run.append(index))
    alone = backbone.aux_features(images, aux_block)
    assert run == list(range(aux_block + 1))
    torch.testing.assert_close(alone, backbone(images, aux_block).aux_features)


def test_positions_are_frozen_and_norms_are_a_group_of_their_own():
    backbone = vit_nano.build(TINY)
    assert not backbone.vit.pos_embed.requires_grad
    assert len(backbone.norm_parameters()) == 2 * (2 * TINY.depth + 1)


def test_bad_input_is_refused_with_what_to_do():
    backbone = vit_nano.build(TINY)
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        backbone(torch.zeros(1, 3, 64, 64), aux_block=4)
    with pytest.raises(ValueError, match="smaller than one patch"):
        backbone(torch.zeros(1, 3, 8, 64), aux_block=0)
    with pytest.raises(ValueError, match="nonexistent"):
        vit.build(vit.Config(model="nonexistent", weights=None))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_give_the_same_tokens(tmp_path, suffix):
    source = vit_nano.build(TINY).eval()
    path = tmp_path / f"weights.{suffix}"
    state = source.vit.state_dict() | {"head.weight": torch.zeros(3, 48)}
    save_file(state, path) if suffix == "safetensors" else torch.save({"model": state}, path)
    loaded = vit_nano.build(TINY.model_copy(update={"weights": str(path)})).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images, 1).features, source(images, 1).features)


def test_weights_of_other_shapes_are_refused_by_name(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = vit_nano.build(TINY).vit.state_dict()
    state["norm.weight"] = torch.ones(7)
    del state["norm.bias"]
    save_file(state, path)
    with pytest.raises(
        ValueError, match=r"norm.bias is missing; norm.weight has shape \(7,\), expected \(48,\)"
    ):
        load_file(vit_nano.build(TINY).vit, path)


def test_weights_for_another_grid_are_interpolated(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(vit_nano.build(TINY).vit.state_dict(), path)
    larger = TINY.model_copy(update={"image_size_px": 96, "weights": str(path)})
    assert vit_nano.build(larger).vit.pos_embed.shape == (1, 37, 48)


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (print, ("this must not run",))

    path = tmp_path / "weights.pth"
    torch.save({"model": Malicious()}, path)
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load_file(vit_nano.build(TINY).vit, path)


def test_a_hub_that_cannot_be_reached_is_a_sentence_with_a_way_out(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(
        ValueError, match=r"could not be downloaded from the hub: no route to host\. Set "
    ):
        vit.build(vit.Config())
