"""How trainings end when something outside of them goes wrong: nothing hangs, and no process is
left.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from toco.train import checkpoint
from toco.train.run_folder import RunFolder

UNSHARE = shutil.which("unshare")
TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--no-python",
)


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes):
    gone, alive = psutil.wait_procs(processes, timeout=30)
    # One that nobody waits for stays in the table of processes; it runs no more.
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left, [process.cmdline() for process in left]
    assert gone or alive


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [(sys.executable,), (*TORCHRUN, sys.executable)], ids=["alone", "torchrun"]
)
def test_no_process_outlives_a_killed_training(long_training, tmp_path, launcher):
    training = long_training(tmp_path / "run", *launcher, num_workers=1)
    assert training.poll() is None
    processes = descendants(training)
    # A fork server, a resource tracker and a loader process for each of the trainings.
    assert len(processes) >= 3 * (1 if launcher == (sys.executable,) else 2)
    training.kill()
    training.wait()
    assert_gone(processes)


@pytest.mark.slow
def test_a_signal_ends_a_training_that_waits_for_a_batch(long_training, tmp_path):
    run_dir = tmp_path / "run"
    training = long_training(run_dir, sys.executable, num_workers=1)
    processes = descendants(training)
    loader = max(processes, key=lambda process: process.memory_info().rss)
    loader.suspend()
    # A step may take seconds on a busy machine, but not without the processor.
    waiting, used_s = psutil.Process(training.pid), -1.0
    while used_s < (used_s := round(sum(waiting.cpu_times()[:2]), 1)):
        time.sleep(4)
    steps = len(RunFolder(run_dir).metrics())
    training.send_signal(signal.SIGTERM)
    output, _ = training.communicate(timeout=60)
    assert training.returncode == 143, output
    result = RunFolder(run_dir).result()
    assert result["status"] == "stopped"
    assert result["step"] == steps
    assert checkpoint.latest(run_dir / "checkpoints").step == steps
    assert_gone(processes)


def may_mount():
    return (
        UNSHARE is not None
        and subprocess.run([UNSHARE, "-m", "true"], check=False, capture_output=True).returncode
        == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs the right to mount")
def test_a_small_dev_shm_does_not_matter():
    sizes = {"num_steps": 4, "evaluate_every": 4, "optim.warmup_steps": 0, "num_workers": 2}
    settings = {"data.num_train": 64, "data.num_val": 2, "evaluate.num_pictures": 1, **sizes}
    command = [sys.executable, "-m", "toco", "train", "shapes_nano", "--no-progress"]
    for path, value in settings.items():
        command += ["--set", f"{path}={value}"]
    # Less than one batch takes; the file fills what is left.
    fill = "dd if=/dev/zero of=/dev/shm/full bs=64k 2> /dev/null"
    script = f'mount -t tmpfs -o size=64k tmpfs /dev/shm; {fill}; exec "$@"'
    # Not a folder of pytest's: these may lie in /dev/shm.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        done = subprocess.run(
            [UNSHARE, "-m", "/bin/sh", "-c", script, "sh", *command, "--run-dir", f"{folder}/run"],
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "TMPDIR": folder},
        )
    assert done.returncode == 0, done.stderr
    assert "finished after step 4" in done.stdout
    assert "Traceback" not in done.stderr
