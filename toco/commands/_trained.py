"""Helpers of the verbs that apply a trained method to many images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from toco.data import Dataset, Split
    from toco.train.trained import Trained
    from toco.types import Shard


def open_for_share(run_dir: Path, changes: Sequence[str]) -> tuple[Trained, Shard]:
    """Open the trained method, and the shard of this process among those of torchrun."""
    from toco.config import parse_assignments
    from toco.train.distributed import own_share
    from toco.train.trained import open_trained

    shard = own_share()
    return open_trained(run_dir, parse_assignments(changes)), shard


def identity(trained: Trained) -> dict[str, Any]:
    """Return what every output of a trained method depends on: its weights and settings."""
    from toco.config import digest
    from toco.predict.split_predictions import weights_digest

    config = trained.config
    return {
        "weights": weights_digest(trained.method),
        "step": trained.step,
        "backbone": digest(config.backbone),
        "method": digest(config.method),
        "precision": config.precision,
        "class_names": trained.class_names,
    }


def open_images(trained: Trained, split: Split, shard: Shard) -> tuple[Dataset, dict[str, Any]]:
    """Open a split of the run's data; return also what its outputs depend on, apart from images.

    The process of rank 0 prints how many images have an EXIF orientation.

    Raises:
        ValueError: The split cannot be opened, or its classes are not those of the training.
    """
    from toco.config import digest
    from toco.registry import load

    dataset: Dataset = load("toco.data", trained.config.data.name).open_split(
        trained.config.data, split
    )
    if dataset.class_names != trained.class_names:
        raise ValueError(
            f"The method was trained for the classes {', '.join(trained.class_names)}, but the "
            f"data set has {', '.join(dataset.class_names)}. Name the right data set with --set "
            "data.root=FOLDER."
        )
    if shard.rank == 0 and (num_turned := _num_turned(dataset)):
        click.echo(
            f"Note: {num_turned} of {len(dataset)} images have an EXIF orientation, which is "
            "ignored: the masks of a data set refer to the stored pixels."
        )
    return dataset, {**identity(trained), "split": split, "data": digest(trained.config.data)}


def _num_turned(dataset: Dataset) -> int:
    """Count images with an EXIF orientation; unreadable images are skipped and reported later."""
    from toco.data.files.file_dataset import FileDataset

    if not isinstance(dataset, FileDataset):
        return 0

    def is_turned(index: int) -> bool:
        try:
            return dataset.header(index).orientation != 1
        except (ValueError, OSError):
            return False

    with ThreadPoolExecutor() as threads:
        return sum(threads.map(is_turned, range(len(dataset))))
