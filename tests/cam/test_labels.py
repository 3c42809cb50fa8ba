import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toco.boxes import inside
from toco.cam.labels import (
    cam_to_label,
    cam_to_pseudo_label,
    ignore_outside,
    mask_absent_classes,
    scale_box,
    where_certain,
)


def test_every_recorded_label(golden_cases):
    cases = golden_cases("cam_to_label")
    assert len(cases) == 18
    for case, a in cases.items():
        background, high, low, _ = a["thr_bkg_high_low_ignore"].tolist()
        if a["ignore_mid"]:
            label = cam_to_pseudo_label(a["cam"], a["cls_label"], low, high, a["img_box"])
        else:
            label = cam_to_label(a["cam"], a["cls_label"], background)
            if "img_box" in a:
                label = ignore_outside(label, a["img_box"])
        assert torch.equal(label, a["label"]), case
        if "valid_cam" in a:
            assert torch.equal(mask_absent_classes(a["cam"], a["cls_label"]), a["valid_cam"]), case


def test_labels_by_hand():
    cam = torch.tensor([[[[0.9, 0.6, 0.2, 0.0]], [[0.1, 0.6, 0.3, 0.9]], [[1.0, 1.0, 1.0, 1.0]]]])
    class_labels = torch.tensor([[1.0, 1.0, 0.0]])
    assert cam_to_label(cam, class_labels, 0.3).tolist() == [[[1, 1, 0, 2]]]
    assert cam_to_pseudo_label(cam, class_labels, 0.3, 0.7).tolist() == [[[1, 255, 0, 2]]]
    box = torch.tensor([[0, 1, 1, 4]])
    assert cam_to_pseudo_label(cam, class_labels, 0.3, 0.7, box).tolist() == [[[255, 255, 0, 2]]]


def test_a_score_at_the_float32_threshold_is_not_above_it():
    at = torch.tensor(0.7, dtype=torch.float32)
    above = torch.nextafter(at, torch.tensor(1.0))
    cam = torch.stack([at, above]).view(1, 1, 1, 2)
    assert cam_to_label(cam, torch.ones(1, 1), 0.7).tolist() == [[[0, 1]]]
    assert cam_to_pseudo_label(cam, torch.ones(1, 1), 0.25, 0.7).tolist() == [[[255, 1]]]


@given(st.integers(0, 2**31), st.integers(0, 100), st.integers(0, 100))
def test_mirrored_cam_gives_mirrored_label(seed, low, high):
    low, high = sorted((low / 100, high / 100))
    generator = torch.Generator().manual_seed(seed)
    cam = torch.rand(2, 3, 4, 5, generator=generator)
    class_labels = torch.randint(0, 2, (2, 3), generator=generator).float()
    label = cam_to_pseudo_label(cam, class_labels, low, high)
    assert torch.equal(cam_to_pseudo_label(cam.flip(-1), class_labels, low, high), label.flip(-1))
    # Confident labels are the ones that a single threshold would give, too.
    confident = (label != 0) & (label != 255)
    assert torch.equal(confident, cam_to_label(cam, class_labels, high) != 0)
    assert torch.equal(label[confident], cam_to_label(cam, class_labels, high)[confident])
    assert torch.equal(label == 0, cam_to_label(cam, class_labels, low) == 0)


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"low is 0\.7 and high is 0\.25"):
        cam_to_pseudo_label(torch.rand(1, 1, 2, 2), torch.ones(1, 1), 0.7, 0.25)


def test_scale_box_by_hand():
    # 16 px per token: a token is inside when its centre (8, 24, 40, ...) is.
    boxes = torch.tensor(
        [[0, 448, 0, 448], [8, 9, 9, 24], [7, 25, 60, 388], [100, 100, 0, 8]], dtype=torch.int16
    )
    expected = [[0, 28, 0, 28], [0, 1, 1, 1], [0, 2, 4, 24], [6, 6, 0, 0]]
    assert scale_box(boxes, (448, 448), (28, 28)).tolist() == expected


@given(
    st.tuples(*[st.integers(0, 60)] * 4),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_scale_box_keeps_exactly_the_cells_with_their_centre_inside(edges, from_size, to_size):
    y0, y1, x0, x1 = edges
    scaled = scale_box(torch.tensor([edges]), from_size, to_size)
    is_inside = inside(scaled, *to_size)[0]
    for row in range(to_size[0]):
        for column in range(to_size[1]):
            # Centre * 2 * to_size, in whole numbers.
            y, x = (2 * row + 1) * from_size[0], (2 * column + 1) * from_size[1]
            expected = (
                2 * to_size[0] * y0 <= y < 2 * to_size[0] * y1
                and 2 * to_size[1] * x0 <= x < 2 * to_size[1] * x1
            )
            assert bool(is_inside[row, column]) is expected


def test_a_label_is_certain_where_both_background_scores_agree():
    # Class 2 against the low score and 1 against the high one: the high one decides.
    against_low = torch.tensor([[[0, 2, 2, 2]]])
    against_high = torch.tensor([[[0, 0, 2, 1]]])
    assert where_certain(against_low, against_high).tolist() == [[[0, 255, 2, 1]]]
