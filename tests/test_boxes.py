import pytest
import torch

from toco.boxes import clip, full_boxes, inside

SIZE = (4, 6)
BOXES = [
    [0, 4, 0, 6],
    [1, 3, 2, 5],
    [2, 2, 0, 6],
    [0, 4, 5, 99],
    [100, 348, 0, 448],
    [-2, 2, -9, -1],
    [3, 1, 0, 6],
]


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_inside_is_what_a_slice_of_the_clipped_box_takes(dtype):
    boxes = torch.tensor(BOXES, dtype=dtype)
    for mask, (y0, y1, x0, x1) in zip(
        inside(boxes, *SIZE), clip(boxes, *SIZE).tolist(), strict=True
    ):
        expected = torch.zeros(SIZE, dtype=torch.bool)
        expected[y0:y1, x0:x1] = True
        assert torch.equal(mask, expected)


def test_clip_by_hand():
    expected = [
        [0, 4, 0, 6],
        [1, 3, 2, 5],
        [2, 2, 0, 6],
        [0, 4, 5, 6],
        [4, 4, 0, 6],
        [0, 2, 0, 0],
        [3, 3, 0, 6],
    ]
    assert clip(torch.tensor(BOXES), *SIZE).tolist() == expected


def test_whole_has_every_pixel():
    assert inside(full_boxes(2, *SIZE, torch.device("cpu")), *SIZE).all()
