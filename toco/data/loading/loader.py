"""Training batches as a pure function of the step.

The images of a step depend only on (seed, step), and the augmentation of an image only on (seed,
epoch, index). The number of loader processes and a resume therefore change no batch.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator, Iterator
from functools import partial

import numpy as np

from toco.config import MAX_SEED
from toco.data._dataset import Dataset
from toco.data.loading.loader_processes import PATIENCE_S, Keys, LoaderProcesses
from toco.data.views.raw_batch import RawBatch, Sample
from toco.data.views.views import EXTRA_VIEWS, ViewsConfig, make_views
from toco.types import ExtraView, Shard

_FULL_SHARD = Shard()
_ORDER = 1
"""Spawn key of the generators that shuffle epochs.

Without it, their ``SeedSequence([a, b])`` would equal the ``SeedSequence([a, b, 0])`` of an image.
"""


class TrainLoader:
    """Endless epochs over a data set, without incomplete last batches.

    An epoch has ``len(dataset) // batch_size`` batches. The images left over are others in every
    shuffled epoch. Without shuffling they are always the last ones, which are then never seen. The
    official RCA, which does not shuffle, keeps its incomplete last batch: 6 images of 8.

    Args:
        dataset: Images and labels. With ``num_workers`` > 0 it is pickled into every process.
        views: Configuration of the views.
        batch_size: Number of images in a global batch, over all shards.
        seed: Seed of order and views, 0 to 2^32 - 1.
        num_workers: Number of processes that make batches; 0 makes them in this process.
        pin_memory: Whether to return page-locked tensors, for asynchronous copies to a GPU.
        shard: Part of every global batch that this process gets, as consecutive images.
        patience_s: Longest time for one batch, after which a process counts as hanging.
        extra_views: Views to make in addition to the first view.
        shuffle: Whether every epoch has another order; without it, that of the data set.

    Raises:
        ValueError: The data set has fewer images than a batch, the batch size is no multiple of the
            number of shards, or the seed is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: ViewsConfig,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        shard: Shard = _FULL_SHARD,
        patience_s: float = PATIENCE_S,
        extra_views: Collection[ExtraView] = EXTRA_VIEWS,
        shuffle: bool = True,
    ) -> None:
        if not 0 < batch_size <= len(dataset):
            raise ValueError(
                f"Expected a batch size from 1 to the {len(dataset)} images there are, got "
                f"{batch_size}."
            )
        # A larger seed takes two words of the SeedSequence, which could equal those of another
        # (seed, epoch).
        if not 0 <= seed < MAX_SEED:
            raise ValueError(f"Expected a seed from 0 to {MAX_SEED - 1}, got {seed}.")
        if batch_size % shard.world_size:
            raise ValueError(
                f"Expected a batch size that {shard.world_size} processes can share equally, got "
                f"{batch_size}; change the batch size or the number of processes."
            )
        self._dataset = dataset
        self._make = partial(_make_batch, dataset, views, seed, shard, frozenset(extra_views))
        self._batch_size, self._seed, self._shard = batch_size, seed, shard
        self._shuffle = shuffle
        self._num_workers, self._pin_memory, self._patience_s = num_workers, pin_memory, patience_s
        self.steps_per_epoch = len(dataset) // batch_size

    def batches(
        self, start_step: int, num_steps: int, stop: threading.Event | None = None
    ) -> Generator[RawBatch]:
        """Yield this shard's part of the batches from step ``start_step`` on.

        Loader processes live as long as this iterator: call it once per run, and close it.

        Args:
            start_step: First step.
            num_steps: Number of batches.
            stop: Event that ends the iterator early if it is set while the iterator waits for a
                batch of a loader process.

        Raises:
            LoaderError: A loader process ended or hangs. With several shards, ``stop`` also raises
                this error if no batch arrives in time: the ranks can no longer stop after the same
                step.
            Exception: Any error from reading an image, with and without loader processes.
        """
        keys = self._keys(start_step, num_steps)
        if self._num_workers == 0:
            for batch_keys in keys:
                batch = self._make(batch_keys)
                yield batch.pin_memory() if self._pin_memory else batch
            return
        self._dataset.prepare()
        processes = LoaderProcesses(
            self._make,
            self._num_workers,
            pin_memory=self._pin_memory,
            patience_s=self._patience_s,
            share_stop=self._shard.world_size > 1,
        )
        yield from processes.batches(keys, stop or threading.Event())

    def _keys(self, start_step: int, num_steps: int) -> Iterator[Keys]:
        epoch, order = -1, np.arange(len(self._dataset))
        for step in range(start_step, start_step + num_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                if self._shuffle:
                    order = epoch_order(len(self._dataset), self._seed, epoch)
            part = self._batch_size // self._shard.world_size
            first = step % self.steps_per_epoch * self._batch_size + self._shard.rank * part
            yield [(epoch, int(index)) for index in order[first : first + part]]


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Draw the permutation of the images in an epoch."""
    return np.random.default_rng(
        np.random.SeedSequence([seed, epoch], spawn_key=(_ORDER,))
    ).permutation(num_images)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator for the views of image ``index`` in ``epoch``."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, index]))


def _make_batch(
    dataset: Dataset,
    views: ViewsConfig,
    seed: int,
    shard: Shard,
    extra_views: frozenset[ExtraView],
    keys: Keys,
) -> RawBatch:
    """Make the batch of some (epoch, index) pairs."""

    def sample(epoch: int, index: int) -> Sample:
        rng = sample_generator(seed, epoch, index)
        sample_views = make_views(dataset.image(index), rng, views, extra_views)
        return Sample(sample_views, dataset.class_labels(index), dataset.names[index])

    return RawBatch.of([sample(epoch, index) for epoch, index in keys], shard)
