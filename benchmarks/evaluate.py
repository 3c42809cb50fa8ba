"""Time an evaluation, its parts and its threshold curve.

    python -m benchmarks evaluate --out benchmarks/results/evaluate_nano.json
    python -m benchmarks evaluate --backbone deit_base_patch16_224 --size 448 --device cuda

``nano`` evaluates the generated scenes as the recipe ``shapes_nano`` does. Any other backbone is a
ViT of timm on made-up images of VOC's sizes, with up to three of 20 classes each, under the
official protocol (three scales, mirrored). Weights are random. Images lie in memory, because
decoding overlaps with the work of a GPU; no figure contains it. Figures are those of the fastest
run, which other load affects least.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks._frame import benchmark
from benchmarks._made_up import (
    NANO,
    PHOTOGRAPH,
    num_foreground_classes_of,
    recipe_of,
    write_voc_folder,
)
from benchmarks._record import measure, peak_memory_bytes
from toco.config import replace
from toco.data import Dataset, shapes, voc
from toco.evaluate import EvaluateConfig
from toco.evaluate.batches import in_order, plan_batches, read_batch
from toco.evaluate.evaluator import evaluate as run
from toco.evaluate.scores import Scores
from toco.evaluate.sizes import network_input
from toco.methods import Method
from toco.train.parts import build_method

VOC_IMAGES = 1449
"""Images of VOC's validation split."""
VOC_SIZES = (
    PHOTOGRAPH,
    PHOTOGRAPH,
    (333, 500),
    (500, 375),
    PHOTOGRAPH,
    (500, 333),
    (366, 500),
    PHOTOGRAPH,
)
"""Common sizes of VOC; half of the images have the first one."""


@benchmark(times=5)
@click.option("--backbone", default=NANO, show_default=True, help="nano, or a ViT of timm.")
@click.option(
    "--size",
    type=click.IntRange(32),
    help="Side of the images in pixels.  [default: 64 for nano, else 448]",
)
@click.option(
    "--images", type=click.IntRange(1), help="Images to evaluate.  [default: 300 for nano, else 16]"
)
@click.option(
    "--batch", type=click.IntRange(1), help="Images at once.  [default: 50 for nano, else 8]"
)
@click.option(
    "--precision", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"])
)
def evaluate(
    backbone: str,
    size: int | None,
    images: int | None,
    batch: int | None,
    precision: str,
    device: str,
    times: int,
) -> dict[str, Any]:
    """Measure images a second, the parts of an evaluation, and the cost of the threshold curve."""
    defaults = (64, 300, 50) if backbone == NANO else (448, 16, 8)
    size, images, batch = (
        option or default for option, default in zip((size, images, batch), defaults, strict=True)
    )
    config = replace(recipe_of(backbone), {"precision": precision})
    if backbone == NANO:
        config = replace(config, {"backbone.image_size_px": size})
    method = build_method(config, num_foreground_classes_of(backbone)).to(device).eval()
    curve = EvaluateConfig(
        size_px=size, cam_scales=config.evaluate.cam_scales, num_pictures=0, batch_size=batch
    )
    single = curve.model_copy(update={"background_threshold": 0.0, "curve_stop": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        if backbone == NANO:
            dataset: Dataset = shapes.open_split(
                shapes.Config(num_train=1, num_val=images, image_size_px=size), "val"
            )
        else:
            write_voc_folder(Path(folder), images, VOC_SIZES)
            dataset = voc.open_split(
                voc.Config(root=Path(folder), val_list="train", cache="memory"), "val"
            )
        result: dict[str, Any] = {
            "device": device,
            "backbone": backbone,
            "size_px": size,
            "images": images,
            "batch_size": batch,
            "cam_scales": curve.cam_scales,
            "precision": precision,
            "foreground_classes": len(dataset.class_names),
            "thresholds": len(curve.thresholds()),
            "times": times,
            **_complete_evaluations(method, dataset, curve, single, device, times),
            **_parts(method, dataset, curve, single, device, times),
        }
    if torch.device(device).type == "cuda":
        result["projection_voc_val_s"] = VOC_IMAGES / result["images_per_s"]
    return result | {"peak_memory_bytes": peak_memory_bytes(device)}


def _complete_evaluations(
    method: Method,
    dataset: Dataset,
    curve: EvaluateConfig,
    single: EvaluateConfig,
    device: str,
    times: int,
) -> dict[str, Any]:
    """Time complete evaluations, with the curve and with a single threshold."""
    configs = {"curve": curve, "single": single}
    runs = {name: partial(run, method, dataset, config, device) for name, config in configs.items()}
    seconds = measure(runs, times, device)
    with_curve, with_one = (min(seconds[name]) for name in configs)
    return {
        "evaluation_s": seconds["curve"],
        "evaluation_one_threshold_s": seconds["single"],
        "images_per_s": len(dataset) / with_curve,
        "curve_extra": with_curve / with_one - 1,
    }


def _parts(
    method: Method,
    dataset: Dataset,
    curve: EvaluateConfig,
    single: EvaluateConfig,
    device: str,
    times: int,
) -> dict[str, Any]:
    """Time the parts on the first batch, which is on the device, in milliseconds an image."""
    (indices, *_) = plan_batches(dataset, range(len(dataset)), curve.batch_size, one_size=False)
    batch = read_batch(dataset, indices, pin=False).to(device)

    def to_network() -> torch.Tensor:
        return in_order([network_input(stack, curve.size_px) for stack in batch.images], batch.rows)

    with torch.no_grad():
        images = to_network()
        prediction = method.predict(images, curve.cam_scales, curve.cam_flip, batch.present)

        def count(config: EvaluateConfig) -> None:
            index = config.fixed_threshold_index()
            Scores(len(dataset.class_names), config.thresholds(), index, device).update(
                batch, prediction
            )

        seconds = measure(
            {
                "read_ms": lambda: read_batch(
                    dataset, indices, pin=torch.device(device).type == "cuda"
                ),
                "input_ms": to_network,
                "network_ms": lambda: method.predict(
                    images, curve.cam_scales, curve.cam_flip, batch.present
                ),
                "counting_ms": lambda: count(curve),
                "counting_one_threshold_ms": lambda: count(single),
            },
            times,
            device,
        )
    return {
        "per_image": {
            name: 1e3 * min(part_seconds) / len(indices) for name, part_seconds in seconds.items()
        }
    }
