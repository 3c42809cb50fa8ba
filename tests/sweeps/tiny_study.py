"""A small study on a real, tiny training, whose verbs run in this process and without Ray or MLflow."""

import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from sweeps.core.commands import status
from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan import plan_text as planning
from sweeps.core.plan.probe import ProbeError
from sweeps.core.run import driver as launch
from sweeps.core.run.failures import failure_of
from sweeps.core.run.worker import run_trial
from sweeps.core.store.runs import newest_step
from toco.config import flatten
from toco.registry import load
from toco.tracking import Pages

sys.path.insert(0, str(Path(__file__).parent))
from without_ray import run_without_ray

STUDY_NAME = "tiny"


class LostError(BaseException):
    """The driver is gone; no code of it may catch this."""


class Store:
    """MLflow that takes everything."""

    def __init__(self, *_):
        pass

    def ensure_parent(self, *_, **__):
        return "parent"

    def pages(self):
        return Pages("http://127.0.0.1:5000", "1")

    def track(self, *_, **__):
        return "run"

    def finish_parent(self, *_, **__):
        return True


class StudyPlace:
    """``python -m sweeps VERB`` of a study of two cells and two seeds, in this process and without Ray.

    A training is computed once; whoever asks for it again gets its run folder as it was, at once.
    """

    def __init__(self, tiny_config, recorded: Path) -> None:
        self.recorded = recorded
        self.trained: list[str] = []
        """Keys of the trainings that were asked for, one for each time."""
        self.computed: set[str] = set()
        """Trainings (``aux_block/seed``) that are computed each time, although they are known."""
        self.lost: dict[str, int] = {}
        """Those whose driver is lost when they report this step."""
        varied = ("method.aux_block", "seed")
        changes = {path: value for path, value in flatten(tiny_config).items() if path not in varied}
        self.study = Study(
            name=STUDY_NAME,
            title="A tiny study",
            recipe="shapes_nano",
            design=OneFactor((Factor("method.aux_block", (0, 1), labels=("#1", "#2")),)),
            seeds=(0, 1),
            metrics=(Metric("val/cam_miou", "M"), Metric("val/seg_miou", "seg")),
            changes=changes,
            purpose="direction",
            a_a=False,
        )

    def install(self, monkeypatch) -> None:
        """Put the study among the studies, and trainings in this process in the place of Ray's."""

        def refuse(*_, **__):
            raise ProbeError("nothing is timed in this test")

        found = SimpleNamespace(STUDY=self.study, main=study_command(self.study, "A study for tests."))

        def load_study(package, name):
            return found if (package, name) == ("sweeps", STUDY_NAME) else load(package, name)

        monkeypatch.setattr("sweeps.__main__.load", load_study)
        run_without_ray(monkeypatch, run_trials=self.run_trials)
        monkeypatch.setattr(planning, "probe", refuse)
        monkeypatch.setattr(launch, "Tracker", Store)
        monkeypatch.setattr(status, "Tracker", Store)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run_trials(self, specs, runs, session, resources, watch, name):
        failed = set()
        for spec in specs:
            self.trained.append(spec.key)
            whole, training = self.recorded / spec.key, f"{spec.config['method']['aux_block']}/{spec.config['seed']}"
            if whole.is_dir() and training not in self.computed:
                watch.snapshot(spec.key, whole)
                watch.ended(spec.key)
                continue
            published = runs.ledger.run_dir(spec.key)
            channel = _Channel(watch, spec.key, published, session / spec.key, self.lost.get(training))
            try:
                run_trial(spec, channel)
            except ValueError as error:
                watch.failed(spec.key, failure_of(error, "w1", "node"))
                failed.add(spec.key)
                continue
            if not whole.is_dir():
                shutil.copytree(channel.last, whole)
            watch.ended(spec.key)
        return frozenset(failed)


class _Channel:
    """Keeps snapshots as Ray Tune does, below the session; see ``sweeps.core.run.worker.Channel``."""

    def __init__(self, watch, key, published, session, lost_at) -> None:
        self.watch, self.key, self.published = watch, key, published
        self.session, self.lost_at = session, lost_at

    @contextmanager
    def restored(self):
        yield self.published if newest_step(self.published) >= 0 else None

    def report(self, row, snapshot):
        self.last = self.session / f"checkpoint_{row['step']:06d}"
        shutil.copytree(snapshot, self.last)
        if row["step"] == self.lost_at:
            raise LostError
        self.watch.snapshot(self.key, self.last)

    def begin(self):
        """Trials of this test run anywhere."""

    def fail(self, error):
        """The error follows."""
