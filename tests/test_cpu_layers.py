"""The faster layers of a CPU: values and gradients of timm's own, in float64; where they run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from toco import cpu_layers
from toco.backbones._accelerated import CpuAttention, accelerate
from toco.cpu_layers import CpuLinear, linear

from timm.layers.attention import Attention, AttentionRope  # isort: skip


def in_float64_by_timm(module: nn.Module) -> nn.Module:
    """A copy in float64, which the faster classes leave to timm and torch."""
    return copy.deepcopy(module).double()


def close(actual, expected):
    # In float32 timm's own layers differ by up to 4e-6 of the largest value.
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * scale)


def compare(module: nn.Module, tokens: torch.Tensor) -> None:
    reference = in_float64_by_timm(module)
    ours, theirs = (
        tokens.detach().to(t, copy=True).requires_grad_() for t in (torch.float32, torch.float64)
    )
    output, expected = module(ours), reference(theirs)
    close(output, expected)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    expected.backward(gradient.double())
    close(ours.grad, theirs.grad)
    for parameter, other in zip(module.parameters(), reference.parameters(), strict=True):
        close(parameter.grad, other.grad)


@pytest.mark.parametrize(("i", "o"), [(6, 10), (10, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (2, 5), (3, 2, 4)])
def test_a_linear_layer(i, o, bias, shape):
    layer = nn.Linear(i, o, bias=bias)
    accelerate(nn.ModuleList([layer]))
    assert type(layer) is CpuLinear
    compare(layer, torch.randn(*shape, i))


@pytest.mark.parametrize("num_tokens", [1, 5, 65])
@pytest.mark.parametrize("settings", [{"qkv_bias": True}, {"scale_norm": True}])
def test_attention(num_tokens, settings):
    layer = Attention(12, num_heads=3, norm_layer=nn.LayerNorm, **settings)
    accelerate(nn.ModuleList([layer]))
    assert type(layer) is CpuAttention
    # Scores far from 0, so that some probabilities are small.
    compare(layer, 5 * torch.randn(2, num_tokens, 12))


@pytest.mark.parametrize(
    "change", ["mask", "dropout", "norm", "gate", "long", "causal", "autocast", "float64"]
)
def test_other_attention_is_timms(change, monkeypatch):
    settings = {
        "norm": {"qk_norm": True, "norm_layer": nn.LayerNorm},
        "gate": {"gated": True},
        "dropout": {"attn_drop": 0.5},
    }
    layer = Attention(12, num_heads=3, **settings.get(change, {}))
    accelerate(nn.ModuleList([layer]))
    monkeypatch.setattr(cpu_layers._ShortAttention, "apply", None)
    tokens = torch.randn(2, cpu_layers.SHORT + 1 if change == "long" else 5, 12)
    if change == "float64":
        layer, tokens = layer.double(), tokens.double()
    mask = torch.zeros(tokens.shape[1], tokens.shape[1]) if change == "mask" else None
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        output = layer(tokens, mask, change == "causal")
    assert output.shape == tokens.shape


def test_dropout_is_off_in_evaluation():
    layer = Attention(12, num_heads=3, attn_drop=0.5)
    accelerate(nn.ModuleList([layer]))
    compare(layer.eval(), torch.randn(2, 5, 12))


def test_subclasses_keep_their_own_computation():
    rope = AttentionRope(12, num_heads=3)
    accelerate(nn.ModuleList([rope]))
    assert type(rope) is AttentionRope


def test_a_batch_without_images_and_a_layer_on_meta():
    weight, bias = torch.randn(4, 3), torch.randn(4)
    assert linear(torch.empty(0, 5, 3), weight, bias).shape == (0, 5, 4)
    on_meta = (tensor.to("meta") for tensor in (torch.empty(2, 3), weight, bias))
    assert linear(*on_meta).shape == (2, 4)


def test_only_wanted_gradients_are_computed():
    tokens, weight = torch.randn(5, 3), torch.randn(4, 3, requires_grad=True)
    output = linear(tokens, weight, None)
    (gradient,) = torch.autograd.grad(output.sum(), weight)
    torch.testing.assert_close(gradient, tokens.sum(0).expand(4, 3))
    assert not linear(tokens, weight.detach(), None).requires_grad


@pytest.mark.parametrize("name", ["linear", "attention"])
def test_a_second_derivative_is_refused_and_not_wrong(name):
    layer = nn.Linear(12, 12) if name == "linear" else Attention(12, num_heads=3)
    accelerate(nn.ModuleList([layer]))
    tokens = torch.randn(2, 5, 12, requires_grad=True)
    (first,) = torch.autograd.grad(layer(tokens).square().sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
