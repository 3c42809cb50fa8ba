"""What the ledger holds: how a trial ended, and how an attempt failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sweeps.core.store.stored import Stored

FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an entry came from; none of it affects its numbers.

    Attributes:
        study: Name of the study that had it trained.
        recipe: What its config started from.
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
    """What a trial had: CPU cores, GPUs (also a part of one), and ranks of its training."""

    cpus: float
    gpus: float
    world_size: int = 1


class LedgerEntry(Stored):
    """How a trial ended.

    Attributes:
        key: Its name, see ``sweeps.core.store.identity``.
        training_key: Name of its training.
        step: Optimizer updates done.
        attempts: How often it failed before.
        message: How it diverged.
        identity: What its result depends on, see ``sweeps.core.store.identity.Identity.parts``.
        config: Its ``RunConfig`` as JSON, of the version of the program that trained it.
        metrics: Fractions and other numbers of the result; ``None`` for one that is not defined.
        wall_time_s: Seconds that it took.
        step_time_s: Mean seconds of a step.
        peak_memory_bytes: Of the GPU, where it had one.
        provenance: As its run folder says.
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
    provenance: Mapping[str, Any]
    resources: Resources
    origin: Origin
    run: str

    @property
    def measured(self) -> dict[str, int | float | None]:
        """The metrics, and what the trial cost."""
        costs = {
            name: getattr(self, name)
            for name in ("wall_time_s", "step_time_s", "peak_memory_bytes")
        }
        return {**self.metrics, **costs}

    @property
    def is_rescored(self) -> bool:
        """Whether it was computed from the counts of another trial, and has neither counts nor checkpoints."""
        return bool(self.provenance.get("reevaluated", {}).get("rescored", False))


class Failure(Stored):
    """An attempt that failed.

    Attributes:
        key: The trial.
        time: In ISO format.
        host: Machine where it failed; empty where that is not known.
        reason: In a line.
        traceback: Its end.
    """

    format_version: int = FORMAT_VERSION
    key: str
    time: str
    host: str
    reason: str
    traceback: str
