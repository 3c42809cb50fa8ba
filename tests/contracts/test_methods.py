"""Every entry of toco.methods keeps the contract of the training loop and of the evaluation."""

import pytest
import torch

from toco.backbones import vit_nano
from toco.methods import Method, MethodConfig
from toco.registry import available, load
from toco.types import Batch, present_classes

NUM_FOREGROUND_CLASSES, SIZE = 3, 32


def batch():
    generator = torch.Generator().manual_seed(0)

    def views():
        return torch.randn(4, 3, SIZE, SIZE, generator=generator)

    box = torch.tensor([[0, SIZE, 0, SIZE], [0, SIZE, 8, SIZE], [4, 20, 0, 24], [0, SIZE, 0, SIZE]])
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    return Batch(views(), views(), views(), labels, box, tuple("abcd"), present_classes(labels))


@pytest.fixture(params=available("toco.methods"))
def method(request):
    torch.manual_seed(0)
    module = load("toco.methods", request.param)
    assert issubclass(module.Config, MethodConfig)
    config = module.Config(aux_block=1, local_crop_size_px=16).resolved(torch.device("cpu"), SIZE)
    backbone = vit_nano.build(vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=SIZE, weights=None))
    built = module.build(config, backbone, NUM_FOREGROUND_CLASSES)
    assert isinstance(built, Method)
    return built


def test_every_trainable_parameter_is_in_one_group(method):
    grouped = [id(p) for group in method.parameter_groups().values() for p in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in method.parameters() if p.requires_grad}
    assert set(method.parameter_groups()) <= {"backbone", "backbone_norms", "heads", "decoder"}


@pytest.mark.parametrize("step", [0, 10**6])
def test_losses_are_finite_and_reach_the_backbone(method, step):
    output = method.training_losses(batch(), step, torch.Generator().manual_seed(0))
    assert output.losses.keys() == output.weights.keys()
    assert all(loss.isfinite() and loss.ndim == 0 for loss in output.losses.values())
    expected = sum(output.weights[name] * loss.item() for name, loss in output.losses.items())
    assert output.total.item() == pytest.approx(expected, rel=1e-5)
    output.total.backward()
    gradients = [p.grad for p in method.parameter_groups()["backbone"]]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_a_step_is_a_function_of_state_batch_and_generator(method):
    state = {name: value.clone() for name, value in method.state_dict().items()}

    def losses():
        method.load_state_dict(state)
        output = method.training_losses(batch(), 10**6, torch.Generator().manual_seed(3))
        return {name: loss.item() for name, loss in output.losses.items()}

    assert losses() == losses()


def test_predictions_have_the_documented_shapes_and_no_gradient(method):
    method.eval()
    images, labels = batch().images, batch().class_labels
    cams = method.cams(images, (1.0, 0.5), flip=True)
    assert cams.cam.shape == cams.aux_cam.shape == (4, NUM_FOREGROUND_CLASSES, SIZE, SIZE)
    for cam in (cams.cam, cams.aux_cam):
        assert not cam.requires_grad
        assert cam.min() >= 0
        assert cam.max() <= 1
    prediction = method.predict(images, (1.0, 0.5), flip=True)
    torch.testing.assert_close(prediction.cams.cam, cams.cam, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prediction.cams.aux_cam, cams.aux_cam, atol=1e-5, rtol=1e-4)
    assert prediction.class_logits.shape == (4, NUM_FOREGROUND_CLASSES)
    assert prediction.segmentation_logits.shape == (4, NUM_FOREGROUND_CLASSES + 1, 4, 4)
    assert method.patch_size_px == SIZE // 4
    logits = method.segmentation_logits(images)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, prediction.segmentation_logits, atol=1e-5, rtol=1e-4)
    assert len(prediction.block_tokens) == 3
    assert not prediction.segmentation_logits.requires_grad
    pseudo = method.pseudo_labels(images, labels)
    assert pseudo.shape == (4, SIZE, SIZE)
    present = {0: {0, 1}, 1: {0, 2, 3}, 3: {0, 3}}
    for image, allowed in present.items():
        assert set(pseudo[image].unique().tolist()) <= allowed | {255}


def test_mirroring_the_image_mirrors_the_cam(method):
    method.eval()
    images = batch().images
    cams, mirrored = (method.cams(x, (1.0, 1.5), flip=True).cam for x in (images, images.flip(3)))
    torch.testing.assert_close(cams.flip(3), mirrored, atol=1e-4, rtol=1e-4)


def test_bfloat16_autocast_stays_close_and_keeps_losses_in_float32(method):
    images = batch().images
    method.eval()
    plain = method.cams(images, (1.0,), flip=False).cam
    method.autocast_dtype = torch.bfloat16
    output = method.training_losses(batch(), 10**6, torch.Generator().manual_seed(0))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in output.losses.values())
    reduced = method.cams(images, (1.0,), flip=False).cam
    assert reduced.dtype == torch.float32
    assert (plain - reduced).abs().mean() < 0.05
