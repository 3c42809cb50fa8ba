"""Time the test of the paper's Table 2: multi-scale network with flip, then the dense CRF.

    python -m benchmarks crf --out benchmarks/results/crf_cpu.json
    python -m benchmarks crf --device cuda --out benchmarks/results/crf_h200.json

The image is made up, with the usual size of VOC and 21 classes; the network is ViT-B with random
weights. Figures are seconds an image of the fastest run, which other load affects least.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import torch
import torch.nn.functional as F

from benchmarks._frame import benchmark
from benchmarks._made_up import num_foreground_classes_of, recipe_of
from benchmarks._record import measure
from toco.cam.config import CrfConfig
from toco.cam.crf import dense_crf
from toco.predict.config import InferenceConfig
from toco.predict.inference import network_probabilities
from toco.train.parts import build_method


@benchmark(times=3, threads=True)
@click.option("--height", default=375, show_default=True, type=click.IntRange(32))
@click.option("--width", default=500, show_default=True, type=click.IntRange(32))
@click.option(
    "--backbone", default="vit_base_patch16_224", show_default=True, help="nano, or a ViT of timm."
)
@click.option(
    "--filter",
    "filter_name",
    type=click.Choice(["auto", "lattice", "exact"]),
    default="auto",
    show_default=True,
)
def crf(
    device: str, height: int, width: int, backbone: str, filter_name: str, times: int
) -> dict[str, Any]:
    """Measure the seconds an image of the network at all scales and of the CRF."""
    num_foreground_classes = num_foreground_classes_of(backbone)
    method = build_method(recipe_of(backbone), num_foreground_classes).to(device).eval()
    config = CrfConfig(filter_name=filter_name).resolved(torch.device(device).type)
    # The time of the CRF depends on the vertices of the lattice. This image has about as many as
    # photographs of VOC.
    coarse = F.interpolate(torch.rand(1, 3, 10, 10), size=(height, width), mode="bicubic").clamp(
        0, 1
    )
    levels = (60 + 120 * coarse + 2 * torch.rand(1, 3, height, width)).byte().to(device)
    maps = F.interpolate(
        torch.randn(1, num_foreground_classes + 1, 12, 16), size=(height, width), mode="bicubic"
    )
    probabilities = (3 * maps).softmax(1).to(device)
    without_crf = InferenceConfig(crf=None)
    parts = {
        "network": partial(network_probabilities, method, levels[0].permute(1, 2, 0), without_crf),
        "crf": partial(dense_crf, levels.float(), probabilities, config),
    }
    return {
        "device": device,
        "backbone": backbone,
        "height_px": height,
        "width_px": width,
        "classes": num_foreground_classes + 1,
        "network": without_crf.protocol(),
        "crf": config.protocol(),
        "seconds_an_image": {
            name: min(seconds) for name, seconds in measure(parts, times, device).items()
        },
    }
