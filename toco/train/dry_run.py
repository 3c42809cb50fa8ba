"""Dry run of a config: step, evaluation and inference on tensors without values.

Meta tensors have shapes and types alone. The real backbone and the real method run on them as in a
training, in a second or two and without memory for weights, and fail where sizes do not fit. Errors
that depend on values are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from toco import filters
from toco.backbones import drawing, stochastic_depths
from toco.config import diff
from toco.methods import BilateralFilter, Method
from toco.own_modules import place_in
from toco.predict.inference import network_probabilities
from toco.registry import load
from toco.tensors import Batch
from toco.train.optim import freeze_layers, groups_with_rates
from toco.train.run_config import RunConfig

MAX_SIDE_PX = 2**15
"""Largest side of a network's input: the image takes 12 GB in float32, its features far more."""
MAX_KEPT_BYTES = 2**40
"""Most bytes that a step may keep for its backward pass: more than any accelerator holds."""
_NUM_CLASSES = 20
"""Any number does: the data set is not opened, and misfits do not depend on the number."""
_NUM_IMAGES = 2
"""The fewest that make a batch."""
_LEVEL = 64.0
"""Difference between pixels, of levels 0 to 255, that nearly all images contain."""
_SCALAR_OF = torch.ops.aten._local_scalar_dense.default


def check_can_run(config: RunConfig, recipe: RunConfig | None = None) -> None:
    """Check that the sizes of ``config`` fit together: views, crops, patches, scales, tiles.

    Args:
        config: The run.
        recipe: The config that ``config`` was changed from; the message names the changes.

    Raises:
        ValueError: A stage cannot be computed. The message names the stage, the reason and the
            changed settings.
    """
    settings = (
        {} if recipe is None else {path: new for path, (_, new) in diff(recipe, config).items()}
    )
    # The file of weights may be missing, and its values change no shape.
    config = config.model_copy(
        update={"backbone": config.backbone.model_copy(update={"weights": None})}
    )

    def part(fault: str, sections: tuple[str, ...], compute: Callable[[], object]) -> None:
        changed = {path: value for path, value in settings.items() if path.startswith(sections)}
        with _errors_with_stage(fault, changed, (config.backbone.name, config.method.name)):
            compute()

    # Sizes of images, then the network.
    _check_sides(config)
    methods: list[Method] = []
    always = ("backbone.", "method.")
    part("The network cannot be built", always, lambda: methods.append(_meta_method(config)))
    (method,) = methods
    # Training, evaluation, inference.
    part(
        "The layers cannot be frozen",
        ("optim.frozen_layers", *always),
        lambda: freeze_layers(method.layers(), config.optim),
    )
    part(
        "The learning rates cannot be set",
        ("optim.", *always),
        lambda: groups_with_rates(method, config.optim),
    )
    part(
        "A training step cannot be computed",
        ("views.", "batch_size", *always),
        lambda: _train(config, method),
    )
    part(
        "An evaluation cannot be computed",
        ("evaluate.", *always),
        lambda: _evaluate(config, method),
    )
    if config.method.has_decoder():
        part(
            "The inference cannot be computed",
            ("inference.", *always),
            lambda: _infer(config, method),
        )
    # Bilateral filters of the method's losses and of the CRF.
    for name, bilateral in config.method.bilateral_filters().items():
        setting = f"method.{name}"
        part(
            f"The filter of {setting} cannot be computed",
            (f"{setting}.",),
            partial(_filter_of_method, bilateral),
        )
    part("The CRF cannot be computed", ("inference.crf",), lambda: _filter_for_crf(config))


@contextmanager
def _errors_with_stage(
    fault: str, settings: Mapping[str, Any], modules: Collection[str]
) -> Iterator[None]:
    """Turn errors into a sentence: ``what``, the reason, the line in ``modules``, ``settings``."""
    shapes = _Shapes()
    try:
        with shapes:
            yield
    except NotImplementedError:  # torch does not know what shape an operation has
        return
    except (ArithmeticError, RuntimeError, ValueError) as error:
        # A method that reads values cannot be followed on meta tensors and may raise anything.
        if isinstance(error, RuntimeError) and ("meta" in str(error) or shapes.value_was_asked):
            return
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        changed = ", ".join(f"{path}={value}" for path, value in settings.items())
        hint = f" Changed from the recipe: {changed}." if changed else ""
        place = place_in(error, modules)
        where = f" ({place})" if place else ""
        raise ValueError(f"{fault}: {reason}{where}.{hint}") from error


class _Shapes(TorchDispatchMode):
    """Mode of torch: random tensors have no values, and reading a value gives 1."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.value_was_asked = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        if func is _SCALAR_OF and args[0].is_meta:
            self.value_was_asked = True
            return 1
        if func is torch.ops.aten.rand.generator:
            del kwargs["generator"]
            return torch.ops.aten.rand.default(*args, **{**kwargs, "device": "meta"})
        return func(*args, **kwargs)


def _check_sides(config: RunConfig) -> None:
    """Refuse settings that give a network larger images than ``MAX_SIDE_PX``."""
    crop, evaluate, inference = config.views.crop_size_px, config.evaluate, config.inference
    sides = {
        "views.crop_size_px": crop,
        **{f"method.{name}": side for name, side in config.method.network_sides_px(crop).items()},
        "evaluate.size_px": evaluate.size_px or 1,
        "evaluate.cam_scales": (evaluate.size_px or crop) * max(evaluate.cam_scales, default=1.0),
        "inference.size_px": inference.size_px or 1,
        "inference.scales": (inference.size_px or crop) * max(inference.scales),
    }
    for path, side in sides.items():
        if side > MAX_SIDE_PX:
            raise ValueError(
                f"{path} asks for images of {side:.0f} px; a network takes at most {MAX_SIDE_PX} "
                "px."
            )


def _meta_method(config: RunConfig) -> Method:
    with torch.device("meta"):
        backbone = load("toco.backbones", config.backbone.name).build(config.backbone)
        resolved = config.method.resolved("cpu", config.views.crop_size_px)
        method: Method = load("toco.methods", config.method.name).build(
            resolved, backbone, _NUM_CLASSES
        )
    return method


def _train(config: RunConfig, method: Method) -> None:
    """Compute the last step of the training, in which every term counts."""
    # One group of images stands for the batch, so the limit of bytes shrinks by the same factor.
    number = min(config.method.loss_group_size or _NUM_IMAGES, config.batch_size)
    largest = MAX_KEPT_BYTES * number // config.batch_size
    images, views = _images(number, config.views.crop_size_px), config.method.extra_views()
    with torch.device("meta"):
        batch = Batch(
            images=images,
            second_view=images if "second_view" in views else None,
            crop_source=images if "crop_source" in views else None,
            class_labels=torch.empty(number, _NUM_CLASSES),
            valid_box=torch.empty(number, 4, dtype=torch.int64),
            names=("",) * number,
            present=torch.empty(number, 1, dtype=torch.int64),
        )
    kept_storages: set[int] = set()
    kept_bytes = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept_bytes
        storage = tensor.untyped_storage()
        if storage._cdata not in kept_storages:
            kept_storages.add(storage._cdata)
            kept_bytes += storage.nbytes()
        if kept_bytes > largest:
            raise ValueError("it keeps more than a terabyte of features for its backward pass")
        return tensor

    method.train()
    generator = torch.Generator()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        drawing(stochastic_depths(method), generator, number),
    ):
        output = method.training_losses(batch, config.num_steps - 1, generator)
    output.total.backward()


@torch.no_grad()
def _evaluate(config: RunConfig, method: Method) -> None:
    evaluate = config.evaluate
    scales = (1.0, *evaluate.cam_scales)
    side = evaluate.size_px or _unresized_side(config, method, min(scales))
    images = _images(min(evaluate.batch_size, _NUM_IMAGES), side)
    method.eval()
    with torch.device("meta"):
        present = torch.empty(len(images), 1, dtype=torch.int64)
        class_labels = torch.empty(len(images), _NUM_CLASSES)
    method.predict(images, evaluate.cam_scales, evaluate.cam_flip, present)
    if evaluate.num_pictures and evaluate.size_px:
        method.pseudo_labels(images, class_labels)


@torch.no_grad()
def _infer(config: RunConfig, method: Method) -> None:
    smallest_scale, largest_scale = min(config.inference.scales), max(config.inference.scales)
    inference = config.inference.model_copy(update={"scales": (smallest_scale, largest_scale)})
    side = inference.size_px or _unresized_side(config, method, smallest_scale)
    if inference.tile_px is not None:
        # A little more than one tile: all tiles have the same size.
        side = min(
            side, int(1.5 * inference.tile_px / largest_scale) + _patch_side(method, smallest_scale)
        )
    method.eval()
    with torch.device("meta"):
        image = torch.empty(side, side, 3, dtype=torch.uint8)
    network_probabilities(method, image, inference)


def _filter_of_method(bilateral: BilateralFilter) -> None:
    if bilateral.filter_name == "lattice":
        _filter(bilateral.sigma_rgb, bilateral.sigma_xy)


def _filter_for_crf(config: RunConfig) -> None:
    crf = config.inference.crf
    if crf is not None and crf.filter_name == "lattice":
        _filter(crf.bilateral_sigma_rgb, crf.bilateral_sigma_xy)
        filters.build_gaussian("lattice", torch.zeros(1, 3, 2, 2), crf.position_sigma)


def _filter(sigma_rgb: float, sigma_xy: float) -> None:
    """Build the lattice of a tiny image.

    It fails where the lattice has too many cells to number. Larger images have even more.
    """
    image = torch.tensor([[0.0, _LEVEL], [_LEVEL, 0.0]]).expand(1, 3, 2, 2)
    filters.build("lattice", image, sigma_rgb, sigma_xy)


def _unresized_side(config: RunConfig, method: Method, scale: float) -> int:
    """Choose a side of images that keep their size: one patch or more at ``scale``."""
    side = max(config.views.crop_size_px, _patch_side(method, scale))
    if side > MAX_SIDE_PX:
        raise ValueError(
            f"at scale {scale:g} an image needs {side} px for a patch; at most {MAX_SIDE_PX} px "
            "are possible"
        )
    return side


def _patch_side(method: Method, scale: float) -> int:
    return int(method.patch_size_px / scale) + 1


def _images(number: int, side: int) -> Tensor:
    return torch.empty(number, 3, side, side, device="meta")
