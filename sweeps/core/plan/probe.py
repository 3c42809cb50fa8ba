"""Measure the cost of a training on this machine from a few real steps.

``sweeps.core.plan.measure`` takes the steps, in a process of its own, as a trial does. So the start
of a process, its threads and its peak memory are measured, too.
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
    """The probe failed; the message says why."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps ``start`` to ``stop - 1`` (0-based), with equal loss terms.

    Each of them takes ``step_s`` seconds.
    """

    start: int
    stop: int
    step_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one training that runs alone.

    Attributes:
        config: The training, resolved for this machine.
        device: The device as provenance names it.
        phases: Phases in order, without gaps.
        evaluation_s: Seconds of one evaluation, its pictures and checkpoint included.
        setup_s: Seconds from the start of a process to the first step.
        peak_memory_bytes: Memory that torch reserved on the GPU, where there is one; otherwise
            memory of the process.
        checkpoint_bytes: Bytes of one checkpoint.
        run_bytes: Bytes of the run folder at the end.
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
        """Return the seconds of the steps ``start`` to ``stop - 1``.

        Steps beyond the probed training take as long as its last ones.
        """
        last = len(self.phases) - 1
        return sum(
            phase.step_s
            * max((stop if number == last else min(stop, phase.stop)) - max(start, phase.start), 0)
            for number, phase in enumerate(self.phases)
        )

    def training_s(self, config: RunConfig, steps_done: int = 0) -> float:
        """Predict the seconds of ``config`` from its step ``steps_done`` to its end.

        Evaluations count, the start of the process does not.
        """
        remaining_s = self.steps_s(steps_done, config.num_steps)
        return remaining_s + self.evaluation_s * (
            evaluations(config, config.num_steps) - evaluations(config, steps_done)
        )


COSTS_MODEL = TypeAdapter(tuple[Cost, ...])
"""Writes and reads the file ``COSTS``."""


def evaluations(config: RunConfig, steps: int) -> int:
    """Count the evaluations of a training of ``config`` in its first ``steps`` steps."""
    regular, last = steps // config.evaluate_every, config.num_steps
    return regular + (steps >= last and last % config.evaluate_every != 0)


def kind(config: RunConfig) -> str:
    """Digest everything but the seed: trainings of one kind cost the same."""
    return digest(config.model_copy(update={"seed": 0}))


def probe(
    configs: Sequence[RunConfig],
    *,
    num_threads: int = 1,
    budget_s: float = 30.0,
    limit_s: float = 600.0,
) -> tuple[Cost, ...]:
    """Run a few steps of each of ``configs`` in a new process.

    Only ``toco.train.loop.train`` can be probed, not another ``Study.train``.

    Args:
        configs: The trainings. The first one is always probed completely.
        num_threads: CPU threads, as a trial will get.
        budget_s: After this many seconds no further config is begun. A user waits for the plan.
        limit_s: After this many seconds the process is ended.

    Returns:
        Costs of the first ``n`` kinds of ``configs``, in order.

    Raises:
        ProbeError: Data or weights are missing, or the probe took longer than ``limit_s``.
    """
    # Write the request, with one config of each kind.
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
        # Run the measurement in a process of its own.
        threads = {
            name: str(num_threads)
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        try:
            process = subprocess.run(  # noqa: S603 - this interpreter, this module
                [sys.executable, "-m", _MEASURE, folder],
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(search_folders())},
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProbeError(
                f"The probe took longer than {limit_s:g} seconds, so it gives no prediction."
            ) from None
        # Read the answer.
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise ProbeError(f"The probe of a training failed: {lines[-1]}")
        try:
            return COSTS_MODEL.validate_json((folder / COSTS).read_bytes())
        except OSError as error:
            raise ProbeError(f"The probe of a training left no costs: {error}") from error
        except ValidationError as error:
            raise ProbeError(
                f"The probe of a training left no costs: {sentences(error)}"
            ) from error
