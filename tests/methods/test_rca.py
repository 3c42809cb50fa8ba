"""RCA, and ToCo with its parts, where the official code has no numbers: invariants of a step."""

import copy
import math

import pytest
import torch
from torch import nn

from toco.backbones import Backbone, vit_nano
from toco.methods import _rca_parts, rca, toco
from toco.tensors import Batch, Features, present_classes
from toco.types import Shard

SIZE, CLASSES, PATCH = 32, 3, 4
LABELS = [[1.0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]]
BOXES = [[0, 32, 0, 32], [0, 32, 8, 32], [4, 20, 0, 24], [0, 32, 0, 32]]
START = 2


def batch(labels=LABELS, boxes=BOXES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(labels, dtype=torch.float32)
    views = [torch.randn(len(labels), 3, SIZE, SIZE, generator=generator) for _ in range(3)]
    names = tuple(map(str, range(len(labels))))
    return Batch(*views, labels, torch.tensor(boxes), names, present_classes(labels))


def parts(memory=None, contrast=None, aggregation=None):
    """Parts that are active from the first steps on."""
    return {
        "region_memory": {"slots": 4, "momentum": 0.5, "threshold": 0.0, **(memory or {})},
        "region_contrast": {"weight": 0.5, "start_step": START, **(contrast or {})},
        "aggregation": {"centroids": 2, "every": 1, "num_starts": 2, **(aggregation or {})},
    }


def encoder():
    return vit_nano.build(
        vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=SIZE, weights=None)
    )


def build_rca(new_backbone=encoder, **settings):
    torch.manual_seed(0)
    defaults = {"loss_group_size": 2, "aux_block": 1, "class_maps": "linear", "cam_scales": (1.0,)}
    config = rca.Config(**(defaults | parts() | settings))
    return rca.build(config, new_backbone(), CLASSES)


def build_toco(**settings):
    torch.manual_seed(0)
    defaults = {
        "aux_block": 1,
        "cam_scales": (1.0,),
        "num_local_crops": 2,
        "local_crop_size_px": 16,
        "decoder_width": 8,
        "projection": {"hidden_width": 16, "bottleneck_width": 8, "output_width": 16},
        "energy": {"weight": 0.0},
    }
    config = toco.Config(**(defaults | settings))
    return toco.build(config, encoder(), CLASSES)


def toco_with_parts(**settings):
    return build_toco(**(parts(aggregation={"kind": "softmax"}) | settings))


def run(method, data, step, seed=0):
    """A step without an update of the weights: losses and gradients."""
    method.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(1000 * seed + step)
    output = method.training_losses(data, step, generator)
    output.total.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    return output, gradients


def assert_all_finite(method, output, gradients):
    for name, value in (output.losses | output.counts | gradients).items():
        assert value.isfinite().all(), name
    for name, value in method.state_dict().items():
        assert value.isfinite().all(), name


METHODS = {
    "official parts": lambda: build_rca(
        class_maps="convs",
        **parts({"start": "noise", "own_masks": False}, {"partner": "any"}, {"kind": "linear"}),
    ),
    "the paper's parts": lambda: build_rca(
        **parts({}, {"embedding": "none", "scores": "raw"}, {"kind": "softmax"}),
        segmentation={"weight": 0.1, "start_step": START},
    ),
    "memory of an embedding of auxiliary tokens": lambda: build_rca(
        **parts({"holds": "embedding", "tokens": "aux"}, {"embedding": "points"}, {"kind": "none"})
    ),
    "toco": toco_with_parts,
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]()


def memory_of(method):
    return {n.rpartition(".")[2]: v for n, v in method.rca_parts.memory.state_dict().items()}


# Images that have nothing to give.
AWKWARD = {
    "no image has a class": batch([[0.0, 0, 0]] * 4),
    "one image has no class": batch([[0.0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]),
    "every image is padding": batch(
        boxes=[[0, 0, 0, 0], [5, 5, 0, 32], [0, 32, 9, 9], [0, 1, 0, 1]]
    ),
    "one image": batch(LABELS[1:2], BOXES[1:2]),
    "the same image again": batch([[1.0, 0, 0]] * 4),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_batches_give_finite_numbers(method, name):
    for step in range(START + 2):
        assert_all_finite(method, *run(method, AWKWARD[name], step))


def test_images_without_a_class_or_without_pixels_fill_no_memory(method):
    before = copy.deepcopy(memory_of(method))
    for name in ("no image has a class", "every image is padding"):
        output, _ = run(method, AWKWARD[name], 0)
        assert output.counts["regions"] == output.counts["sure_regions"] == 0
    after = memory_of(method)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_flat_coarse_map_has_no_regions():
    method = build_rca(pooling="max", **parts(contrast={"scores": "raw"}))
    nn.init.zeros_(method.coarse.weight)
    for step in (0, START):
        output, gradients = run(method, batch(), step)
        assert output.counts["regions"] == 0
        assert_all_finite(method, output, gradients)
    assert output.losses["region_contrast"] == 0
    assert method.rca_parts.memory.filled.sum() == 0


def test_the_first_contrast_may_meet_an_empty_memory(method):
    data = batch()
    official = bool(method.rca_parts.memory.filled.any())
    output, gradients = run(method, data, START)
    assert_all_finite(method, output, gradients)
    assert (output.losses["region_contrast"] > 0) == official
    # What the step wrote, the next one contrasts.
    output, gradients = run(method, data, START)
    assert_all_finite(method, output, gradients)
    assert output.losses["region_contrast"] > 0


def test_one_image_a_group_has_no_partner_of_another_image():
    """The region then stands alone, as without mixing."""
    alone, unmixed, mixed = (
        build_rca(loss_group_size=size, **parts(contrast={"beta": beta, "embedding": "points"}))
        for size, beta in ((1, 8.0), (1, None), (4, 8.0))
    )
    losses = []
    for method in (alone, unmixed, mixed):
        for step in (0, START):
            output, gradients = run(method, batch(), step)
            assert_all_finite(method, output, gradients)
        losses.append(output.losses["region_contrast"].item())
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)


class Patches(Backbone):
    """Tokens see their own patch alone."""

    width, depth, patch_size_px = 6, 1, PATCH

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, self.width, PATCH, stride=PATCH)

    def forward(self, images, aux_block=None, num_maps=None):
        tokens = self.embed(images)
        return Features(tokens.mean((2, 3)), tokens, tokens)

    def aux_features(self, images, aux_block):
        return self.embed(images)

    def forward_blocks(self, images, aux_block=None):
        return self(images), [self.embed(images).flatten(2).transpose(1, 2)]

    def aux_width(self, aux_block):
        return self.width


@pytest.mark.parametrize("scores", ["softmax", "raw"])
@pytest.mark.parametrize("own_masks", [True, False])
def test_regions_show_nothing_of_the_padding(scores, own_masks):
    plain = batch()
    outside = torch.ones(4, 1, SIZE, SIZE, dtype=torch.bool)
    # Patches count whose centre is in the box.
    for image, (y0, y1, x0, x1) in zip(outside, BOXES, strict=True):
        image[:, y0:y1, x0:x1] = False
    other = copy.deepcopy(plain)
    other.images.masked_fill_(outside, 9.0)
    settings = parts({"own_masks": own_masks}, {"embedding": "points", "scores": scores})
    found = []
    for data in (plain, other):
        method = build_rca(Patches, aux_block=None, **settings)
        contrast = [run(method, data, step)[0].losses.get("region_contrast") for step in range(4)]
        found.append((contrast[START:], memory_of(method)))
    (contrast, memory), (other_contrast, other_memory) = found
    assert memory["filled"].min() > 0
    assert all(torch.equal(a, b) for a, b in zip(contrast, other_contrast, strict=True))
    assert all(torch.equal(memory[name], other_memory[name]) for name in memory)
    # The padding is seen where it counts: without boxes the regions are others.
    unboxed = build_rca(Patches, aux_block=None, **settings)
    everything = batch(boxes=[[0, SIZE, 0, SIZE]] * 4)
    everything.images.copy_(other.images)
    for step in range(4):
        run(unboxed, everything, step)
    assert not torch.equal(memory_of(unboxed)["slots"], memory["slots"])


def part_of(whole, rank, size):
    cut = slice(rank * size, (rank + 1) * size)
    return Batch(
        whole.images[cut],
        None,
        None,
        whole.class_labels[cut],
        whole.valid_box[cut],
        whole.names[cut],
        whole.present[cut],
        Shard(rank, len(whole.images) // size),
    )


@pytest.mark.parametrize("beta", [8.0, None])
def test_draws_do_not_depend_on_the_number_of_ranks(beta):
    method = build_rca(**parts(contrast={"beta": beta}))
    whole = batch()

    def draws_of(data, step=7):
        generator = torch.Generator().manual_seed(5)
        return method.rca_parts.begin_step(data, step, generator, with_contrast=True)

    # Clustering takes its numbers first.
    for step in (0, 7):
        together = draws_of(whole, step)
        for size in (1, 2):
            shares = [draws_of(part_of(whole, rank, size), step) for rank in range(4 // size)]
            for name in together._fields:
                joined = torch.cat([getattr(share, name) for share in shares])
                assert torch.equal(joined, getattr(together, name)), name
    for name in ("image", "partner"):
        values = getattr(together, name)
        assert values.shape == (4, CLASSES)
        assert 0 <= values.min() <= values.max() < 1
        assert len(values.unique()) == values.numel()
    assert (together.own_share == 1).all() == (beta is None)
    assert not torch.equal(together.image, together.partner)


def test_clustering_does_not_depend_on_the_number_of_ranks():
    whole = batch()
    centroids = []
    for data in (whole, part_of(whole, 1, 2)):
        method = build_rca()
        slots = torch.randn(method.rca_parts.memory.slots.shape, generator=torch.Generator())
        method.rca_parts.memory.slots.copy_(slots)
        method.rca_parts.memory.filled.fill_(4)
        method.rca_parts.begin_step(data, 1, torch.Generator().manual_seed(5), with_contrast=False)
        centroids.append(method.rca_parts.memory.centroids)
    assert torch.equal(*centroids)
    assert centroids[0].abs().amin() > 0


def test_clustering_is_due_at_multiples_of_its_period_and_not_at_the_start():
    method = build_rca(**parts({"start": "noise"}, aggregation={"every": 3}))
    before, changed = method.rca_parts.memory.centroids.clone(), []
    for step in range(8):
        method.rca_parts.begin_step(batch(), step, torch.Generator(), with_contrast=False)
        if not torch.equal(method.rca_parts.memory.centroids, before):
            changed.append(step)
            method.rca_parts.memory.centroids.copy_(before)
    assert changed == [3, 6]


def test_under_bfloat16_the_memory_stays_float32(method):
    method.autocast_dtype = torch.bfloat16
    for step in range(START + 1):
        assert_all_finite(method, *run(method, batch(), step))
    memory = memory_of(method)
    for values in (memory["slots"], memory["centroids"]):
        assert values.dtype == torch.float32
        # Not rounded to bfloat16 on the way; there are memories without centroids.
        assert not values.numel() or not torch.equal(values, values.bfloat16().float())


def test_a_memory_under_bfloat16_is_close_to_that_of_float32():
    plain, reduced = (build_rca(**parts(contrast={"embedding": "points"})) for _ in range(2))
    reduced.autocast_dtype = torch.bfloat16
    for method in (plain, reduced):
        run(method, batch(), 0)
    expected, found = (method.rca_parts.memory for method in (plain, reduced))
    assert torch.equal(found.filled, expected.filled)
    assert 0 < (found.slots - expected.slots).norm() < 0.05 * expected.slots.norm()


def test_a_method_in_double_precision_stays_so(method):
    data = batch()
    names = ("images", "second_view", "crop_source", "class_labels")
    double = {name: getattr(data, name).double() for name in names}
    data = Batch(**double, valid_box=data.valid_box, names=data.names, present=data.present)
    method.double()
    for step in range(START + 1):
        output, _ = run(method, data, step)
    assert output.losses["region_contrast"].dtype == torch.float64
    assert method.rca_parts.memory.slots.dtype == torch.float64


def test_what_a_step_writes_is_not_what_it_contrasts():
    """The contrast takes the memory before the step's update."""
    method = build_rca(**parts(contrast={"embedding": "points"}))
    data = batch()
    run(method, data, 0)
    before = copy.deepcopy(method)
    first, _ = run(method, data, START)
    again, _ = run(before, data, START)
    later, _ = run(method, data, START)
    assert torch.equal(first.losses["region_contrast"], again.losses["region_contrast"])
    assert not torch.equal(first.losses["region_contrast"], later.losses["region_contrast"])


def test_only_sure_regions_fill_the_memory():
    filled = []
    for threshold in (0.0, 1.0):
        method = build_rca(**parts({"threshold": threshold}))
        output, _ = run(method, batch(), 0)
        filled.append(method.rca_parts.memory.filled.tolist())
        assert output.counts["regions"] > 0
    assert filled == [[2, 2, 3], [0, 0, 0]]


def test_without_weights_toco_has_no_memory_and_its_step_is_its_own():
    plain, other = (
        build_toco(region_memory=memory, segmentation={"weight": 0.1, "start_step": START})
        for memory in ({}, {"slots": 3, "start": "noise"})
    )
    assert plain.rca_parts is None
    assert not any("regions" in name for name in plain.state_dict())
    with_parts = toco_with_parts(
        **parts(contrast={"start_step": 100}, aggregation={"kind": "none"}),
        segmentation={"weight": 0.1, "start_step": START},
    )
    # Parts come last: what both have begins with the same weights.
    own = with_parts.state_dict()
    assert {name for name in own if not name.startswith("rca_parts.")} == plain.state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in plain.state_dict().items())
    for step in (0, START):
        (output, gradients), *others = (
            run(method, batch(), step) for method in (plain, other, with_parts)
        )
        for other_output, other_gradients in others:
            for ours, theirs in (
                (output.losses, other_output.losses),
                (gradients, other_gradients),
            ):
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert with_parts.rca_parts.memory.filled.min() > 0


def test_rca_without_contrast_and_aggregation_has_no_memory():
    settings = parts(contrast={"weight": 0.0}, aggregation={"kind": "none"})
    method = build_rca(**settings)
    assert method.rca_parts is None
    output, _ = run(method, batch(), 10**6)
    assert set(output.losses) == {"classification", "coarse_classification"}
    assert output.counts == {}
    assert set(memory_of(build_rca(**(settings | {"aggregation": {"centroids": 2}})))) == {
        "slots",
        "pointer",
        "filled",
        "centroids",
        "is_clustered",
    }


def test_terms_join_at_their_first_step_and_not_before():
    method = build_rca(segmentation={"weight": 0.1, "start_step": START + 1})
    names = {"classification", "coarse_classification"}
    for step in range(START + 2):
        names |= {"region_contrast"} if step == START else set()
        names |= {"segmentation"} if step == START + 1 else set()
        output, gradients = run(method, batch(), step)
        assert output.losses.keys() == output.weights.keys() == names
        assert ("rca_parts.embedding.layers.0.weight" in gradients) == (step >= START)
    assert output.weights == {
        "classification": 1.0,
        "coarse_classification": 0.4,
        "region_contrast": 0.5,
        "segmentation": 0.1,
    }
    filled = output.counts["memory_filled"].item()
    assert math.isclose(filled, 1.0)


def test_the_aggregation_learns_at_the_rate_that_is_named():
    for rate in ("backbone", "heads"):
        method = build_rca(**parts(aggregation={"kind": "linear", "rate": rate}))
        groups = method.parameter_groups()
        query = method.rca_parts.aggregation.query.weight
        (found,) = (name for name, group in groups.items() if any(p is query for p in group))
        assert found == rate


REFUSED = {
    "an untrained coarse head for the contrast": (
        rca,
        {"coarse_weight": 0.0},
        r"coarse_weight is 0, .* region_contrast\.weight is 0\.08; set region_contrast",
    ),
    "an untrained coarse head for the memory": (
        rca,
        {"coarse_weight": 0.0, "region_contrast": {"weight": 0.0}},
        r"coarse_weight is 0, .* aggregation\.kind is linear; set region_contrast",
    ),
    "an untrained auxiliary classifier for the contrast": (
        toco,
        {"aux_weight": 0.0, "ptc": {"weight": 0}, "ctc": {"weight": 0}}
        | {"region_contrast": {"weight": 0.1}},
        r"aux_weight is 0, .* region_contrast\.weight is 0\.1; set region_contrast",
    ),
    "an untrained auxiliary classifier for the memory": (
        toco,
        {"aux_weight": 0.0, "ptc": {"weight": 0}, "ctc": {"weight": 0}}
        | {"aggregation": {"kind": "softmax"}},
        r"aux_weight is 0, .* aggregation\.kind is softmax; set region_contrast",
    ),
    "centroids of other tokens": (
        rca,
        {"region_memory": {"tokens": "aux"}},
        r"aggregation\.kind is linear, .* region_memory\.tokens is aux; set it to final",
    ),
    "an embedding that there is not": (
        rca,
        {"region_memory": {"holds": "embedding"}, "region_contrast": {"embedding": "none"}},
        r"region_memory\.holds is embedding, but region_contrast\.embedding is none; set it",
    ),
    "centroids of an embedding": (
        toco,
        {"aggregation": {"kind": "softmax"}, "region_memory": {"holds": "embedding"}},
        r"aggregation\.kind is softmax, .* region_memory\.holds is embedding; set it to features",
    ),
    "a temperature of no softmax": (
        rca,
        {"aggregation": {"kind": "linear", "temperature": 0.1}},
        r"temperature is 0\.1, but kind is linear, which has no softmax; set temperature to null",
    ),
    "an energy of no decoder": (
        rca,
        {"energy": {"weight": 0.1}},
        r"energy\.weight is 0\.1, but segmentation\.weight is 0, so there is no decoder",
    ),
    "thresholds in the wrong order": (
        rca,
        {"low_threshold": 0.8},
        r"low_threshold is 0\.8, above high_threshold 0\.7",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_fit_are_refused(name):
    module, settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        module.Config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"region_contrast": {"temperature": 0}},
        {"region_contrast": {"beta": 0}},
        {"region_contrast": {"weight": -1}},
        {"region_memory": {"slots": 0}},
        {"region_memory": {"momentum": 1.1}},
        {"region_memory": {"threshold": -0.1}},
        {"aggregation": {"centroids": 0}},
        {"aggregation": {"every": 0}},
    ],
)
def test_numbers_out_of_range_are_refused(settings):
    (part, (field,)) = next((part, tuple(fields)) for part, fields in settings.items())
    for module in (rca, toco):
        with pytest.raises(ValueError, match=rf"{part}\.{field}"):
            module.Config(**settings)


def test_an_auxiliary_block_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="aux_block is 3, but this backbone has blocks 0 to 2"):
        build_rca(aux_block=3)


def test_the_embedding_normalises_by_the_images_of_a_group():
    """As if every group were the batch of a GPU of its own."""
    method = build_rca(class_maps="convs", **parts(contrast={"embedding": "convs"}))
    assert isinstance(method.rca_parts.embedding, _rca_parts.ConvEmbedding)
    data = batch()
    run(method, data, 0)
    state = copy.deepcopy(method.state_dict())
    whole, _ = run(method, data, START)
    halves = []
    for rank in (0, 1):
        method.load_state_dict(state)
        halves.append(run(method, part_of(data, rank, 2), START)[0].losses["region_contrast"])
    expected = torch.stack(halves).mean()
    torch.testing.assert_close(whole.losses["region_contrast"], expected, rtol=1e-5, atol=1e-6)
