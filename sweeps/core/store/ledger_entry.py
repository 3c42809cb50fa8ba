"""The records of the ledger: the result of a trial, and a failed attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sweeps.core.store.stored import Stored

FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an entry came from. None of it affects the numbers.

    Attributes:
        study: Name of the study that asked for the trial.
        recipe: Recipe that its config started from.
        search: Whether a search chose its config, after looking at other trials.
        derived_from: Run folder of the training that it evaluates again; ``None`` for a training.
        forked_at: Step of the shared snapshot that the training began from; ``None`` for step 0.
    """

    study: str
    recipe: str
    search: bool = False
    derived_from: str | None = None
    forked_at: int | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of a trial: CPU cores, GPUs (also a part of one), and ranks of its training."""

    cpus: float
    gpus: float
    world_size: int = 1


class LedgerEntry(Stored):
    """The result of a trial.

    Attributes:
        key: Its name, see ``sweeps.core.store.identity``.
        training_key: Name of its training.
        step: Optimizer updates done.
        attempts: Number of failed attempts before.
        message: How it diverged.
        identity: Everything that the result depends on, see
            ``sweeps.core.store.identity.Identity.parts``.
        config: Its ``RunConfig`` as JSON, in the version of the program that trained it.
        metrics: Fractions and other numbers of the result; ``None`` for one that is not defined.
        wall_time_s: Seconds of the trial.
        step_time_s: Mean seconds of a step.
        peak_memory_bytes: Peak memory of the training: of its GPU, or else of its process.
        num_parameters: Numbers in the parameters of its network, trained or frozen.
        provenance: The provenance in its run folder.
        run: Its run folder, relative to the storage.
    """

    format_version: int = FORMAT_VERSION
    key: str
    training_key: str
    status: Literal["finished", "diverged"]
    step: int
    attempts: int
    message: str | None
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Mapping[str, int | float | None]
    wall_time_s: int | float | None
    step_time_s: int | float | None
    peak_memory_bytes: int | None
    num_parameters: int | None = None
    provenance: Mapping[str, Any]
    resources: Resources
    origin: Origin
    run: str

    @property
    def measured(self) -> dict[str, int | float | None]:
        """The metrics and the cost of the trial; memory also in GB, parameters in millions."""
        costs = {
            name: getattr(self, name)
            for name in ("wall_time_s", "step_time_s", "peak_memory_bytes", "num_parameters")
        }
        scaled = {
            "peak_memory_gb": (self.peak_memory_bytes, 1e9),
            "parameters_m": (self.num_parameters, 1e6),
        }
        readable = {
            name: None if number is None else number / unit
            for name, (number, unit) in scaled.items()
        }
        return {**self.metrics, **costs, **readable}

    @property
    def is_rescored(self) -> bool:
        """Whether it was computed from the counts of another trial.

        Such a trial has neither counts nor checkpoints of its own.
        """
        return bool(self.provenance.get("reevaluated", {}).get("rescored", False))


class FailureRecord(Stored):
    """A failed attempt of a trial, as the ledger stores it.

    Attributes:
        key: The trial.
        time: Time in ISO format.
        host: Machine where it failed; empty where unknown.
        reason: The reason in one line.
        traceback: The end of the traceback.
    """

    format_version: int = FORMAT_VERSION
    key: str
    time: str
    host: str
    reason: str
    traceback: str
