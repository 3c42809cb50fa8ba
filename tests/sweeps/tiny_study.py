"""A small study on a real, tiny training, whose verbs run in this process and without Ray or
MLflow.
"""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

from sweeps.core.commands import status
from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan import plan_text as planning
from sweeps.core.plan.probe import ProbeError
from sweeps.core.run import start
from toco.config import flatten
from toco.registry import load

sys.path.insert(0, str(Path(__file__).parent))
from fake_backend import InProcess
from fake_store import FakeStore

STUDY_NAME = "tiny"


class StudyPlace:
    """``python -m sweeps VERB`` of a study of two cells and two seeds, in this process and without
    Ray.

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
        changes = {
            path: value for path, value in flatten(tiny_config).items() if path not in varied
        }
        self.study = Study(
            name=STUDY_NAME,
            title="A tiny study",
            recipe="shapes_nano",
            design=OneFactor((Factor("method.aux_block", (0, 1), labels=("#1", "#2")),)),
            seeds=(0, 1),
            metrics=(Metric("val/cam_miou", "M"), Metric("val/seg_miou", "seg")),
            changes=changes,
            purpose="direction",
            repeat_base=False,
        )
        self.backend = InProcess(self.lost_at)
        self.backend.run_one, self.backend.keep = self.run_one, self.keep
        self.main = study_command(self.study, "A study for tests.", connect=self.backend.connect)

    def install(self, monkeypatch) -> None:
        """Put the study among the studies."""

        def refuse(*_, **__):
            raise ProbeError("nothing is timed in this test")

        found = SimpleNamespace(STUDY=self.study, main=self.main)

        def load_study(package, name):
            return found if (package, name) == ("sweeps", STUDY_NAME) else load(package, name)

        monkeypatch.setattr("sweeps.__main__.load", load_study)
        monkeypatch.setattr(planning, "probe", refuse)
        monkeypatch.setattr(start, "Tracker", FakeStore)
        monkeypatch.setattr(status, "Tracker", FakeStore)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run_one(self, spec, *arguments):
        """What the backend does for a trial."""
        self.trained.append(spec.key)
        whole = self.recorded / spec.key
        if whole.is_dir() and training_of(spec) not in self.computed:
            _, listener, _, _ = arguments
            listener.snapshot(spec.key, whole)
            listener.ended(spec.key)
        else:
            InProcess.run_one(self.backend, spec, *arguments)

    def keep(self, spec, snapshot):
        if not (self.recorded / spec.key).is_dir():
            shutil.copytree(snapshot, self.recorded / spec.key)

    def lost_at(self, spec):
        return self.lost.get(training_of(spec))


def training_of(spec):
    return f"{spec.config['method']['aux_block']}/{spec.config['seed']}"
