"""A campaign of faults on a Ray cluster of three hosts.

Studies run one after the other while faults of all kinds meet them at seeded moments. Every study
must end as the undisturbed one: the same rows, tables equal to the last byte, no result lost and
none doubled. A driver that has ended is started again by the same command, as a user would.

``TOCO_LAB_FAULTS`` is the number of faults (18: three kills of each kind, one of each other fault),
``TOCO_LAB_SEED`` chooses their order and moments, ``TOCO_LAB_OUT`` is a file that gets a JSON line
for each fault.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny
from ray_hosts import HEAD, WORKERS, Cluster, wait_for

pytestmark = pytest.mark.timeout(5400)
NUM_STEPS = 300
LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Driver:
    """The command of a study on the head's host, whose clock can be set."""

    def __init__(self, cluster, storage):
        self.cluster, self.storage = cluster, storage
        self.log = cluster.logs / f"{storage.name}.log"
        self.clock = cluster.lab.root(HEAD) / "tmp/clock"
        self.process = None
        self.statuses = []

    def start(self):
        self.clock.write_text("+0")
        clock = {
            "LD_PRELOAD": LIBFAKETIME,
            "FAKETIME_TIMESTAMP_FILE": "/tmp/clock",
            "FAKETIME_CACHE_DURATION": "1",  # without a cache, each look at the clock reads a file
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.process = self.cluster.lab.start(
            HEAD,
            *("python", "-u", "-m", "sweeps", "run", "layer_ablation"),
            *("--address", self.cluster.address, *tiny.options(self.storage, NUM_STEPS)),
            log=self.log,
            cwd=tiny.ROOT,
            RAY_AUTH_MODE="token",
            **tiny.environment(),
            **(clock if Path(LIBFAKETIME).exists() else {}),
        )

    def has_ended(self):
        return self.process is not None and self.process.poll() is not None

    def keep_running(self):
        """Start the driver, or start it again after it ended without a result."""
        if self.process is None or (self.has_ended() and self.process.returncode != 0):
            if self.process is not None:
                self.statuses.append(self.process.returncode)
            self.start()

    def progress(self):
        """A number that grows with every checkpoint of every training."""
        return sum(tiny.newest_steps(self.storage).values())

    def said(self, since):
        lines = self.log.read_text(errors="replace")[since:].splitlines()
        return [line[:300] for line in lines if line and "trials done" not in line]


# The faults. Each returns the name of its host; those that last repair themselves.


def kill_worker(cluster, driver, rng):
    name = rng.choice(WORKERS)
    return name if cluster.lab.signal(name, "ray::ImplicitFunc") else None


def kill_raylet(cluster, driver, rng):
    name = rng.choice(WORKERS)
    return name if cluster.lab.signal(name, "raylet/raylet ") else None


def kill_head(cluster, driver, rng):
    return HEAD if cluster.lab.signal(HEAD, "gcs/gcs_server") else None


def kill_driver(cluster, driver, rng):
    return HEAD if cluster.lab.signal(HEAD, "sweeps run layer_ablation") else None


def power_off(cluster, driver, rng):
    name = rng.choice(WORKERS)
    cluster.lab.off(name)
    time.sleep(rng.uniform(1, 5))
    cluster.lab.boot(name)
    cluster.join(name)
    return name


def suspend(cluster, driver, rng):
    """A host that stands still, as a virtual machine that is moved."""
    name = rng.choice(WORKERS)
    cluster.lab.signal(name, "", signal.SIGSTOP)
    time.sleep(rng.uniform(5, 40))
    cluster.lab.signal(name, "", signal.SIGCONT)
    return name


def cut_cable(cluster, driver, rng):
    name = rng.choice(WORKERS)
    cluster.lab.cut(name)
    time.sleep(rng.uniform(5, 45))
    cluster.lab.heal(name)
    return name


def set_clock(cluster, driver, rng):
    driver.clock.write_text(f"{rng.choice((-7200, -3600, 3600, 7200)):+d}")
    return HEAD if Path(LIBFAKETIME).exists() else None


KILLS = (kill_worker, kill_raylet, kill_head, kill_driver, power_off)
FAULTS = (*(3 * KILLS), suspend, cut_cable, set_clock)


def wait_for_progress(driver, beyond, seconds=400):
    """Wait for a checkpoint beyond ``beyond``, or the end of the study."""

    def has_progressed():
        driver.keep_running()
        return driver.progress() > beyond or (driver.has_ended() and driver.process.returncode == 0)

    wait_for(has_progressed, seconds)


def check_end(driver, undisturbed):
    """Wait for the end of the study, and compare it with the undisturbed one."""

    def has_ended():
        driver.keep_running()
        return driver.has_ended() and driver.process.returncode == 0

    wait_for(has_ended, 600)
    assert tiny.outcome(driver.storage) == undisturbed(NUM_STEPS)
    assert not tiny.leases(driver.storage)


def test_faults_of_all_kinds_lose_and_double_nothing(lab, undisturbed, tmp_path):
    number = int(os.environ.get("TOCO_LAB_FAULTS", len(FAULTS)))
    rng = random.Random(int(os.environ.get("TOCO_LAB_SEED", "0")))  # noqa: S311 - moments
    out = Path(os.environ.get("TOCO_LAB_OUT", tmp_path / "faults.jsonl"))
    undisturbed(NUM_STEPS)
    lab.boot(HEAD, *WORKERS)
    cluster = Cluster(lab, tmp_path)
    kinds = [fault for _ in range(-(-number // len(FAULTS))) for fault in FAULTS][:number]
    rng.shuffle(kinds)
    studies = 0
    driver = Driver(cluster, lab.shared / f"study{studies}")
    while kinds:
        driver.keep_running()
        done = driver.progress()
        wait_for_progress(driver, done)
        time.sleep(rng.uniform(0, 2))
        if driver.has_ended() and driver.process.returncode == 0:
            check_end(driver, undisturbed)
            studies += 1
            driver = Driver(cluster, lab.shared / f"study{studies}")
            continue
        since, began, done = driver.log.stat().st_size, time.monotonic(), driver.progress()
        host = kinds[-1](cluster, driver, rng)
        if host is None:
            continue  # nothing of the kind runs at this moment
        wait_for_progress(driver, done)
        record = {
            "kind": kinds.pop().__name__,
            "host": host,
            "study": studies,
            "seconds_to_progress": round(time.monotonic() - began, 1),
            "driver_statuses": driver.statuses,
            "said": driver.said(since),
        }
        driver.statuses = []
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")
    check_end(driver, undisturbed)
