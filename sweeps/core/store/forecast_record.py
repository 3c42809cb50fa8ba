"""What a study was predicted to cost, as ``study.json`` keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """A likely value between two bounds."""

    low: float
    likely: float
    high: float

    def scaled(self, factor: float) -> Range:
        """The range times ``factor``."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is left of a study will cost. Fields are ``None`` where nothing is known.

    Attributes:
        trainings: To begin or to go on with.
        resumed: Of these, how many go on from a checkpoint.
        evaluations: Cells that are evaluated from what other trainings stored, without training;
            rescored ones, too.
        concurrent: Trials at once.
        wall_s: Seconds to the end.
        training_s: Mean seconds of a training from where it is now, without the start of its
            process.
        cpu_hours: CPU cores held, times hours.
        gpu_hours: GPUs held, times hours.
        money: Price of ``gpu_hours``, or of ``cpu_hours`` where trials have no GPU.
        disk_bytes: Run folders of the trainings.
        memory_bytes: Of all trials that run at once; of the GPU, where they have one.
        trial_memory_bytes: The most that one training was measured to need, by a probe or in the
            past.
        basis: Where this comes from, in sentences.
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

    @property
    def trial_bytes(self) -> int:
        """Bytes of one training's run folder; 0 where nothing is known."""
        return 0 if self.disk_bytes is None else -(-self.disk_bytes // max(self.trainings, 1))
