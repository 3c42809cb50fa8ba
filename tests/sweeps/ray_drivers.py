"""What processes of tests that start Ray have in common."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch

from sweeps.core.plan import plan_text
from sweeps.core.plan.probe import ProbeError
from toco.train import dry_run
from toco.train.loop import train


def environment(**more):
    """The environment of a process that starts its own Ray: no address, no settings of another one.

    By default Ray's workers give way to every other process of the machine. Beside other tests a
    training of a second would take ten.
    """
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))
    }
    return own | {"RAY_worker_niceness": "0"} | {name: str(value) for name, value in more.items()}


def in_a_trials_place(function, *arguments):
    """Call ``function`` in a process like a worker's, and return what it does.

    One thread, as a trial with one CPU has: the order of a sum is part of its result. And no checks
    of shapes, which pytest switches on in its own process: with them a training takes three times
    as long.
    """
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as pool:
        return pool.submit(function, *arguments).result()


def train_uninterrupted(config, run_dir):
    """The same training without Ray, in one go."""
    train(config, run_dir, progress=False)


def refuse_to_time(*_, **__):
    """Stand for ``sweeps.core.plan.probe.probe``."""
    raise ProbeError("nothing is timed in this test")


def trust_trainings():
    """Let the driver of this process neither dry-run nor time its trainings before each start.

    Both take longer than such trainings. Other tests have them.
    """
    dry_run.check_can_run = lambda *_, **__: None
    plan_text.probe = refuse_to_time
