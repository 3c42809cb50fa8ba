"""Training batches as a pure function of the step.

Which images a step sees follows from (seed, step), and how an image is changed from (seed, epoch, index), so that
neither the number of loader processes nor a resume changes a batch.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from toco.data._dataset import Dataset
from toco.data._raw_batch import RawBatch, Sample
from toco.data._views import ViewsConfig, make_views
from toco.types import Shard

_Key = tuple[int, int]  # (epoch, index)
_WHOLE = Shard()
_ORDER = 1
"""Spawn key of the generators of orders: ``SeedSequence([a, b])`` alone equals ``SeedSequence([a, b, 0])``."""
MAX_SEED = 2**32
"""A larger seed takes two words of the sequence, which another (seed, epoch) could also give."""


class TrainLoader:
    """Endless shuffled epochs over a data set; the last, incomplete batch of an epoch is dropped.

    Args:
        dataset: Images and labels. With ``num_workers`` > 0 it is pickled into every process.
        views: How views are made.
        batch_size: Images of a global batch, of all shards together.
        seed: Seed of order and views, 0 to 2^32 - 1.
        num_workers: Processes that make batches; 0 makes them here, without multiprocessing.
        pin_memory: Return page-locked tensors, for copies to a GPU that do not wait.
        shard: Which part of every global batch this process gets: so many consecutive images of it.

    Raises:
        ValueError: The data set has fewer images than a batch, the batch cannot be parted among the processes, or the
            seed is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: ViewsConfig,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        shard: Shard = _WHOLE,
    ) -> None:
        if not 0 < batch_size <= len(dataset):
            raise ValueError(f"Expected a batch size from 1 to the {len(dataset)} images there are, got {batch_size}.")
        if not 0 <= seed < MAX_SEED:
            raise ValueError(f"Expected a seed from 0 to {MAX_SEED - 1}, got {seed}.")
        if batch_size % shard.world_size:
            raise ValueError(
                f"Expected a batch size that {shard.world_size} processes can share equally, got {batch_size}; "
                "change the batch size or the number of processes."
            )
        self._samples = _Samples(dataset, views, seed)
        self._batch_size, self._seed, self._shard = batch_size, seed, shard
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self.steps_per_epoch = len(dataset) // batch_size

    def batches(self, start_step: int, num_steps: int) -> Iterator[RawBatch]:
        """This shard's part of the batches of steps ``start_step`` to ``start_step + num_steps - 1``.

        Loader processes live as long as this iterator: ask once for a whole run.
        """
        keys = self._keys(start_step, num_steps)
        if self._num_workers == 0:
            for batch_keys in keys:
                batch = RawBatch.of([self._samples[key] for key in batch_keys], self._shard)
                yield batch.pin_memory() if self._pin_memory else batch
            return
        self._samples.dataset.prepare()
        loader = DataLoader(
            self._samples,
            batch_sampler=keys,
            num_workers=self._num_workers,
            collate_fn=partial(RawBatch.of, shard=self._shard),
            pin_memory=self._pin_memory,
            # A fork would copy the locks of a process that has started threads or CUDA, and hang on them.
            multiprocessing_context=_start_method(),
            # Its own generator: the default would draw from torch's global one, unlike num_workers=0.
            generator=torch.Generator(),
        )
        with _signals_blocked():
            processes = iter(loader)
        # They ignore the signal with which Python ends what is left of them, and would be waited for without end: an
        # iterator that a traceback keeps also keeps them. So they are ended here, at the latest when Python exits.
        end = atexit.register(cast(_MultiProcessingDataLoaderIter, processes)._shutdown_workers)
        try:
            yield from processes
        finally:
            atexit.unregister(end)
            end()

    def _keys(self, start_step: int, num_steps: int) -> Iterator[list[_Key]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(start_step, start_step + num_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = epoch_order(len(self._samples), self._seed, epoch)
            part = self._batch_size // self._shard.world_size
            first = step % self.steps_per_epoch * self._batch_size + self._shard.rank * part
            yield [(epoch, int(index)) for index in order[first : first + part]]


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started in here inherit the block, also through the fork server, from their first instruction on.

    A terminal's Ctrl-C and a scheduler's SIGTERM reach the whole process group. The training process answers them with
    a checkpoint, for which it still needs its loader.
    """
    # The fork server starts it, and it would end the block before the fork server has inherited it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of the images in an epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(_ORDER,))).permutation(num_images)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that draws the views of image ``index`` in ``epoch``."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, index]))


class _Samples(TorchDataset[Sample]):
    def __init__(self, dataset: Dataset, views: ViewsConfig, seed: int) -> None:
        self.dataset, self._views, self._seed = dataset, views, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: _Key) -> Sample:
        epoch, index = key
        views = make_views(self.dataset.image(index), sample_generator(self._seed, epoch, index), self._views)
        return Sample(views, self.dataset.class_labels(index), self.dataset.names[index])


def _start_method() -> str:
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
