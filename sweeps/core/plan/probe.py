"""What a training costs on this machine, from a few real steps of it; ``sweeps.core.plan.measure`` takes them.

They run in a process of their own, as a trial does: the start of a process, its threads and its
peak memory are part of what is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from sweeps.core.store.scratch import scratch_folder, sweep_scratch
from toco.config import digest, sentences
from toco.files import write_text
from toco.own_modules import search_folders
from toco.train.run_config import RunConfig

REQUEST, COSTS = "request.json", "costs.json"
_MEASURE = "sweeps.core.plan.measure"


class ProbeError(RuntimeError):
    """The probe could not be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps ``start`` to ``stop - 1`` (0-based) compute the same terms and take ``step_s`` seconds each."""

    start: int
    stop: int
    step_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one training costs when nothing else runs beside it.

    Attributes:
        config: The training, resolved for this machine.
        device: As provenance names it.
        phases: In order, without gaps.
        evaluation_s: One evaluation, with its pictures and the checkpoint that is made at it.
        setup_s: From the start of a process to the first step.
        peak_memory_bytes: Of the GPU what torch reserved, where there is one; otherwise of the
            process.
        checkpoint_bytes: One checkpoint.
        run_bytes: The whole run folder at the end.
    """

    config: RunConfig
    device: str
    phases: tuple[Phase, ...]
    evaluation_s: float
    setup_s: float
    peak_memory_bytes: int
    checkpoint_bytes: int
    run_bytes: int

    def steps_s(self, start: int, stop: int) -> float:
        """Seconds of the steps ``start`` to ``stop - 1``; those beyond the probed training are like its last."""
        last = len(self.phases) - 1
        return sum(
            phase.step_s
            * max((stop if number == last else min(stop, phase.stop)) - max(start, phase.start), 0)
            for number, phase in enumerate(self.phases)
        )

    def training_s(self, config: RunConfig, steps_done: int = 0) -> float:
        """Seconds that ``config`` takes from a checkpoint after ``steps_done`` steps to its end, at these rates.

        Evaluations count, the start of the process does not.
        """
        left = self.steps_s(steps_done, config.num_steps)
        return left + self.evaluation_s * (
            evaluations(config, config.num_steps) - evaluations(config, steps_done)
        )


COSTS_MODEL = TypeAdapter(tuple[Cost, ...])
"""Writes and reads the file ``COSTS``."""


def evaluations(config: RunConfig, steps: int) -> int:
    """How often a training of ``config`` has evaluated when ``steps`` steps are done."""
    regular, last = steps // config.evaluate_every, config.num_steps
    return regular + (steps >= last and last % config.evaluate_every != 0)


def kind(config: RunConfig) -> str:
    """Digest of everything but the seed: trainings of one kind cost the same."""
    return digest(config.model_copy(update={"seed": 0}))


def probe(
    configs: Sequence[RunConfig],
    *,
    num_threads: int = 1,
    budget_s: float = 30.0,
    limit_s: float = 600.0,
) -> tuple[Cost, ...]:
    """Run a few steps of ``configs`` in a new process, one after the other.

    Only ``toco.train.loop.train`` can be probed, not another ``Study.train``.

    Args:
        configs: The first is always probed, in full.
        num_threads: CPU threads, as a trial will get.
        budget_s: No further config is begun after this many seconds.
        limit_s: The process is ended after this many seconds.

    Returns:
        Costs of the first ``n`` kinds of ``configs``, in order.

    Raises:
        ProbeError: Data or weights are not there, or it took longer than ``limit_s``.
    """
    kinds = {kind(config): config for config in reversed(configs)}
    distinct = [config.model_dump(mode="json") for config in reversed(kinds.values())]
    sweep_scratch()
    with scratch_folder("probe") as folder:
        request = {
            "configs": distinct,
            "num_threads": num_threads,
            "budget_s": budget_s,
            "started": time.time(),
        }
        write_text(folder / REQUEST, json.dumps(request), durable=False)
        threads = {
            name: str(num_threads)
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter, this module
                [sys.executable, "-m", _MEASURE, folder],
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(search_folders())},
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProbeError(
                f"The probe took longer than {limit_s:g} seconds, so nothing is foretold from it."
            ) from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ProbeError(f"The probe of a training failed: {reason}")
        try:
            return COSTS_MODEL.validate_json((folder / COSTS).read_bytes())
        except OSError as error:
            raise ProbeError(f"The probe of a training left no costs: {error}") from error
        except ValidationError as error:
            raise ProbeError(
                f"The probe of a training left no costs: {sentences(error)}"
            ) from error
