"""A training that computes nothing, but can be checked to the last row: its state is a chain of
hashes.
"""

import errno
import hashlib
import os
import shutil
import signal
import time
from pathlib import Path

import torch

from toco.train import records
from toco.train.averages import DivergedError
from toco.train.loop import Result
from toco.train.records import make_row, read_rows, rows_text

STEP_S = 0.02


def chain(seed: int, aux_block: int, step: int) -> str:
    """The state after ``step`` uninterrupted steps."""
    state = f"{seed}/{aux_block}"
    for number in range(step):
        state = hashlib.sha256(f"{state}/{number}".encode()).hexdigest()[:16]
    return state


def metrics_of(state: str) -> dict[str, float]:
    number = int(state[:8], 16) / 16**8
    return {"val/cam_miou": number, "val/aux_cam_miou": number / 2, "val/seg_miou": number / 4}


def train(config, run_dir, *, recipe=None, resume=False, observer=None, progress=True, stop=None):
    """Writes a run folder as ``toco.train.loop.train`` does.

    A file ``kill-SEED-BLOCK-STEP`` in ``FAKE_ORDERS`` makes the process kill itself before that
    step, once, as the out-of-memory killer would; ``diverge-SEED-BLOCK`` makes every attempt end as
    diverged; ``refuse-SEED-BLOCK`` makes it fail as bad data would, after two evaluations;
    ``wait-STEP`` holds every training before that step for as long as the file is there; ``full``
    makes the disk full of the node where the first attempt runs. ``starts`` gets a line for every
    attempt, ``steps`` one for every step.
    """
    seed, block = config.seed, config.method.aux_block
    checkpoints = run_dir / "checkpoints"
    step, state, rows = 0, f"{seed}/{block}", []
    if run_dir.exists():
        newest = sorted(checkpoints.iterdir())[-1]
        saved = records.read(newest / "state.json")
        step, state = saved["step"], saved["state"]
        rows = [
            row for row in read_rows(run_dir / "metrics.jsonl").before_fault if row["step"] <= step
        ]
    else:
        head = {"digest": "0" * 16, "recipe": recipe, "config": config.model_dump(mode="json")}
        records.write(run_dir / "config.json", head)
        records.write(
            run_dir / "provenance.json", {"commit": None, "started": "2026-01-01T00:00:00+00:00"}
        )
    orders = Path(os.environ["FAKE_ORDERS"])
    with (orders / "starts").open("a") as starts:
        starts.write(f"{seed} {block} {step} {os.getpid()}\n")
    if (orders / "full").exists():
        fill_up(orders / "full", run_dir)
    while step < config.num_steps:
        order = orders / f"kill-{seed}-{block}-{step}"
        if order.exists():
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if step and (orders / f"diverge-{seed}-{block}").exists():
            finish(run_dir, "diverged", step, {})
            raise DivergedError("ptc is nan")
        if step == 10 and (orders / f"refuse-{seed}-{block}").exists():
            raise ValueError("image7.png cannot be decoded.")
        while (orders / f"wait-{step}").exists() and not (stop and stop.is_set()):
            time.sleep(0.05)
        if stop is not None and stop.is_set():
            save(checkpoints, step, state)
            finish(run_dir, "stopped", step, {})
            return Result("stopped", step, {})
        time.sleep(STEP_S)
        with (orders / "steps").open("a") as steps:
            steps.write(f"{seed} {block} {step}\n")
        state = hashlib.sha256(f"{state}/{step}".encode()).hexdigest()[:16]
        step += 1
        if step % config.evaluate_every == 0 or step == config.num_steps:
            metrics = metrics_of(state)
            rows.append(make_row(step, "val", 0.0, metrics))
            (run_dir / "metrics.jsonl").write_text(rows_text(rows))
            observer.on_evaluation(step, metrics, save(checkpoints, step, state))
    finish(run_dir, "finished", step, metrics_of(state))
    return Result("finished", step, metrics_of(state))


def save(checkpoints, step, state):
    checkpoint = checkpoints / f"step_{step:08d}"
    records.write(checkpoint / "state.json", {"step": step, "state": state})
    for old in sorted(checkpoints.iterdir())[:-2]:
        shutil.rmtree(old)
    return checkpoint


def fill_up(order, run_dir):
    import ray

    node = ray.get_runtime_context().get_node_id()
    if not order.read_text():
        order.write_text(node)
    if order.read_text() == node:
        raise OSError(errno.ENOSPC, "No space left on device", str(run_dir / "metrics.jsonl"))


def train_together(config, run_dir, **options):
    """The same as one of several ranks: the first does it, and the others
    say that they were there.
    """
    if torch.distributed.get_rank() == 0:
        result = train(config, run_dir, **options)
    else:
        Path(os.environ["FAKE_ORDERS"], "beside").write_text(str(os.getpid()))
        result = Result("finished", config.num_steps, {})
    torch.distributed.barrier()
    return result


def finish(run_dir, status, step, metrics):
    result = {"status": status, "step": step, "digest": "0" * 16, "metrics": metrics}
    records.write(run_dir / "result.json", result)
