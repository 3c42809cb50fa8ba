"""Backends for tests: trials run in this process, one after the other, and without Ray."""

import shutil
import threading
import time
from contextlib import contextmanager

from sweeps.core.run.failures import failure_of
from sweeps.core.run.worker import run_trial
from sweeps.core.store.runs import newest_step


class FakeBackend:
    """Calls ``train(spec, folder)`` for every trial: it fills a run folder, or raises.

    ``specs`` has all trials that were asked for; ``connections`` counts the drivers that needed
    workers.
    """

    def __init__(self, train=None):
        self.train = train
        self.specs, self.connections = [], 0

    @contextmanager
    def connect(self, launch):
        self.connections += 1
        yield self

    def run(self, proposer, listener, runs, session, name):
        while True:
            spec = proposer.next()
            if spec is not None:
                self.specs.append(spec)
                self.run_one(spec, proposer, listener, runs, session)
                listener.check()
            elif proposer.is_done:
                return
            else:
                self.idle()

    def idle(self):
        """Called when there is nothing to run although not all has ended."""
        time.sleep(0.01)

    def run_one(self, spec, proposer, listener, runs, session):
        folder = session / "trials" / spec.key
        listener.running({spec.key})
        try:
            self.train(spec, folder)
        except Exception as error:
            listener.failed(spec.key, failure_of(error, "w1", "node"))
            return
        if folder.is_dir():
            listener.snapshot(spec.key, folder)
        listener.ended(spec.key)


class LostError(BaseException):
    """The driver is gone; no code of it may catch this."""


class _StoppedError(BaseException):
    """Ray ends the worker of a trial that is stopped."""


class InProcess(FakeBackend):
    """Runs trials as workers do, with snapshots kept below the session as by Ray Tune.

    ``lost_at(spec)`` has the step at which the driver of a trial is lost, or ``None``: before the
    snapshot of that step is published, or after it.
    """

    def __init__(self, lost_at=lambda spec: None, *, after_it=False):
        super().__init__()
        self.lost_at, self.after_it = lost_at, after_it

    def run_one(self, spec, proposer, listener, runs, session):
        published = runs.ledger.run_dir(spec.key)
        lost_at = self.lost_at(spec)
        channel = Channel(
            spec, proposer, listener, published, session / spec.key, lost_at, after_it=self.after_it
        )
        try:
            run_trial(spec, channel)
        except _StoppedError:
            pass
        except ValueError as error:
            listener.failed(spec.key, failure_of(error, "w1", "node"))
            return
        listener.ended(spec.key)
        if channel.last is not None:
            self.keep(spec, channel.last)

    def keep(self, spec, snapshot):
        """The last snapshot of a trial that ended."""


class Channel:
    """See ``sweeps.core.run.worker.Channel``."""

    def __init__(
        self, spec, proposer, listener, published, session, lost_at=None, *, after_it=False
    ):
        self.spec, self.proposer, self.listener = spec, proposer, listener
        self.published, self.session = published, session
        self.lost_at, self.after_it = lost_at, after_it
        self.last = None
        self.stop = threading.Event()

    @contextmanager
    def restored(self):
        yield self.published if newest_step(self.published) >= 0 else None

    def report(self, row, snapshot):
        step = row.get("step", 0)
        self.last = self.session / f"checkpoint_{step:06d}"
        shutil.copytree(snapshot, self.last, dirs_exist_ok=True)
        # In Ray's order: the decision comes before the snapshot is kept.
        goes_on = self.proposer.goes_on(self.spec.key, row)
        self.listener.reported(self.spec.key, row)
        if not self.after_it and step == self.lost_at:
            raise LostError
        self.listener.snapshot(self.spec.key, self.last)
        if step == self.lost_at:
            raise LostError
        if not goes_on:
            raise _StoppedError

    def begin(self):
        """Trials of tests run anywhere."""

    def fail(self, error):
        """The error follows."""
