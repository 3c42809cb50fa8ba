import copy

import pytest
import torch

import toco.backbones._torchvision  # noqa: F401 - must come before timm
from toco.backbones import StochasticDepth, drawing, stochastic_depths, swin, vit, vit_nano
from toco.backbones._swin import Swin
from toco.backbones._vit import ViT
from toco.types import Shard

from tests.backbones.families import FAMILIES, network  # isort: skip
from timm.layers.drop import DropPath  # isort: skip
from timm.models import VisionTransformer  # isort: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_factors_are_those_of_the_draws_of_the_global_batch():
    """Two views of the two images that the second of three ranks has."""
    draws = torch.rand(2, 6, generator=generator(5))
    expected = torch.where(draws[:, 2:4] < 0.75, 1 / 0.75, 0.0).flatten()
    depth = StochasticDepth(0.25)
    with drawing([depth], generator(5), 2, Shard(1, 3)):
        out = depth(torch.ones(4, 5, 3))
    assert torch.equal(out, expected[:, None, None].expand(4, 5, 3))
    assert 0 < expected.count_nonzero() < 4


def test_ranks_together_draw_what_one_process_draws():
    x = torch.randn(3, 8, 2)  # views, images, channels
    depth, found = StochasticDepth(0.5), []
    for shard in (Shard(), *(Shard(rank, 4) for rank in range(4))):
        own = x.unflatten(1, (shard.world_size, -1))[:, shard.rank]
        with drawing([depth], source := generator(), own.shape[1], shard):
            passes = [depth(own.flatten(0, 1)).reshape(own.shape) for _ in range(2)]
        found.append((torch.stack(passes), source.get_state()))
    (alone, state), *ranks = found
    assert torch.equal(torch.cat([part for part, _ in ranks], dim=2), alone)
    assert all(torch.equal(other, state) for _, other in ranks)
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_paths_are_kept_with_their_probability_and_keep_their_mean(dtype):
    depth, number = StochasticDepth(0.1), 40_000
    with drawing([depth], generator(), number):
        out = depth(torch.ones(number, dtype=dtype))
    kept = torch.ones((), dtype=dtype) / 0.9
    assert out.dtype == dtype
    assert set(out.tolist()) == {0.0, kept.item()}
    deviation = (0.9 * 0.1 / number) ** 0.5
    assert out.count_nonzero().item() / number == pytest.approx(0.9, abs=4 * deviation)
    assert out.double().mean().item() == pytest.approx(1.0, abs=0.01)


def test_evaluation_returns_its_input_and_draws_nothing():
    depth, x = StochasticDepth(0.9).eval(), torch.randn(3, 2)
    assert depth(x) is x
    with drawing([depth], source := generator(), 2):
        assert depth(x) is x
    assert torch.equal(source.get_state(), generator().get_state())


def test_a_pass_outside_of_a_step_is_refused():
    depth = StochasticDepth(0.5)
    with drawing([depth], generator(), 2):
        depth(torch.ones(2))
    with pytest.raises(ValueError, match=r"none has begun\. Put the network into evaluation mode"):
        depth(torch.ones(2))


def test_a_pass_with_a_part_of_the_images_is_refused():
    depth = StochasticDepth(0.5)
    with (
        drawing([depth], generator(), 4),
        pytest.raises(ValueError, match=r"A pass has 6 images and the step 4; .* all images"),
    ):
        depth(torch.ones(6, 3))


ENTRIES = {
    "vit": (vit, vit.Config(model="vit_tiny_patch16_224", weights=None), 12),
    "vit_nano": (vit_nano, vit_nano.Config(width=16, depth=4, num_heads=2, weights=None), 4),
    "swin": (swin, swin.Config(weights=None), 12),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_rates_rise_linearly_from_block_to_block(name):
    module, config, num_blocks = ENTRIES[name]
    backbone = module.build(config.model_copy(update={"drop_path": 0.1}))
    rates = [depth.drop_probability for depth in stochastic_depths(backbone)]
    # Two paths a block; the first block drops none.
    expected = [0.1 * block / (num_blocks - 1) for block in range(1, num_blocks) for _ in range(2)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", ENTRIES)
def test_without_a_rate_there_is_no_module_and_with_one_the_weights_are_the_same(name):
    module, config, _ = ENTRIES[name]
    networks = []
    for drop_path in (0.0, 0.1):
        torch.manual_seed(0)
        networks.append(module.build(config.model_copy(update={"drop_path": drop_path})))
    assert config.drop_path == 0
    assert stochastic_depths(networks[0]) == []
    assert not any(isinstance(part, DropPath) for built in networks for part in built.modules())
    ours, theirs = (built.state_dict() for built in networks)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Replay(torch.nn.Module):
    """Stands for timm's DropPath in timm's network, with given factors."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return x * self.factors.reshape(-1, *(1,) * (x.ndim - 1))


def record(backbone, factors):
    """Keep the factors of every call, by module."""
    for depth in stochastic_depths(backbone):

        def keep(module, inputs, output):
            (x,) = inputs
            ones = (output.flatten(1) / x.flatten(1)).nanmean(1)
            factors.setdefault(module, []).append(ones.detach())

        depth.register_forward_hook(keep)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_computes_what_timm_computes_with_the_same_paths(name):
    """And draws nothing from the global state."""
    # As in test_families: what timm makes for one size, and what is made for all.
    sizes = ({"strict_img_size": True}, {"always_partition": True}) if name == "swin" else ({}, {})
    reference, twin = (network(name, **options, drop_path_rate=0.6) for options in sizes)
    backbone = (Swin if name == "swin" else ViT)(twin).train()
    rows, columns = reference.patch_embed.img_size
    images, factors = torch.randn(4, 3, rows, columns), {}
    record(backbone, factors)
    state = torch.get_rng_state()
    with drawing(depths := stochastic_depths(backbone), generator(1), 2):
        found = backbone(images, backbone.depth - 1)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = iter(torch.cat(factors[depth]) for depth in depths)
    assert torch.cat([torch.cat(part) for part in factors.values()]).eq(0).any()
    for module in list(reference.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, child_name, Replay(next(drawn)))
    tokens = reference.eval().forward_features(images)
    if name == "swin":
        torch.testing.assert_close(found.class_token, tokens.mean(dim=(1, 2)), atol=1e-4, rtol=1e-4)
        return
    # Some networks normalise the pooled tokens alone.
    norm = reference.fc_norm if isinstance(reference.norm, torch.nn.Identity) else (lambda x: x)
    torch.testing.assert_close(found.class_token, norm(tokens)[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_maps", [0, 2, 4])
@torch.no_grad()
def test_class_tokens_without_maps_drop_paths_too(num_maps):
    """Four images, two views of two, of which the last block makes some maps."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3}
    reference = VisionTransformer(**sizes, num_classes=0, dynamic_img_size=True, drop_path_rate=0.6)
    backbone = ViT(copy.deepcopy(reference)).train()
    images, factors = torch.randn(4, 3, 32, 32), {}
    record(backbone, factors)
    with drawing(depths := stochastic_depths(backbone), generator(4), 2):
        out = backbone(images, 1, num_maps)
    assert len(out.features) == num_maps
    drawn = [torch.cat(factors[depth]) for depth in depths]
    assert [len(part) for part in drawn] == [4] * 4
    assert 0 < torch.stack(drawn[2:]).count_nonzero() < 8, "the last block drops some"
    for block, paths in zip(reference.blocks[1:], (drawn[:2], drawn[2:]), strict=True):
        block.drop_path1, block.drop_path2 = map(Replay, paths)
    tokens = reference.eval().forward_features(images)
    torch.testing.assert_close(out.class_token, tokens[:, 0], atol=1e-5, rtol=1e-4)
    maps = tokens[:num_maps, 1:].transpose(1, 2).reshape(num_maps, 48, 2, 2)
    torch.testing.assert_close(out.features, maps, atol=1e-5, rtol=1e-4)


def test_a_rate_that_has_no_effect_or_no_meaning_is_refused():
    with pytest.raises(ValueError, match="the first block drops nothing and depth is 1"):
        vit_nano.Config(depth=1, drop_path=0.1)
    for drop_path in (-0.1, 1.0):
        with pytest.raises(ValueError, match="drop_path"):
            vit.Config(drop_path=drop_path)
