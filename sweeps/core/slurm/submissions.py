"""The submissions of a study: scripts, logs and records in the folder ``slurm`` of the study.

::

    slurm/ID.sbatch     the file that was submitted
    slurm/ID.json       its record
    slurm/ID_TASK.log   output of a task
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from sweeps.core.store.stored import Stored
from toco.files import UnreadableError, write_text

FORMAT_VERSION = 1
FOLDER = "slurm"
LOG = "%A_%a.log"

logger = logging.getLogger(__name__)


class Submission(Stored):
    """A submitted array.

    Attributes:
        job: Slurm's number of the array.
        tasks: Number of its tasks.
        submitted: Time, in ISO format.
        options: Options of sbatch.
        command: Command of each driver.
    """

    format_version: int = FORMAT_VERSION
    job: str
    tasks: int
    submitted: str
    options: Mapping[str, str]
    command: tuple[str, ...]


class Submissions:
    """Read and write the submissions of the study in the folder ``study``."""

    def __init__(self, study: Path) -> None:
        self.folder = study / FOLDER

    def add(self, submission: Submission, script: str) -> Path:
        """Write the record and the script of a submission; return the path of the script."""
        write_text(self.folder / f"{submission.job}.json", submission.text())
        path = self.folder / f"{submission.job}.sbatch"
        write_text(path, script)
        return path

    def all(self) -> list[Submission]:
        """Return the submissions, oldest first. A warning names a damaged record."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                found.append(Submission.read(path, "Delete it; squeue --me shows your jobs."))
            except UnreadableError as error:
                logger.warning("%s", error)
        return sorted(found, key=lambda each: (each.submitted, len(each.job), each.job))
