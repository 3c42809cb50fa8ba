import json
from pathlib import Path

import numpy as np
import pytest
import torch

from toco.heads.config import ProjectionConfig
from toco.heads.projection import ProjectionHead, ema_update_


def head_for(state):
    """A head with the widths of a recorded state, and that state."""
    weights = [name for name in state if name.startswith("mlp") and name.endswith("weight")]
    output_width, bottleneck_width = state["last_layer.weight_v"].shape
    hidden_width, in_channels = state[weights[0]].shape
    config = ProjectionConfig(
        num_layers=len(weights),
        hidden_width=hidden_width,
        bottleneck_width=bottleneck_width,
        output_width=output_width,
    )
    head = ProjectionHead(in_channels, config)
    # The official one-layer MLP is the layer itself.
    head.load_state_dict(
        {
            name.replace("mlp.weight", "mlp.0.weight").replace("mlp.bias", "mlp.0.bias"): value
            for name, value in state.items()
        }
    )
    return head


def named(arrays, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def test_recorded_cases_are_the_tested_ones(golden_cases):
    assert set(golden_cases("ctc_head")) == {
        "small",
        "two_layers",
        "one_layer",
        "g_trainable",
        "full_768_seeded",
        "ema",
    }


@pytest.mark.parametrize("case", ["small", "two_layers", "one_layer", "g_trainable"])
def test_recorded_output_and_gradients(golden_cases, case):
    a = golden_cases("ctc_head")[case]
    head = head_for(named(a, "state/"))
    assert not head.last_layer.weight_g.requires_grad
    head.last_layer.weight_g.requires_grad_(case == "g_trainable")
    x = a["x"].requires_grad_()
    y = head(x)
    y.backward(a["grad_y"])
    torch.testing.assert_close(y, a["y"], rtol=2e-6, atol=1e-6)
    assert (x.grad - a["grad_x"]).norm() <= 2e-6 * a["grad_x"].norm()
    gradients = {
        name: parameter.grad
        for name, parameter in head.named_parameters()
        if parameter.grad is not None
    }
    recorded = named(a, "grad/")
    assert len(gradients) == len(recorded)
    for name, expected in recorded.items():
        gradient = gradients[
            name.replace("mlp.weight", "mlp.0.weight").replace("mlp.bias", "mlp.0.bias")
        ]
        assert (gradient - expected).norm() <= 2e-6 * expected.norm(), name


def test_recorded_full_size(golden_cases):
    a = golden_cases("ctc_head")["full_768_seeded"]
    stream = np.random.RandomState(34)
    head = ProjectionHead(768, ProjectionConfig())
    parameters = dict(head.named_parameters())
    for name in a["param_order"]:
        if name != "last_layer.weight_g":
            value = 0.05 * stream.randn(*parameters[name].shape)
            parameters[name].data = torch.from_numpy(value.astype(np.float32))
    x = a["x"].requires_grad_()
    y = head(x)
    y.backward(a["grad_y"])
    torch.testing.assert_close(y, a["y"], rtol=1e-5, atol=2e-6)
    assert (x.grad - a["grad_x"]).norm() <= 5e-6 * a["grad_x"].norm()
    for name, norm in named(a, "gradnorm/").items():
        torch.testing.assert_close(parameters[name].grad.norm(), norm, rtol=5e-6, atol=0)


def test_recorded_ema(golden_cases):
    a = golden_cases("ctc_head")["ema"]
    teacher, student = head_for(named(a, "teacher_before/")), head_for(named(a, "student/"))
    for updates in (1, 2):
        ema_update_(teacher, student, float(a["momentum"]))
        for name, expected in named(a, f"teacher_after_{updates}/").items():
            torch.testing.assert_close(teacher.state_dict()[name], expected, rtol=2e-7, atol=1e-8)
    torch.testing.assert_close(teacher(a["x"]), a["teacher_output_after_2"], rtol=2e-6, atol=1e-6)
    assert all(
        torch.equal(student.state_dict()[name], value)
        for name, value in named(a, "student/").items()
    )


def test_recorded_projection_in_the_network(golden):
    """The recorded EMA of the whole network's forward pass, through the
    official parameter names.
    """
    arrays = {
        name: torch.from_numpy(value)
        for name, value in golden("network_tiny").items()
        if name.startswith("fwd_crops")
    }
    teacher = head_for(named(arrays, "fwd_crops__teacher_before/"))
    ema_update_(teacher, head_for(named(arrays, "fwd_crops__student/")), 0.9)
    for name, expected in named(arrays, "fwd_crops__teacher_after/").items():
        torch.testing.assert_close(teacher.state_dict()[name], expected, rtol=2e-7, atol=1e-8)


def test_ema_by_hand():
    teacher, student = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for module, value in ((teacher, 10.0), (student, 20.0)):
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, value)
    ema_update_(teacher, student, 0.9)
    assert teacher.weight.item() == pytest.approx(11.0)
    assert teacher.bias.item() == pytest.approx(11.0)
    ema_update_(teacher, student, 1.0)
    assert teacher.weight.item() == pytest.approx(11.0)
    ema_update_(teacher, student, 0.0)
    assert teacher.weight.item() == 20.0


def test_ema_of_different_modules_is_refused():
    with pytest.raises(ValueError, match="only one of them has: bias"):
        ema_update_(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False), 0.9)
    with pytest.raises(ValueError, match=r"between 0 and 1, but is 1\.5"):
        ema_update_(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), 1.5)


def test_output_is_bounded_and_ignores_the_length_of_the_directions():
    head = ProjectionHead(6, ProjectionConfig(hidden_width=8, bottleneck_width=4, output_width=20))
    x = torch.randn(5, 6)
    before = head(x)
    assert before.abs().max() <= 1 + 1e-6  # cosines between the bottleneck and the rows
    with torch.no_grad():
        head.last_layer.weight_v.mul_(7)
    torch.testing.assert_close(head(x), before)


def test_initialisation_is_the_recorded_one():
    recorded = json.loads(
        (Path(__file__).parents[1] / "golden" / "init_statistics_deit_tiny.json").read_text()
    )
    torch.manual_seed(0)
    for name, parameter in ProjectionHead(192, ProjectionConfig()).named_parameters():
        expected = recorded[f"proj_head.{name}"]
        assert parameter.double().std().item() == pytest.approx(expected["std"], rel=0.01), name
        assert parameter.mean().item() == pytest.approx(expected["mean"], abs=2e-4), name
