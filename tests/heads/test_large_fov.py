import numpy as np
import pytest
import torch

from toco.heads.large_fov import LargeFov


def test_recorded_cases_are_the_tested_ones(golden_cases):
    assert set(golden_cases("largefov")) == {
        "small",
        "smaller_than_dilation_4x4",
        "nonsquare_9x17",
        "full_768_512_21_seeded",
    }


@pytest.mark.parametrize("case", ["small", "smaller_than_dilation_4x4", "nonsquare_9x17"])
def test_recorded_output_and_gradients(golden_cases, case):
    a = golden_cases("largefov")[case]
    decoder = LargeFov(
        a["x"].shape[1], a["y"].shape[1], a["state/conv6.weight"].shape[0], dilation=5
    )
    decoder.load_state_dict({name: a[f"state/{name}"] for name in a["param_order"]})
    x = a["x"].requires_grad_()
    y = decoder(x)
    y.backward(a["grad_y"])
    torch.testing.assert_close(y, a["y"], rtol=2e-6, atol=2e-6)
    assert (x.grad - a["grad_x"]).norm() <= 2e-6 * a["grad_x"].norm()
    for name, parameter in decoder.named_parameters():
        assert (parameter.grad - a[f"grad/{name}"]).norm() <= 2e-6 * a[f"grad/{name}"].norm(), name


def test_recorded_full_size(golden_cases):
    a = golden_cases("largefov")["full_768_512_21_seeded"]
    seed, batch, channels, height, width, hidden, classes = a["seed_shape"].tolist()
    stream = np.random.RandomState(seed)
    decoder = LargeFov(channels, classes, hidden, dilation=5)
    for name in ("conv6", "conv7", "conv8"):
        weight = getattr(decoder, name).weight
        weight.data = torch.from_numpy((0.02 * stream.randn(*weight.shape)).astype(np.float32))
    x = torch.from_numpy(
        stream.randn(batch, channels, height, width).astype(np.float32)
    ).requires_grad_()
    y = decoder(x)
    y.backward(torch.from_numpy(stream.randn(batch, classes, height, width).astype(np.float32)))
    torch.testing.assert_close(y, a["y"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.norm(), a["grad_x_norm"], rtol=1e-5, atol=0)
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(parameter.grad.norm(), a[f"gradnorm/{name}"], rtol=1e-5, atol=0)


def test_one_bright_patch_reaches_exactly_two_rings_of_dilated_taps():
    decoder = LargeFov(1, 1, hidden_channels=1, dilation=2)
    for parameter in decoder.parameters():
        torch.nn.init.ones_(parameter)
    features = torch.zeros(1, 1, 11, 11)
    features[0, 0, 5, 5] = 1
    taps = torch.tensor([0.0, 1, 0, 2, 0, 3, 0, 2, 0, 1, 0])
    assert torch.equal(decoder(features)[0, 0], torch.outer(taps, taps))
