import numpy as np
import pytest
import torch

from toco.train.optim import (
    build_optimizer,
    fill_missing_gradients,
    freeze_layers,
    lr_factor,
    set_lr,
)
from toco.train.run_config import OptimConfig

NUM_STEPS = 20_000


def test_the_rate_of_every_step_is_the_official_one(golden):
    arrays = golden("lr_schedule")
    for group, peak in (("backbone", 6e-5), ("heads", 6e-4)):
        expected = arrays[f"lr_used_at_step_0_to_20002_group_{group}"]
        rates = [peak * lr_factor(step, NUM_STEPS, OptimConfig()) for step in range(len(expected))]
        np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("start", [0, 1495, 3000])
def test_ten_steps_equal_the_official_optimizer(golden, start):
    arrays = golden("adamw_steps")
    p, q = (torch.nn.Parameter(torch.from_numpy(arrays[f"s{start}__{name}0"])) for name in "pq")
    optimizer = build_optimizer({"backbone": [p], "heads": [q]}, OptimConfig())
    for index in range(10):
        set_lr(optimizer, start + index, NUM_STEPS, OptimConfig())
        p.grad, q.grad = (
            torch.from_numpy(arrays[f"s{start}__grads_{name}"][index]) for name in "pq"
        )
        optimizer.step()
        for parameter, name in ((p, "p"), (q, "q")):
            expected = torch.from_numpy(arrays[f"s{start}__{name}_after"][index])
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-8)


def test_a_parameter_without_gradient_still_decays():
    config = OptimConfig(lr=0.1, weight_decay=0.5)
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer({"decoder": [weight]}, config)
    fill_missing_gradients(optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_layer_decay_lowers_the_rate_with_the_distance_from_the_output():
    embedding, first, last, norm, head = (torch.nn.Parameter(torch.zeros(1)) for _ in range(5))
    groups = {"backbone": [embedding, first, last], "backbone_norms": [norm], "heads": [head]}
    config = OptimConfig(lr=1.0, layer_decay=0.5)
    layers = [[embedding], [first], [last, norm]]
    optimizer = build_optimizer(groups, config, layers)
    rates = {id(p): group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {embedding: 0.25, first: 0.5, last: 1.0, norm: 1.0, head: 10.0}
    assert rates == {id(parameter): rate for parameter, rate in expected.items()}
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["backbone"] * 3 + ["backbone_norms", "heads"]


@pytest.mark.parametrize("number", range(4))
def test_the_first_layers_are_frozen(number):
    layers = [[torch.nn.Parameter(torch.zeros(1)) for _ in range(2)] for _ in range(3)]
    freeze_layers(layers, OptimConfig(frozen_layers=number))
    frozen = [not any(parameter.requires_grad for parameter in layer) for layer in layers]
    assert frozen == [index < number for index in range(3)]
    trainable = [all(parameter.requires_grad for parameter in layer) for layer in layers]
    assert trainable == [index >= number for index in range(3)]


def test_more_frozen_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"frozen_layers is 4, .* names 3 layers; expected 0 to 3"):
        freeze_layers([[], [], []], OptimConfig(frozen_layers=4))
    with pytest.raises(ValueError, match=r"frozen_layers is 1, .* names 0 layers; expected 0 to 0"):
        freeze_layers([], OptimConfig(frozen_layers=1))


def test_layer_decay_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"layer_decay is 0\.5, but .* names no layers"):
        build_optimizer({"heads": []}, OptimConfig(layer_decay=0.5))


def test_heads_and_decoder_learn_faster_and_empty_groups_are_left_out():
    groups = {
        name: [torch.nn.Parameter(torch.zeros(1))] for name in ("backbone", "heads", "decoder")
    }
    optimizer = build_optimizer(
        groups | {"backbone_norms": []}, OptimConfig(lr=1.0, head_lr_multiplier=7)
    )
    assert {group["name"]: group["peak_lr"] for group in optimizer.param_groups} == {
        "backbone": 1.0,
        "heads": 7.0,
        "decoder": 7.0,
    }
