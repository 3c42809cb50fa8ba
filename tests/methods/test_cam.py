"""The baseline against hand values and against a second implementation in plain torch."""

import pytest
import torch
import torch.nn.functional as F

from toco.backbones import Backbone, vit_nano
from toco.config import diff, replace
from toco.methods import cam, toco
from toco.recipes import shapes_nano
from toco.tensors import Batch, Features, present_classes
from toco.train.fork import prefix_digest, prefix_step

SIZE, CLASSES = 32, 3


class Pixels(Backbone):
    """Patches are pixels, and their tokens the colours."""

    width, depth, patch_size_px = 3, 1, 1

    def forward(self, images, aux_block=None, num_maps=None):
        return Features(images.mean((2, 3)), images, images)

    def aux_features(self, images, aux_block):
        return images

    def forward_blocks(self, images, aux_block=None):
        return self(images), [images.flatten(2).transpose(1, 2)]


def pixel_classifier():
    """The first class is red, the second is blue minus green."""
    method = cam.build(cam.Config(), Pixels(), num_foreground_classes=2)
    method.classifier.weight.data = torch.tensor([[1.0, 0, 0], [0, -1, 1]])
    return method.eval()


IMAGE = torch.tensor([[[[2.0, -1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 3.0, 1.0]]]])


def test_a_cam_by_hand():
    # Scores, ReLU, and from the least to the most of each map.
    cams = pixel_classifier().cams(IMAGE, (1.0,), flip=False)
    torch.testing.assert_close(
        cams.cam[0, :, 0], torch.tensor([[1, 0, 0, 0.5], [0, 0, 1, 1 / 3]]), atol=1e-5, rtol=0
    )
    assert cams.further == {}


def test_a_cam_of_two_scales_by_hand():
    # Half the size has the means of two neighbours, here of rows that are alike: red 0.5, 0.5; blue
    # - green -0.5, 2. Enlarged, the second is -0.5, 0.125, 1.375, 2.
    image = IMAGE.repeat(1, 1, 2, 1)
    cams = pixel_classifier().cams(image, (1.0, 0.5), flip=False).cam[0, :, 0]
    red = torch.tensor([2.5, 0.5, 0.5, 1.5])
    other = torch.tensor([0, 0.125, 4.375, 3.0])
    torch.testing.assert_close(
        cams, torch.stack([(red - 0.5) / 2, other / 4.375]), atol=1e-5, rtol=0
    )


def test_the_classifier_sees_the_highest_value_of_each_channel():
    prediction = pixel_classifier().predict(IMAGE, (1.0,), flip=False, present=torch.tensor([[1]]))
    # Red 2; blue 3 minus green 1, which are highest at different places.
    assert prediction.class_logits.tolist() == [[2.0, 2.0]]
    assert prediction.cams.cam.shape == (1, 1, 1, 4)
    assert prediction.segmentation_logits is None


def method(**settings):
    torch.manual_seed(0)
    backbone = vit_nano.build(
        vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=SIZE, weights=None)
    )
    # Half the pixels of these random maps are certain.
    defaults = {
        "decoder_width": 8,
        "decoder_dilation": 2,
        "low_threshold": 0.3,
        "high_threshold": 0.5,
    }
    return cam.build(cam.Config(**(defaults | settings)), backbone, CLASSES)


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, SIZE, SIZE, generator=generator)
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    box = torch.tensor([[0, SIZE, 0, SIZE], [0, SIZE, 8, SIZE], [4, 20, 0, 24], [0, SIZE, 0, SIZE]])
    return Batch(images, None, None, labels, box, tuple("abcd"), present_classes(labels))


def plain_cross_entropy(logits, label):
    """Mean over the background and mean over the foreground, half of each, pixel by pixel."""
    background, foreground = [], []
    for image_logits, image_label in zip(logits, label, strict=True):
        for y in range(SIZE):
            for x in range(SIZE):
                value = int(image_label[y, x])
                if value != 255:
                    loss = torch.logsumexp(image_logits[:, y, x], 0) - image_logits[value, y, x]
                    (foreground if value else background).append(loss)
    halves = [
        torch.stack(part).mean() if part else torch.zeros(()) for part in (background, foreground)
    ]
    return (halves[0] + halves[1]) / 2


def plain_total(model, data, step):
    """The loss of a step, written down once more without groups of images."""
    features = model.backbone(data.images).features
    logits = F.adaptive_max_pool2d(features, 1).flatten(1) @ model.classifier.weight.T
    total = F.binary_cross_entropy_with_logits(logits, data.class_labels)
    term = model.config.segmentation
    if step >= term.start_step and term.weight:
        with torch.no_grad():
            label = model.pseudo_labels(data.images, data.class_labels, data.valid_box)
        decoded = F.interpolate(
            model.decoder(features), size=(SIZE, SIZE), mode="bilinear", align_corners=False
        )
        total = total + term.weight * plain_cross_entropy(decoded, label)
    return total


@pytest.mark.parametrize("step", [4, 5])
def test_losses_and_gradients_are_those_of_plain_torch(step):
    model = method(
        segmentation={"weight": 0.4, "start_step": 5}, loss_group_size=None, cam_scales=(1.0, 0.5)
    )
    model, data = model.double(), batch()
    label = model.pseudo_labels(data.images.double(), data.class_labels.double(), data.valid_box)
    assert {0, 255} < set(label.unique().tolist())
    data = Batch(
        data.images.double(),
        None,
        None,
        data.class_labels.double(),
        data.valid_box,
        data.names,
        data.present,
    )
    output = model.training_losses(data, step, torch.Generator())
    assert set(output.losses) == {"classification"} | ({"segmentation"} if step == 5 else set())
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = plain_total(model, data, step)
    assert output.total.item() == pytest.approx(expected.item(), rel=1e-10)
    ours, plain = (
        torch.autograd.grad(t, parameters, allow_unused=True) for t in (output.total, expected)
    )
    assert [g is None for g in ours] == [g is None for g in plain]
    for a, b in zip(ours, plain, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)
    num_trained = len(parameters) - (len(list(model.decoder.parameters())) if step < 5 else 0)
    assert sum(g is not None for g in ours) == num_trained


def test_without_a_weight_there_is_no_decoder():
    model = method()
    assert not any(name.startswith("decoder") for name in model.state_dict())
    assert model.parameter_groups()["decoder"] == []
    assert set(model.training_losses(batch(), 10**6, torch.Generator()).losses) == {
        "classification"
    }
    with pytest.raises(ValueError, match="no decoder"):
        model.segmentation_logits(batch().images)


def test_it_starts_from_the_weights_that_toco_starts_from():
    """Rows of a table that are paired by seed differ in the method, not in the draw of what both
    have.
    """
    torch.manual_seed(0)
    backbone = vit_nano.build(
        vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=SIZE, weights=None)
    )
    other = toco.build(toco.Config.small(), backbone, CLASSES)
    assert torch.equal(method().classifier.weight, other.classifier.weight)


def test_a_setting_that_switches_the_method_starts_from_its_defaults():
    base = shapes_nano.recipe()
    changed = replace(base, {"method.name": "cam", "method.segmentation.weight": 0.1})
    assert changed.method == cam.Config(segmentation=cam.Term(weight=0.1))
    assert all(path.startswith("method.") for path in diff(base, changed))


def test_trainings_share_all_steps_before_the_decoder_joins():
    plain = replace(shapes_nano.recipe(), {"method.name": "cam", "device": "cpu"}).resolved()
    late = replace(plain, {"method.segmentation.weight": 0.1, "method.segmentation.start_step": 80})
    stronger, larger = (
        replace(late, {path: value})
        for path, value in (("method.segmentation.weight", 0.5), ("method.decoder_width", 64))
    )
    assert [prefix_step(config) for config in (plain, late, stronger)] == [None, 80, 80]
    digests = [prefix_digest(config, 80) for config in (late, stronger, larger, plain)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
