# ruff: noqa: E402
"""What all tests share.

Several test processes run at once, so a thread each: more would fight for the same cores.
"""

import multiprocessing
import os
import shutil
import tempfile

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"  # before torch is imported, and for all processes that tests start
# pytest and mkdtemp make folders there that belong to this user alone.
_MEMORY, _ENOUGH_BYTES = "/dev/shm", 4 * 1024**3  # noqa: S108
if (
    "TMPDIR" not in os.environ
    and os.access(_MEMORY, os.W_OK)
    and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES
):
    # Tests write and delete many small files, and records are synchronised: in memory nothing waits
    # for a disk.
    os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY
# Forks of the server begin with these imports, which take longer than what most of them do.
multiprocessing.set_forkserver_preload(
    ["toco.train.ranks", "toco.backbones._torchvision", "timm.models"]
)

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from toco.backbones import vit_nano
from toco.data import ViewsConfig, voc
from toco.evaluate import EvaluateConfig
from toco.methods import toco
from toco.train import dry_run
from toco.train.optim_config import AdamWConfig
from toco.train.run_config import RunConfig

# A busy machine is no fault of the code: the time of an example has no limit but that of its test.
settings.register_profile("toco", deadline=None)
settings.load_profile("toco")

Cases = dict[str, dict[str, Any]]
GOLDEN = Path(__file__).parent / "golden"
LONGEST = (
    "test_kill.py",
    "test_ray_tune.py",
    "test_ray_nodes.py",
    "test_search_run.py",
    "test_damage.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest tests on every worker, so that no worker is left alone with one at the
    end.

    The scheduler gives each worker one contiguous share of the tests and moves the tail of a share
    to idle workers. Slow tests are dealt round the shares by file, since the tests of a file share
    what they build.
    """
    if not hasattr(config, "workerinput"):
        return
    shares: list[list[pytest.Item]] = [[] for _ in range(config.workerinput["workercount"])]
    slow_files: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow"):
            slow_files[item.path.name].append(item)
    order = [name for name in LONGEST if name in slow_files] + [
        name for name in slow_files if name not in LONGEST
    ]
    for number, name in enumerate(order):
        shares[number % len(shares)] += slow_files[name]
    quick = (item for item in items if not item.get_closest_marker("slow"))
    num_left = len(items)
    for number, share in enumerate(shares):
        size = num_left // (len(shares) - number)
        share += islice(quick, max(0, size - len(share)))
        num_left -= size
    items[:] = [item for share in shares for item in share] + list(quick)


@pytest.fixture(autouse=True, scope="session")
def each_config_is_checked_once() -> Iterator[None]:
    """Commands look in every test whether a training can run; that takes seconds, and the data are
    not looked at.
    """
    check, sound = dry_run.check_can_run, set[RunConfig]()

    def check_once(config: RunConfig, recipe: RunConfig | None = None) -> None:
        without_data = config.model_copy(update={"data": None})
        if without_data not in sound:
            check(config, recipe)
            sound.add(without_data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "check_can_run", check_once)
        yield


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Mapping[str, Any]]:
    """Recorded inputs and outputs of the official functions, by file stem.

    A missing file is an error, not a skip.
    """
    loaded: dict[str, Mapping[str, Any]] = {}

    def load(name: str) -> Mapping[str, Any]:
        if name not in loaded:
            with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
                loaded[name] = dict(arrays)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def golden_cases(golden: Callable[[str], Mapping[str, Any]]) -> Callable[[str], Cases]:
    """Recorded arrays by case and name; numbers as tensors, text as it is."""

    def load(file: str) -> Cases:
        cases: Cases = defaultdict(dict)
        for key, array in golden(file).items():
            case, _, name = key.partition("__")
            cases[case][name] = array if array.dtype.kind == "U" else torch.from_numpy(array.copy())
        return cases

    return load


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen small images of two classes in the folders of VOC, twelve to train on."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("background\nred\nblue\n")
    rng = np.random.default_rng(0)
    names = [f"image{i:02}" for i in range(16)]
    for i, name in enumerate(names):
        image = rng.integers(60, 120, (40, 48, 3), dtype=np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        mask[10:30, 4 * (i % 5) : 4 * (i % 5) + 20] = i % 2 + 1
        image[mask > 0, 2 * (i % 2)] = 220
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    for split, part in (("train", names[:12]), ("val", names[12:])):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(part) + "\n")
    return root


@pytest.fixture(scope="session")
def tiny_config(data_root: Path) -> RunConfig:
    """A training of half a second on these images: three blocks, six steps, three evaluations
    without pictures.
    """
    return RunConfig(
        data=voc.Config(root=data_root, train_list="train"),
        views=ViewsConfig(crop_size_px=32),
        backbone=vit_nano.Config(width=16, depth=3, num_heads=2, image_size_px=32, weights=None),
        method=toco.Config(
            aux_block=1,
            cam_scales=(1.0,),
            num_local_crops=2,
            local_crop_size_px=16,
            decoder_width=8,
            projection=toco.ProjectionConfig(hidden_width=16, bottleneck_width=8, output_width=16),
            segmentation=toco.Term(weight=0.1, start_step=2),
            energy=toco.Term(weight=0.05, start_step=2),
        ),
        optim=AdamWConfig(lr=1e-3, warmup_steps=2),
        evaluate=EvaluateConfig(
            size_px=32, cam_scales=(1.0,), cam_flip=False, curve_step=0.1, num_pictures=0
        ),
        num_steps=6,
        batch_size=4,
        evaluate_every=2,
        log_every=1,
        keep_checkpoints=3,
        num_workers=0,
    )
