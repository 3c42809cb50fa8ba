"""Checks across the training and the validation split of a data set."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from toco.data._dataset import Dataset, Finding
from toco.data.files.layout import composed, count, examples


def overlap(train_names: Collection[str], val_names: Collection[str]) -> str | None:
    """Report images that are in both splits, as a message; ``None`` without overlap.

    Names that differ only in their Unicode form are the same name.
    """
    train_keys = {composed(name) for name in train_names}
    shared_names = [name for name in val_names if composed(name) in train_keys]
    if not shared_names:
        return None
    return (
        f"{len(shared_names)} of {count(len(val_names), 'validation image')} also in training: "
        f"{examples(shared_names)}. Remove them from one of the lists, or set "
        "data.allow_overlap=true: scores then include training images."
    )


def refuse_overlap(train: Dataset, val: Dataset, allow_overlap: bool) -> None:
    """Refuse splits that share an image.

    Raises:
        ValueError: An image is in both splits, and ``allow_overlap`` is not set.
    """
    if not allow_overlap and (shared := overlap(train.names, val.names)) is not None:
        raise ValueError(shared)


def notes_of_splits(train: Dataset, val: Dataset) -> tuple[Finding, ...]:
    """Collect the notes of both splits, on their overlap and on classes without images."""
    notes = list(dict.fromkeys((*train.notes, *val.notes)))
    shared = overlap(train.names, val.names)
    if shared is not None:
        notes.append(Finding(Path("val"), shared))
    counts = train.num_images_by_class()
    if counts is not None and (note := note_of_classes(train.class_names, counts)) is not None:
        notes.append(note)
    return tuple(notes)


def note_of_classes(class_names: Collection[str], num_images: Collection[int]) -> Finding | None:
    """Note classes that no training image shows; ``None`` without such classes."""
    missing_classes = [
        name for name, count in zip(class_names, num_images, strict=True) if not count
    ]
    return (
        Finding(Path("train"), f"no training image shows the class {examples(missing_classes)}.")
        if missing_classes
        else None
    )
