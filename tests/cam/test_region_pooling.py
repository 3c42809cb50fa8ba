import pytest
import torch

from toco.cam.region_pooling import piled_masks, pool_regions, region_masks
from toco.tensors import present_classes


def test_official_regions_and_pooled_embeddings(golden_cases):
    case = golden_cases("rca_regions")["pooled"]
    labels = case["labels"]
    present = present_classes(labels)
    masks = region_masks(case["coarse_map"], labels, present)
    embedding = case["embedding"].requires_grad_()
    pooled = pool_regions(embedding, masks)
    of_region = [
        (image, present[image].tolist().index(class_)) for image, class_ in case["regions"].tolist()
    ]
    rows, columns = map(list, zip(*of_region, strict=True))
    assert torch.equal(masks[rows, columns], case["region_mask"])
    torch.testing.assert_close(pooled[rows, columns], case["pooled"], atol=1e-10, rtol=1e-10)
    (pooled[rows, columns] * case["upstream"]).sum().backward()
    torch.testing.assert_close(embedding.grad, case["grad_embedding"], atol=1e-9, rtol=1e-9)


def maps_and_labels():
    maps = torch.tensor([[[[0.0, 0, 0], [0, 6, 9]], [[5.0, 5, 5], [5, 5, 5]]]])
    return maps, torch.tensor([[1.0, 1.0]]), torch.tensor([[0, 1]])


def test_raw_scores_compare_the_map_with_its_own_mean():
    masks = region_masks(*maps_and_labels(), scores="raw")
    assert masks[0, 0].tolist() == [[False] * 3, [False, True, True]]  # the mean is 2.5
    assert not masks[0, 1].any()  # flat: nothing is above the mean


@pytest.mark.parametrize("value", [0.1, -3.3, 1e-30, 1e30])
@pytest.mark.parametrize("size", [3, 7, 14, 46])
def test_a_flat_map_has_no_region_however_its_mean_is_rounded(size, value):
    maps, present = torch.full((1, 2, size, size), value), torch.tensor([[0, 1]])
    for box in (None, torch.tensor([[0, size, 1, size]])):
        assert not region_masks(maps, torch.ones(1, 2), present, "raw", box).any()


def test_softmax_scores_of_two_classes_are_opposite():
    masks = region_masks(*maps_and_labels())
    assert masks[0, 0].tolist() == [[False] * 3, [False, True, True]]
    assert masks[0, 1].tolist() == [[True] * 3, [True, False, False]]


def test_padding_is_in_no_region_and_not_in_the_mean():
    maps, labels, present = maps_and_labels()
    box = torch.tensor([[1, 2, 1, 3]])  # the patches of 6 and 9, whose mean is 7.5
    masks = region_masks(maps, labels, present, "raw", box)
    assert masks[0, 0].tolist() == [[False] * 3, [False, False, True]]
    empty = region_masks(maps, labels, present, "raw", torch.tensor([[0, 0, 0, 0]]))
    assert not empty.any()


def test_absent_classes_have_no_region():
    maps, _, present = maps_and_labels()
    masks = region_masks(maps, torch.tensor([[0.0, 1.0]]), present)
    assert not masks[0, 0].any()
    assert masks[0, 1].any()


def test_no_gradient_reaches_the_maps():
    maps, labels, present = maps_and_labels()
    features = torch.ones(1, 2, 2, 3, requires_grad=True)
    maps.requires_grad_()
    pool_regions(features, region_masks(maps, labels, present)).sum().backward()
    assert maps.grad is None


def test_an_empty_region_pools_to_zeros():
    features = torch.full((1, 2, 2, 2), 3.0)
    masks = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    assert pool_regions(features, masks).tolist() == [[[0.0, 0.0]]]


def test_sure_classes_cut_the_later_ones_but_not_themselves():
    masks = torch.tensor([[[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[1, 1, 1, 1]]]]).bool()
    piled = piled_masks(masks, torch.tensor([[True, False, True]]))
    # The first is whole. The second keeps what the first has. It is not sure, so the third is cut
    # by the first alone.
    assert piled.int().tolist() == [[[[1, 1, 0, 0]], [[0, 1, 0, 0]], [[1, 1, 0, 0]]]]
