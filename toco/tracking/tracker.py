"""Tracking that never stops a training: a failure becomes a warning, and the next call catches up."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from toco.passwords import public_text
from toco.tracking.address import Pages, client_uri
from toco.tracking.mlflow_store import StoreError, open_store, shorten
from toco.tracking.study_run import ensure_parent, finish_parent
from toco.tracking.training_run import track_run

T = TypeVar("T")


class TrackingWarning(UserWarning):
    """MLflow could not be filled; the run folder has everything."""


class Tracker:
    """Fills one experiment of one store, as far as the store lets it.

    After a failure of the store it leaves it alone for a while (30 s, doubled with every further failure, at most 10
    minutes) so that a dead server costs a training seconds and not minutes. Calls in between do nothing; since every
    call sends all that is missing, nothing is lost by it.

    Attributes:
        tracking_uri: Absolute, see ``client_uri``.
        experiment: Name of the experiment.

    Raises:
        ValueError: The URI is of no supported kind: a mistake to hear of before a study, not a failure during one.
    """

    def __init__(
        self, tracking_uri: str, experiment: str, *, pause_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tracking_uri = client_uri(tracking_uri)
        self.experiment = experiment
        self._first_pause_s = pause_s
        self._pause_s = pause_s
        self._clock = clock
        self._silent_until = float("-inf")

    def ensure_parent(
        self, study_id: str, run_name: str, tags: Mapping[str, str] | None = None, *, last: bool = False
    ) -> str | None:
        """``ensure_parent``; ``None`` where it could not be done. ``last`` tries even within the pause."""
        return self._guarded(
            lambda: ensure_parent(
                tracking_uri=self.tracking_uri,
                experiment=self.experiment,
                study_id=study_id,
                run_name=run_name,
                tags=tags,
            ),
            f"study {study_id}",
            last=last,
        )

    def pages(self) -> Pages | None:
        """Where MLflow's UI shows the experiment; ``None`` where that is not known."""
        return self._guarded(
            lambda: open_store(self.tracking_uri, self.experiment).pages, f"experiment {self.experiment}", last=False
        )

    def track(
        self,
        run_dir: Path,
        *,
        parent_run_id: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        last: bool = False,
    ) -> str | None:
        """``track_run``; ``None`` where it could not be done. ``last`` tries even within the pause after a failure."""
        return self._guarded(
            lambda: track_run(
                run_dir,
                tracking_uri=self.tracking_uri,
                experiment=self.experiment,
                parent_run_id=parent_run_id,
                run_name=run_name,
                tags=tags,
            ),
            str(run_dir),
            last=last,
        )

    def finish_parent(
        self, parent_run_id: str, files: Iterable[Path] = (), status: str = "FINISHED", note: str | None = None
    ) -> bool:
        """``finish_parent``; says whether it could be done."""

        def finish() -> bool:
            finish_parent(
                parent_run_id,
                tracking_uri=self.tracking_uri,
                experiment=self.experiment,
                files=files,
                status=status,
                note=note,
            )
            return True

        return self._guarded(finish, f"run {parent_run_id}", last=True) or False

    def _guarded(self, call: Callable[[], T], what: str, *, last: bool) -> T | None:
        if not last and self._clock() < self._silent_until:
            return None
        try:
            value = call()
        except Exception as error:  # whatever MLflow, its database or the network came up with
            # A ValueError is about a run folder or a name, and says nothing about the store.
            if not isinstance(error, ValueError):
                self._silent_until = self._clock() + self._pause_s
                self._pause_s = min(2 * self._pause_s, 600.0)
            said = str(error) if isinstance(error, ValueError | StoreError) else f"{type(error).__name__}: {error}"
            warnings.warn(
                f"MLflow could not be filled from {what}, which is tried again: {shorten(public_text(said), 700)}",
                TrackingWarning,
                stacklevel=3,
            )
            return None
        self._pause_s = self._first_pause_s
        self._silent_until = float("-inf")
        return value
