from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import nn

from toco.methods import Method
from toco.train.optim import (
    build_optimizer,
    fill_missing_gradients,
    freeze_layers,
    groups_with_rates,
    lr_factor,
    set_lr,
)
from toco.train.optim_config import AdamWConfig, SgdConfig

NUM_STEPS = 20_000


class Parameters(Method):
    """Parameters by name, in groups, and nothing that is computed with them."""

    def __init__(self, groups: Mapping[str, Mapping[str, nn.Parameter]], layers=()):
        super().__init__()
        self._of_groups, self._of_layers = groups, layers

    def named_parameters(self, *_, **__) -> Iterator[tuple[str, nn.Parameter]]:
        for group in self._of_groups.values():
            yield from group.items()

    def parameter_groups(self):
        return {name: list(group.values()) for name, group in self._of_groups.items()}

    def layers(self):
        return [list(layer) for layer in self._of_layers]


Parameters.__abstractmethods__ = frozenset()


def zeros(number):
    return [nn.Parameter(torch.zeros(1)) for _ in range(number)]


def test_the_rate_of_every_step_is_the_official_one(golden):
    arrays = golden("lr_schedule")
    for group, peak in (("backbone", 6e-5), ("heads", 6e-4)):
        expected = arrays[f"lr_used_at_step_0_to_20002_group_{group}"]
        rates = [peak * lr_factor(step, NUM_STEPS, AdamWConfig()) for step in range(len(expected))]
        np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("start", [0, 1495, 3000])
def test_ten_steps_equal_the_official_optimizer(golden, start):
    arrays = golden("adamw_steps")
    p, q = (nn.Parameter(torch.from_numpy(arrays[f"s{start}__{name}0"])) for name in "pq")
    method = Parameters({"backbone": {"p": p}, "heads": {"q": q}})
    optimizer = build_optimizer(method, AdamWConfig())
    for index in range(10):
        set_lr(optimizer, start + index, NUM_STEPS, AdamWConfig())
        p.grad, q.grad = (
            torch.from_numpy(arrays[f"s{start}__grads_{name}"][index]) for name in "pq"
        )
        optimizer.step()
        for parameter, name in ((p, "p"), (q, "q")):
            expected = torch.from_numpy(arrays[f"s{start}__{name}_after"][index])
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-8)


def test_a_parameter_without_gradient_still_decays():
    config = AdamWConfig(lr=0.1, weight_decay=0.5)
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer(Parameters({"decoder": {"weight": weight}}), config)
    fill_missing_gradients(optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("start", [0, 3])
def test_the_rate_of_sgd_warms_up_and_drops(start):
    config = SgdConfig(warmup_steps=start, warmup_ratio=0.25, drop_steps=(5, 7), drop_factor=0.5)
    warm_up = [0.25, 0.5, 0.75][:start]
    expected = warm_up + [1.0] * (5 - start) + [0.5] * 2 + [0.25] * 3
    assert [lr_factor(step, 10, config) for step in range(10)] == pytest.approx(expected)


STEPS_PER_EPOCH = 1323
OF_RCA = SgdConfig(drop_steps=(5 * STEPS_PER_EPOCH, 10 * STEPS_PER_EPOCH))


@pytest.fixture
def rca(golden):
    """The parameters of the full official RCA by name, and the official group of each."""
    arrays = golden("rca_names")
    group_of = {
        str(name): group
        for name, group in zip(arrays["names"], arrays["group"].tolist(), strict=True)
        if group >= 0
    }
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in group_of}
    method = Parameters(
        {
            ours: {name: parameters[name] for name in group_of if group_of[name] in official}
            for ours, official in (("backbone", (0, 1)), ("heads", (2, 3)))
        }
    )
    return method, {id(parameters[name]): group for name, group in group_of.items()}


def test_weights_and_biases_of_rca_have_the_official_rates(rca):
    method, official_group = rca
    optimizer = build_optimizer(method, OF_RCA)
    assert [group["peak_lr"] for group in optimizer.param_groups] == pytest.approx(
        [1e-3, 2e-3, 1e-2, 2e-2]
    )
    found = {
        id(parameter): number
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    assert found == official_group
    assert set(official_group.values()) == {0, 1, 2, 3}


def test_the_rates_of_every_epoch_are_those_of_the_official_rca(rca, golden):
    optimizer = build_optimizer(rca[0], OF_RCA)
    expected = golden("rca_names")["lr_by_epoch_first_and_last_group"]
    assert expected.shape == (30, 2)
    for of_epoch in (0, STEPS_PER_EPOCH - 1):
        rates = []
        for epoch in range(30):
            set_lr(optimizer, epoch * STEPS_PER_EPOCH + of_epoch, 30 * STEPS_PER_EPOCH, OF_RCA)
            rates.append([optimizer.param_groups[index]["lr"] for index in (0, -1)])
        np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_the_first_step_of_sgd_by_hand():
    weight, bias = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    method = Parameters({"heads": {"head.weight": weight, "head.bias": bias}})
    config = SgdConfig(lr=0.01, weight_decay=0.5)
    optimizer = build_optimizer(method, config)
    set_lr(optimizer, 0, 10, config)
    weight.grad, bias.grad = torch.tensor([1.0]), torch.tensor([1.0])
    optimizer.step()
    # With the decay the gradient is 1 + 0.5 * 2 = 2, and so is the momentum; Nesterov's gradient
    # is 2 + 0.9 * 2 = 3.8. The rate of a head is 0.1, that of its bias 0.2.
    assert weight.item() == pytest.approx(2 - 0.1 * 3.8)
    assert bias.item() == pytest.approx(2 - 0.2 * 3.8)


class PlainSgd:
    """SGD in numpy, of one parameter."""

    def __init__(self, value, config, multiplier):
        self.value, self.config, self.multiplier, self.momentum = value, config, multiplier, None

    def step(self, gradient, step):
        config = self.config
        if gradient is None:
            return
        gradient = gradient + config.weight_decay * self.value
        if self.momentum is None:
            self.momentum = gradient
        else:
            self.momentum = config.momentum * self.momentum + gradient
        direction = gradient + config.momentum * self.momentum if config.nesterov else self.momentum
        drops = sum(step >= drop for drop in config.drop_steps)
        rate = config.lr * self.multiplier * config.drop_factor**drops
        self.value = self.value - rate * direction


@pytest.mark.parametrize(
    "settings",
    [{}, {"nesterov": False}, {"nesterov": False, "momentum": 0.0}, {"bias_lr_multiplier": 3.0}],
    ids=str,
)
def test_steps_of_sgd_equal_those_of_a_second_implementation(settings):
    config = SgdConfig(
        lr=0.1,
        weight_decay=0.3,
        drop_steps=(4, 6),
        drop_factor=0.2,
        head_lr_multiplier=5,
        **settings,
    )
    of_bias = config.bias_lr_multiplier
    multipliers = {
        "backbone.conv.weight": 1.0,
        "backbone.conv.bias": of_bias,
        "head.norm.weight": 5.0,
        "head.norm.bias": 5.0 * of_bias,
        "head.bias_of_the_rest": 5.0,
        "head.in_proj_bias": 5.0,
        "decoder.early": 5.0,
        "decoder.late": 5.0,
        "bias": 5.0 * of_bias,
    }
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(4) for name in multipliers}
    parameters = {name: nn.Parameter(torch.tensor(value)) for name, value in values.items()}
    plain = {name: PlainSgd(values[name], config, multipliers[name]) for name in values}
    groups = {
        "backbone": {name: p for name, p in parameters.items() if name.startswith("backbone")},
        "heads": {name: p for name, p in parameters.items() if name.startswith("head")},
        "decoder": {name: parameters[name] for name in ("decoder.early", "decoder.late", "bias")},
    }
    optimizer = build_optimizer(Parameters(groups), config)
    for step in range(9):
        set_lr(optimizer, step, 9, config)
        for name, parameter in parameters.items():
            # One parameter has no gradient at first, and one loses it for a while.
            missing = (name == "decoder.late" and step < 3) or (name == "bias" and 2 < step < 5)
            gradient = None if missing else rng.standard_normal(4)
            parameter.grad = None if gradient is None else torch.from_numpy(gradient)
            plain[name].step(gradient, step)
        optimizer.step()
        for name, parameter in parameters.items():
            np.testing.assert_allclose(
                parameter.detach().numpy(), plain[name].value, rtol=1e-12, err_msg=f"{name} {step}"
            )


def test_layer_decay_lowers_the_rate_with_the_distance_from_the_output():
    embedding, first, last, norm, head = zeros(5)
    groups = {
        "backbone": {"embedding": embedding, "first": first, "last.bias": last},
        "backbone_norms": {"norm": norm},
        "heads": {"head": head},
    }
    method = Parameters(groups, [[embedding], [first], [last, norm]])
    optimizer = build_optimizer(method, AdamWConfig(lr=1.0, layer_decay=0.5))
    rates = {id(p): group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {embedding: 0.25, first: 0.5, last: 1.0, norm: 1.0, head: 10.0}
    assert rates == {id(parameter): rate for parameter, rate in expected.items()}
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["backbone"] * 3 + ["backbone_norms", "heads"]
    # With SGD the bias has its own rate on top.
    rates = {
        id(p): group["peak_lr"]
        for group in groups_with_rates(method, SgdConfig(lr=1.0, layer_decay=0.5))
        for p in group["params"]
    }
    assert rates == {id(p): rate for p, rate in (expected | {last: 2.0}).items()}


@pytest.mark.parametrize("number", range(4))
def test_the_first_layers_are_frozen(number):
    layers = [zeros(2) for _ in range(3)]
    freeze_layers(layers, AdamWConfig(frozen_layers=number))
    frozen = [not any(parameter.requires_grad for parameter in layer) for layer in layers]
    assert frozen == [index < number for index in range(3)]
    trainable = [all(parameter.requires_grad for parameter in layer) for layer in layers]
    assert trainable == [index >= number for index in range(3)]


@pytest.mark.parametrize("config", [AdamWConfig, SgdConfig])
def test_more_frozen_layers_than_there_are_is_refused(config):
    with pytest.raises(ValueError, match=r"frozen_layers is 4, .* names 3 layers; expected 0 to 3"):
        freeze_layers([[], [], []], config(frozen_layers=4))
    with pytest.raises(ValueError, match=r"frozen_layers is 1, .* names 0 layers; expected 0 to 0"):
        freeze_layers([], config(frozen_layers=1))


@pytest.mark.parametrize("config", [AdamWConfig, SgdConfig])
def test_layer_decay_without_layers_is_refused(config):
    with pytest.raises(ValueError, match=r"layer_decay is 0\.5, but .* names no layers"):
        build_optimizer(Parameters({"heads": {}}), config(layer_decay=0.5))


def test_heads_and_decoder_learn_faster_and_empty_groups_are_left_out():
    groups = {
        name: {f"{name}.bias": nn.Parameter(torch.zeros(1))}
        for name in ("backbone", "heads", "decoder")
    }
    optimizer = build_optimizer(
        Parameters(groups | {"backbone_norms": {}}), AdamWConfig(lr=1.0, head_lr_multiplier=7)
    )
    assert {group["name"]: group["peak_lr"] for group in optimizer.param_groups} == {
        "backbone": 1.0,
        "heads": 7.0,
        "decoder": 7.0,
    }
