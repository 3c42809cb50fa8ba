import torch

from toco.cam.affinity import affinity


def test_every_recorded_affinity(golden_cases):
    cases = golden_cases("label_to_aff_mask")
    assert len(cases) == 5
    for case, a in cases.items():
        assert torch.equal(affinity(a["label"]), a["aff"]), case


def test_affinity_by_hand():
    label = torch.tensor([[[0, 0], [2, 255]]])
    assert affinity(label).tolist() == [
        [[255, 1, 0, 255], [1, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 255]]
    ]


def test_affinity_is_symmetric_and_small():
    result = affinity(torch.randint(0, 4, (2, 5, 7), dtype=torch.uint8))
    assert torch.equal(result, result.mT)
    assert result.dtype == torch.uint8
