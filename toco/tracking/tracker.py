"""Tracking that never stops a training: failures are warnings, and the next call catches up."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from toco.passwords import public_text
from toco.tracking.address import Pages, client_uri
from toco.tracking.chart_view import save_chart_view
from toco.tracking.mlflow_store import (
    STUDY_TAG,
    Store,
    StoreError,
    open_store,
    shorten,
    store_errors_as_sentences,
    tag_value,
)
from toco.tracking.training_run import track_run

T = TypeVar("T")


class TrackingWarning(UserWarning):
    """MLflow could not be updated; the run folder still has everything."""


class Tracker:
    """Sender of runs to one experiment, whose failures are warnings.

    After a failure the tracker pauses for 30 s, doubled with every further failure up to 10
    minutes. A dead server therefore costs a training seconds and not minutes. Calls during the
    pause do nothing. Nothing is lost, because every call sends all that is missing.

    Attributes:
        tracking_uri: Address of the store, absolute, see ``client_uri``.
        experiment: Name of the experiment.

    Raises:
        ValueError: The URI is of no supported kind. This is a mistake of the user, to be reported
            before a study starts.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        *,
        pause_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tracking_uri = client_uri(tracking_uri)
        self.experiment = experiment
        self._first_pause_s = pause_s
        self._pause_s = pause_s
        self._clock = clock
        self._silent_until = float("-inf")

    def ensure_parent(
        self,
        study_id: str,
        run_name: str,
        tags: Mapping[str, str] | None = None,
        maps: Iterable[str] = (),
        *,
        last: bool = False,
    ) -> str | None:
        """Find or make the parent run of a study's trainings, and set its status to RUNNING.

        Args:
            study_id: Identity of the start of a study. A restored driver gives the same one;
                another start of the study needs another one.
            run_name: Name in the UI.
            tags: Further tags.
            maps: Names of the maps that the methods of the study make; the page of the experiment
                lists their mIoU.
            last: Try even during the pause after a failure.

        Returns:
            The run's id; ``None`` during the pause or after a failure of the store.
        """

        def ensure(store: Store) -> str:
            all_tags = {**(tags or {}), STUDY_TAG: tag_value(study_id)}
            with store_errors_as_sentences(store.uri):
                save_chart_view(store, maps)
                run = store.find_run({STUDY_TAG: all_tags[STUDY_TAG]}) or store.create_run(
                    run_name, all_tags
                )
                store.set_tags(run, all_tags)
                if run.info.status != "RUNNING":
                    store.client.update_run(run.info.run_id, status="RUNNING")
            run_id: str = run.info.run_id
            return run_id

        return self._guarded(ensure, f"study {study_id}", last=last)

    def pages(self) -> Pages | None:
        """Return links to the experiment in MLflow's UI; ``None`` if the store cannot be read."""
        return self._guarded(lambda store: store.pages, f"experiment {self.experiment}", last=False)

    def describe_parent(
        self,
        parent_run_id: str,
        tags: Mapping[str, str],
        metrics: Iterable[tuple[str, float, int]],
        *,
        last: bool = False,
    ) -> bool:
        """Set tags of a study's parent run, and add values of its metrics.

        Args:
            parent_run_id: Id from ``ensure_parent``.
            tags: The tags.
            metrics: Name, value and step. A metric keeps the value that it has at a step.
            last: Try even during the pause after a failure.

        Returns:
            Whether the store accepted everything.
        """

        def describe(store: Store) -> bool:
            with store_errors_as_sentences(store.uri):
                run, now_ms = store.client.get_run(parent_run_id), round(1000 * time.time())
                store.set_tags(run, tags)
                store.add_metrics(
                    run, [(name, value, now_ms, step) for name, value, step in metrics]
                )
            return True

        return self._guarded(describe, f"run {parent_run_id}", last=last) or False

    def track(
        self,
        run_dir: Path,
        *,
        parent_run_id: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        last: bool = False,
    ) -> str | None:
        """Call ``track_run``; return ``None`` during the pause or after a failure of the store.

        ``last`` tries even during the pause.
        """
        return self._guarded(
            lambda store: track_run(
                run_dir, store, parent_run_id=parent_run_id, run_name=run_name, tags=tags
            ),
            str(run_dir),
            last=last,
        )

    def finish_parent(
        self,
        parent_run_id: str,
        files: Iterable[Path] = (),
        status: str = "FINISHED",
        note: str | None = None,
    ) -> bool:
        """End the parent run of a study, even during the pause after a failure.

        Args:
            parent_run_id: Id from ``ensure_parent``.
            files: Files for the top folder of the run's artifacts; files of the same name are
                replaced.
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            note: Markdown that the run's page shows, such as the study's table.

        Returns:
            Whether the store accepted everything.
        """

        def finish(store: Store) -> bool:
            with store_errors_as_sentences(store.uri):
                store.upload(parent_run_id, files)
                if note is not None:
                    store.client.set_tag(parent_run_id, "mlflow.note.content", note[:8000])
                store.client.set_terminated(parent_run_id, status)
            return True

        return self._guarded(finish, f"run {parent_run_id}", last=True) or False

    def _guarded(self, call: Callable[[Store], T], what: str, *, last: bool) -> T | None:
        if not last and self._clock() < self._silent_until:
            return None
        try:
            value = call(open_store(self.tracking_uri, self.experiment))
        except Exception as error:  # MLflow, its database and the network raise many kinds
            # A ValueError is about a run folder or a name and no failure of the store: no pause.
            if not isinstance(error, ValueError):
                self._silent_until = self._clock() + self._pause_s
                self._pause_s = min(2 * self._pause_s, 600.0)
            message = (
                str(error)
                if isinstance(error, ValueError | StoreError)
                else f"{type(error).__name__}: {error}"
            )
            warnings.warn(
                f"MLflow could not be updated from {what}; the next update tries again: "
                f"{shorten(public_text(message), 700)}",
                TrackingWarning,
                stacklevel=3,
            )
            return None
        self._pause_s = self._first_pause_s
        self._silent_until = float("-inf")
        return value
