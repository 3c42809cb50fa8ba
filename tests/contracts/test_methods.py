"""Every entry of toco.methods keeps the contract of the training loop and of the evaluation.

An entry builds its own small config, and nothing outside of the methods knows a field of one of
them.
"""

import ast
from pathlib import Path

import pytest
import torch

import sweeps
import toco
from toco.backbones import vit_nano
from toco.data import ViewsConfig
from toco.evaluate import EvaluateConfig
from toco.methods import Method, MethodConfig
from toco.predict.config import InferenceConfig
from toco.predict.pseudo_labels import PseudoLabelConfig
from toco.registry import available, load
from toco.tensors import Batch, present_classes
from toco.train.run_config import RunConfig
from toco.types import Shard

NUM_FOREGROUND_CLASSES, SIZE = 3, 32


def batch(extra_views=("second_view", "crop_source")):
    generator = torch.Generator().manual_seed(0)

    names = ("images", "second_view", "crop_source")
    views = {name: torch.randn(4, 3, SIZE, SIZE, generator=generator) for name in names}
    used = {
        name: view if name in ("images", *extra_views) else None for name, view in views.items()
    }
    box = torch.tensor([[0, SIZE, 0, SIZE], [0, SIZE, 8, SIZE], [4, 20, 0, 24], [0, SIZE, 0, SIZE]])
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    return Batch(
        **used,
        class_labels=labels,
        valid_box=box,
        names=tuple("abcd"),
        present=present_classes(labels),
    )


def part(whole, rank):
    """The half of a batch that the first or the second of two ranks has."""
    cut = slice(2 * rank, 2 * rank + 2)
    names = (
        "images",
        "second_view",
        "crop_source",
        "class_labels",
        "valid_box",
        "names",
        "present",
    )
    return Batch(
        **{name: v if (v := getattr(whole, name)) is None else v[cut] for name in names},
        shard=Shard(rank, 2),
    )


@pytest.fixture(params=[*available("toco.methods"), "own_method.method", "own_loss.method"])
def method(request, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    torch.manual_seed(0)
    module = load("toco.methods", request.param)
    assert issubclass(module.Config, MethodConfig)
    config = module.Config.small().resolved("cpu", SIZE)
    config.check(batch_size=4, crop_size_px=SIZE)
    backbone = vit_nano.build(
        vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=SIZE, weights=None)
    )
    built = module.build(config, backbone, NUM_FOREGROUND_CLASSES)
    assert isinstance(built, Method)
    return built


def test_every_trainable_parameter_is_in_one_group(method):
    grouped = [id(p) for group in method.parameter_groups().values() for p in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in method.parameters() if p.requires_grad}
    assert set(method.parameter_groups()) <= {"backbone", "backbone_norms", "heads", "decoder"}


@pytest.mark.parametrize("step", [0, 10**6])
def test_losses_are_finite_and_reach_the_backbone(method, step):
    output = method.training_losses(batch(), step, torch.Generator().manual_seed(0))
    assert output.losses.keys() == output.weights.keys()
    assert all(loss.isfinite() and loss.ndim == 0 for loss in output.losses.values())
    expected = sum(output.weights[name] * loss.item() for name, loss in output.losses.items())
    assert output.total.item() == pytest.approx(expected, rel=1e-5)
    output.total.backward()
    gradients = [p.grad for p in method.parameter_groups()["backbone"]]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def losses_of(method, batch):
    state = {name: value.clone() for name, value in method.state_dict().items()}
    output = method.training_losses(batch, 10**6, torch.Generator().manual_seed(3))
    method.load_state_dict(state)
    return {name: loss.item() for name, loss in output.losses.items()}


def test_a_step_is_a_function_of_state_batch_and_generator(method):
    assert losses_of(method, batch()) == losses_of(method, batch())


def test_a_step_needs_no_view_that_the_config_does_not_name(method):
    assert losses_of(method, batch(method.config.extra_views())) == losses_of(method, batch())


def test_losses_are_means_over_ranks_that_share_a_batch_by_groups(method):
    method.config = replace_field(method.config, "loss_group_size", 2)
    whole = batch()
    together, first, second = (
        losses_of(method, data) for data in (whole, part(whole, 0), part(whole, 1))
    )
    for name, value in together.items():
        assert value == pytest.approx((first[name] + second[name]) / 2, rel=1e-4), name


def replace_field(config, name, value):
    return config.model_copy(update={name: value})


@pytest.mark.parametrize("name", available("toco.methods"))
def test_a_batch_that_is_no_multiple_of_the_groups_is_refused(name):
    config = replace_field(load("toco.methods", name).Config.small(), "loss_group_size", 2)
    with pytest.raises(
        ValueError, match=r"batch_size 5 is not a multiple of method\.loss_group_size 2"
    ):
        config.check(batch_size=5, crop_size_px=SIZE)


GENERIC = (
    "types.py",
    "train",
    "data",
    "backbones",
    "evaluate",
    "predict",
    "commands",
    "demo",
    "export",
    "tracking",
)
"""Parts of toco that serve every method; recipes, official, studies and benchmarks may know one."""
KNOWS_TOCO = {"paper.py"}
"""Modules of sweeps.core whose content is the paper's."""

WORDS = {"segmentation", "energy", "temperature"}
"""Fields whose names are words of the field: only as fields of a method they are one's own."""


def generic_sources():
    package, core = Path(toco.__file__).parent, Path(sweeps.__file__).parent / "core"
    roots = [*(package / name for name in GENERIC), core]
    files = {path for root in roots for path in ([root] if root.is_file() else root.rglob("*.py"))}
    return sorted(path for path in files if path.name not in KNOWS_TOCO)


def own_fields():
    """Fields of some method that neither every method has nor another config, which may say the
    same of itself.
    """
    shared = {"name"}
    for config in (
        MethodConfig,
        RunConfig,
        EvaluateConfig,
        InferenceConfig,
        PseudoLabelConfig,
        ViewsConfig,
    ):
        shared |= set(config.model_fields)
    methods = [load("toco.methods", name).Config for name in available("toco.methods")]
    return {field for config in methods for field in config.model_fields} - shared


def field_uses(tree, fields):
    """Lines that take a field by attribute or by a string, or import a method; docstrings and
    comments may name one.
    """
    entries = {f"toco.methods.{name}" for name in available("toco.methods")}
    # A statement that is a text alone: the documentation of what it stands below.
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name, value=ast.Attribute(attr="method")) if name in fields:
                yield node.lineno, name
            case ast.Attribute(attr=name) | ast.keyword(arg=name) if name in fields - WORDS:
                yield node.lineno, name
            case ast.Constant(value=str(text)) if id(node) not in documentation:
                if text in fields - WORDS or any(f"method.{field}" in text for field in fields):
                    yield node.lineno, text
            case ast.ImportFrom(module=module, names=names):
                imported = {str(module), *(f"{module}.{alias.name}" for alias in names)}
                yield from ((node.lineno, name) for name in imported & entries)
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names if alias.name in entries)


def test_what_serves_every_method_knows_no_field_of_one():
    fields = own_fields()
    assert {"aux_block", "local_crop_size_px", "ptc", "dense_energy"} <= fields
    uses = {
        f"{path}:{line} {name}"
        for path in generic_sources()
        for line, name in field_uses(ast.parse(path.read_text()), fields)
    }
    assert not uses


@pytest.mark.parametrize(
    "source",
    [
        "config.method.aux_block",
        "getattr(method, 'aux_block', None)",
        "Config(aux_block=1)",
        "f'{x}: method.aux_block is missing'",
        "from toco.methods import toco",
        "from toco.methods.toco import Config",
        "import toco.methods.toco",
    ],
)
def test_a_use_of_a_field_is_found(source):
    assert list(field_uses(ast.parse(source), own_fields()))


def test_predictions_have_the_documented_shapes_and_no_gradient(method):
    method.eval()
    images, labels = batch().images, batch().class_labels
    cams = method.cams(images, (1.0, 0.5), flip=True)
    assert cams.further.keys() == method.config.further_cams().keys()
    for cam in cams.by_name().values():
        assert cam.shape == (4, NUM_FOREGROUND_CLASSES, SIZE, SIZE)
        assert not cam.requires_grad
        assert cam.min() >= 0
        assert cam.max() <= 1
    with torch.no_grad():
        again = method.cams(images, (1.0, 0.5), flip=True)
    for name, cam in again.by_name().items():
        torch.testing.assert_close(cam, cams.by_name()[name], atol=0, rtol=0)
    prediction = method.predict(images, (1.0, 0.5), flip=True)
    for name, cam in prediction.cams.by_name().items():
        torch.testing.assert_close(cam, cams.by_name()[name], atol=1e-5, rtol=1e-4)
    assert prediction.class_logits.shape == (4, NUM_FOREGROUND_CLASSES)
    assert len(prediction.block_tokens) == 3
    assert method.patch_size_px == SIZE // 4
    if method.config.has_decoder():
        assert prediction.segmentation_logits.shape == (4, NUM_FOREGROUND_CLASSES + 1, 4, 4)
        assert not prediction.segmentation_logits.requires_grad
        logits = method.segmentation_logits(images)
        assert not logits.requires_grad
        torch.testing.assert_close(logits, prediction.segmentation_logits, atol=1e-5, rtol=1e-4)
    else:
        assert prediction.segmentation_logits is None
        with pytest.raises(ValueError, match="decoder"):
            method.segmentation_logits(images)
    pseudo = method.pseudo_labels(images, labels)
    assert pseudo.shape == (4, SIZE, SIZE)
    present = {0: {0, 1}, 1: {0, 2, 3}, 3: {0, 3}}
    for image, allowed in present.items():
        assert set(pseudo[image].unique().tolist()) <= allowed | {255}


def test_mirroring_the_image_mirrors_the_cam(method):
    method.eval()
    images = batch().images
    cams, mirrored = (method.cams(x, (1.0, 1.5), flip=True).cam for x in (images, images.flip(3)))
    torch.testing.assert_close(cams.flip(3), mirrored, atol=1e-4, rtol=1e-4)


def test_bfloat16_autocast_stays_close_and_keeps_losses_in_float32(method):
    images = batch().images
    method.eval()
    method.autocast_dtype = torch.bfloat16
    # First, because a step may change the method's state, such as a memory.
    output = method.training_losses(batch(), 10**6, torch.Generator().manual_seed(0))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in output.losses.values())
    reduced = method.cams(images, (1.0,), flip=False).cam
    method.autocast_dtype = None
    plain = method.cams(images, (1.0,), flip=False).cam
    assert reduced.dtype == torch.float32
    assert (plain - reduced).abs().mean() < 0.05
