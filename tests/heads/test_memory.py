import pytest
import torch

from toco.cam.region_pooling import piled_masks, pool_regions, region_masks
from toco.heads.memory import RegionMemory
from toco.tensors import present_classes

CASES = (
    "one_class",
    "several_classes",
    "threshold_and_below",
    "first_class_not_sure",
    "absent_class_sure",
    "batch",
    "wraps_around",
    "empty_region_nan",
)


def memory_of(case, settings):
    num_classes, num_slots, width = case["memory_before"].shape
    memory = RegionMemory(num_classes, num_slots, width, 2, float(settings["momentum"]), "noise")
    memory.double()
    memory.slots.copy_(case["memory_before"])
    memory.pointer.copy_(case["pointer_before"])
    return memory


def update(memory, case, settings, own_masks):
    labels = case["labels"]
    present = present_classes(labels)
    masks = region_masks(case["coarse_map"], labels, present)
    areas = masks.sum(dim=(2, 3)).double()
    is_sure = case["probabilities"].gather(1, present) > settings["threshold"]
    is_sure = is_sure & masks.any(dim=(2, 3))
    over = masks if own_masks else piled_masks(masks, is_sure)
    pooled = pool_regions(case["features"], over, areas)
    memory.update_(pooled.flatten(0, 1), present.flatten(), is_sure.flatten())


@pytest.mark.parametrize("name", CASES)
def test_official_update(golden_cases, name):
    cases = golden_cases("rca_memory")
    case, settings = cases[name], cases["settings"]
    memory = memory_of(case, settings)
    update(memory, case, settings, own_masks=False)
    expected, pointer = case["memory_after"], case["pointer_after"]
    if name == "empty_region_nan":
        # Official writes 0/0 to the slot and moves the pointer; here the region is skipped.
        assert expected.isnan().any()
        expected, pointer = case["memory_before"], case["pointer_before"]
    torch.testing.assert_close(memory.slots, expected, atol=1e-10, rtol=1e-10)
    assert torch.equal(memory.pointer, pointer)


def test_every_region_with_its_own_mask(golden_cases):
    cases = golden_cases("rca_memory")
    case, settings = cases["several_classes"], cases["settings"]
    memory = memory_of(case, settings)
    update(memory, case, settings, own_masks=True)
    derived = cases["derived_own_masks"]
    torch.testing.assert_close(memory.slots, derived["memory_after"], atol=1e-10, rtol=1e-10)
    assert torch.equal(memory.pointer, derived["pointer_after"])
    assert not torch.allclose(memory.slots, case["memory_after"])


def filled(*values, momentum=0.5, num_slots=2):
    """A memory of one class and one channel after updates with ``values``."""
    memory = RegionMemory(1, num_slots, 1, 0, momentum, "empty")
    for value in values:
        memory.update_(torch.tensor([[value]]), torch.tensor([0]), torch.tensor([True]))
    return memory


def test_the_first_update_of_a_slot_replaces_it_and_later_ones_average():
    memory = filled(4.0)
    assert memory.slots.flatten().tolist() == [4, 0]
    assert memory.is_filled().tolist() == [[True, False]]
    memory = filled(4.0, 6.0, 8.0)
    assert memory.slots.flatten().tolist() == [6, 6]  # (4 + 8) / 2
    assert memory.pointer.tolist() == [1]
    assert memory.is_filled().all()


def test_many_regions_at_once_equal_one_at_a_time():
    random = torch.Generator().manual_seed(0)
    pooled = torch.randn(40, 3, generator=random)
    classes = torch.randint(4, (40,), generator=random)
    is_sure = torch.rand(40, generator=random) > 0.3
    at_once, one_by_one = (RegionMemory(4, 3, 3, 0, 0.9, "empty") for _ in range(2))
    at_once.update_(pooled, classes, is_sure)
    for row in range(40):
        part = slice(row, row + 1)
        one_by_one.update_(pooled[part], classes[part], is_sure[part])
    for name, value in at_once.state_dict().items():
        torch.testing.assert_close(value, one_by_one.state_dict()[name])


def test_clusters_are_of_the_filled_slots_and_classes_without_slots_have_none():
    import numpy as np

    memory = RegionMemory(2, 4, 1, 2, 0.5, "empty")
    for value in (1.0, 1.2, 9.0):
        memory.update_(torch.tensor([[value]]), torch.tensor([0]), torch.tensor([True]))
    memory.cluster_(3, 10, np.random.default_rng(0))
    assert sorted(memory.centroids[0].flatten().tolist()) == pytest.approx([1.1, 9.0])
    assert memory.centroids[1].tolist() == [[0], [0]]
    assert memory.is_clustered.tolist() == [True, False]


def test_noise_counts_from_the_start():
    torch.manual_seed(0)
    memory = RegionMemory(3, 50, 20, 4, 0.99, "noise")
    assert memory.is_filled().all()
    assert memory.is_clustered.all()
    assert memory.slots.std().item() == pytest.approx(1, abs=0.05)
    assert memory.centroids.std().item() == pytest.approx(1, abs=0.1)


def test_all_state_is_in_the_checkpoint():
    memory = RegionMemory(3, 5, 2, 4, 0.9, "empty")
    assert set(memory.state_dict()) == {
        "slots",
        "pointer",
        "filled",
        "centroids",
        "is_clustered",
    }
