"""Run folders as a training leaves them, without the training, and what is exported from them."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from toco.backbones import BackboneConfig, vit, vit_nano
from toco.config import digest
from toco.data import ViewsConfig, shapes
from toco.methods import rca, toco
from toco.train import checkpoint
from toco.train.optim_config import AdamWConfig
from toco.train.parts import build_method
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder

CLASS_NAMES = ("disc", "star", "moon")
STEP = 7

# In a process of its own: torch cannot follow the checks of shapes that run under pytest into a
# graph.
_SCRIPT = """
import sys

from toco.__main__ import main

small, tiny, regions, out = sys.argv[1:]
main(["export-model", small, f"{out}/new/free.onnx"], standalone_mode=False)
main(["export-model", regions, f"{out}/regions.onnx", "--cams"], standalone_mode=False)
main(["export-model", tiny, f"{out}/fixed.onnx", "--size", "48", "--cams"], standalone_mode=False)
"""


@dataclass(frozen=True)
class Exports:
    """Three runs, what was exported from them, and what the exporting process said.

    ``small`` was trained in another precision, with pixels normalised in another way; ``tiny`` is
    timm's; ``regions`` is RCA, whose CAM depends on a memory.
    """

    small: Path
    tiny: Path
    regions: Path
    out: Path
    said: str

    @property
    def free(self) -> Path:
        return self.out / "new" / "free.onnx"


_made: list[Exports] = []


def exports(factory: pytest.TempPathFactory) -> Exports:
    """Made once for all tests of a session."""
    if not _made:
        _made.append(_export(factory))
    return _made[0]


def _export(factory: pytest.TempPathFactory) -> Exports:
    names = ("small", "tiny", "regions", "exported")
    small, tiny, regions, out = (factory.mktemp(name) for name in names)
    nano = vit_nano.Config(
        width=16, depth=2, num_heads=2, image_size_px=32, weights=None, pixel_mean=(0.5, 0.4, 0.3)
    )
    make_run(small, nano, precision="bfloat16")
    make_run(
        tiny, vit.Config(model="test_vit", weights=None)
    )  # timm's own network for tests: six blocks
    make_run(
        regions,
        vit_nano.Config(width=16, depth=2, num_heads=2, image_size_px=32, weights=None),
        classifier_scale=10.0,
        method=rca.Config(
            decoder_width=8,
            decoder_dilation=2,
            segmentation=rca.Term(weight=0.1),
            # Noise, so that the memory has an effect without a training.
            region_memory=rca.MemoryConfig(slots=4, start="noise"),
            aggregation=rca.AggregationConfig(kind="softmax", temperature=0.1, centroids=2),
        ),
    )
    command = [sys.executable, "-c", _SCRIPT, str(small), str(tiny), str(regions), str(out)]
    return Exports(
        small,
        tiny,
        regions,
        out,
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout,
    )


def make_run(
    path: Path, backbone: BackboneConfig, classifier_scale: float = 1.0, **changes: Any
) -> None:
    """Writes a run of crops of 32 px with one checkpoint."""
    settings = {
        "data": shapes.Config(),
        "views": ViewsConfig(crop_size_px=32),
        "backbone": backbone,
        "method": toco.Config(
            aux_block=0, local_crop_size_px=16, decoder_width=8, decoder_dilation=2
        ),
        "optim": AdamWConfig(warmup_steps=1),
        "num_steps": STEP,
        "batch_size": 8,
        "evaluate_every": STEP,
        "device": "cpu",
    }
    config = RunConfig(**(settings | changes)).resolved()
    provenance = {
        "versions": {},
        "data_manifest": {"train": "aa", "val": "bb"},
        "weights_sha256": None,
        "started": datetime(2026, 1, 2, tzinfo=UTC).isoformat(),
    }
    folder = RunFolder(path)
    folder.create(config, "shapes_nano", CLASS_NAMES, provenance)
    method = build_method(config, len(CLASS_NAMES))
    with torch.no_grad():
        # So that labels and CAMs do not hang on rounding.
        method.decoder.conv8.weight.mul_(20)
        for parameter in method.classifier.parameters():
            parameter.mul_(classifier_scale)
    checkpoint.save_model(folder.checkpoints, STEP, digest(config), method)
