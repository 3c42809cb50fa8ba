"""The predicted cost of a study, as ``study.json`` stores it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """A likely value between two bounds."""

    low: float
    likely: float
    high: float

    def scaled(self, factor: float) -> Range:
        """Return the range times ``factor``."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Most:
    """The cost of a sequential study's remaining trials if every open claim stays open to the end.

    Attributes:
        trainings: Number of trainings, those of the present look included.
        wall_s: Likely seconds to the end; ``None`` where unknown.
        cpu_hours: CPU cores held, times hours.
        gpu_hours: GPUs held, times hours.
    """

    trainings: int
    wall_s: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """The predicted cost of a study's remaining trials. Unknown fields are ``None``.

    Of a sequential study, these are the trials that its present look lacks.

    Attributes:
        trainings: Number of trainings to begin or to continue.
        resumed: Number of these that continue from a checkpoint.
        evaluations: Number of trials that are computed from the files of another training, without
            a training of their own; rescored trials included.
        concurrent: Trials at once.
        wall_s: Seconds to the end.
        training_s: Mean seconds of a training from its present step, without the start of its
            process.
        cpu_hours: CPU cores held, times hours.
        gpu_hours: GPUs held, times hours.
        money: Price of ``gpu_hours``, or of ``cpu_hours`` where trials have no GPU.
        disk_bytes: Bytes of the run folders of the trainings.
        memory_bytes: Memory of all trials that run at once; of the GPU, where they have one.
        trial_memory_bytes: Largest memory that one training was measured to need, by a probe or in
            the past.
        basis: Source of the estimates, in sentences.
        most: The cost of a sequential study with all looks that may follow; ``None`` for another.
    """

    trainings: int
    resumed: int
    evaluations: int
    concurrent: int
    wall_s: Range | None = None
    training_s: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    money: float | None = None
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    trial_memory_bytes: int | None = None
    basis: str = ""
    most: Most | None = None

    @property
    def trial_bytes(self) -> int:
        """Bytes of one training's run folder; 0 where unknown."""
        return 0 if self.disk_bytes is None else -(-self.disk_bytes // max(self.trainings, 1))
