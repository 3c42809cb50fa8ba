"""A trial in a worker of Ray Tune, and its messages to the driver."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sweeps.core.run.failures import LeftOutError, StorageError, failure_of
from sweeps.core.run.ray_messages import watched
from sweeps.core.run.worker import Spec, run_trial
from sweeps.core.store.runs import Runs, newest_step
from toco import interrupts
from toco.files import is_no_room
from toco.own_modules import add_search_folders, search_folders
from toco.processes import signals_blocked
from toco.room import sentence_of

STARTED, FAILED = "started", "failed"
"""Status of a row with the place of an attempt, and of one that announces a failure."""


def trainable(
    runs: Runs, name: str, session: str, left_out: Path
) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune runs for each trial.

    Args:
        runs: Where the run folders are, under the same path on every node.
        name: Name of the function in the cluster, which may run other studies with other versions
            of this code.
        session: Name of the driver's session, which asks trials to stop.
        left_out: Folder with an empty file for each node that gets no more trials.
    """
    published, storage = runs.ledger.run_dir, runs.ledger.storage
    folders = search_folders()

    def train_trial(config: dict[str, Any]) -> None:
        # The node of a worker may have another PYTHONPATH than this driver, or none.
        add_search_folders(folders)
        spec = Spec(**config["trial"])
        channel = _TuneChannel(published(spec.key), storage, left_out, spec.scratch_bytes)
        # The driver alone answers a signal: it asks this trial to stop.
        with (
            signals_blocked(interrupts.ANNOUNCEMENTS),
            watched(session, channel.node, channel.stop),
        ):
            run_trial(spec, channel)

    train_trial.__name__ = re.sub(r"\W", "_", name)
    return train_trial


class _TuneChannel:
    """Report through Tune, which stores the snapshots.

    Attributes:
        stop: Set when the trial has to stop.
        node: Ray's id of the node.
    """

    def __init__(self, published: Path, storage: Path, left_out: Path, needed_bytes: int) -> None:
        self._published = published
        self._storage = storage
        self._left_out = left_out
        self._needed_bytes = needed_bytes
        self._host = socket.gethostname()
        self.stop = threading.Event()
        self.node = str(ray.get_runtime_context().get_node_id())

    def begin(self) -> None:
        """Tell the driver where this attempt runs, in case the worker is lost."""
        tune.report({"status": STARTED, "host": self._host, "node": self.node})
        if (self._left_out / self.node).exists():
            raise LeftOutError(f"{self._host} gets no more trials.")

    @contextmanager
    def restored(self) -> Iterator[Path | None]:
        """Open the newer of Tune's checkpoint and the published run folder.

        They are equal, unless a driver was lost: then Tune may be a snapshot behind, or may have
        lost its state.
        """
        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            yield self._published if newest_step(self._published) >= 0 else None
            return
        with checkpoint.as_directory() as folder:
            newest = max((Path(folder), self._published), key=newest_step)
            yield newest if newest_step(newest) >= 0 else None

    def report(self, row: dict[str, Any], snapshot: Path) -> None:
        """Copy the snapshot to Tune's storage and hand the row to the driver."""
        try:
            tune.report(row, checkpoint=tune.Checkpoint.from_directory(snapshot))
        except OSError as error:
            if not is_no_room(error):
                raise
            raise StorageError(sentence_of(self._storage, self._needed_bytes, error)) from error

    def fail(self, error: Exception) -> None:
        """Announce the failure to the driver as a row.

        Tune itself hands exceptions on as pickles.
        """
        tune.report({"status": FAILED, "failure": asdict(failure_of(error, self._host, self.node))})
