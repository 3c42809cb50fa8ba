"""Tests on several hosts of one machine. They need root and minutes: `make test-cluster`."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hosts
import mini_slurm
import tiny

REQUESTED = "TOCO_CLUSTER_TESTS"


def pytest_ignore_collect(collection_path, config):
    """`make test` leaves these tests out."""
    return True if not os.environ.get(REQUESTED) else None


@pytest.fixture(scope="module")
def lab():
    if (reason := hosts.missing()) is not None:
        pytest.skip(reason)
    # Hosts have their own /dev/shm, where other tests have their files.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder,
        hosts.Lab(folder) as lab,
    ):
        yield lab


@pytest.fixture(scope="module")
def slurm(lab):
    if (reason := mini_slurm.missing()) is not None:
        pytest.skip(reason)
    lab.boot("n0", "n1", "n2")
    return mini_slurm.Slurm(lab, ["n0", "n1", "n2"])


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The outcome of the study on this machine, by its number of steps."""
    found = {}

    def of(num_steps):
        if num_steps not in found:
            storage = tmp_path_factory.mktemp("undisturbed") / "results"
            found[num_steps] = tiny.run_here(storage, num_steps)
        return found[num_steps]

    return of
