"""Evaluation: images a second, where the time goes, and what the threshold curve adds.

    python -m benchmarks evaluate --out benchmarks/results/evaluate_nano_64.json
    python -m benchmarks evaluate --backbone deit_base_patch16_224 --size 448 --images 64 --device cuda

``nano`` evaluates the generated scenes as the recipe ``shapes_nano`` does. Any other backbone is a ViT of timm on
images made up in memory, of VOC's sizes and with up to three of 20 classes each, under the official protocol (three
scales, mirrored). Weights are random. Images lie in memory: decoding them overlaps with the work of a GPU, and is not
in these figures, which are those of the fastest of some runs, so that other load counts least.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from tabulate import tabulate

from benchmarks._record import measure, out_option, peak_memory_bytes, write
from toco.backbones import vit, vit_nano
from toco.data import Dataset, shapes
from toco.evaluate import EvaluateConfig
from toco.evaluate import evaluate as run
from toco.evaluate.batches import in_order, plan_batches, read_batch
from toco.evaluate.scores import Scores
from toco.evaluate.sizes import network_input
from toco.methods import Method, toco
from toco.recipes import shapes_nano

NANO = "nano"
VOC_IMAGES = 1449
"""Images of VOC's validation split."""
VOC_SIZES = ((375, 500), (375, 500), (333, 500), (500, 375), (375, 500), (500, 333), (366, 500), (375, 500))
"""Sizes as they are common in VOC: half of the images have the first one."""
NUM_FOREGROUND_CLASSES = 20


class MadeUpImages(Dataset):
    """Blocks of random colours, and masks of one to three classes with some void."""

    def __init__(self, num_images: int) -> None:
        self.class_names = tuple(f"class {i}" for i in range(NUM_FOREGROUND_CLASSES))
        self.names = tuple(f"image {i}" for i in range(num_images))
        rng = np.random.default_rng(0)
        self._images, self._masks, self._labels = [], [], []
        for index in range(num_images):
            height, width = VOC_SIZES[index % len(VOC_SIZES)]
            shown = rng.choice(
                np.arange(1, NUM_FOREGROUND_CLASSES + 1), rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]), False
            )
            self._images.append(_blocks(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), height, width))
            self._masks.append(_blocks(rng.choice([0, 0, 0, 255, *shown], (32, 32)).astype(np.uint8), height, width))
            self._labels.append(np.isin(np.arange(1, NUM_FOREGROUND_CLASSES + 1), shown).astype(np.float32))

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """See the base class."""
        return self._images[index]

    def class_labels(self, index: int) -> Float32[np.ndarray, " k"]:
        """See the base class."""
        return self._labels[index]

    def mask(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """See the base class."""
        return self._masks[index]

    def manifest_digest(self) -> str:
        """See the base class."""
        return "made up"


@click.command()
@click.option("--backbone", default=NANO, show_default=True, help="nano, or a ViT of timm.")
@click.option("--size", type=click.IntRange(32), help="Side of the images in pixels.  [default: 64 for nano, else 448]")
@click.option("--images", type=click.IntRange(1), help="Images to evaluate.  [default: 300 for nano, else 16]")
@click.option("--batch", type=click.IntRange(1), help="Images at once.  [default: 50 for nano, else 8]")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--device", default="cpu", show_default=True)
@click.option("--times", default=5, show_default=True, type=click.IntRange(1), help="Timed runs of each.")
@out_option
def evaluate(
    backbone: str,
    size: int | None,
    images: int | None,
    batch: int | None,
    precision: str,
    device: str,
    times: int,
    out: Path | None,
) -> None:
    """Images a second of an evaluation, its parts, and the cost of the threshold curve."""
    torch.manual_seed(0)
    if backbone == NANO:
        size, images, batch = size or 64, images or 300, batch or 50
        recipe = shapes_nano.recipe()
        dataset: Dataset = shapes.open_split(shapes.Config(num_train=1, num_val=images, image_size_px=size), "val")
        method: Method = toco.build(
            recipe.method, vit_nano.build(vit_nano.Config(image_size_px=size, weights=None)), len(dataset.class_names)
        )
        scales = recipe.evaluate.cam_scales
    else:
        size, images, batch = size or 448, images or 16, batch or 8
        dataset = MadeUpImages(images)
        encoder = vit.build(vit.Config(model=backbone, weights=None))
        method = toco.build(toco.Config(aux_block=encoder.depth - 3), encoder, NUM_FOREGROUND_CLASSES)
        scales = EvaluateConfig().cam_scales
    method = method.to(device).eval()
    method.autocast_dtype = torch.bfloat16 if precision == "bfloat16" else None
    curve = EvaluateConfig(size_px=size, cam_scales=scales, num_pictures=0, batch_size=batch)
    single = curve.model_copy(update={"background_threshold": 0.0, "curve_stop": 0.0})

    result: dict[str, Any] = {
        "device": device,
        "backbone": backbone,
        "size_px": size,
        "images": images,
        "batch_size": batch,
        "cam_scales": scales,
        "precision": precision,
        "foreground_classes": len(dataset.class_names),
        "thresholds": len(curve.thresholds()),
        "times": times,
        **_whole(method, dataset, curve, single, device, times),
        **_parts(method, dataset, curve, single, device, times),
    }
    if torch.device(device).type == "cuda":
        result["projection_voc_val_s"] = VOC_IMAGES / result["images_per_s"]
    result["peak_memory_bytes"] = peak_memory_bytes(device)
    write(out, "evaluate", result)
    click.echo(_table(result))


def _whole(
    method: Method, dataset: Dataset, curve: EvaluateConfig, single: EvaluateConfig, device: str, times: int
) -> dict[str, Any]:
    """Whole evaluations, with the curve and with one threshold."""
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
    method: Method, dataset: Dataset, curve: EvaluateConfig, single: EvaluateConfig, device: str, times: int
) -> dict[str, Any]:
    """Milliseconds an image of the parts, from the first batch, which lies on the device."""
    (indices, *_) = plan_batches(dataset, range(len(dataset)), curve.batch_size, one_size=False)
    batch = read_batch(dataset, indices, pin=False).to(device)

    def to_network() -> torch.Tensor:
        return in_order([network_input(stack, curve.size_px) for stack in batch.images], batch.rows)

    with torch.no_grad():
        images = to_network()
        prediction = method.predict(images, curve.cam_scales, curve.cam_flip, batch.present)

        def count(config: EvaluateConfig) -> None:
            index = config.fixed_threshold_index()
            Scores(len(dataset.class_names), config.thresholds(), index, device).update(batch, prediction)

        seconds = measure(
            {
                "read_ms": lambda: read_batch(dataset, indices, pin=torch.device(device).type == "cuda"),
                "input_ms": to_network,
                "network_ms": lambda: method.predict(images, curve.cam_scales, curve.cam_flip, batch.present),
                "counting_ms": lambda: count(curve),
                "counting_one_threshold_ms": lambda: count(single),
            },
            times,
            device,
        )
    return {"per_image": {name: 1e3 * min(each) / len(indices) for name, each in seconds.items()}}


def _table(result: dict[str, Any]) -> str:
    parts = result["per_image"]
    extra = parts["counting_ms"] - parts["counting_one_threshold_ms"]
    rows = [
        ("images a second", f"{result['images_per_s']:.1f}"),
        (f"curve of {result['thresholds']} thresholds against one, whole evaluation", f"{result['curve_extra']:+.1%}"),
        ("reading from memory, checking, stacking, ms an image (overlaps)", f"{parts['read_ms']:.2f}"),
        ("resizing and normalising, ms an image", f"{parts['input_ms']:.2f}"),
        ("network passes and CAMs, ms an image", f"{parts['network_ms']:.2f}"),
        ("maps to masks and counting, ms an image", f"{parts['counting_ms']:.2f}"),
        ("of which the curve, ms an image", f"{extra:.2f}"),
    ]
    if (projected := result.get("projection_voc_val_s")) is not None:
        rows.append((f"PROJECTION to {VOC_IMAGES} images, not measured, s", f"{projected:.1f}"))
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _blocks(pixels: UInt8[np.ndarray, "h w *c"], height: int, width: int) -> UInt8[np.ndarray, "h2 w2 *c"]:
    """Every value of a small grid as a block of a grid of another size."""
    rows, columns = (np.arange(side) * len(pixels) // side for side in (height, width))
    return np.ascontiguousarray(pixels[rows[:, None], columns])
