"""Time the input pipeline: decoding and geometry on CPUs, colours on the device.

    python -m benchmarks input --device cuda --workers 4 --out benchmarks/results/input_h200.json

The command generates JPEG files of 500 x 375 px like photographs in a temporary folder, and needs
no data set. Parts are measured one after the other on one core, in processor time; the loader with
``--workers`` processes. Every image has three views, at the settings of ``voc_deit_b``. With
``--device cpu`` colours are computed on the CPU, as in a training without a GPU.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks._frame import benchmark
from benchmarks._made_up import write_voc_folder
from benchmarks._record import measure, synchronise
from toco.data import Dataset, ViewsConfig, make_views, voc
from toco.data.loading.loader import TrainLoader

GOAL_CORES = 4
"""Number of cores for which the projections are calculated."""


@benchmark(times=20)
@click.option("--images", default=64, show_default=True, help="Files.")
@click.option("--size", default=448, show_default=True, help="Side of the views in px.")
@click.option("--batch", default=4, show_default=True, help="Images a batch.")
@click.option("--workers", default=2, show_default=True, help="Loader processes.")
def main(
    images: int, size: int, batch: int, workers: int, times: int, device: str
) -> dict[str, Any]:
    """Measure decoding, geometry, colours, and the complete loader."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_voc_folder(root, images)
        files, node = (
            voc.open_split(
                voc.Config(root=root, train_list="train", cache=cache, cache_root=root / "node"),
                "train",
            )
            for cache in ("none", "node")
        )
        node.prepare()
        views = ViewsConfig(crop_size_px=size)
        parts = _parts(files, node, views, batch, times, device)
        sizes = [path.stat().st_size for path in (root / "JPEGImages").iterdir()]
        return {
            "images": images,
            "size_px": size,
            "batch": batch,
            "workers": workers,
            "device": device,
            "file_kb": statistics.mean(sizes) / 1e3,
            "ms_per_image": parts,
            "images_per_s": {
                "from_files": _loader_rate(files, views, batch, workers, times, device),
                "from_the_node_cache": _loader_rate(node, views, batch, workers, times, device),
            },
            # Calculated, not measured: GOAL_CORES cores that only decode and cut.
            "projection_images_per_s": {
                "from_files": GOAL_CORES * 1e3 / (parts["decoding"] + parts["geometry"]),
                "from_the_node_cache": GOAL_CORES * 1e3 / parts["geometry"],
            },
        }


def _parts(
    files: Dataset, node: Dataset, views: ViewsConfig, batch: int, times: int, device: str
) -> dict[str, float]:
    """Time each part in milliseconds an image, on one core except for the colours."""
    rng = np.random.default_rng(0)
    cuda = torch.device(device).type == "cuda"
    # Batches are made before the clock runs; colours are computed on the way to the device.
    batches = list(TrainLoader(node, views, batch, seed=0, pin_memory=cuda).batches(0, times + 1))
    colours = measure({"colours": lambda: batches.pop().to(device)}, times, device)["colours"]
    return {
        "decoding": _core_ms(files.image, len(files), batch * times),
        "reading_from_the_node_cache": _core_ms(
            lambda index: node.image(index).copy(), len(files), batch * times
        ),
        "geometry": _core_ms(
            lambda index: make_views(node.image(index), rng, views), len(files), batch * times
        ),
        "colours_on_the_device": 1e3 * statistics.median(colours) / batch,
    }


def _core_ms(do: Callable[[int], object], num: int, times: int) -> float:
    """Measure the mean processor time of a call in ms, which other load does not change.

    The mean and not the minimum, because views with random scales take different times.
    """
    for index in range(num):
        do(index)
    started = time.thread_time()
    for number in range(times):
        do(number % num)
    return 1e3 * (time.thread_time() - started) / times


def _loader_rate(
    dataset: Dataset, views: ViewsConfig, batch: int, workers: int, times: int, device: str
) -> float:
    """Measure images a second of the loader with colours and copies, after its start."""
    pin = torch.device(device).type == "cuda"
    loader = TrainLoader(dataset, views, batch, seed=0, num_workers=workers, pin_memory=pin)
    warm_up = 4 * max(workers, 1)  # more than the processes prefetch
    batches = loader.batches(0, warm_up + times)
    for _ in range(warm_up):
        next(batches).to(device)
    synchronise(device)
    started = time.perf_counter()
    for raw in batches:
        raw.to(device)
    synchronise(device)
    return times * batch / (time.perf_counter() - started)
