"""Convert checkpoints of the official code to run folders, and runs to such checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from toco.backbones import read_tensors, split_entry, without_shared_prefix
from toco.config import digest
from toco.data import DataConfig
from toco.data.coco_format.classes import COCO_CLASSES
from toco.data.files.layout import VOC_CLASSES
from toco.files import sha256, whole_file
from toco.methods import toco
from toco.official.names import MODULE, from_official, to_official
from toco.registry import load
from toco.train import checkpoint
from toco.train.inputs import Inputs
from toco.train.parts import build_method
from toco.train.provenance import provenance
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder
from toco.train.trained import open_trained
from toco.types import IMAGENET_MEAN, IMAGENET_STD

_CLASSES = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}
_DILATION = 5
"""Dilation of the official decoder, where it is a literal in the code."""
_SEGMENTATION = "decoder.conv8.weight"
"""The official parameter with one row for each class, including the background."""


def import_checkpoint(
    path: Path, run_dir: Path, config: RunConfig, recipe: str | None, step: int
) -> int:
    """Make a finished run from an official checkpoint; return its number of tensors.

    The run has the network and the teacher's head, but no state of the optimizer, so that no
    training can resume from it. No data set and no pretrained weights are needed.

    Args:
        path: A file that the official code saved: tensors by name, opened without running anything
            in it. If it holds several state dicts, name one after the path, as in
            ``file.pth#model``.
        run_dir: Folder to make; it must not hold a run.
        config: Config of the run. The caller is responsible for it: the file does not say how it
            was trained, and DeiT-B and ViT-B have the same shapes.
        recipe: Name of the recipe of ``config``, for the record.
        step: Optimizer updates before the checkpoint was saved.

    Raises:
        FileExistsError: ``run_dir`` holds a run.
        ValueError: The file cannot be read as tensors, or the tensors are not those of the network
            that ``config`` describes.
    """
    folder = RunFolder(run_dir)
    if folder.exists():
        raise FileExistsError(f"{run_dir} already holds a run; name a new folder.")
    path, entry = split_entry(str(path))
    tensors = without_shared_prefix(read_tensors(path, entry))
    if _SEGMENTATION not in tensors:
        raise ValueError(
            f"{path} is no checkpoint of the official network: it has {len(tensors)} tensors, but "
            f"no {_SEGMENTATION}. Weights of an encoder alone are given to a training as "
            "backbone.weights."
        )

    # Build the network without pretrained weights, and load the tensors.
    class_names = _class_names(config.data)
    num_classes = len(tensors[_SEGMENTATION])
    if num_classes != len(class_names) + 1:
        raise ValueError(_other_classes(path, num_classes, len(class_names) + 1, recipe))
    without_weights = config.backbone.model_copy(update={"weights": None})
    method = build_method(config.model_copy(update={"backbone": without_weights}), len(class_names))
    try:
        method.load_state_dict(from_official(tensors, method.state_dict()))
    except ValueError as error:
        raise ValueError(
            f"{path}: {error} Take the recipe that it was trained with, or give its sizes with "
            "--set."
        ) from error

    # Write the run folder.
    source = {"file": path.name, "sha256": sha256(path), "size_bytes": path.stat().st_size}
    record = provenance(torch.device("cpu"), Inputs("", "", None))
    folder.create(config, recipe, class_names, {**record, "data_manifest": {}, "imported": source})
    checkpoint.save_model(folder.checkpoints, step, digest(config), method)
    return len(tensors)


def export_checkpoint(run_dir: Path, path: Path) -> int:
    """Write the newest checkpoint of a run in the official format; return its number of tensors.

    Every name starts with ``module.``. The 1000-class layer, which the official code keeps but
    never uses, is zeros.

    Raises:
        FileExistsError: ``path`` exists.
        ValueError: The run has no complete checkpoint, or the official code would compute something
            else: the method is not ToCo itself, or the network has further parts, another dilation
            of the decoder, or another normalisation of pixels.
    """
    if path.exists():
        raise FileExistsError(f"{path} already exists; name a new file.")
    trained = open_trained(run_dir, {"device": "cpu"})
    backbone, method = trained.config.backbone, trained.config.method
    # Not isinstance: a subclass may compute something else from the same tensors.
    if type(method) is not toco.Config:
        raise ValueError(
            "The official code computes ToCo and nothing else; the method of this run is "
            f"{method.name!r}. Only runs with method.name=toco can be exported."
        )
    if method.decoder_dilation != _DILATION:
        raise ValueError(
            f"The official decoder has a dilation of {_DILATION}, which its checkpoints do not "
            "hold; this network was trained with "
            f"method.decoder_dilation={method.decoder_dilation}, and would segment differently "
            "with it."
        )
    if (backbone.pixel_mean, backbone.pixel_std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise ValueError(
            f"The official code normalises pixels by mean {IMAGENET_MEAN} and deviation "
            f"{IMAGENET_STD} always, but this network was trained with {backbone.pixel_mean} and "
            f"{backbone.pixel_std}, and would get other inputs from it."
        )
    official = {
        f"{MODULE}{name}": value.clone()
        for name, value in to_official(trained.method.state_dict()).items()
    }
    with whole_file(path) as partial:
        torch.save(official, partial)
    return len(official)


def _class_names(data: DataConfig) -> tuple[str, ...]:
    """Foreground classes; those of VOC and COCO are known without the images."""
    if data.name in _CLASSES and getattr(data, "classes", None) is None:
        return _CLASSES[data.name]
    names: tuple[str, ...] = load("toco.data", data.name).open_split(data, "val").class_names
    return names


def _other_classes(path: Path, num_classes: int, num_expected: int, recipe: str | None) -> str:
    sentence = (
        f"{path} has {num_classes} classes with the background, the recipe {recipe} has "
        f"{num_expected}; "
    )
    for name, classes in _CLASSES.items():
        if num_classes == len(classes) + 1:
            return f"{sentence}take --recipe {name}_deit_b or {name}_vit_b."
    return (
        f"{sentence}name those of your data set, as in --set data.root=FOLDER --set "
        "data.classes=classes.txt."
    )
