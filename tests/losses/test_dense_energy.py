import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toco.boxes import inside
from toco.losses.config import DenseEnergyConfig
from toco.losses.dense_energy import _nearest_box, dense_energy, dense_energy_loss

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [
    entry["case"] for entry in json.loads((GOLDEN / "energy_lattice_vs_exact.json").read_text())
]
FILTERS = ["exact", "lattice"]
EXACT = DenseEnergyConfig(filter_name="exact")


def box_of(region: Tensor) -> list[int]:
    """The rectangle that a recorded region is."""
    (rows,), (columns,) = (region.any(dim).nonzero(as_tuple=True) for dim in (1, 0))
    box = [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1] if len(rows) else [0, 0, 0, 0]
    y0, y1, x0, x1 = map(int, box)
    assert region.sum() == (y1 - y0) * (x1 - x0), "the region is no rectangle"
    return [y0, y1, x0, x1]


def run_case(arrays, case: str, filter_name: str, **settings: float) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a recorded case."""
    images, probabilities, regions, label = (
        torch.tensor(arrays[f"{case}__{name}"])
        for name in ("images255", "seg_prob", "roi", "label")
    )
    scale, weight, sigma_rgb, sigma_xy = (
        float(value) for value in arrays[f"{case}__scale_weight_srgb_sxy"]
    )
    loss = dense_energy(
        images,
        probabilities.requires_grad_(),
        label,
        torch.tensor([box_of(region) for region in regions.bool()]),
        DenseEnergyConfig(
            filter_name=filter_name,
            weight=weight,
            sigma_rgb=sigma_rgb,
            sigma_xy=sigma_xy,
            scale=scale,
            **settings,
        ),
    )
    loss.backward()
    return loss.detach(), probabilities.grad


def relative_error(result: Tensor, expected: Tensor) -> float:
    return (torch.linalg.norm(result - expected) / torch.linalg.norm(expected)).item()


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_recorded_energy(golden, case, filter_name):
    arrays = golden("energy")
    loss, gradient = run_case(arrays, case, filter_name)
    # Found: at most 2e-7 for both filters.
    assert loss.item() == pytest.approx(arrays[f"{case}__{filter_name}_loss"].item(), rel=1e-6)
    assert relative_error(gradient, torch.tensor(arrays[f"{case}__{filter_name}_grad"])) < 1e-6


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("case", ["get_energy_two_images", "get_energy_real96"])
def test_equals_the_recorded_training_call(golden, case, filter_name):
    arrays = golden("energy")
    normalised, logits, label, box = (
        torch.tensor(arrays[f"{case}__{name}"])
        for name in ("img_normalised", "logit", "label", "img_box")
    )
    mean, std = (
        torch.tensor(c).view(3, 1, 1) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    loss = dense_energy_loss(
        (normalised * std + mean) * 255,
        logits.requires_grad_(),
        label,
        box,
        DenseEnergyConfig(filter_name=filter_name),
    )
    loss.backward()
    assert loss.item() == pytest.approx(arrays[f"{case}__{filter_name}_loss"].item(), rel=1e-6)
    # Found: 9e-7; the softmax cancels.
    assert (
        relative_error(logits.grad, torch.tensor(arrays[f"{case}__{filter_name}_grad_logit"]))
        < 3e-6
    )


def test_ratio_of_the_filters_is_the_recorded_one(golden):
    for entry in json.loads((GOLDEN / "energy_lattice_vs_exact.json").read_text()):
        by_exact, gradient_exact = run_case(golden("energy"), entry["case"], "exact")
        by_lattice, gradient_lattice = run_case(golden("energy"), entry["case"], "lattice")
        assert (by_lattice / by_exact).item() == pytest.approx(entry["ratio"], rel=1e-5)
        cosine = torch.cosine_similarity(
            gradient_lattice.flatten(), gradient_exact.flatten(), dim=0
        )
        assert cosine.item() == pytest.approx(entry["grad_cosine"], abs=1e-5)


def two_pixels(label: list[int], **settings: float) -> tuple[Tensor, Tensor]:
    """Neighbours of one colour, probabilities (0.9, 0.1) and (0.6, 0.4); sigma_xy 1, so that k =
    exp(-1/2).
    """
    probabilities = torch.tensor(
        [[[[0.9, 0.6]], [[0.1, 0.4]]]], dtype=torch.float64, requires_grad=True
    )
    loss = dense_energy(
        torch.full((1, 3, 1, 2), 100.0, dtype=torch.float64),
        probabilities,
        torch.tensor([[label]]),
        torch.tensor([[0, 1, 0, 2]]),
        DenseEnergyConfig(filter_name="exact", sigma_xy=1.0, scale=1.0, **settings),
    )
    loss.backward()
    return loss.detach(), probabilities.grad


def test_two_pixels_by_hand():
    k = math.exp(-0.5)
    filtered = [[0.9 + k * 0.6, 0.6 + k * 0.9], [0.1 + k * 0.4, 0.4 + k * 0.1]]
    gates = [1.0, 1 - 0.6]  # unlabelled; labelled, with a largest probability of 0.6
    probabilities = [(0.9, 0.6), (0.1, 0.4)]
    terms = sum(probabilities[c][i] * gates[i] * filtered[c][i] for c in range(2) for i in range(2))
    loss, gradient = two_pixels([255, 1], weight=2.0, energy_scale=0.5)
    assert loss.item() == pytest.approx(-terms, rel=1e-6)
    for class_index in range(2):
        for pixel in range(2):
            expected = -2 * gates[pixel] * filtered[class_index][pixel]
            assert gradient[0, class_index, 0, pixel].item() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_the_official_one_and_not_the_derivative():
    """With every gate open the two are the same; a gate that closes on one pixel parts them."""

    def value(shift: float, label: list[int]) -> float:
        gates = [
            1.0 if value == 255 else 1 - max(p)
            for value, p in zip(label, [(0.9, 0.1), (0.6, 0.4)], strict=True)
        ]
        k, p = math.exp(-0.5), [0.9 + shift, 0.6]
        return -(gates[0] * p[0] * (p[0] + k * p[1]) + gates[1] * p[1] * (p[1] + k * p[0]))

    for label, same in (([255, 255], True), ([255, 1], False)):
        derivative = (value(1e-5, label) - value(-1e-5, label)) / 2e-5
        _, gradient = two_pixels(label, weight=1.0)
        assert (abs(gradient[0, 0, 0, 0].item() - derivative) < 1e-6) is same


def random_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "images255": torch.rand(2, 3, 24, 20, generator=generator) * 255,
        "logits": torch.randn(2, 4, 24, 20, generator=generator),
        "label": torch.full((2, 24, 20), 255),
        "valid_box": torch.tensor([[4, 24, 0, 20], [0, 24, 6, 14]]),
    }


@pytest.mark.parametrize("filter_name", FILTERS)
def test_outside_the_box_nothing_attracts(filter_name):
    batch = random_batch()
    batch["logits"].requires_grad_()
    loss = dense_energy_loss(**batch, config=DenseEnergyConfig(filter_name=filter_name))
    loss.backward()
    gradient = batch["logits"].grad.abs().sum(1)
    assert (gradient[0, :4] == 0).all()
    assert (gradient[1, :, :6] == 0).all()
    assert (gradient[1, :, 14:] == 0).all()
    assert (gradient[0, 4:] > 0).all()
    changed = dict(batch, logits=batch["logits"].detach().clone())
    changed["logits"][0, :, :4] = 50 * torch.randn(
        4, 4, 20, generator=torch.Generator().manual_seed(9)
    )
    assert dense_energy_loss(
        **changed, config=DenseEnergyConfig(filter_name=filter_name)
    ).item() == pytest.approx(loss.item(), rel=1e-6)


def test_a_box_beyond_the_image_is_cut_and_an_empty_box_gives_zero():
    batch = random_batch()
    whole = dict(batch, valid_box=torch.tensor([[0, 24, 0, 20]] * 2))
    beyond = dict(batch, valid_box=torch.tensor([[0, 99, 0, 99]] * 2))
    assert torch.equal(
        dense_energy_loss(**beyond, config=EXACT), dense_energy_loss(**whole, config=EXACT)
    )
    empty = dict(batch, valid_box=torch.tensor([[7, 7, 0, 20]] * 2))
    empty["logits"].requires_grad_()
    loss = dense_energy_loss(**empty, config=EXACT)
    loss.backward()
    assert loss.item() == 0
    assert (empty["logits"].grad == 0).all()


@pytest.mark.parametrize(
    ("size", "small"),
    [((24, 20), (12, 10)), ((13, 11), (6, 5)), ((9, 7), (4, 3)), ((8, 8), (8, 8))],
)
def test_small_pixels_of_a_box_are_those_whose_nearest_neighbours_are_in_it(size, small):
    edges = [
        torch.randint(-3, side + 4, (200, 2), generator=torch.Generator().manual_seed(side))
        for side in size
    ]
    boxes = torch.cat(edges, dim=1)
    result = inside(_nearest_box(boxes, size, small), *small)
    row, column = (torch.arange(out) * side // out for side, out in zip(size, small, strict=True))
    assert torch.equal(result, inside(boxes, *size)[:, row[:, None], column])
    assert result.any()


def test_mean_over_images_and_sum_over_pixels():
    batch = random_batch()
    single = [
        dense_energy_loss(**{name: value[i : i + 1] for name, value in batch.items()}, config=EXACT)
        for i in range(2)
    ]
    whole = dense_energy_loss(**batch, config=EXACT)
    assert whole.item() == pytest.approx((single[0] + single[1]).item() / 2, rel=1e-6)
    # One colour, one box: four times the pixels, each with four times the partners.
    flat = {
        side: dense_energy_loss(
            torch.full((1, 3, side, side), 128.0),
            torch.zeros(1, 4, side, side),
            torch.full((1, side, side), 255),
            torch.tensor([[0, side, 0, side]]),
            DenseEnergyConfig(filter_name="exact", sigma_xy=1e6),
        ).item()
        for side in (8, 16)
    }
    assert flat[16] == pytest.approx(16 * flat[8], rel=1e-5)


def test_confident_labelled_pixels_are_left_alone():
    batch = random_batch()
    batch["label"] = torch.ones(2, 24, 20, dtype=torch.uint8)
    batch["logits"] = (
        (100 * torch.nn.functional.one_hot(torch.ones(2, 24, 20, dtype=torch.long), 4))
        .movedim(-1, 1)
        .float()
    )
    assert dense_energy_loss(**batch, config=EXACT).item() == 0


def test_energy_scale_multiplies_value_and_gradient(golden):
    loss, gradient = run_case(golden("energy"), "smooth32", "exact")
    scaled_loss, scaled_gradient = run_case(golden("energy"), "smooth32", "exact", energy_scale=0.6)
    assert scaled_loss.item() == pytest.approx(0.6 * loss.item(), rel=1e-6)
    torch.testing.assert_close(scaled_gradient, 0.6 * gradient)


def test_energy_scale_makes_the_filters_comparable():
    """0.6 brings the exact energy within a tenth of the lattice on photographs, near it on a smooth
    generated image.
    """
    photographs = json.loads((GOLDEN / "energy_lattice_vs_exact_224_photos.json").read_text())
    for entry in photographs:
        assert entry["ratio of energies lattice/exact"] == pytest.approx(0.6, rel=0.1)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic").clamp(0, 1)
    images = 235 * smooth + 20 * torch.rand(1, 3, 224, 224, generator=generator)
    logits = torch.cat([smooth, 1 - smooth], dim=1) * 6
    gradients, losses = {}, {}
    for name, energy_scale in (("exact", 0.6), ("lattice", 1.0)):
        leaf = logits.clone().requires_grad_()
        label, box = torch.full((1, 224, 224), 255), torch.tensor([[0, 224, 0, 224]])
        config = DenseEnergyConfig(filter_name=name, energy_scale=energy_scale)
        loss = dense_energy_loss(images, leaf, label, box, config)
        loss.backward()
        losses[name], gradients[name] = loss.item(), leaf.grad.flatten()
    assert losses["exact"] == pytest.approx(losses["lattice"], rel=0.15)
    assert torch.cosine_similarity(gradients["exact"], gradients["lattice"], dim=0) > 0.99


def test_an_image_that_scales_to_nothing_is_refused():
    batch = random_batch()
    with pytest.raises(ValueError, match=r"empty at scale 0\.01"):
        dense_energy_loss(**batch, config=DenseEnergyConfig(filter_name="exact", scale=0.01))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_exact_loss_is_that_of_the_cpu_and_waits_for_nothing():
    batch = {name: value.cuda() for name, value in random_batch().items()}
    expected = dense_energy_loss(**random_batch(), config=EXACT)
    dense_energy_loss(**batch, config=EXACT)  # what is compiled is waited for, once
    torch.cuda.synchronize()
    batch["logits"].requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = dense_energy_loss(**batch, config=EXACT)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
