"""VGG16 against the official network of RCA, and what a method asks of it."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import toco.backbones._torchvision  # noqa: F401 - must come before timm
from toco.backbones import vgg16
from toco.backbones._vgg16 import Vgg16

from timm.models import VGG  # isort: skip

NARROW = [2, 2, "M", 3, 3, "M", 4, 4, 4, "M", 5, 5, 5, "M", 6, 6, 6, "M"]
"""The stages of VGG16, 2 to 6 wide."""


def narrow():
    torch.manual_seed(0)
    return Vgg16(VGG(NARROW, num_classes=0, mlp_ratio=1 / 4096))


@pytest.fixture(scope="module")
def official(golden):
    """VGG16 with the weights that the golden was recorded with, drawn again: they are 59 MB."""
    arrays = golden("rca_vgg16")
    random, state = np.random.RandomState(arrays["seeded__seed"]), {}
    names = arrays["seeded__names_in_draw_order"].tolist()
    for name, padded, first in zip(
        names, arrays["seeded__shapes"], arrays["seeded__check_first5"], strict=True
    ):
        shape = padded[padded > 0]
        z = random.standard_normal(shape.prod()).reshape(shape)
        z *= np.sqrt(2 / shape[1:].prod()) if name.endswith("weight") else 0.1
        state[f"features.{name}"] = torch.from_numpy(z.astype(np.float32))
        np.testing.assert_array_equal(state[f"features.{name}"].flatten()[:5], first)
    backbone = vgg16.build(vgg16.Config(weights=None))
    backbone.vgg.load_state_dict(state)
    return backbone.double().eval()


def pixels(golden, size):
    height, width = map(int, size.split("x"))
    random = np.random.RandomState(golden("rca_vgg16")["seeded__seed"] + 1)
    images = random.standard_normal((1, 3, height, width)).astype(np.float32)
    return torch.from_numpy(images).double()


def check_equal(found, golden, size):
    expected = torch.from_numpy(golden("rca_vgg16")[f"seeded__out_{size}"])
    # The values were rounded to float32, which is a relative error of up to 6e-8.
    torch.testing.assert_close(found.float(), expected, rtol=1e-7, atol=1e-12)
    assert found.norm().item() == pytest.approx(
        golden("rca_vgg16")[f"seeded__norm_{size}"].item(), rel=1e-12
    )


@torch.no_grad()
def test_the_final_map_equals_the_official_one(golden, official):
    out = official(pixels(golden, "64x80"))
    check_equal(out.features, golden, "64x80")
    torch.testing.assert_close(out.class_token, out.features.flatten(2).mean(2))


@torch.no_grad()
def test_pixels_beyond_the_last_patch_are_cut_off_which_officially_reach_the_border(
    golden, official
):
    """The one difference: 67x75 has officially the grid of 64x72, but other values on it."""
    images = pixels(golden, "67x75")
    check_equal(official.vgg.features(images), golden, "67x75")
    cut = official(images).features
    torch.testing.assert_close(cut, official.vgg.features(images[..., :64, :72]))
    expected = torch.from_numpy(golden("rca_vgg16")["seeded__out_67x75"]).double()
    assert cut.shape == expected.shape == (1, 512, 8, 9)
    assert (cut - expected)[..., -1, :].norm() > 0.01 * expected[..., -1, :].norm()


@torch.no_grad()
def test_blocks_are_stages_before_their_pool():
    """Held against the convolutions written out; all but the last two have finer grids."""
    backbone = narrow()
    images = torch.randn(2, 3, 32, 24)
    out, blocks = backbone.forward_blocks(images, 3)
    convolutions = iter(
        layer for layer in backbone.vgg.features if isinstance(layer, torch.nn.Conv2d)
    )
    maps, expected = images, []
    for stage, number in enumerate((2, 2, 3, 3, 3)):
        for _ in range(number):
            layer = next(convolutions)
            dilation = 2 if stage == 4 else 1
            maps = torch.nn.functional.conv2d(
                maps, layer.weight, layer.bias, padding=dilation, dilation=dilation
            ).relu()
        expected.append(maps)
        maps = torch.nn.functional.max_pool2d(maps, *((2, 2) if stage < 3 else (3, 1, 1)))
    assert [tuple(maps.shape[1:]) for maps in expected] == [
        (2, 32, 24),
        (3, 16, 12),
        (4, 8, 6),
        (5, 4, 3),
        (6, 4, 3),
    ]
    for tokens, maps in zip(blocks, expected, strict=True):
        torch.testing.assert_close(tokens, maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(out.aux_features, expected[3])
    torch.testing.assert_close(out.features, expected[4])


def test_stages_with_a_finer_grid_are_refused():
    backbone = narrow()
    assert (backbone.depth, backbone.patch_size_px) == vgg16.Config().dimensions()
    assert [backbone.aux_width(block) for block in (3, 4)] == [5, 6]
    for call in (backbone, backbone.aux_features, backbone.forward_blocks):
        with pytest.raises(ValueError, match="aux_block is 2, but only blocks 3 to 4 of this"):
            call(torch.zeros(1, 3, 16, 16), 2)


def test_layers_are_the_first_convolution_and_the_stages():
    sizes = [[tuple(p.shape[:2]) for p in layer if p.ndim == 4] for layer in narrow().layers()]
    assert sizes == [
        [(2, 3)],
        [(2, 2)],
        [(3, 2), (3, 3)],
        [(4, 3), (4, 4), (4, 4)],
        [(5, 4), (5, 5), (5, 5)],
        [(6, 5), (6, 6), (6, 6)],
    ]


def test_nothing_is_frozen_and_no_norm_is_there():
    backbone = narrow()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.norm_parameters() == []


FORMS = {
    "torchvision": {"classifier.0.weight": torch.zeros(2, 2), "classifier.6.bias": torch.zeros(1)},
    "timm": {"pre_logits.fc1.weight": torch.zeros(2, 2), "head.fc.weight": torch.zeros(2, 2)},
    "no classifier": {},
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", FORMS)
def test_weights_load_without_the_classifier(tmp_path, form, prefix):
    torch.manual_seed(1)
    source = vgg16.build(vgg16.Config(weights=None)).vgg.state_dict()
    path = tmp_path / "vgg16.pth"
    torch.save({f"{prefix}{name}": value for name, value in (source | FORMS[form]).items()}, path)
    config = vgg16.Config(weights=str(path))
    assert vgg16.weights_path(config) == path
    loaded = vgg16.build(config).vgg.state_dict()
    assert loaded.keys() == source.keys()
    assert len(loaded) == 26
    assert all(torch.equal(loaded[name], value) for name, value in source.items())


def test_weights_of_the_features_alone_load(tmp_path):
    source = vgg16.build(vgg16.Config(weights=None)).vgg
    torch.save(source.features.state_dict(), tmp_path / "features.pth")
    loaded = vgg16.build(vgg16.Config(weights=str(tmp_path / "features.pth"))).vgg.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in source.state_dict().items())


def test_files_of_another_network_and_of_another_digest_are_refused(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file({"conv1.weight": torch.zeros(1), "bn1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"does not fit this backbone \(28 differences\)"):
        vgg16.build(vgg16.Config(weights=str(path)))
    with pytest.raises(ValueError, match="weights_sha256 is 397923af: these are not the recipe's"):
        vgg16.build(vgg16.Config(weights=str(path), weights_sha256="397923af"))


def test_from_the_hub_the_classifier_is_as_wide_as_in_its_file(monkeypatch):
    """Or the file would not fit."""
    asked = []

    def create_model(name, **options):
        asked.append((name, options["pretrained"], options["mlp_ratio"]))
        model = VGG(NARROW, num_classes=0, mlp_ratio=1 / 4096)
        model.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        return model

    monkeypatch.setattr("timm.create_model", create_model)
    assert vgg16.weights_path(vgg16.Config()) is None
    vgg16.build(vgg16.Config())
    assert asked == [("vgg16.tv_in1k", True, 1.0)]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("resnet18", "timm could not create 'resnet18' as a VGG"),
        ("vgg16_bn", "'vgg16_bn' cannot be a backbone: its batch norms compare the images"),
    ],
)
def test_what_is_no_plain_vgg_is_refused(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        vgg16.build(vgg16.Config(model=model, weights=None))


def test_every_record_says_that_a_vgg_has_no_class_token():
    assert vgg16.Config().model_dump()["class_token"] == "pooled"  # noqa: S105 - not a password
    assert "NO CLASS TOKEN" in vgg16.__doc__.splitlines()[0]
