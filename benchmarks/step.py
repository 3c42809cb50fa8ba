"""Time one training step: the official computation against ours, side by side in one run.

    python -m benchmarks step --backbone vit_base --size 448 --batch 2 --out step_vit_base_448.json

Both steps start from the same random weights and take the same generated images. The plain step
makes all passes of the official iteration, in float32, with explicit attention. Its losses and
gradients equal ours (a test compares them). The energy term is left out of the steps unless
``--energy`` is given, and is always timed separately. Peak memory, arithmetic and phases come from
two steps of each kind in a separate process.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from functools import partial
from multiprocessing import get_context
from time import perf_counter
from typing import Any, Literal, cast

import click
import torch
import torch.nn.functional as F

from benchmarks._flops import count_flops
from benchmarks._frame import benchmark
from benchmarks._made_up import NANO, generated_batch, num_foreground_classes_of, recipe_of
from benchmarks._phases import Phases
from benchmarks._record import matrix_peak, measure, peak_memory_bytes
from benchmarks._steps import PlainStep
from toco.config import replace
from toco.data.views.normalise import denormalise_255
from toco.losses.dense_energy import dense_energy_loss
from toco.methods import toco
from toco.tensors import Batch
from toco.train.optim import build_optimizer
from toco.train.optim_config import AdamWConfig
from toco.train.parts import build_method
from toco.train.run_config import RunConfig
from toco.train.step import TrainingStep

SIDES = ("plain", "ours")


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings of a measurement.

    Attributes:
        backbone: ``nano``, ``vit_small``, ``vit_base`` or a name of timm.
        size_px: Side of the images.
        batch: Images of a step.
        precision: Precision of our step; the plain step is float32.
        phase: ``full`` has all terms; ``warmup`` is before the decoder's terms count.
        energy: Whether the steps include the energy term.
        compiled: Whether our step is compiled.
        device: Device of both steps.
        threads: CPU threads of torch.
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
    """Network with random weights, batch on the host, config, and step of the training."""

    method: toco.ToCo
    batch: Batch
    config: RunConfig
    step: int


def prepare(setting: Setting) -> Prepared:
    """Build the network of the backbone's recipe and a batch, both from fixed seeds."""
    torch.set_num_threads(setting.threads)
    changes = {
        "device": setting.device,
        "precision": setting.precision,
        "views.crop_size_px": setting.size_px,
        # So that the steps of all backbones compare: all layers train, and both contrasts act.
        "optim.layer_decay": 1.0,
        "optim.frozen_layers": 0,
        "method.ptc.start_step": 0,
        "method.ctc.start_step": 0,
    }
    without_energy = {} if setting.energy else {"method.energy.weight": 0}
    config = replace(recipe_of(setting.backbone), changes | without_energy).resolved()
    num_classes = num_foreground_classes_of(setting.backbone)
    method = cast(toco.ToCo, build_method(config, num_classes).to(setting.device))
    terms = config.method.segmentation, config.method.energy
    step = max(term.start_step for term in terms) if setting.phase == "full" else 0
    return Prepared(
        method, generated_batch(setting.batch, setting.size_px, num_classes, seed=0), config, step
    )


def build_step(name: str, prepared: Prepared, setting: Setting) -> PlainStep | TrainingStep:
    """Build the ``plain`` step, or ``ours``, that of the training loop.

    Either changes the network of ``prepared``.
    """
    method, config = prepared.method, prepared.config
    if name == "plain":
        optim = cast(AdamWConfig, config.optim)
        return PlainStep(method, optim, config.num_steps, energy=setting.energy)
    optimizer = build_optimizer(method, config.optim)
    return TrainingStep(method, optimizer, config)


def compile_step(step: TrainingStep, run: Callable[[], object]) -> None:
    """Compile ``step``, and ``run`` it until compilation and recording of its graph are done."""
    step.method.compile_step()
    for _ in range(3):
        run()


def measure_alone(name: str, setting: Setting) -> dict[str, Any]:
    """Measure arithmetic, phases and peak memory of one side, in a process for it alone.

    On a CPU the memory includes the libraries, and the compiler if it ran. The phases of a compiled
    step cannot be separated, so the phases are always those of the uncompiled step.
    """
    prepared = prepare(setting)
    step = build_step(name, prepared, setting)
    run = partial(step, prepared.batch, prepared.step)
    flops = count_flops(run)
    phases = Phases(setting.device)
    started = perf_counter()
    with phases.of(step, prepared.method):
        run()
    remaining_s = perf_counter() - started - sum(phases.seconds.values())
    if isinstance(step, TrainingStep) and setting.compiled:
        if torch.device(setting.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.device)
        compile_step(step, run)
    return {
        "precision": setting.precision if name == "ours" else "float32",
        "gflop_per_image": flops / setting.batch / 1e9,
        "peak_memory_bytes": peak_memory_bytes(setting.device),
        "phases_s": {**phases.seconds, "rest": remaining_s},
    }


def compare(setting: Setting, times: int) -> dict[str, Any]:
    """Measure all figures of both steps."""
    measured: dict[str, dict[str, Any]] = {}
    for name in SIDES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            measured[name] = process.submit(measure_alone, name, setting).result()

    prepared = prepare(setting)
    runs: dict[str, Callable[[], object]] = {}
    for name in SIDES:
        step = build_step(name, replaced(prepared, method=copy.deepcopy(prepared.method)), setting)
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
    plain_side, our_side = (measured[name] for name in SIDES)
    return {
        **asdict(setting),
        "times": times,
        "ratio": plain_side["median_s"] / our_side["median_s"],
        "ratio_of_minima": plain_side["min_s"] / our_side["min_s"],
        **measured,
        "energy_term": energy_term(prepared, setting, times),
    }


def energy_term(prepared: Prepared, setting: Setting, times: int) -> dict[str, Any]:
    """Time the energy term, forward and backward: official lattice on the CPU, and our filter."""
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
        name: {
            "filter": filter_name,
            "median_s": statistics.median(seconds[name]),
            "min_s": min(seconds[name]),
        }
        for name, (filter_name, _) in sides.items()
    }


@benchmark(times=5, threads=True)
@click.option(
    "--backbone",
    default=NANO,
    show_default=True,
    help="nano, vit_small, vit_base, or a ViT of timm.",
)
@click.option(
    "--size",
    type=click.IntRange(32),
    help="Side of the images in pixels.  [default: 64 for nano, else 224]",
)
@click.option(
    "--batch", type=click.IntRange(1), help="Images of a step.  [default: 16 for nano, else 2]"
)
@click.option(
    "--precision", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"])
)
@click.option("--phase", default="full", show_default=True, type=click.Choice(["full", "warmup"]))
@click.option(
    "--energy/--no-energy",
    default=False,
    show_default=True,
    help="With the energy term in both steps.",
)
@click.option(
    "--compile/--no-compile", "compiled", default=False, show_default=True, help="Compile our step."
)
def step(
    backbone: str,
    size: int | None,
    batch: int | None,
    times: int,
    **chosen: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Measure both steps; ``chosen`` holds the other fields of a :class:`Setting`."""
    is_nano = backbone == NANO
    size, batch = size or (64 if is_nano else 224), batch or (16 if is_nano else 2)
    if size <= (local := recipe_of(backbone).method.local_crop_size_px):
        raise click.UsageError(
            f"--size is {size}, but local crops have {local} pixels; choose larger images."
        )
    return compare(Setting(backbone, size, batch, threads=torch.get_num_threads(), **chosen), times)
