"""How a launch that breaks leaves MLflow, with a runner that breaks."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import sweeps.core
from sweeps.core import launch, ray_environment
from sweeps.core.launch import Launch, run_study
from sweeps.core.study import Factor, Metric, Study


class Tracker:
    """A store that takes everything; says what became of the study's run."""

    def __init__(self):
        self.parent = None

    def ensure_parent(self, *_, **__):
        self.parent = "RUNNING"
        return "parent"

    def track(self, *_, **__):
        return "run"

    def finish_parent(self, _, files, status):
        self.parent = status
        return True


@pytest.mark.parametrize(("breaks_at", "parent"), [("connected", None), ("check", None), ("run", "FAILED")])
def test_a_study_that_breaks_leaves_no_run_that_seems_to_go_on(tmp_path, monkeypatch, breaks_at, parent):
    def step(name):
        if name == breaks_at:
            raise ConnectionError(f"{name} broke")

    @contextmanager
    def connected(address):
        step("connected")
        yield

    runner = SimpleNamespace(
        connected=connected,
        Resources=lambda *_: None,
        check_resources=lambda *_, **__: step("check"),
        run_trials=lambda *_: step("run"),
    )
    tracker = Tracker()
    monkeypatch.setattr(sweeps.core, "runner", runner, raising=False)
    monkeypatch.setattr(ray_environment, "prepare", lambda address: None)
    monkeypatch.setattr(launch, "Tracker", lambda uri, experiment: tracker)
    changes = {"data.num_train": 1, "data.num_val": 1, "data.root": str(tmp_path)}
    factor = Factor("method.aux_block", (9,))
    study = Study("example", "An example", "shapes_nano", (factor,), (0,), (Metric("val/cam_miou", "M"),), changes)
    with pytest.raises(ConnectionError, match=f"{breaks_at} broke"):
        run_study(study, Launch(tmp_path / "results", address="local"))
    assert tracker.parent == parent
