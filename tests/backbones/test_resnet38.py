"""WideResNet38 against the network of psa, and what a method asks of it."""

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from toco.backbones import resnet38
from toco.config import replace
from toco.train import checkpoint
from toco.train.loop import train

TINY = resnet38.Config(width_divisor=32)
PSA = TINY.model_copy(update={"dropout": (0.3, 0.5)})
TRAINED = TINY.model_copy(update={"norms": "trained"})
SIZES = ["48x64", "51x45"]


def state(golden):
    """The tiny network's tensors with the names of psa, without counters of batches."""
    prefix = "tiny__state/"
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in golden("rca_resnet38").items()
        if name.startswith(prefix)
    }


@pytest.fixture
def path(golden, tmp_path):
    save_file(state(golden), tmp_path / "res38.safetensors")
    return tmp_path / "res38.safetensors"


def built(path, config=TINY):
    torch.manual_seed(0)
    return resnet38.build(config.model_copy(update={"weights": str(path)}))


def double(golden, name):
    return torch.from_numpy(golden("rca_resnet38")[f"tiny__{name}"]).double()


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_all_three_maps_equal_those_of_psa(golden, path, size):
    """conv4 and conv5 are the maps of b4 and b5 after the norm and ReLU that the next block begins
    with.
    """
    resnet = built(path).double().resnet
    maps = dict(zip(resnet.names, resnet.maps(double(golden, f"in_{size}")), strict=True))
    found = {
        "conv4": resnet.b5.bn_branch2a(maps["b4_5"]).relu(),
        "conv5": resnet.b6.bn_branch2a(maps["b5_2"]).relu(),
        "conv6": maps["b7"],
    }
    for name, value in found.items():
        torch.testing.assert_close(value, double(golden, f"{name}_{size}"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_the_backbone_gives_the_map_of_psa_in_training_mode_too(golden, path, mode):
    backbone = built(path).double().train(mode)
    out, blocks = backbone.forward_blocks(double(golden, "in_48x64"), 11)
    expected = double(golden, "conv6_48x64")
    torch.testing.assert_close(out.features, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.class_token, expected.flatten(2).mean(2))
    torch.testing.assert_close(
        backbone.resnet.b5.bn_branch2a(out.aux_features).relu(), double(golden, "conv4_48x64")
    )
    assert [tokens.shape[1] for tokens in blocks] == 3 * [24 * 32] + 3 * [12 * 16] + 11 * [6 * 8]


@torch.no_grad()
def test_the_grid_is_rounded_down_where_psa_rounds_it_up(golden, path):
    backbone = built(path).double()
    images = double(golden, "in_51x45")
    assert double(golden, "conv6_51x45").shape[2:] == (7, 6)
    features = backbone(images).features
    torch.testing.assert_close(features, backbone.resnet(images[..., :48, :40]))
    assert features.shape[2:] == (6, 5)


def test_the_network_has_the_widths_and_sizes_of_model_a1():
    with torch.device("meta"):
        backbone = resnet38.build(resnet38.Config())
    assert backbone.widths == 3 * [128] + 3 * [256] + 6 * [512] + 3 * [1024] + [2048, 4096]
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 105_070_912
    assert backbone.resnet.conv1a.weight.shape == (64, 3, 3, 3)
    assert (backbone.depth, backbone.patch_size_px) == resnet38.Config().dimensions()
    assert backbone.aux_width(6) == 512
    with pytest.raises(ValueError, match="aux_block is 5, but only blocks 6 to 16 of this"):
        backbone.aux_width(5)


def test_four_frozen_layers_are_those_of_psa():
    backbone = resnet38.build(TINY)
    names = {id(parameter): name for name, parameter in backbone.resnet.named_parameters()}
    layers = [
        {names[id(parameter)].split(".")[0] for parameter in each} for each in backbone.layers()
    ]
    assert layers[:5] == [{"conv1a"}, {"b2"}, {"b2_1"}, {"b2_2"}, {"b3"}]
    assert layers[-2:] == [{"b6"}, {"b7", "bn7"}]


def test_frozen_norms_neither_learn_nor_move_and_trained_ones_do_both(path):
    images = torch.randn(2, 3, 32, 32)
    frozen, trained = built(path).train(), built(path, TRAINED).train()
    for backbone, learns in ((frozen, False), (trained, True)):
        norms = {id(parameter) for parameter in backbone.norm_parameters()}
        assert len(norms) == 2 * (2 * 17 + 2 + 1)  # two a block, a third in b6 and b7, and bn7
        for name, parameter in backbone.named_parameters():
            assert (id(parameter) in norms) == ("bn" in name), name
            assert parameter.requires_grad == (learns or "bn" not in name), name
        before = {name: value.clone() for name, value in backbone.named_buffers()}
        backbone(images)
        same = {name: torch.equal(value, before[name]) for name, value in backbone.named_buffers()}
        assert set(same.values()) == {not learns}


def test_norms_are_found_in_a_process_that_has_not_imported_timm():
    """Which needs torchvision's operators to be declared first."""
    code = (
        "from toco.backbones import resnet38\n"
        "backbone = resnet38.build(resnet38.Config(width_divisor=64))\n"
        "print(len(backbone.norm_parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["74"]


@torch.no_grad()
def test_trained_norms_take_the_statistics_of_the_images_in_training_mode_alone(path):
    images = torch.randn(2, 3, 32, 32)
    frozen, trained = built(path).eval(), built(path, TRAINED).eval()
    torch.testing.assert_close(trained(images).features, frozen(images).features)
    seen = []
    trained.resnet.bn7.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    trained.train()(images)
    (normed,) = seen
    bias, scale = trained.resnet.bn7.bias, trained.resnet.bn7.weight
    torch.testing.assert_close(normed.mean(dim=(0, 2, 3)), bias, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        normed.std(dim=(0, 2, 3), unbiased=False), scale.abs(), atol=1e-3, rtol=1e-2
    )


@torch.no_grad()
def test_dropout_drops_whole_channels_in_training_mode_alone(path):
    """Their fraction is that of psa, before both of the last two convolutions of b6 and b7."""
    backbone = built(path, PSA)
    fractions = {}
    for name in ("b6", "b7"):
        block = backbone.resnet.get_submodule(name)
        for convolution in ("conv_branch2b1", "conv_branch2b2"):

            def note(_module, inputs, key=(name, convolution)):
                values = inputs[0].flatten(2)
                fractions[key] = (values == 0).all(2).float().mean().item()

            block.get_submodule(convolution).register_forward_pre_hook(note)
    images = torch.randn(1, 3, 16, 16).expand(512, -1, -1, -1)
    backbone.eval()(images)
    dead = dict(fractions)
    torch.testing.assert_close(backbone(images).features, built(path).eval()(images).features)
    backbone.train()(images)
    for (name, convolution), fraction in fractions.items():
        alive = 1 - dead[name, convolution]
        expected = alive * {"b6": 0.3, "b7": 0.5}[name]
        assert fraction - dead[name, convolution] == pytest.approx(expected, abs=0.03)


def test_without_dropout_nothing_is_drawn_from_the_global_generator():
    backbone = resnet38.build(TINY).train()
    before = torch.get_rng_state()
    backbone(torch.ones(2, 3, 16, 16))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("counters", [False, True])
def test_weights_of_psa_load_with_and_without_counters_and_classifier(golden, tmp_path, counters):
    expected = state(golden) | {"fc8.weight": torch.zeros(20, 128, 1, 1)}
    if counters:
        norms = [name.removesuffix("running_var") for name in expected if "running_var" in name]
        expected |= {f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}
    path = tmp_path / "res38_cls.pth"
    torch.save({f"module.{name}": value for name, value in expected.items()}, path)
    config = TINY.model_copy(update={"weights": f"{path}"})
    assert resnet38.weights_path(config) == path
    loaded = resnet38.build(config).resnet.state_dict()
    del expected["fc8.weight"]
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert loaded["bn7.num_batches_tracked"] == 7 * counters


def test_weights_that_do_not_fit_are_refused_by_name(golden, tmp_path):
    tensors = state(golden)
    del tensors["b4_3.bn_branch2b1.running_mean"]
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"\(1 differences\): b4_3.bn_branch2b1.running_mean is m"):
        built(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="weights_sha256 is 0123abcd"):
        built(tmp_path / "cut.safetensors", TINY.model_copy(update={"weights_sha256": "0123abcd"}))
    with pytest.raises(FileNotFoundError, match="Expected pretrained weights at"):
        built(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "field", [{"width_divisor": 3}, {"dropout": (0.3, 1.0)}, {"norms": "batch"}, {"weights": 3}]
)
def test_settings_without_a_meaning_are_refused(field):
    with pytest.raises(ValidationError):
        resnet38.Config(**field)


def test_every_record_says_that_a_resnet_has_no_class_token():
    assert resnet38.Config().model_dump()["class_token"] == "pooled"  # noqa: S105 - not a password
    assert "NO CLASS TOKEN" in resnet38.__doc__.splitlines()[0]


class CrashError(Exception):
    pass


class CrashAtFirst:
    def on_evaluation(self, step, metrics, path):
        raise CrashError


@pytest.mark.slow
def test_a_resumed_training_with_dropout_and_trained_norms_is_the_same_bit_for_bit(
    tiny_config, tmp_path
):
    """Checkpoints hold the running statistics and the state of the global generator."""
    config = replace(
        tiny_config.model_copy(
            update={"backbone": TRAINED.model_copy(update={"dropout": (0.3, 0.5)})}
        ),
        {"method.aux_block": 11},
    )
    train(config, tmp_path / "whole", progress=False)
    with pytest.raises(CrashError):
        train(config, tmp_path / "resumed", progress=False, observer=CrashAtFirst())
    torch.manual_seed(12345)
    train(config, tmp_path / "resumed", resume=True, progress=False)
    whole, resumed = (
        load_file(tmp_path / run / "checkpoints" / checkpoint.folder_name(6) / checkpoint.TENSORS)
        for run in ("whole", "resumed")
    )
    assert whole.keys() == resumed.keys()
    assert whole["model/backbone.resnet.bn7.num_batches_tracked"] > 6
    for name, value in whole.items():
        assert "step_time_s" in name or torch.equal(resumed[name], value), name


def test_trained_norms_refuse_several_processes():
    config = resnet38.Config(norms="trained")
    config.check_ranks(1)
    resnet38.Config().check_ranks(2)
    with pytest.raises(ValueError, match=r"norms is trained, .* which 2 processes do not share"):
        config.check_ranks(2)
