"""Batches of an evaluation: plan them, read them ahead of the network, check their masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from toco.data import Dataset
from toco.metrics.segmentation import check_labels
from toco.tensors import present_classes

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image of the data set, with its mask and its image-level labels."""

    index: int
    name: str
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    class_labels: Float[np.ndarray, " k"]


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Images that pass the network together, stacked size by size.

    Attributes:
        samples: The images, one for each row of the batch.
        rows: For every size, the rows of its images.
        images: For every size, these images.
        masks: For every size, their masks.
        class_labels: Multi-hot image-level labels.
        present: Classes of each image, from :func:`toco.tensors.present_classes`.
    """

    samples: tuple[LabelledImage, ...]
    rows: tuple[tuple[int, ...], ...]
    images: tuple[UInt8[Tensor, "_ _ _ 3"], ...]
    masks: tuple[UInt8[Tensor, "_ _ _"], ...]
    class_labels: Float[Tensor, "b k"]
    present: Int[Tensor, "b m"]

    def to(self, device: torch.device | str) -> SampleBatch:
        """Copy the tensors to ``device``, asynchronously where the memory is pinned."""

        def to_device(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return SampleBatch(
            samples=self.samples,
            rows=self.rows,
            images=tuple(map(to_device, self.images)),
            masks=tuple(map(to_device, self.masks)),
            class_labels=to_device(self.class_labels),
            present=to_device(self.present),
        )


def plan_batches(
    dataset: Dataset, indices: Sequence[int], batch_size: int, one_size: bool
) -> list[tuple[int, ...]]:
    """Divide images into batches of consecutive images; with ``one_size``, of the same size.

    Processes that share an evaluation divide these batches. As the batches do not depend on the
    number of processes, neither does any bit of a prediction.

    Returns:
        The indices of every batch.
    """
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for index in indices:
        groups.setdefault(dataset.size(index) if one_size else None, []).append(index)
    return [
        tuple(group[start : start + batch_size])
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


def read_batch(dataset: Dataset, indices: Sequence[int], pin: bool) -> SampleBatch:
    """Decode images, masks and labels; into pinned memory with ``pin``.

    Raises:
        ValueError: An image has no mask, a file cannot be read, or a mask holds a value that is
            neither a class nor 255.
    """
    samples = tuple(_read(dataset, index) for index in indices)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for row, sample in enumerate(samples):
        by_size.setdefault(sample.mask.shape, []).append(row)
    rows = tuple(map(tuple, by_size.values()))

    def pinned(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if pin else tensor

    def stack(arrays: Iterable[np.ndarray]) -> Tensor:
        return pinned(torch.from_numpy(np.stack(list(arrays))))

    class_labels = torch.from_numpy(np.stack([sample.class_labels for sample in samples]))
    batch = SampleBatch(
        samples=samples,
        rows=rows,
        images=tuple(stack(samples[row].image for row in group) for group in rows),
        masks=tuple(stack(samples[row].mask for row in group) for group in rows),
        class_labels=pinned(class_labels),
        present=pinned(present_classes(class_labels)),
    )
    for mask in batch.masks:
        check_labels(mask, len(dataset.class_names) + 1, "ground truth")
    return batch


def in_order(stacks: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """Concatenate the rows of all stacks, in the order of the batch.

    Rows are taken one by one: a tensor of indices would have to be copied to the device.

    >>> in_order([torch.tensor([5, 7]), torch.tensor([6])], [(0, 2), (1,)]).tolist()
    [5, 6, 7]
    """
    if len(stacks) == 1:
        return stacks[0]
    by_row = {
        row: stack[i : i + 1]
        for stack, group in zip(stacks, rows, strict=True)
        for i, row in enumerate(group)
    }
    return torch.cat([by_row[row] for row in range(len(by_row))])


def take(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Select rows in ascending order, without a copy if all are selected.

    Like :func:`in_order`, this does not wait for the device.
    """
    return (
        values if len(rows) == len(values) else torch.cat([values[row : row + 1] for row in rows])
    )


def read_ahead(values: Iterator[_T]) -> Iterator[_T]:
    """Yield the values of an iterator, computing the next value in a thread.

    An error of the iterator is raised when its value is due.
    """
    end = object()
    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(next, values, end)
        while (value := following.result()) is not end:
            following = thread.submit(next, values, end)
            yield value  # type: ignore[misc]  # a value, since it is not the end


def _read(dataset: Dataset, index: int) -> LabelledImage:
    name = dataset.names[index]
    try:
        mask = dataset.mask(index)
    except LookupError as error:
        raise ValueError(
            f"Evaluation needs a mask of every image; {name!r} has none. {error}"
        ) from error
    return LabelledImage(index, name, dataset.image(index), mask, dataset.class_labels(index))
