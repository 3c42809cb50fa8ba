"""Loader and network of a run, built from its config."""

from __future__ import annotations

import torch

from toco.data import Dataset
from toco.data.loading.loader import TrainLoader
from toco.methods import Method
from toco.registry import load
from toco.train import checkpoint
from toco.train.optim import freeze_layers
from toco.train.run_config import RunConfig
from toco.types import Shard


def build_loader(config: RunConfig, train_set: Dataset, shard: Shard = Shard()) -> TrainLoader:
    """Build the loader of the training batches, of which each rank gets its ``shard``."""
    return TrainLoader(
        train_set,
        config.views,
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
        pin_memory=config.torch_device().type == "cuda",
        shard=shard,
        extra_views=config.method.extra_views(),
        shuffle=config.shuffle,
    )


def build_method(config: RunConfig, num_foreground_classes: int) -> Method:
    """Build backbone and method with the run's seed, precision and frozen layers, on the CPU.

    Raises:
        ValueError: The backbone has fewer layers than are to be frozen.
    """
    torch.manual_seed(config.seed)
    backbone = load("toco.backbones", config.backbone.name).build(config.backbone)
    method: Method = load("toco.methods", config.method.name).build(
        config.method, backbone, num_foreground_classes
    )
    freeze_layers(method.layers(), config.optim)
    method.autocast_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
    return method


def method_of(
    saved: checkpoint.Checkpoint, config: RunConfig, num_foreground_classes: int
) -> Method:
    """Build the method of ``config`` with a checkpoint's weights, on the run's device.

    Raises:
        CheckpointError: The tensors of the checkpoint do not fit the method.
    """
    # The checkpoint holds the backbone, too, so the file of pretrained weights is not needed.
    config_without_weights = config.model_copy(
        update={"backbone": config.backbone.model_copy(update={"weights": None})}
    )
    method = build_method(config_without_weights, num_foreground_classes)
    checkpoint.load_model(saved, method)
    return method.to(config.torch_device())
