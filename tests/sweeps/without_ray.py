"""Runs studies in this process: functions of a test stand in the place of those that use Ray."""

from contextlib import contextmanager
from types import SimpleNamespace

import sweeps.core.run
from sweeps.core.plan import ray_environment


def run_without_ray(monkeypatch, **functions):
    """Put ``functions``, as ``run_trials``, in the place of those of ``sweeps.core.run.ray_tune``."""

    @contextmanager
    def connected(address):
        yield

    runner = {"connected": connected, "Resources": lambda *_: None, "check_resources": lambda *_, **__: None}
    monkeypatch.setattr(sweeps.core.run, "ray_tune", SimpleNamespace(**{**runner, **functions}), raising=False)
    monkeypatch.setattr(ray_environment, "prepare", lambda *_, **__: None)
