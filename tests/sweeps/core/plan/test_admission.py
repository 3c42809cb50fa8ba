from types import SimpleNamespace

import psutil
import pytest
import torch

from sweeps.core.plan.admission import CONTEXT_BYTES, gpus_per_trial, refusal
from sweeps.core.plan.forecast import Forecast
from sweeps.core.plan.launch_options import Launch

GB = 10**9


def predicted(each, trainings=8):
    nothing = dict.fromkeys(
        ("wall_s", "training_s", "cpu_hours", "gpu_hours", "money", "disk_bytes", "memory_bytes")
    )
    return Forecast(trainings, 0, 0, 4, **nothing, trial_memory_bytes=each, basis="")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 100 GB, and its GPU of 80 GB."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=100 * GB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * GB)
    )


@pytest.mark.parametrize(
    ("gpus", "each", "fits"),
    [
        # A tenth of 100 GB is left free, and of 80 GB, where each process also has its context.
        (0.0, 22.5 * GB, True),
        (0.0, 22.6 * GB, False),
        (0.25, 18 * GB - CONTEXT_BYTES, True),
        (0.25, 18 * GB, False),
        (0.5, 36 * GB - CONTEXT_BYTES, True),
        (0.5, 36 * GB, False),
        # Alone on a GPU: it was measured there.
        (1.0, 79 * GB, True),
        (2.0, 79 * GB, True),
        (0.0, None, True),
    ],
)
def test_trials_at_once_are_admitted_by_what_one_needs(tmp_path, gpus, each, fits):
    launch = Launch(tmp_path, concurrent=4, gpus_per_trial=gpus)
    assert (refusal(predicted(each), launch) is None) == fits


def test_the_refusal_says_what_fits(tmp_path):
    text = refusal(predicted(40 * GB), Launch(tmp_path, concurrent=3))
    assert text == (
        "3 trials at once on this machine would not fit: one was measured to need 40.0 GB of its "
        "100.0 GB, so that "
        "2 fit with 10% to spare; give --concurrent 2."
    )
    assert refusal(predicted(40 * GB), Launch(tmp_path, concurrent=2)) is None
    text = refusal(predicted(20 * GB), Launch(tmp_path, concurrent=8, gpus_per_trial=0.25))
    assert "4 trials at once on a GPU" in text
    assert text.endswith("3 fit with 10% to spare; give --gpus-per-trial 0.333.")
    assert refusal(predicted(20 * GB), Launch(tmp_path, concurrent=8, gpus_per_trial=0.333)) is None
    text = refusal(predicted(200 * GB), Launch(tmp_path, concurrent=1))
    assert text.endswith("0 fit with 10% to spare; take one with more memory.")


def test_fewer_trials_than_could_run_at_once_count_as_they_are(tmp_path):
    assert refusal(predicted(40 * GB, trainings=2), Launch(tmp_path, concurrent=8)) is None


def test_of_machines_that_cannot_be_asked_nothing_is_said(tmp_path, monkeypatch):
    launch = Launch(tmp_path, address="10.0.0.1:6379", concurrent=8)
    assert refusal(predicted(90 * GB), launch) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(predicted(90 * GB), Launch(tmp_path, concurrent=8, gpus_per_trial=0.5)) is None


def test_the_advised_part_of_a_gpu_admits_as_many_trials_as_fit():
    # Rounded up, 1/6 would be 0.167, with which Ray starts five trials.
    assert [gpus_per_trial(number) for number in (1, 2, 3, 6, 7)] == [1, 0.5, 0.333, 0.166, 0.142]
    for number in range(1, 500):
        assert int(1 / float(f"{gpus_per_trial(number):g}")) == number


@pytest.mark.parametrize(("gpus", "world_size"), [(0.0, 1), (0.5, 1), (1.0, 1), (2.0, 2), (8.0, 8)])
def test_a_trial_has_a_rank_on_each_of_its_gpus(tmp_path, gpus, world_size):
    launch = Launch(tmp_path, gpus_per_trial=gpus)
    assert launch.resources == {"cpus": 1.0, "gpus": gpus, "world_size": world_size}


def test_a_gpu_and_a_half_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"--gpus-per-trial 1\.5 is neither a part of a GPU nor a number of GPUs"
    ):
        Launch(tmp_path, gpus_per_trial=1.5)
