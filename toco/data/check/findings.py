"""What a check of a data set finds: faults and notes, and the report of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toco.data._dataset import Fault
from toco.files import printable


@dataclass(slots=True)
class Report:
    """What a check found, in the order in which it was found.

    Attributes:
        faults: Everything that has to be fixed. The folder is sound when there is none.
        notes: What is worth a look but may be meant.
        num_images: Images by list.
        num_images_by_class: Training images that show each class.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    num_images: dict[str, int] = field(default_factory=dict)
    num_images_by_class: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """The report as text, faults first."""
        lines = [f"FAULT {fault}" for fault in self.faults] + [f"note  {note}" for note in self.notes]
        lines.append("images: " + ", ".join(f"{name} {count}" for name, count in self.num_images.items()))
        lines.append("train images by class: " + ", ".join(f"{n} {c}" for n, c in self.num_images_by_class.items()))
        lines.append(f"{len(self.faults)} faults, {len(self.notes)} notes.")
        return "\n".join(printable(line) for line in lines)

    def fault(self, error: Exception | str, paths: Sequence[Path]) -> None:
        """Add a fault. Readers begin their message with the file, one of ``paths``; else the first one is named."""
        message = str(error)
        path = next((path for path in paths if message.startswith((f"{path}: ", f"{path} "))), paths[0])
        self.faults.append(Fault(path, message.removeprefix(str(path)).removeprefix(":").lstrip()))

    def note(self, path: Path, reason: str) -> None:
        """Add a note."""
        self.notes.append(Fault(path, reason))

    def overlap(self, path: Path, shared: str | None, allowed: bool) -> None:
        """Add the sentence on images in both splits, if there is one: a note where that is allowed."""
        if shared is not None:
            (self.notes if allowed else self.faults).append(Fault(path, shared))
