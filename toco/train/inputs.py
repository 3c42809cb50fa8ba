"""Inputs of a run besides its config: data, weights and their digests. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toco.data import Dataset, refuse_overlap
from toco.files import sha256
from toco.registry import load
from toco.train.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class Inputs:
    """Digests of the data and, if there is one, of the file of pretrained weights.

    Attributes:
        train_data: Digest of the training split's manifest.
        val_data: Digest of the validation split's manifest.
        weights_sha256: SHA-256 of the file of weights; ``None`` for random weights.
    """

    train_data: str
    val_data: str
    weights_sha256: str | None


def recorded_inputs(provenance: Mapping[str, Any]) -> Inputs | None:
    """Read the inputs from a provenance; ``None`` for a run made from an imported network."""
    data = provenance.get("data_manifest")
    return Inputs(data["train"], data["val"], provenance["weights_sha256"]) if data else None


def open_data(config: RunConfig) -> tuple[Dataset, Dataset]:
    """Open the training and the validation split.

    Raises:
        ValueError: The data is missing or wrong, or an image is in both splits and
            ``data.allow_overlap`` is not set.
    """
    module = load("toco.data", config.data.name)
    train_set, val_set = (
        module.open_split(config.data, "train"),
        module.open_split(config.data, "val"),
    )
    refuse_overlap(train_set, val_set, config.data.allow_overlap)
    return train_set, val_set


def digest_inputs(config: RunConfig, train_set: Dataset, val_set: Dataset) -> Inputs:
    """Digest the inputs of a run besides its config.

    Raises:
        OSError: A file cannot be read.
    """
    weights = load("toco.backbones", config.backbone.name).weights_path(config.backbone)
    weights_sha256 = None if weights is None else sha256(weights)
    return Inputs(train_set.manifest_digest(), val_set.manifest_digest(), weights_sha256)
