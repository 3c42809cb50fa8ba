"""Time both bilateral filters, building and filtering apart, and the error of the exact one.

    python -m benchmarks energy --out benchmarks/results/energy_cpu.json
    python -m benchmarks energy --device cuda --images 8 --out benchmarks/results/energy_h200.json

Images are made up, smooth with some texture; there are 21 maps, as many as VOC has classes with the
background. The energy of images of 448 px is computed at 224 x 224 pixels. Figures are milliseconds
an image of the fastest run, which other load affects least.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from benchmarks._frame import benchmark
from benchmarks._record import measure
from toco import filters
from toco.filters import exact

SIDES = (32, 56, 112, 224)
ERROR_SIDE = 56
LARGE = 224
"""Side in pixels from which the exact filter takes seconds on a CPU."""
# About those of the recipes: colour 15 levels; position 100 px, halved with the images.
SIGMA_RGB, SIGMA_XY = 15.0, 50.0


@benchmark(times=10, threads=True)
@click.option(
    "--images",
    "num_images",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Images at once.",
)
@click.option(
    "--maps",
    "num_maps",
    default=21,
    show_default=True,
    type=click.IntRange(1),
    help="Maps of each image.",
)
@click.option("--large", is_flag=True, help="On a CPU, the exact filter of 224 x 224 pixels too.")
def energy(device: str, num_images: int, num_maps: int, times: int, large: bool) -> dict[str, Any]:
    """Measure both bilateral filters, and the error of the exact one against float64."""
    rows = []
    for side in SIDES:
        images, values = _generate(num_images, num_maps, side, device)
        for name in ("exact", "lattice"):
            if (
                name == "exact"
                and side >= LARGE
                and torch.device(device).type == "cpu"
                and not large
            ):
                continue
            rows.append(
                {"filter": name, "side_px": side} | _milliseconds(name, images, values, times)
            )
    images, values = _generate(1, num_maps, ERROR_SIDE, device)
    expected = exact.build(images.double(), SIGMA_RGB, SIGMA_XY)(values.double())
    sums = exact.build(images, SIGMA_RGB, SIGMA_XY)(values).double()
    return {
        "device": device,
        "fused_kernel": exact.has_fused_kernel(images),
        "images": num_images,
        "maps": num_maps,
        "sigma_rgb": SIGMA_RGB,
        "sigma_xy": SIGMA_XY,
        "filters": rows,
        "largest_relative_error_of_exact": {
            "side_px": ERROR_SIDE,
            "against": "the same in float64",
            "value": ((sums - expected).abs() / expected).max().item(),
        },
    }


def _milliseconds(
    name: str, images: Float[Tensor, "b 3 h w"], values: Float[Tensor, "b k h w"], times: int
) -> dict[str, float]:
    """Time building and using a filter, in milliseconds an image."""
    build = partial(filters.build, name, images, SIGMA_RGB, SIGMA_XY)
    seconds = measure(
        {"build_ms": build, "filter_ms": partial(build(), values)}, times, images.device
    )
    return {part: 1000 * min(part_seconds) / len(images) for part, part_seconds in seconds.items()}


def _generate(
    num_images: int, num_maps: int, side: int, device: str
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b k h w"]]:
    """Generate images with levels 0 to 255, and maps with values 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_images, 3, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    images = 235 * smooth + 20 * torch.rand(num_images, 3, side, side, generator=generator)
    return images.to(device), torch.rand(num_images, num_maps, side, side, generator=generator).to(
        device
    )
