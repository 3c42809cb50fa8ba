from dataclasses import replace

import pytest
import torch

from toco.backbones import vit_nano
from toco.methods import _method, _toco, toco
from toco.tensors import Batch, present_classes

SIZE, PATCH = 64, 8


def method(**settings):
    torch.manual_seed(0)
    backbone = vit_nano.build(
        vit_nano.Config(
            width=16, depth=3, num_heads=2, patch_size_px=PATCH, image_size_px=SIZE, weights=None
        )
    )
    defaults = {
        "aux_block": 1,
        "local_crop_size_px": 16,
        "segmentation": toco.Term(weight=0.1),
        "energy": toco.Term(weight=0.05),
        "dense_energy": toco.DenseEnergyConfig(filter_name="exact"),
    }
    return toco.build(toco.Config(**(defaults | settings)), backbone, num_foreground_classes=3)


def batch(images=4, box=None):
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(images, 3, SIZE, SIZE, generator=generator) for _ in range(3)]
    labels = torch.eye(3)[torch.arange(images) % 3]
    box = torch.tensor(box or [[0, SIZE, 0, SIZE]]).expand(images, 4)
    return Batch(*views, labels, box, tuple(map(str, range(images))), present_classes(labels))


def part(whole, start, stop):
    return Batch(
        whole.images[start:stop],
        whole.second_view[start:stop],
        whole.crop_source[start:stop],
        whole.class_labels[start:stop],
        whole.valid_box[start:stop],
        whole.names[start:stop],
        whole.present[start:stop],
    )


@pytest.fixture
def same_corners(monkeypatch):
    """Local crops at the same places whatever the batch."""

    def corners(regions, _keys, num_crops, _size):
        return torch.arange(num_crops)[None, :, None].expand(len(regions), -1, 2) * 4

    monkeypatch.setattr(_toco, "sample_crop_corners", corners)


def losses(model, data, step=10**6):
    # A step moves the teacher; two measurements must start from the same one.
    model.teacher.load_state_dict(model.projection.state_dict())
    return {
        k: v.item() for k, v in model.training_losses(data, step, torch.Generator()).losses.items()
    }


def test_groups_of_two_are_two_official_gpus(same_corners):
    model, whole = method(loss_group_size=2), batch(4)
    first, second = losses(model, part(whole, 0, 2)), losses(model, part(whole, 2, 4))
    together = losses(model, whole)
    for name in together:
        assert together[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-4), name


def test_one_group_of_four_is_another_loss(same_corners):
    model, whole = method(loss_group_size=2), batch(4)
    by_two = losses(model, whole)
    model.config = model.config.model_copy(update={"loss_group_size": None})
    by_four = losses(model, whole)
    assert by_four["ptc"] != pytest.approx(by_two["ptc"], rel=1e-4)
    assert by_four["classification"] == pytest.approx(by_two["classification"], rel=1e-5)


def test_the_official_box_silences_ptc_on_padded_images():
    """A border as wide as the token grid makes every slice of it empty."""
    padded = batch(2, box=[[16, SIZE, 16, SIZE]])
    assert losses(method(token_box="official"), padded)["ptc"] == pytest.approx(0.5)
    model = method(token_box="scaled")
    output = model.training_losses(padded, 0, torch.Generator())
    assert output.counts["ptc_positive_pairs"] + output.counts["ptc_negative_pairs"] > 0
    assert output.losses["ptc"].item() != pytest.approx(0.5, abs=1e-4)


def test_without_padding_both_boxes_agree():
    whole = batch(2)
    assert (
        losses(method(token_box="official"), whole)["ptc"]
        == losses(method(token_box="scaled"), whole)["ptc"]
    )


def test_terms_join_at_their_first_step_and_not_before():
    model = method(
        segmentation=toco.Term(weight=0.1, start_step=5), ctc=toco.Term(weight=0.5, start_step=3)
    )
    names = [set(losses(model, batch(2), step)) for step in (0, 3, 5)]
    assert names[0] == {"classification", "aux_classification", "ptc", "energy"}
    assert names[1] - names[0] == {"ctc"}
    assert names[2] - names[1] == {"segmentation"}


def test_without_the_contrasts_only_the_classifiers_train():
    off = toco.Term(weight=0.0)
    model = method(ptc=off, ctc=off, segmentation=off, energy=off)
    assert set(losses(model, batch(2))) == {"classification", "aux_classification"}


def test_without_the_auxiliary_loss_its_classifier_learns_nothing_and_nothing_may_use_its_cam():
    off = toco.Term(weight=0.0)
    model = method(ptc=off, ctc=off, aux_weight=0.0, segmentation=off, energy=off)
    output = model.training_losses(batch(2), 0, torch.Generator())
    assert set(output.losses) == {"classification"}
    output.total.backward()
    assert model.aux_classifier.weight.grad is None
    assert model.classifier.weight.grad.abs().max() > 0
    half = method(ptc=off, ctc=off, aux_weight=0.5, segmentation=off, energy=off)
    both = half.training_losses(batch(2), 0, torch.Generator())
    expected = both.losses["classification"] + 0.5 * both.losses["aux_classification"]
    assert both.total.item() == pytest.approx(expected.item(), rel=1e-6)
    for used in (
        {"ptc": toco.Term(weight=0.2)},
        {"ctc": toco.Term(weight=0.2)},
        {"aux_pseudo_labels_until_step": 5},
    ):
        with pytest.raises(ValueError, match="untrained classifier"):
            toco.Config(**{"ptc": off, "ctc": off, "aux_weight": 0.0, **used})


def test_the_decoder_first_learns_from_the_auxiliary_cam(monkeypatch):
    seen = []

    def refine(_images, cam, *_rest):
        seen.append(cam)
        return torch.zeros(len(cam), SIZE, SIZE, dtype=torch.int64)

    monkeypatch.setattr(_method, "refine_pseudo_label", refine)
    model, data = method(aux_pseudo_labels_until_step=5), batch(2)
    cams = model.cams(data.images, model.config.cam_scales, flip=True, present=data.present)
    losses(model, data, step=4)
    losses(model, data, step=5)
    torch.testing.assert_close(seen[0], cams.further["aux_cam"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen[1], cams.cam, atol=1e-4, rtol=1e-4)


def test_the_teacher_follows_by_the_decay_and_gets_no_gradient():
    model = method(ema_decay=0.75)
    with torch.no_grad():
        for parameter in model.projection.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in model.teacher.parameters()]
    output = model.training_losses(batch(2), 0, torch.Generator())
    output.total.backward()
    after = [
        0.75 * b + 0.25 * p for b, p in zip(before, model.projection.parameters(), strict=True)
    ]
    for parameter, expected in zip(model.teacher.parameters(), after, strict=True):
        torch.testing.assert_close(parameter, expected)
        assert parameter.grad is None


def test_cams_of_some_classes_are_those_of_all():
    model, images = method(), batch(3).images
    everything = model.cams(images, (1.0, 0.5), flip=True)
    present = torch.tensor([[0, 2], [1, 2], [0, 1]])
    for some in (
        model.cams(images, (1.0, 0.5), flip=True, present=present),
        model.predict(images, (1.0, 0.5), flip=True, present=present).cams,
    ):
        for maps, of_all in (
            (some.cam, everything.cam),
            (some.further["aux_cam"], everything.further["aux_cam"]),
        ):
            expected = of_all.gather(1, present[:, :, None, None].expand(-1, -1, SIZE, SIZE))
            torch.testing.assert_close(maps, expected, atol=2e-6, rtol=1e-5)


def test_classes_that_are_not_there_change_nothing():
    """One image with three classes makes room for three in all; the others' losses stay what they
    are alone.
    """
    model, data = method(ctc=toco.Term(weight=0.0)), batch(4)
    labels = data.class_labels.clone()
    labels[2:] = 1.0
    crowded = replace(data, class_labels=labels, present=present_classes(labels))
    assert crowded.present.shape == (4, 3)
    padded = replace(part(crowded, 0, 2), present=crowded.present[:2])
    alone = replace(part(crowded, 0, 2), present=present_classes(labels[:2]))
    assert alone.present.shape == (2, 1)
    expected = losses(model, alone)
    assert losses(model, padded) == pytest.approx(expected, rel=1e-5)


def test_weights_cast_once_a_step_give_what_weights_cast_in_every_pass_give():
    """Gradients too: a weight first cast where no gradient is wanted would
    be cut off from its own.
    """
    model, data = method(), batch(2)
    model.autocast_dtype = torch.bfloat16
    found = []
    for cached in (True, False):
        model.zero_grad()
        model.teacher.load_state_dict(model.projection.state_dict())
        torch.set_autocast_cache_enabled(cached)
        try:
            output = model.training_losses(data, 10**6, torch.Generator().manual_seed(0))
        finally:
            torch.set_autocast_cache_enabled(True)
        output.total.backward()
        found.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    once, every_time = found
    assert once.keys() == every_time.keys()
    for name, gradient in once.items():
        # The sum of a weight's gradients over passes is rounded to bfloat16 in another order.
        assert (gradient - every_time[name]).norm() <= 0.02 * every_time[name].norm(), name


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"aux_block is 3, but this backbone has blocks 0 to 2"):
        method(aux_block=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low_threshold": 0.8}, "above high_threshold"),
        ({"cam_scales": (1.0, 0.0)}, "greater than 0"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"aux_block": -3}, "greater than or equal to 0"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        toco.Config(**settings)


def test_small_temperatures_stay_finite():
    assert all(
        torch.isfinite(torch.tensor(list(losses(method(temperature=0.01), batch(2)).values())))
    )
