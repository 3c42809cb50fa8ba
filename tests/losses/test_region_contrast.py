import numpy as np
import pytest
import torch

from toco.cam.region_pooling import pool_regions, region_masks
from toco.losses.region_contrast import choose_partners, region_contrast_loss
from toco.tensors import present_classes

CASES = (
    "single_label",
    "multi_label",
    "multi_label_f32",
    "no_mixup",
    "only_partner",
    "own_partner",
    "one_image",
    "temperature_0_5",
    "clamp_binds",
    "official_size",
)


def regions_of(case, present):
    """Partner and own share by image and position in ``present``, from the recorded draws."""
    num_images, num_regions = present.shape
    partners = torch.arange(num_images * num_regions).view(num_images, num_regions)
    share = torch.ones(num_images, num_regions, dtype=torch.float64)
    draws = zip(case["regions"].tolist(), case["lambda"].tolist(), strict=True)
    for (image, class_, partner_image, partner_class), own_share in draws:
        column = present[image].tolist().index(class_)
        partner_column = present[partner_image].tolist().index(partner_class)
        partners[image, column] = partner_image * num_regions + partner_column
        share[image, column] = own_share
    return partners, share


@pytest.mark.parametrize("name", CASES)
def test_official_contrast(golden_cases, name):
    case = golden_cases("rca_contrast")[name]
    labels, embedding = case["labels"], case["embedding"].clone().requires_grad_()
    if "memory" in case:
        memory = case["memory"]
    else:
        random = np.random.RandomState(int(case["memory_seed"]))
        memory = torch.from_numpy(random.standard_normal(20 * 500 * 512).reshape(20, 500, 512))
    present = present_classes(labels)
    masks = region_masks(case["coarse_map"], labels, present)
    partners, share = regions_of(case, present)
    loss = region_contrast_loss(
        pool_regions(embedding, masks),
        masks.any(dim=(2, 3)),
        present,
        partners,
        share,
        memory,
        torch.ones(memory.shape[:2], dtype=torch.bool),
        float(case["temperature"]),
    ) * len(labels)  # official is the sum over the images
    loss.backward()
    exact = embedding.dtype == torch.float64
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if exact else {"rtol": 2e-5, "atol": 0}
    torch.testing.assert_close(loss, case["loss"], **tolerance)
    difference = (embedding.grad - case["grad_embedding"]).norm() / case["grad_embedding"].norm()
    assert difference < (1e-9 if exact else 1e-4)


def loss_of(memory, is_filled, embeddings, classes, is_region=None, temperature=1.0):
    num_regions = classes.numel()
    if is_region is None:
        is_region = torch.ones(classes.shape, dtype=torch.bool)
    return region_contrast_loss(
        embeddings,
        is_region,
        classes,
        torch.arange(num_regions).view(classes.shape),
        torch.ones(classes.shape),
        memory,
        is_filled,
        temperature,
    )


def test_the_loss_of_one_region_by_hand():
    memory = torch.tensor([[[2.0, 0.0], [0.0, 3.0]], [[-1.0, 0.0], [0.0, -1.0]]])
    is_filled = torch.tensor([[True, True], [True, False]])
    loss = loss_of(memory, is_filled, torch.tensor([[[5.0, 0.0]]]), torch.tensor([[0]]))
    # Cosines 1 and 0 with the own slots, -1 with the one negative; the empty slot does not count.
    negative = np.exp(-1.0)
    expected = np.mean([np.log(negative + np.exp(z)) - z for z in (1.0, 0.0)])
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_classes_without_slots_and_missing_regions_do_not_count():
    memory, is_filled = torch.randn(3, 2, 4), torch.tensor([[True, True], [False] * 2, [True] * 2])
    embeddings = torch.randn(2, 2, 4, requires_grad=True)
    classes = torch.tensor([[0, 1], [1, 2]])
    is_region = torch.tensor([[True, True], [True, False]])
    loss = loss_of(memory, is_filled, embeddings, classes, is_region)
    alone = loss_of(memory, is_filled, embeddings[:1, :1], classes[:1, :1])
    assert loss.item() == pytest.approx(alone.item() / 2, rel=1e-6)  # the second image counts 0
    loss.backward()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[0, 0].abs().sum() > 0
    assert embeddings.grad.flatten(0, 1)[1:].abs().sum() == 0


def test_a_partner_without_slots_matters_only_where_regions_are_mixed():
    memory, is_filled = torch.randn(3, 2, 4), torch.tensor([[True] * 2, [False] * 2, [True] * 2])
    embeddings, classes = torch.randn(1, 2, 4), torch.tensor([[0, 1]])
    is_region = torch.ones(1, 2, dtype=torch.bool)

    def loss(partner, share):
        partners = torch.tensor([[partner, 1]])
        shares = torch.tensor([[share, 1.0]])
        arguments = (embeddings, is_region, classes, partners, shares, memory, is_filled, 1.0)
        return region_contrast_loss(*arguments).item()

    assert loss(1, 1.0) == loss(0, 1.0) > 0
    assert loss(1, 0.9) == 0  # mixed with a class whose slots are empty


def test_an_empty_memory_gives_zero_and_finite_gradients():
    embeddings = torch.randn(2, 1, 4, requires_grad=True)
    loss = loss_of(
        torch.zeros(3, 2, 4), torch.zeros(3, 2).bool(), embeddings, torch.tensor([[0], [1]])
    )
    loss.backward()
    assert loss.item() == 0
    assert embeddings.grad.abs().sum() == 0


def test_no_gradient_reaches_the_memory():
    memory = torch.randn(3, 2, 4, requires_grad=True)
    embeddings = torch.randn(1, 1, 4, requires_grad=True)
    loss_of(memory, torch.ones(3, 2).bool(), embeddings, torch.tensor([[0]])).backward()
    assert memory.grad is None


IS_REGION = torch.tensor([[True, True], [True, False], [False, False]])
CLASSES = torch.tensor([[0, 2], [2, 3], [1, 2]])


def chosen(others_only, image_draw, class_draw):
    shape = CLASSES.shape
    return choose_partners(
        IS_REGION,
        CLASSES,
        torch.full(shape, image_draw),
        torch.full(shape, class_draw),
        others_only,
    )


def test_any_region_may_be_the_partner_itself_included():
    first, has_first = chosen(False, 0.0, 0.0)
    last, _ = chosen(False, 0.99, 0.99)
    second_of_first, _ = chosen(False, 0.49, 0.5)
    assert has_first.all()
    assert first.flatten().tolist() == [0] * 6
    assert last.flatten().tolist() == [2] * 6  # image 1 has one region; image 2 has none
    assert second_of_first.flatten().tolist() == [1] * 6


def test_other_partners_are_of_another_image_and_another_class():
    partners, has_partner = chosen(True, 0.99, 0.99)
    # Region 0 (class 0): only region 2 of image 1. Region 1 (class 2): image 1 has only class 2.
    assert has_partner[0].tolist() == [True, False]
    assert partners[0].tolist() == [2, 1]
    # Region 2 (class 2): region 0 of image 0, since region 1 has the same class.
    assert (bool(has_partner[1, 0]), int(partners[1, 0])) == (True, 0)


def test_partners_are_uniform_over_images_and_then_over_their_regions():
    random = torch.Generator().manual_seed(0)
    is_region, classes = torch.ones(2, 2, dtype=torch.bool), torch.tensor([[0, 1], [2, 3]])
    is_region[1, 1] = False
    counts = torch.zeros(4)
    for _ in range(500):
        draws = torch.rand(2, 2, 2, generator=random)
        partners, _ = choose_partners(is_region, classes, draws[0], draws[1], False)
        counts += torch.bincount(partners.flatten(), minlength=4)
    torch.testing.assert_close(
        counts / counts.sum(), torch.tensor([0.25, 0.25, 0.5, 0.0]), atol=0.04, rtol=0
    )
