"""Seconds an image of the test as in the paper's Table 2: the network at several scales with flip, then the dense CRF.

    python -m benchmarks crf --out benchmarks/results/crf_cpu.json
    python -m benchmarks crf --device cuda --out benchmarks/results/crf_h200.json

A made-up image of the usual size of VOC and 21 classes; the network is ViT-B with random weights. Figures are those of
the fastest of some runs, so that other load counts least.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from tabulate import tabulate

from benchmarks._record import measure, out_option, write
from toco.backbones import vit, vit_nano
from toco.cam.crf import dense_crf
from toco.methods import toco
from toco.predict.inference import InferenceConfig, network_probabilities
from toco.recipes import voc_deit_b

NUM_CLASSES = 21
NANO = "vit_nano"


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--height", default=375, show_default=True, type=click.IntRange(32))
@click.option("--width", default=500, show_default=True, type=click.IntRange(32))
@click.option("--backbone", default="vit_base_patch16_224", show_default=True, help=f"Of timm, or {NANO}.")
@click.option(
    "--filter", "filter_name", type=click.Choice(["auto", "lattice", "exact"]), default="auto", show_default=True
)
@click.option("--threads", type=click.IntRange(1), help="Threads on a CPU.  [default: torch's]")
@click.option("--times", default=3, show_default=True, type=click.IntRange(1), help="Timed runs of each.")
@out_option
def crf(
    device: str,
    height: int,
    width: int,
    backbone: str,
    filter_name: str,
    threads: int | None,
    times: int,
    out: Path | None,
) -> None:
    """Seconds an image of the network at all scales and of the CRF."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = (
        vit_nano.build(vit_nano.Config(weights=None))
        if backbone == NANO
        else vit.build(vit.Config(model=backbone, weights=None))
    )
    method = toco.build(voc_deit_b.recipe().method, network, NUM_CLASSES - 1).to(device).eval()
    official = InferenceConfig().crf
    assert official is not None  # noqa: S101 - for the checker
    config = official.model_copy(update={"filter_name": filter_name}).resolved(device)
    # About as many vertices of the lattice as photographs of VOC have, on which the time of the CRF depends.
    coarse = F.interpolate(torch.rand(1, 3, 10, 10), size=(height, width), mode="bicubic").clamp(0, 1)
    levels = (60 + 120 * coarse + 2 * torch.rand(1, 3, height, width)).byte().to(device)
    maps = F.interpolate(torch.randn(1, NUM_CLASSES, 12, 16), size=(height, width), mode="bicubic")
    probabilities = (3 * maps).softmax(1).to(device)
    parts = {
        "network": partial(network_probabilities, method, levels[0].permute(1, 2, 0), InferenceConfig(crf=None)),
        "crf": partial(dense_crf, levels.float(), probabilities, config),
    }
    seconds = {name: min(taken) for name, taken in measure(parts, times, device).items()}
    click.echo(tabulate([*seconds.items(), ("both", sum(seconds.values()))], floatfmt=".2f"))
    write(
        out,
        "crf",
        {
            "device": device,
            "backbone": backbone,
            "height_px": height,
            "width_px": width,
            "classes": NUM_CLASSES,
            "network": InferenceConfig(crf=None).protocol(),
            "crf": config.protocol(),
            "seconds_an_image": seconds,
        },
    )
