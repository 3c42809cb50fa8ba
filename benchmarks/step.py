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
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import click
import torch
import torch.nn.functional as F
from tabulate import tabulate

from benchmarks._flops import count_flops
from benchmarks._phases import Phases
from benchmarks._record import matrix_peak, measure, out_option, peak_memory_bytes, write
from benchmarks._steps import PlainStep
from toco.backbones import vit, vit_nano
from toco.data import denormalise_255, normalise
from toco.losses.dense_energy import dense_energy_loss
from toco.methods import toco
from toco.recipes import shapes_nano, voc_deit_b
from toco.train.optim import build_optimizer
from toco.train.run_config import RunConfig
from toco.train.step import TrainingStep
from toco.types import Batch, present_classes

NANO = "nano"
SIDES = ("plain", "ours")
ALIASES = {"vit_small": "vit_small_patch16_224", "vit_base": "vit_base_patch16_224"}
NUM_FOREGROUND_CLASSES = {NANO: 8}
"""Those of the generated scenes; any other backbone gets the 20 of VOC."""


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A setting made real: the network with random weights, a batch on the host, and where in the training it is."""

    method: toco.ToCo
    batch: Batch
    config: RunConfig
    step: int


def recipe_of(backbone: str) -> RunConfig:
    """The recipe whose settings the steps have."""
    recipe: RunConfig = (shapes_nano if backbone == NANO else voc_deit_b).recipe()
    return recipe


def prepare(setting: Setting) -> Prepared:
    """What the recipe of the backbone says, with the weights and the images of one fixed seed."""
    torch.set_num_threads(setting.threads)
    recipe = recipe_of(setting.backbone)
    settings = recipe.method if setting.energy else _without_energy(recipe.method)
    settings = settings.resolved(torch.device(setting.device), setting.size_px)
    torch.manual_seed(0)
    if setting.backbone == NANO:
        backbone = vit_nano.build(vit_nano.Config(weights=None))
    else:
        backbone = vit.build(vit.Config(model=ALIASES.get(setting.backbone, setting.backbone), weights=None))
    num_classes = NUM_FOREGROUND_CLASSES.get(setting.backbone, 20)
    method = toco.build(settings, backbone, num_classes).to(setting.device)
    step = max(settings.segmentation.start_step, settings.energy.start_step) if setting.phase == "full" else 0
    batch = generated_batch(setting.batch, setting.size_px, num_classes, seed=0)
    config = recipe.model_copy(update={"method": settings, "device": setting.device})
    return Prepared(method, batch, config, step)


def build_step(name: str, prepared: Prepared, setting: Setting) -> PlainStep | TrainingStep:
    """Build the ``plain`` step or ``ours``, the training loop's; it changes the network of ``prepared``."""
    method, config = prepared.method, prepared.config
    if name == "plain":
        return PlainStep(method, config.optim, config.num_steps, energy=setting.energy)
    method.autocast_dtype = torch.bfloat16 if setting.precision == "bfloat16" else None
    return TrainingStep(method, build_optimizer(method.parameter_groups(), config.optim), config)


def compile_step(step: TrainingStep, run: Callable[[], object]) -> None:
    """Compile ``step``, and ``run`` it until that is done and its graph is recorded."""
    step.method.compile_step()
    for _ in range(3):
        run()


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
    run = partial(step, prepared.batch, prepared.step)
    flops = count_flops(run)
    phases = Phases(setting.device)
    started = perf_counter()
    if isinstance(step, PlainStep):
        step(prepared.batch, prepared.step, phases)
    else:
        with phases.of(step, prepared.method):
            run()
    rest = perf_counter() - started - sum(phases.seconds.values())
    if isinstance(step, TrainingStep) and setting.compiled:
        if torch.device(setting.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.device)
        compile_step(step, run)
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
    runs: dict[str, Callable[[], object]] = {}
    for name in SIDES:
        step = build_step(name, replace(prepared, method=copy.deepcopy(prepared.method)), setting)
        runs[name] = partial(step, prepared.batch, prepared.step)
        if isinstance(step, TrainingStep) and setting.compiled:
            compile_step(step, runs[name])
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
        settings = config.model_copy(update={"filter_name": filter_name})
        return lambda: dense_energy_loss(images, logits, label, box, settings).backward()

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
