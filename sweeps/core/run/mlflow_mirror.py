"""MLflow, filled from the run folders by a thread, so that a slow store never delays a study."""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import SearchSituation, Situation, Task
from sweeps.core.store.study_folder import StudyFolder
from toco.files import printable
from toco.passwords import public_uri
from toco.tracking import (
    Pages,
    Tracker,
    database_of,
    has_password,
    import_mlflow,
    part_of_name,
)

_LOOKS = "looks"
"""Stands among the keys of changed trials for the looks of the study."""


class Mirror:
    """Keep a parent run, and a child run for every trial, up to date with the run folders.

    The ledger is the record. A change that cannot be sent is sent with the next change of the same
    trial, and once more at the end.

    Args:
        tracker: The MLflow store.
        situation: The study or search, whose record is written.
        trials: Every trial that is sent, by key. The caller may add trials while the mirror runs.
        is_writer: Whether this process writes to the store. Of several drivers, one alone writes to
            a database file: on a network disk, several writers would damage it.

    Attributes:
        pages: Addresses of the study in MLflow's UI; ``None`` until the store has answered.
    """

    def __init__(
        self,
        tracker: Tracker,
        situation: Situation | SearchSituation,
        trials: Mapping[str, Task],
        *,
        is_writer: bool = True,
    ) -> None:
        self._tracker = tracker
        self._is_writer = is_writer
        self._situation = situation
        self._trials = trials
        # Read now: the record on disk may be damaged before the study ends.
        self._start_id = situation.start_id
        self.pages: Pages | None = None
        self._parent: str | None = None
        self._runs: dict[str, str] = {}
        self._links_kept = 0
        self._all_sent = True
        self._changed: dict[str, None] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        """Start the thread. First it sends the run folders of earlier starts."""
        if not self._is_writer:
            return
        for key in self._trials:
            if self._situation.ledger.run_dir(key).is_dir():
                self.changed(key)
        self.decided()
        import_mlflow()
        self._thread.start()

    def changed(self, key: str) -> None:
        """Note that the run folder of a trial has changed."""
        with self._wake:
            self._changed[key] = None
            self._wake.notify()

    def decided(self) -> None:
        """Note that a look of a sequential study is over."""
        if isinstance(self._situation, Situation) and self._situation.plan.study.sequential:
            self.changed(_LOOKS)

    def drain(self) -> None:
        """Send all remaining changes, and accept no more.

        The report is written after this call, so that it knows all links.
        """
        if self._closing or not self._is_writer:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        # Ask even where the parent run exists: an unreachable store would cost every trial its time
        # limits.
        if not self._ensure_parent(last=True):
            self._all_sent = False
            return
        failed = [key for key in self._changed if not self._send(key, last=True)]
        self._all_sent = not failed
        self._keep_links()

    def close(self, files: Iterable[Path], status: str, note: str | None = None) -> bool:
        """Drain, and end the parent run; return whether MLflow has everything.

        Args:
            files: Report and table.
            status: A status of MLflow: ``FINISHED``, ``FAILED`` or ``KILLED``.
            note: The run's description, in Markdown.
        """
        self.drain()
        if self._parent is None:
            return False
        return self._tracker.finish_parent(self._parent, files, status, note) and self._all_sent

    def _work(self) -> None:
        self._ensure_parent(last=False)
        failed: dict[str, None] = {}
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._changed or self._closing)
                if not self._changed or self._closing:
                    self._changed |= failed
                    return
                key = next(iter(self._changed))
                del self._changed[key]
            if not self._send(key, last=False):
                failed[key] = None
            else:
                failed.pop(key, None)
            if not self._changed:
                # Not after every trial: a study of 50,000 trials would write the links of all
                # trials 50,000 times.
                self._keep_links()

    def _send(self, key: str, *, last: bool) -> bool:
        # The store was not reachable at the start and may be now.
        if self._parent is None and not self._ensure_parent(last=last):
            return False
        if key == _LOOKS:
            return self._send_looks(last=last)
        task = self._trials[key]
        run = self._tracker.track(
            self._situation.ledger.run_dir(key),
            parent_run_id=self._parent,
            run_name=task.name,
            tags=self._tags(task),
            last=last,
        )
        if run is not None:
            self._runs[key] = run
        return run is not None

    def _send_looks(self, *, last: bool) -> bool:
        assert isinstance(self._situation, Situation)  # noqa: S101 - see ``decided``
        assert self._parent is not None  # noqa: S101 - see ``_send``
        tags, metrics = described_looks(self._situation)
        return self._tracker.describe_parent(self._parent, tags, metrics, last=last)

    def _tags(self, task: Task) -> dict[str, str]:
        """Return the tags by which MLflow can group runs.

        The parameters hold the factors, too, but among sixty others.
        """
        role = "trial" if self._situation.kind == "study" else "search trial"
        factors = {f"factor.{path}": str(value) for path, value in task.factors.items()}
        return {
            "study": self._situation.plan.study.name,
            "cell": task.cell,
            "role": role,
            "key": task.key,
            **factors,
        }

    def _ensure_parent(self, *, last: bool) -> bool:
        """Find or create the parent run; return whether the store has it."""
        plan = self._situation.plan
        tags = {
            "study": plan.study.name,
            "digest": plan.digest,
            "recipe": plan.study.recipe,
            "role": self._situation.kind,
        }
        maps, name = self._maps(), plan.folder_name
        self._parent = self._tracker.ensure_parent(self._start_id, name, tags, maps, last=last)
        if self._parent is not None and self.pages is None:
            self.pages = self._tracker.pages()
        return self._parent is not None

    def _maps(self) -> list[str]:
        """Name the maps that the methods of the trials make."""
        situation = self._situation
        if isinstance(situation, Situation):
            methods = [trial.config.method for trial in situation.plan.trials]
        else:
            methods = [situation.plan.base.method]
        cams = dict.fromkeys(name for method in methods for name in ("cam", *method.further_cams()))
        return [*cams, *(["seg"] if any(method.has_decoder() for method in methods) else [])]

    def _keep_links(self) -> None:
        if self.pages is None or self._links_kept == len(self._runs):
            return
        # On an error, a full disk for example, the links are written with the next trial.
        with contextlib.suppress(OSError):
            StudyFolder(self._situation.path).write_mlflow_links(self.pages, self._runs)
            self._links_kept = len(self._runs)


def described_looks(
    situation: Situation,
) -> tuple[dict[str, str], list[tuple[str, float, int]]]:
    """Describe the looks of a sequential study as tags and metrics of its parent run.

    Names begin with the number of the claim or configuration, so that they sort as in the plan.

    ==========================  ====================================================================
    tag ``look``                the last look that is over
    tag ``claim.CLAIM``         its outcome
    tag ``claim_seeds.CLAIM``   number of seeds at its last look
    ``claim_p/CLAIM``           sequential p value after correction, by seeds of the look
    ``claim_boundary/CLAIM``    p value at which a t test of the claim crosses, by seeds of the look
    ``row_seeds/ROW``           number of seeds that a configuration gets, by seeds of the look
    ==========================  ====================================================================

    Returns:
        The tags, and name, value and step of each metric.
    """
    plan, states = situation.plan, situation.past_looks()
    assert plan.study.sequential is not None  # noqa: S101 - others have no looks
    numbers = plan.study.sequential.looks
    claims = _numbered([claim.claim.name for claim in states[-1].claims])
    cells = _numbered([cell.label for cell in plan.cells])
    tags = {"look": f"{states[-1].num_done} of {len(numbers)}"}
    metrics: list[tuple[str, float, int]] = []
    for name, claim in zip(claims, states[-1].claims, strict=True):
        tags |= {f"claim.{name}": claim.outcome, f"claim_seeds.{name}": str(claim.n)}
    for looks in states:
        for name, claim in zip(claims, looks.claims, strict=True):
            if looks.num_done and claim.n == numbers[looks.num_done - 1] and claim.p is not None:
                metrics.append((f"claim_p/{name}", claim.p, claim.n))
            if claim.outcome == "open":
                step = numbers[looks.num_done]
                metrics.append((f"claim_boundary/{name}", claim.boundary, step))
        if looks.is_open:
            metrics += [
                (f"row_seeds/{name}", float(number), numbers[looks.num_done])
                for name, number in zip(cells, looks.num_seeds, strict=True)
            ]
    return tags, metrics


def _numbered(names: Sequence[str]) -> list[str]:
    """Put numbers before names, all of the same width."""
    width = len(str(len(names)))
    return [f"{number:0{width}} {part_of_name(name)}" for number, name in enumerate(names, start=1)]


def closing_sentence(launch: Launch, pages: Pages | None, *, complete: bool) -> str:
    """Say where MLflow shows the trials, or how to send what it lacks."""
    uri = launch.tracking
    if not complete:
        login = (
            ", with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set"
            if has_password(uri)
            else ""
        )
        return (
            f"MLflow at {printable(public_uri(uri))} does not have everything; the run folders do. "
            f"To fill it{login}: {launch.sync_command}"
        )
    page = "" if pages is None else pages.experiment
    database = database_of(uri)
    start = (
        ""
        if database is None
        else f"\nTo see that page: python -m toco mlflow {shlex.quote(str(database))}"
    )
    return f"MLflow: {page}{start}"
