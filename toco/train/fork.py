"""Shared prefixes: trainings whose first updates are identical begin from one snapshot of them.

The prefix of a training is its updates before the first late loss term. The decoder's terms start
late, so trainings that differ only in settings of these terms have identical prefixes. The first
training at the end of the prefix stores a snapshot, a copy of its run folder. Trainings that start
after the snapshot is stored begin from it. Trainings that start earlier are not held back: they
compute the prefix, too. On CPUs of the same model both kinds have the same result, bit for bit.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toco.config import digest
from toco.files import is_no_room, partial_name
from toco.train import checkpoint
from toco.train.run_config import RunConfig
from toco.train.run_folder import LOCK, RunFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from toco.methods import Method

_CONDITIONS = (
    "versions",
    "platform",
    "device",
    "num_threads",
    "world_size",
    "data_manifest",
    "weights_sha256",
)
"""Keys of the provenance that must be equal: the bits of a training depend on these."""


def prefix_step(config: RunConfig) -> int | None:
    """Return the number of updates in the prefix.

    ``None`` where no loss term starts late, or where the training ends before one starts.
    """
    late: int | None = config.method.late_step()
    return late if late is not None and late < config.num_steps else None


def prefix_digest(config: RunConfig, step: int) -> str:
    """Digest all settings that affect the run folder until ``step``; 16 hex digits."""
    inert = [f"method.{path}" for path in sorted(config.method.inert_until(step))]
    # Run-only settings, on which rows, pictures and the last bits depend nevertheless.
    recorded = (
        config.device,
        config.compile,
        config.log_every,
        config.evaluate.batch_size,
        config.evaluate.num_pictures,
    )
    return _hash(digest(config, without=inert), step, recorded)


class Snapshots:
    """Folder of snapshots, and the snapshot in it that fits the present training.

    A snapshot fits a training with an equal prefix: the settings that affect it, data, weights,
    package versions, platform, device, number of threads and world size are equal. Two CPUs of one
    architecture count as one device, although the last bits of their results can differ.

    The code is not compared. Therefore a study uses one folder per digest of code, data, weights
    and versions (``Identity.surroundings`` in :mod:`sweeps.core.store.identity`).

    Args:
        root: Folder of the snapshots. All trainings that share it must run the same code.
        config: Config of the present training, resolved.
        provenance: Provenance of the present training, from
            :func:`toco.train.provenance.provenance`.

    Attributes:
        step: Number of updates in the prefix, or ``None`` without a prefix.
    """

    def __init__(self, root: Path, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        self.step = prefix_step(config)
        self._config_digest = digest(config)
        self._path: Path | None = None
        if self.step is not None:
            conditions = [provenance[key] for key in _CONDITIONS]
            name = _hash(prefix_digest(config, self.step), conditions)
            self._path = root / f"{name}-{self.step}"

    def copy_snapshot(self, folder: RunFolder) -> checkpoint.Checkpoint | None:
        """Copy the snapshot into ``folder``; return the snapshot's checkpoint.

        ``folder`` is a run without a checkpoint. Without a complete snapshot, nothing changes and
        the result is ``None``.
        """
        if self._path is None:
            return None
        if (snapshot := RunFolder(self._path).newest()) is None:
            return None
        saved, rows = snapshot
        for name in ("evaluations", "pictures"):
            if (self._path / name).is_dir():
                shutil.copytree(self._path / name, folder.path / name, dirs_exist_ok=True)
        folder.set_metrics(rows)
        folder.set_forked_at(saved.step)
        # The checkpoint is copied last: a run that crashed before has none, and starts anew.
        checkpoint.adopt(
            self._path / "checkpoints" / checkpoint.folder_name(saved.step),
            folder.checkpoints,
            self._config_digest,
        )
        return saved

    def store_snapshot(
        self,
        folder: RunFolder,
        method: Method,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Store a snapshot of ``folder`` at the end of the prefix, unless one exists already.

        Args:
            folder: The run folder.
            method: The method at the end of the prefix.
            optimizer: The optimizer of ``method``.
            extra: Further tensors of the checkpoint, by prefix and name.

        Raises:
            OSError: The snapshot cannot be written. Where its disk is full, ``filename`` is the
                path of the snapshot.
        """
        if self._path is None or self.step is None or self._path.is_dir():
            return
        partial = partial_name(self._path)
        try:
            shutil.copytree(
                folder.path,
                partial,
                ignore=shutil.ignore_patterns("checkpoints", LOCK, "*.partial"),
            )
            checkpoint.save(
                partial / "checkpoints",
                self.step,
                self._config_digest,
                method,
                optimizer,
                extra,
                folder.mark(),
            )
            partial.rename(self._path)
        except OSError as error:
            if self._path.is_dir():  # another training was first
                return
            if not is_no_room(error):
                raise
            number = error.errno or errno.ENOSPC
            raise OSError(number, os.strerror(number), str(self._path)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _hash(*parts: Any) -> str:  # noqa: ANN401 - anything with a repr that says all
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
