"""RCA with every setting official against the official network: three steps of a tiny one, and the
names, shapes and rates of the full one.
"""

import numpy as np
import pytest
import torch

from toco.backbones import vgg16
from toco.backbones._vgg16 import Vgg16
from toco.methods import _rca_parts, rca
from toco.recipes import voc_rca_vgg16
from toco.tensors import Batch, present_classes
from toco.train.optim import build_optimizer, set_lr
from toco.train.optim_config import SgdConfig
from toco.types import IMAGENET_MEAN, IMAGENET_STD

NUM_STEPS = 3
MEAN, STD = (
    torch.tensor(values, dtype=torch.float64)[:, None, None]
    for values in (IMAGENET_MEAN, IMAGENET_STD)
)
PARTS = {
    "extra_F": "rca_parts.embedding.layers",
    "Q": "rca_parts.aggregation.query",
    "K": "rca_parts.aggregation.key",
    "V": "rca_parts.aggregation.value",
    "aggre": "rca_parts.aggregation.context",
    "concat_project": "rca_parts.aggregation.project",
    "extra_convs": "coarse.layers",
}
CLOSE = {"atol": 1e-10, "rtol": 1e-9}


def own_name(official):
    part, _, rest = official.partition(".")
    if part == "features":
        return f"backbone.vgg.{official}"
    if part in PARTS:
        return f"{PARTS[part]}.{rest}"
    return f"classifier.layers.{rest}"


def own_state(recorded, num_classes):
    """Our names; the private heads are one grouped convolution, class by class."""
    state = {}
    for official in recorded:
        part, _, rest = official.partition(".")
        if part.startswith("extra_convs") and part != "extra_convs":
            chains = [recorded[f"extra_convs{index}.{rest}"] for index in range(num_classes)]
            state[own_name(official)] = torch.cat(chains)
        elif "running_" not in rest and "num_batches" not in rest and "." in official:
            state[own_name(official)] = recorded[official]
    for name, ours in (("queue", "slots"), ("cluter", "centroids")):
        classes = [recorded[f"{name}{index}"] for index in range(num_classes)]
        state[f"rca_parts.memory.{ours}"] = torch.stack(classes)
    pointers = [recorded[f"queue_ptr{index}"] for index in range(num_classes)]
    state["rca_parts.memory.pointer"] = torch.cat(pointers).long()
    return state


@pytest.fixture(scope="module")
def arrays(golden):
    return {
        name: value if value.dtype.kind == "U" else torch.from_numpy(np.array(value))
        for name, value in golden("rca_network").items()
    }


def part(arrays, prefix):
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


@pytest.fixture
def method(arrays):
    import toco.backbones._torchvision  # noqa: F401 - must come before timm
    from timm.models.vgg import VGG  # isort: skip

    width, num_classes, slots, centroids, num_images = arrays["settings"].tolist()
    config = rca.Config(
        loss_group_size=num_images,
        region_contrast=rca.RegionContrastConfig(
            weight=0.01 * num_images, start_step=1, partner="any"
        ),
        region_memory=rca.MemoryConfig(slots=slots, start="noise", own_masks=False),
        aggregation=rca.AggregationConfig(centroids=centroids, every=NUM_STEPS),
    )
    widths = [4, 4, "M", 6, 6, "M", 8, 8, 8, "M", *[width] * 3, "M", *[width] * 3, "M"]
    vgg = VGG(widths, num_classes=1, mlp_ratio=1 / 4096)
    built = rca.build(config, Vgg16(vgg), num_classes).double()
    state = built.state_dict() | own_state(part(arrays, "state_before/"), num_classes)
    built.load_state_dict(state)
    return built


def batch_of(step):
    pixels = step["pixels_u8"].permute(0, 3, 1, 2)
    labels = step["labels"].double()
    size = pixels.shape[2:]
    return Batch(
        images=(pixels.double() / 255 - MEAN) / STD,
        second_view=None,
        crop_source=None,
        class_labels=labels,
        valid_box=torch.tensor([[0, size[0], 0, size[1]]]).expand(len(pixels), -1),
        names=tuple(map(str, range(len(pixels)))),
        present=present_classes(labels),
    )


def use_recorded_draws(monkeypatch, step, batch, with_contrast):
    """Mix the recorded pairs of regions in the recorded shares."""
    num_images, num_regions = batch.present.shape
    partners = torch.arange(num_images * num_regions).view(num_images, num_regions)
    share = torch.ones_like(batch.class_labels)
    for (image, class_, partner_image, partner_class), own_share in zip(
        step["regions"].tolist(), step["lambda"].tolist(), strict=True
    ):
        column = batch.present[image].tolist().index(class_)
        partner_column = batch.present[partner_image].tolist().index(partner_class)
        partners[image, column] = partner_image * num_regions + partner_column
        share[image, class_] = own_share
    draws = _rca_parts.Draws(torch.zeros_like(share), torch.zeros_like(share), share)
    monkeypatch.setattr(
        _rca_parts.RcaParts, "begin_step", lambda *_: draws if with_contrast else None
    )
    monkeypatch.setattr(
        _rca_parts, "choose_partners", lambda *_: (partners, torch.ones_like(partners) > 0)
    )


def gradients_of(method):
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def compare_gradients(method, recorded, num_classes):
    ours = gradients_of(method)
    for name, expected in recorded.items():
        if name == "extra_F.0.bias":
            continue  # a batch norm follows, so the gradient is zero but for rounding
        found = ours[own_name(name)]
        head, _, _ = name.partition(".")
        if head.startswith("extra_convs") and head != "extra_convs":
            found = found.chunk(num_classes)[int(head.removeprefix("extra_convs"))]
        if expected.ndim == 0:
            found = found.norm()
        assert (found - expected).norm() <= 1e-9 * expected.norm() + 1e-13, name


def test_three_official_steps(arrays, method, monkeypatch):
    _, num_classes, _, _, num_images = arrays["settings"].tolist()
    config = SgdConfig()
    optimizer = build_optimizer(method, config)
    for index in range(NUM_STEPS):
        step = part(arrays, f"step{index}__")
        batch = batch_of(step)
        use_recorded_draws(monkeypatch, step, batch, with_contrast=index > 0)
        output = method.training_losses(batch, index, torch.Generator())
        losses = output.losses
        torch.testing.assert_close(losses["classification"], step["loss_fine"], **CLOSE)
        torch.testing.assert_close(losses["coarse_classification"], step["loss_coarse"], **CLOSE)
        if index:
            contrast = losses["region_contrast"] * num_images
            torch.testing.assert_close(contrast, step["loss_contrast"], **CLOSE)
        else:
            assert "region_contrast" not in losses
        total = step["total"]
        torch.testing.assert_close(output.total, total, **CLOSE)
        memory = method.rca_parts.memory
        torch.testing.assert_close(memory.slots, step["memory_after"], **CLOSE)
        assert torch.equal(memory.pointer, step["pointer_after"])

        optimizer.zero_grad(set_to_none=True)
        output.total.backward()
        compare_gradients(method, part(step, "grad_norm/"), num_classes)
        compare_gradients(method, part(step, "grad/"), num_classes)
        # An empty list is recorded as one empty name.
        without = {own_name(name) for name in step["without_gradient"].tolist() if name}
        missing = {name for name, p in method.named_parameters() if p.grad is None}
        assert missing == without
        set_lr(optimizer, index, NUM_STEPS, config)
        optimizer.step()
    expected = own_state(part(arrays, "state_after/"), num_classes)
    state = method.state_dict()
    for name, value in expected.items():
        if name != "rca_parts.embedding.layers.0.bias":
            torch.testing.assert_close(state[name], value, atol=1e-10, rtol=1e-8, msg=name)


def test_official_maps(arrays, method):
    """All maps of the first step, before any update."""
    step = part(arrays, "step0__")
    batch = batch_of(step)
    with torch.no_grad():
        features = method.encode(batch.images)
        outputs = method.head_outputs(features, ("cam", "aux_cam"))
        fused = method.rca_parts.fuse(features.features)
        embedded = method.rca_parts.embedding(features.features)
    for found, name in (
        (features.features, "features"),
        (fused, "fused"),
        (embedded, "embedding"),
        (outputs["cam"].maps(), "fine_map"),
        (outputs["aux_cam"].maps(), "coarse_map"),
        (outputs["cam"].logits(), "fine_logits"),
        (outputs["aux_cam"].logits(), "coarse_logits"),
    ):
        torch.testing.assert_close(found, step[name], msg=name, **CLOSE)


def test_official_rates(arrays, method):
    rates = dict(zip(arrays["names"].tolist(), arrays["group"].tolist(), strict=True))
    groups = build_optimizer(method, SgdConfig()).param_groups
    peak = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    parameters = dict(method.named_parameters())
    for name, group in rates.items():
        expected = arrays["group_lr"][group].item()
        assert peak[id(parameters[own_name(name)])] == pytest.approx(expected), name


VOC_CLASSES, VOC_TRAIN_IMAGES, EPOCHS = 20, 10_582, 30
NOT_OFFICIAL = {"rca_parts.memory.filled", "rca_parts.memory.is_clustered"}
"""Buffers of ours alone; with the official start as noise they never change."""


@pytest.fixture(scope="module")
def full():
    """The recipe and its network, without values."""
    recipe = voc_rca_vgg16.recipe()
    with torch.device("meta"):
        backbone = vgg16.build(recipe.backbone.model_copy(update={"weights": None}))
        return recipe, rca.build(recipe.method, backbone, VOC_CLASSES)


def test_the_recipe_has_every_tensor_of_the_official_model_and_no_other(golden, full):
    arrays = golden("rca_names")
    official = {
        name: torch.empty([side for side in shape if side], device="meta")
        for name, shape in zip(arrays["names"].tolist(), arrays["shapes"].tolist(), strict=True)
    }
    expected = {name: tensor.shape for name, tensor in own_state(official, VOC_CLASSES).items()}
    found = {name: tensor.shape for name, tensor in full[1].state_dict().items()}
    assert found.keys() - expected.keys() == NOT_OFFICIAL
    assert {name: shape for name, shape in found.items() if name in expected} == expected
    # Grouped convolutions and stacked buffers lost nothing; batch norm's statistics are left out.
    statistics = {name for name in official if "running_" in name or "num_batches" in name}
    assert len(statistics) == 3
    assert sum(official[name].numel() for name in official.keys() - statistics) == sum(
        shape.numel() for shape in expected.values()
    )


def test_the_recipe_has_the_official_rate_of_every_parameter_in_every_epoch(golden, full):
    arrays, (recipe, method) = golden("rca_names"), full
    optimizer = build_optimizer(method, recipe.optim)
    steps = VOC_TRAIN_IMAGES // recipe.batch_size
    assert recipe.num_steps == EPOCHS * steps
    assert recipe.method.aggregation.every == steps
    assert recipe.method.region_contrast.start_step == 2 * steps
    parameters = dict(method.named_parameters())
    groups = {
        own_name(name): group
        for name, group in zip(arrays["names"].tolist(), arrays["group"].tolist(), strict=True)
        if group >= 0
    }
    assert groups.keys() == parameters.keys()
    schedule = arrays["lr_by_epoch_first_and_last_group"]
    assert len(schedule) == EPOCHS
    for epoch, (first, last) in enumerate(schedule.tolist()):
        assert last == pytest.approx(20 * first)
        expected = (first, 2 * first, last / 2, last)
        for step in (epoch * steps, (epoch + 1) * steps - 1):
            set_lr(optimizer, step, recipe.num_steps, recipe.optim)
            rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
            for name, group in groups.items():
                assert rates[id(parameters[name])] == pytest.approx(expected[group]), name
