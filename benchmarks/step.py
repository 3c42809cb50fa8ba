"""One training step: the official way of computing it against ours, side by side in one run.

    python -m benchmarks step --backbone vit_base --size 448 --batch 2 --out benchmarks/results/step_vit_base_448.json

Both start from the same random weights and take the same generated images. The plain step does all passes of the
official iteration, in float32, with explicit attention; its losses and gradients are ours (a test compares them). The
energy term is left out of the steps unless ``--energy`` is given, and timed on its own in any case. Peak memory,
arithmetic and phases come from two steps of each in a process of its own.
"""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial, wraps
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast
from unittest.mock import patch

import click
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks._record import matrix_peak, measure, out_option, peak_memory_bytes, synchronise, write
from toco.backbones import vit, vit_nano
from toco.cam.activation import normalise_cam
from toco.cam.affinity import affinity
from toco.cam.labels import Region, cam_to_pseudo_label, ignore_outside, scale_box
from toco.cam.regions import regions
from toco.data import denormalise_255, normalise
from toco.heads.projection import ema_update_
from toco.losses.classification import classification_loss
from toco.losses.ctc import class_token_contrast_loss
from toco.losses.dense_energy import dense_energy_loss
from toco.losses.ptc import patch_token_contrast_loss
from toco.losses.segmentation import segmentation_loss
from toco.methods import toco
from toco.recipes import shapes_nano, voc_deit_b
from toco.train.optim import HEAD_GROUPS, OptimConfig, build_optimizer, fill_missing_gradients, set_lr
from toco.train.run_config import RunConfig
from toco.types import IGNORE_INDEX, Batch, StepOutput, present_classes

NANO = "nano"
SIDES = ("plain", "ours")
ALIASES = {"vit_small": "vit_small_patch16_224", "vit_base": "vit_base_patch16_224"}
NUM_FOREGROUND_CLASSES = {NANO: 8}
"""Those of the generated scenes; any other backbone gets the 20 of VOC."""

PHASES = {
    "CAM passes": ("multi_scale_cams",),
    "regions, crops": ("regions", "draw_keys", "sample_crop_corners", "crop", "positive_crops"),
    "CTC": ("ema_update_", "class_token_contrast_loss"),
    "PTC": ("cam_to_pseudo_label", "affinity", "patch_token_contrast_loss"),
    "PAR": ("refine_pseudo_label",),
    "segmentation": ("segmentation_loss",),
    "energy": ("dense_energy_loss",),
}
"""The functions of ``toco.methods.toco`` whose time makes up a phase of our step."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured.

    Attributes:
        backbone: ``nano``, ``vit_small``, ``vit_base`` or a name of timm.
        precision: Of our step; the plain one is float32.
        phase: ``full`` has all terms, ``warmup`` is before the decoder's terms count.
        energy: Whether the energy term is among them.
        compiled: Whether our step is compiled.
    """

    backbone: str
    size_px: int
    batch: int
    precision: Literal["float32", "bfloat16"] = "float32"
    phase: Literal["full", "warmup"] = "full"
    energy: bool = False
    compiled: bool = False
    device: str = "cpu"
    threads: int = 2


class Phases:
    """Seconds by phase. What happens inside a phase belongs to the outermost one."""

    def __init__(self, device: torch.device | str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._inside = False

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase ``name``."""
        if self._inside:
            yield
            return
        self._inside = True
        synchronise(self._device)
        started = perf_counter()
        try:
            yield
        finally:
            synchronise(self._device)
            self.seconds[name] += perf_counter() - started
            self._inside = False

    @contextmanager
    def of(self, method: toco.ToCo) -> Iterator[None]:
        """Time the parts of ``method``'s steps."""
        local = method.config.local_crop_size_px

        def timed(name: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any function
                with self(name(*args)):
                    return function(*args, **kwargs)

            return call

        def pass_of(images: Tensor, *_: object) -> str:
            return "local crops" if images.shape[-1] == local else "global views"

        modules = {method.projection: "CTC", method.teacher: "CTC", method.decoder: "segmentation"}
        with ExitStack() as stack:
            for phase, functions in PHASES.items():
                for name in functions:
                    wrapped = timed(lambda *_, phase=phase: phase, getattr(toco, name))
                    stack.enter_context(patch.object(toco, name, wrapped))
            for module, phase in modules.items():
                wrapped = timed(lambda *_, phase=phase: phase, module.forward)
                stack.enter_context(patch.object(module, "forward", wrapped))
            stack.enter_context(patch.object(method.backbone, "forward", timed(pass_of, method.backbone.forward)))
            yield


Phase = Callable[[str], AbstractContextManager[None]]


def _untimed(_name: str) -> AbstractContextManager[None]:
    return nullcontext()


class OurStep:
    """The step of the training loop."""

    def __init__(self, method: toco.ToCo, optim: OptimConfig, num_steps: int) -> None:
        self.method, self._optim, self._num_steps = method, optim, num_steps
        self._optimizer = build_optimizer(method.parameter_groups(), optim)

    def compile(self, run: Callable[[], None]) -> None:
        """Compile the step, and ``run`` it until that is done and its graph is recorded."""
        self.method.compile_step()
        for _ in range(3):
            run()

    def __call__(self, batch: Batch, step: int, generator: torch.Generator, phase: Phase = _untimed) -> None:
        """One update with a batch of the loader."""
        set_lr(self._optimizer, step, self._num_steps, self._optim)
        self.method.train()
        output = self.method.training_losses(batch.to(self.method.classifier.weight.device), step, generator)
        self._optimizer.zero_grad(set_to_none=True)
        total = output.total
        with phase("backward"):
            total.backward()
        with phase("optimizer"):
            fill_missing_gradients(self._optimizer)
            gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"]]
            torch.nn.utils.get_total_norm(gradients)
            self._optimizer.step()


class PlainStep:
    """The same step, computed as the official iteration computes it: every pass of its own, nothing kept or skipped.

    In float32, with explicit attention. The global views are encoded for the CAM (twice: upright, mirrored), for the
    classifiers and the decoder, for the teacher (with a graph that nobody uses) and for the student. The decoder runs
    inside the CAM passes, too. All classes' maps are brought to pixels. Crops are cut image by image on the host. PAR
    runs once for each threshold, each time with an affinity of its own. All terms are computed at all steps and count
    zero before their first. Every loss is read from the device at every step.

    The losses, the normalisation of the CAM and the lattice are the library's, since they are the same thing.

    Args:
        method: Settings and weights. Its attention is made explicit, so give a copy.
        optim: Settings of the optimizer, which is torch's AdamW with its defaults.
        num_steps: Length of the training, for the learning rate.
        energy: Whether the energy term is computed.
    """

    def __init__(self, method: toco.ToCo, optim: OptimConfig, num_steps: int, *, energy: bool) -> None:
        self.network = method
        self._config, self._optim, self._num_steps, self._energy = method.config, optim, num_steps, energy
        self._vit = cast(Any, method.backbone.vit)
        for block in self._vit.blocks:
            block.attn.fused_attn = False
        groups: list[dict[str, Any]] = [
            {"params": params, "peak_lr": optim.lr * (optim.head_lr_multiplier if name in HEAD_GROUPS else 1.0)}
            for name, params in self.network.parameter_groups().items()
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=optim.lr, betas=optim.betas, eps=optim.epsilon, weight_decay=optim.weight_decay
        )

    def __call__(self, batch: Batch, step: int, generator: torch.Generator, phase: Phase = _untimed) -> None:
        """One update with a batch on the host."""
        set_lr(self._optimizer, step, self._num_steps, self._optim)
        output = self.losses(batch, step, generator, phase)
        self._optimizer.zero_grad()
        total = output.total
        with phase("backward"):
            total.backward()
        with phase("optimizer"):
            self._optimizer.step()
        for loss in output.losses.values():
            loss.item()

    def losses(self, batch: Batch, step: int, generator: torch.Generator, phase: Phase = _untimed) -> StepOutput:
        """Losses of the step and their weights, zero for those that do not count yet."""
        config, network = self._config, self.network
        device = network.classifier.weight.device
        images, second_view, class_labels, box = (
            tensor.to(device) for tensor in (batch.images, batch.second_view, batch.class_labels, batch.valid_box)
        )
        size = images.shape[-2], images.shape[-1]
        losses: dict[str, Tensor] = {}

        with phase("CAM passes"):
            cam, aux_cam = self._cams(images)
        with phase("regions, crops"):
            region = regions(aux_cam, class_labels, config.low_threshold, config.high_threshold)
            crops, positive = self._crops(region, batch.crop_source, generator)

        with phase("global views"):
            _, features, aux_features = self._encode(images)
        with phase("segmentation"):
            logits = network.decoder(features)
        with phase("CTC"):
            ema_update_(network.teacher, network.projection, config.ema_decay)
        with phase("global views"):
            teacher_tokens, _, _ = self._encode(torch.cat([images, second_view]))
        with phase("CTC"):
            teacher = network.teacher(teacher_tokens).detach()
        with phase("global views"):
            student_tokens, _, _ = self._encode(torch.cat([images, second_view]))
        with phase("local crops"):
            local_tokens, _, _ = self._encode(crops.flatten(0, 1))

        losses["classification"] = self._by_group(classification_loss, network.classifier(features), class_labels)
        losses["aux_classification"] = self._by_group(
            classification_loss, network.aux_classifier(aux_features), class_labels
        )
        with phase("CTC"):
            student = network.projection(torch.cat([student_tokens, local_tokens]))
            by_image = (rows.unflatten(0, (-1, len(images))).transpose(0, 1) for rows in (student, teacher))
            losses["ctc"] = self._by_group(self._contrast, *by_image, positive.to(device))
        with phase("PTC"):
            grid = features.shape[-2], features.shape[-1]
            on_grid = F.interpolate(aux_cam, size=grid, mode="bilinear", align_corners=False)
            token_box = scale_box(box, size, grid) if config.token_box == "scaled" else box  # noqa: S105
            thresholds = config.low_threshold, config.high_threshold
            pairs = affinity(cam_to_pseudo_label(on_grid, class_labels, *thresholds, token_box)).long()
            losses["ptc"] = self._by_group(patch_token_contrast_loss, features, pairs)
        with phase("PAR"):
            source = aux_cam if step < config.aux_pseudo_labels_until_step else cam
            label = self._pseudo_label(images, source, class_labels, box)
        with phase("segmentation"):
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            losses["segmentation"] = self._by_group(segmentation_loss, logits, label)
        if self._energy:
            with phase("energy"):
                # The official filter is on the CPU wherever the network is.
                inputs = (denormalise_255(images, truncate=False), logits, label, box)
                settings = config.dense_energy.model_dump() | {"filter_name": "lattice"}
                losses["energy"] = dense_energy_loss(*(tensor.cpu() for tensor in inputs), **settings).to(device)
        terms = {name: getattr(config, name).at(step) for name in ("ptc", "ctc", "segmentation", "energy")}
        weights = {"classification": 1.0, "aux_classification": config.aux_weight, **terms}
        return StepOutput(losses, {name: weights[name] for name in losses})

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class token, patch tokens of the last block, patch tokens of the auxiliary block."""
        patches = self._vit.patch_embed(images)
        grid = patches.shape[1], patches.shape[2]
        class_token = self._vit.cls_token.expand(len(images), -1, -1)
        tokens = torch.cat([class_token, patches.flatten(1, 2)], dim=1) + self._positions(grid)
        tokens = self._vit.norm_pre(tokens)
        by_block = []
        for block in self._vit.blocks:
            tokens = block(tokens)
            by_block.append(tokens)
        by_block[-1] = self._vit.norm(tokens)
        last, aux = (
            by_block[index][:, 1:].transpose(1, 2).reshape(len(images), -1, *grid)
            for index in (-1, self._config.aux_block)
        )
        return by_block[-1][:, 0], last, aux

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        positions: Tensor = self._vit.pos_embed
        of_patches = positions[:, 1:].transpose(1, 2).unflatten(2, self._vit.patch_embed.grid_size)
        of_patches = F.interpolate(of_patches, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([positions[:, :1], of_patches.flatten(2).transpose(1, 2)], dim=1)

    @torch.no_grad()
    def _cams(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """CAM and auxiliary CAM of all classes."""
        network = self.network
        sums: dict[str, list[Tensor]] = {"cam": [], "aux_cam": []}
        for scale in (1.0, *(scale for scale in self._config.cam_scales if scale != 1.0)):
            size = tuple(int(scale * side) for side in images.shape[-2:])
            scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False) if scale != 1.0 else images
            _, features, aux_features = self._encode(torch.cat([scaled, scaled.flip(-1)]))
            network.decoder(features)
            for name, tokens, head in (
                ("cam", features, network.classifier),
                ("aux_cam", aux_features, network.aux_classifier),
            ):
                maps = F.conv2d(tokens, head.weight[:, :, None, None])
                maps = F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)
                upright, mirrored = maps.chunk(2)
                sums[name].append(torch.maximum(upright, mirrored.flip(-1)).relu())
        cam, aux_cam = (normalise_cam(torch.stack(maps).sum(dim=0)) for maps in sums.values())
        return cam, aux_cam

    def _crops(self, region: Tensor, source: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Local crops, crop-major, on the device, and which views are positive (the global ones are)."""
        config = self._config
        side = config.local_crop_size_px
        crops, positive = [], []
        for image, of_image in zip(source, region, strict=True):
            corners = random_corners(of_image.cpu(), config.num_local_crops, side, generator).tolist()
            crops.append(torch.stack([image[:, y : y + side, x : x + side] for y, x in corners]))
            means = [float(of_image[y : y + side, x : x + side].sum()) / side**2 for y, x in corners]
            positive.append([True, True, *(mean > config.min_crop_region for mean in means)])
        return torch.stack(crops, dim=1).to(region.device), torch.tensor(positive)

    def _contrast(self, student: Tensor, teacher: Tensor, is_positive: Tensor) -> Tensor:
        by_view = student.transpose(0, 1).flatten(0, 1), teacher.transpose(0, 1).flatten(0, 1)
        return class_token_contrast_loss(*by_view, is_positive, self._config.temperature)

    @torch.no_grad()
    def _pseudo_label(self, images: Tensor, cams: Tensor, class_labels: Tensor, box: Tensor) -> Tensor:
        """Image by image, and once for each threshold."""
        config = self._config
        colours = denormalise_255(images, truncate=True) / 255
        size = images.shape[-2], images.shape[-1]
        small = [int(side * config.par.scale) for side in size]
        labels = []
        for image, cam, present in zip(colours[:, None], cams[:, None], class_labels, strict=True):
            classes = present.nonzero().flatten()
            # Entry 0 is the background.
            ids = torch.cat([classes.new_zeros(1), classes + 1])
            small_image = F.interpolate(image, size=small, mode="bilinear", align_corners=False)
            small_cam = F.interpolate(cam[:, classes], size=small, mode="bilinear", align_corners=False)
            winners = []
            for background in (config.low_threshold, config.high_threshold):
                maps = F.pad(small_cam, (0, 0, 0, 0, 1, 0), value=background).softmax(dim=1)
                refined = refined_by_convolutions(small_image, maps, config.par)
                refined = F.interpolate(refined, size=size, mode="bilinear", align_corners=False)
                winners.append(ids[refined.argmax(dim=1)])
            against_low, against_high = winners
            label = torch.where((against_high == 0) & (against_low != 0), IGNORE_INDEX, against_high)
            labels.append(label)
        return ignore_outside(torch.cat(labels), box)

    def _by_group(self, loss: Callable[..., Tensor], *per_image: Tensor) -> Tensor:
        """Mean over the groups of images that share a device in the official run."""
        size = self._config.loss_group_size or len(per_image[0])
        groups = zip(*(tensor.split(size) for tensor in per_image), strict=True)
        return torch.stack([loss(*group) for group in groups]).mean()


def random_corners(region: Tensor, num_crops: int, side: int, generator: torch.Generator) -> Tensor:
    """Corners of one image's crops: a random permutation of all centres that are not sure foreground."""
    margin = side // 2
    height, width = region.shape
    inner = region[margin : height - margin, margin : width - margin]
    candidates = (inner <= Region.UNCERTAIN).nonzero()
    if len(candidates) < num_crops:
        candidates = torch.ones_like(inner).nonzero()
    return candidates[torch.randperm(len(candidates), generator=generator)[:num_crops]]


def refined_by_convolutions(images: Tensor, maps: Tensor, par: toco.ParConfig) -> Tensor:
    """PAR with one-hot convolutions for neighbours and copies for centres: ``b c h w`` to ``b c h w``."""
    offsets = [offset for offset in product((-1, 0, 1), repeat=2) if offset != (0, 0)]
    kernel = images.new_zeros(len(offsets), 1, 3, 3)
    for index, (dy, dx) in enumerate(offsets):
        kernel[index, 0, 1 + dy, 1 + dx] = 1

    def neighbours(values: Tensor) -> Tensor:
        planes: Tensor = values.flatten(0, 1)[:, None]
        rings = [
            F.conv2d(F.pad(planes, (reach, reach, reach, reach), mode="replicate"), kernel, dilation=reach)
            for reach in par.dilations
        ]
        stacked: Tensor = torch.cat(rings, dim=1).unflatten(0, values.shape[:2])
        return stacked

    around = neighbours(images)
    centre = images[:, :, None].repeat(1, 1, around.shape[2], 1, 1)
    spread = around.std(dim=2, keepdim=True).repeat(1, 1, around.shape[2], 1, 1)
    from_colour = -((around - centre).abs() / (spread + 1e-8) / par.colour_weight).square()

    ring = torch.tensor(offsets, dtype=images.dtype, device=images.device).norm(dim=1)
    distance = torch.cat([ring * reach for reach in par.dilations])
    from_position = -(distance / (distance.std() + 1e-8) / par.colour_weight).square()
    weights = from_colour.mean(dim=1, keepdim=True).softmax(dim=2)
    weights = weights + par.position_weight * from_position.softmax(dim=0)[:, None, None]
    for _ in range(par.iterations):
        maps = (neighbours(maps) * weights).sum(dim=2)
    return maps


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in one call of ``function``.

    A backward pass of attention counts as two forward ones; that a fused kernel computes the scores once more is no
    work of the step.
    """
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        function()
    return int(counter.get_total_flops())


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    _gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    return 2 * int(sdpa_flop_count(query, key, value))


# torch knows none for the CPU, and counts the recomputation in those for CUDA.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention} | dict.fromkeys(
    (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
        torch.ops.aten._scaled_dot_product_flash_attention_backward,
        torch.ops.aten._scaled_dot_product_efficient_attention_backward,
        torch.ops.aten._scaled_dot_product_cudnn_attention_backward,
    ),
    _attention_backward,
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A setting made real: the network with random weights, a batch on the host, and where in the training it is."""

    method: toco.ToCo
    batch: Batch
    optim: OptimConfig
    step: int
    num_steps: int


def recipe_of(backbone: str) -> RunConfig:
    """The recipe whose settings the steps have."""
    recipe: RunConfig = (shapes_nano if backbone == NANO else voc_deit_b).recipe()
    return recipe


def prepare(setting: Setting) -> Prepared:
    """What the recipe of the backbone says, with the weights and the images of one fixed seed."""
    torch.set_num_threads(setting.threads)
    recipe = recipe_of(setting.backbone)
    config = recipe.method if setting.energy else _without_energy(recipe.method)
    config = config.resolved(torch.device(setting.device), setting.size_px)
    torch.manual_seed(0)
    if setting.backbone == NANO:
        backbone = vit_nano.build(vit_nano.Config(weights=None))
    else:
        backbone = vit.build(vit.Config(model=ALIASES.get(setting.backbone, setting.backbone), weights=None))
    num_classes = NUM_FOREGROUND_CLASSES.get(setting.backbone, 20)
    method = toco.build(config, backbone, num_classes).to(setting.device)
    step = max(config.segmentation.start_step, config.energy.start_step) if setting.phase == "full" else 0
    batch = generated_batch(setting.batch, setting.size_px, num_classes, seed=0)
    return Prepared(method, batch, recipe.optim, step, recipe.num_steps)


def build_step(name: str, prepared: Prepared, setting: Setting) -> PlainStep | OurStep:
    """The ``plain`` step or ``ours``, which takes the network for itself."""
    method = prepared.method
    if name == "plain":
        return PlainStep(method, prepared.optim, prepared.num_steps, energy=setting.energy)
    method.autocast_dtype = torch.bfloat16 if setting.precision == "bfloat16" else None
    return OurStep(method, prepared.optim, prepared.num_steps)


def generated_batch(num_images: int, size_px: int, num_foreground_classes: int, seed: int) -> Batch:
    """Smooth images of one to three classes each, as in VOC; a quarter of the first one is black padding."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for _ in range(3):
        coarse = torch.rand(num_images, 3, max(size_px // 32, 2), max(size_px // 32, 2), generator=generator)
        smooth = F.interpolate(coarse, size=(size_px, size_px), mode="bicubic", align_corners=False)
        noise = 0.02 * torch.randn(num_images, 3, size_px, size_px, generator=generator)
        views.append(((smooth + noise).clamp(0, 1) * 255).to(torch.uint8))
    valid_box = torch.tensor([[0, size_px, 0, size_px]]).repeat(num_images, 1)
    valid_box[0, 3] = size_px - size_px // 4
    views[0][0, :, :, valid_box[0, 3] :] = 0
    class_labels = torch.zeros(num_images, num_foreground_classes)
    for index in range(num_images):
        classes = torch.randperm(num_foreground_classes, generator=generator)[: 1 + index % 3]
        class_labels[index, classes] = 1
    return Batch(
        images=normalise(views[0]),
        second_view=normalise(views[1]),
        crop_source=normalise(views[2]),
        class_labels=class_labels,
        valid_box=valid_box,
        names=tuple(f"generated {index}" for index in range(num_images)),
        present=present_classes(class_labels),
    )


def alone(name: str, setting: Setting) -> dict[str, Any]:
    """Arithmetic, phases and peak memory of one side in a process that does nothing else.

    On a CPU the memory has the libraries in it, and the compiler if there is one. A compiled step has no phases to be
    told apart, so they are those of the uncompiled one.
    """
    prepared = prepare(setting)
    step = build_step(name, prepared, setting)
    run = partial(step, prepared.batch, prepared.step, torch.Generator())
    flops = count_flops(run)
    phases = Phases(setting.device)
    started = perf_counter()
    with phases.of(step.method) if isinstance(step, OurStep) else nullcontext():
        run(phases)
    rest = perf_counter() - started - sum(phases.seconds.values())
    if isinstance(step, OurStep) and setting.compiled:
        if torch.device(setting.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.device)
        step.compile(run)
    return {
        "precision": setting.precision if name == "ours" else "float32",
        "gflop_per_image": flops / setting.batch / 1e9,
        "peak_memory_bytes": peak_memory_bytes(setting.device),
        "phases_s": {**phases.seconds, "rest": rest},
    }


def compare(setting: Setting, times: int) -> dict[str, Any]:
    """All figures of both steps."""
    measured: dict[str, dict[str, Any]] = {}
    for name in SIDES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            measured[name] = process.submit(alone, name, setting).result()

    prepared = prepare(setting)
    runs: dict[str, Callable[[], None]] = {}
    for name in SIDES:
        step = build_step(name, replace(prepared, method=copy.deepcopy(prepared.method)), setting)
        runs[name] = partial(step, prepared.batch, prepared.step, torch.Generator())
        if isinstance(step, OurStep) and setting.compiled:
            step.compile(runs[name])
    seconds = measure(runs, times, setting.device)
    for name, side in measured.items():
        peak = matrix_peak(getattr(torch, side["precision"]), setting.device)
        median_s = statistics.median(seconds[name])
        flops_per_s = side["gflop_per_image"] * 1e9 * setting.batch / median_s
        side |= {
            "seconds": seconds[name],
            "median_s": median_s,
            "min_s": min(seconds[name]),
            "images_per_s": setting.batch / median_s,
            "tflop_per_s": flops_per_s / 1e12,
            "matrix_peak_tflop_per_s": peak / 1e12,
            "share_of_matrix_peak": flops_per_s / peak,
        }
    plain, ours = (measured[name] for name in SIDES)
    return {
        **asdict(setting),
        "times": times,
        "ratio": plain["median_s"] / ours["median_s"],
        "ratio_of_minima": plain["min_s"] / ours["min_s"],
        **measured,
        "energy_term": energy_term(prepared, setting, times),
    }


def energy_term(prepared: Prepared, setting: Setting, times: int) -> dict[str, Any]:
    """Seconds of the energy term, forward and backward: the lattice on the CPU, and what ours resolves to."""
    config, batch = prepared.method.config.dense_energy, prepared.batch
    num_classes = prepared.method.num_foreground_classes + 1
    size = (setting.size_px, setting.size_px)
    smooth = torch.randn(setting.batch, num_classes, 8, 8)
    inputs = (
        denormalise_255(batch.images, truncate=False),
        F.interpolate(smooth, size=size, mode="bilinear", align_corners=False),
        torch.randint(num_classes, (setting.batch, *size)),
        batch.valid_box,
    )
    sides = {"plain": ("lattice", "cpu"), "ours": (config.filter_name, setting.device)}

    def term(name: str) -> Callable[[], None]:
        filter_name, device = sides[name]
        images, logits, label, box = (tensor.to(device) for tensor in inputs)
        logits.requires_grad_()
        settings = config.model_dump() | {"filter_name": filter_name}
        return lambda: dense_energy_loss(images, logits, label, box, **settings).backward()

    seconds = measure({name: term(name) for name in sides}, times, setting.device)
    return {
        name: {"filter": filter_name, "median_s": statistics.median(seconds[name]), "min_s": min(seconds[name])}
        for name, (filter_name, _) in sides.items()
    }


@click.command("step", help=__doc__)
@click.option("--backbone", default=NANO, show_default=True, help="nano, vit_small, vit_base, or a ViT of timm.")
@click.option("--size", type=click.IntRange(32), help="Side of the images in pixels.  [default: 64 for nano, else 224]")
@click.option("--batch", type=click.IntRange(1), help="Images of a step.  [default: 16 for nano, else 2]")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--phase", default="full", show_default=True, type=click.Choice(["full", "warmup"]))
@click.option("--energy/--no-energy", default=False, show_default=True, help="With the energy term in both steps.")
@click.option("--compile/--no-compile", "compiled", default=False, show_default=True, help="Compile our step.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=torch.get_num_threads(), type=click.IntRange(1), help="  [default: torch's]")
@click.option("--times", default=5, show_default=True, type=click.IntRange(1), help="Timed steps of each.")
@out_option
def step(
    backbone: str,
    size: int | None,
    batch: int | None,
    precision: Literal["float32", "bfloat16"],
    phase: Literal["full", "warmup"],
    energy: bool,
    compiled: bool,
    device: str,
    threads: int,
    times: int,
    out: Path | None,
) -> None:
    """Measure, print, write."""
    is_nano = backbone == NANO
    size, batch = size or (64 if is_nano else 224), batch or (16 if is_nano else 2)
    if size <= (local := recipe_of(backbone).method.local_crop_size_px):
        raise click.UsageError(f"--size is {size}, but local crops have {local} pixels; choose larger images.")
    result = compare(Setting(backbone, size, batch, precision, phase, energy, compiled, device, threads), times)
    write(out, "step", result)
    click.echo(_table(result))


def _table(result: Mapping[str, Any]) -> str:
    sides = [result[name] for name in SIDES]
    names = dict.fromkeys([name for side in sides for name in side["phases_s"]])
    rows: list[list[Any]] = [
        ["precision", *(side["precision"] for side in sides)],
        ["step, median s", *(f"{side['median_s']:.3f}" for side in sides)],
        ["step, shortest s", *(f"{side['min_s']:.3f}" for side in sides)],
        ["images/s", *(f"{side['images_per_s']:.3g}" for side in sides)],
        ["GFLOP an image", *(f"{side['gflop_per_image']:.1f}" for side in sides)],
        ["TFLOP/s", *(f"{side['tflop_per_s']:.3f}" for side in sides)],
        ["of the matrix peak", *(f"{side['share_of_matrix_peak']:.0%}" for side in sides)],
        ["peak memory, GiB", *(f"{side['peak_memory_bytes'] / 2**30:.2f}" for side in sides)],
        *([f"  {name}, s", *(f"{side['phases_s'].get(name, 0):.3f}" for side in sides)] for name in names),
        [
            "energy term alone, s",
            *(f"{side['median_s']:.3f} ({side['filter']})" for side in result["energy_term"].values()),
        ],
    ]
    head = f"plain / ours: {result['ratio']:.2f} (of the shortest: {result['ratio_of_minima']:.2f})"
    return f"{tabulate(rows, ['', *SIDES], disable_numparse=True)}\n{head}"


def _without_energy(config: toco.Config) -> toco.Config:
    return config.model_copy(update={"energy": toco.Term(weight=0)})
