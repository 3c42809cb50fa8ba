"""The sbatch file of a study: a template with the options and the command of the drivers."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sweeps
from toco.files import printable

TEMPLATES = Path(sweeps.__file__).parents[1] / "cluster" / "slurm"
"""Folder of the templates in a checkout; an installed package has none."""
TEMPLATE = TEMPLATES / "study.sbatch"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one task of the array has, and the trials that share it.

    Attributes:
        concurrent: Trials at once.
        cpus_per_trial: CPU cores of a trial.
        gpus_per_trial: GPUs of a trial, or a part of one.
    """

    concurrent: int
    cpus_per_trial: float
    gpus_per_trial: float

    @classmethod
    def of_options(
        cls,
        gres: str | None,
        concurrent: int | None,
        cpus_per_trial: float,
        gpus_per_trial: float | None,
    ) -> Resources:
        """Complete the options of a command line.

        A task with GPUs gives one to each trial, and runs as many trials at once as fit.

        Args:
            gres: Value of ``--gres``, such as ``gpu:a100:2``.
            concurrent: Trials at once; ``None`` for the default.
            cpus_per_trial: CPU cores of a trial.
            gpus_per_trial: GPUs of a trial; ``None`` for the default.

        Raises:
            ValueError: The trials at once need more GPUs than a task has.
        """
        gpus = num_gpus(gres)
        if gpus_per_trial is None:
            gpus_per_trial = 1.0 if gpus else 0.0
        if concurrent is None:
            concurrent = max(int(gpus / gpus_per_trial), 1) if gpus_per_trial else 1
        if concurrent * gpus_per_trial > gpus:
            has = f"--gres {gres} gives it {gpus}" if gres else "without --gres it has none"
            raise ValueError(
                f"{concurrent} trials at once with --gpus-per-trial {gpus_per_trial:g} need "
                f"{concurrent * gpus_per_trial:g} GPUs in each task, but {has}."
            )
        return cls(concurrent, cpus_per_trial, gpus_per_trial)

    @property
    def words(self) -> list[str]:
        """The options of ``run``."""
        return [
            *("--concurrent", str(self.concurrent)),
            *("--cpus-per-trial", f"{self.cpus_per_trial:g}"),
            *("--gpus-per-trial", f"{self.gpus_per_trial:g}"),
        ]

    @property
    def cpus_per_task(self) -> int:
        """CPU cores that a task needs."""
        return max(math.ceil(self.concurrent * self.cpus_per_trial), 1)


def num_gpus(gres: str | None) -> int:
    """Count the GPUs in a value of ``--gres``.

    >>> num_gpus("gpu:a100:2,nvme:1")
    2
    >>> num_gpus("gpu")
    1

    Raises:
        ValueError: The number of GPUs is no number.
    """
    number = 0
    for part in (gres or "").split(","):
        name, *rest = part.partition("(")[0].split(":")
        if name != "gpu":
            continue
        count = rest[-1] if rest and re.fullmatch(r"\d+", rest[-1]) else "1"
        if len(rest) == 2 and not rest[-1].isdigit():
            raise ValueError(
                f"--gres {gres} has no number of GPUs: expected gpu:2 or gpu:TYPE:2, for example."
            )
        number += int(count)
    return number


def script_text(template: Path, options: Mapping[str, str], command: Sequence[str]) -> str:
    """Return the sbatch file of a submission.

    Args:
        template: A script that runs its arguments. Its own ``#SBATCH`` lines stay, except those
            that ``options`` replace.
        options: Options of sbatch by long name, without dashes; an empty value for a flag.
        command: Command of one driver.

    Raises:
        ValueError: The template cannot be read or has no ``#SBATCH`` line, or a value of an option
            has a line break.
    """
    try:
        lines = template.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"The template {printable(template)} cannot be read: {error}. Name one with --template."
        ) from error
    for name, value in options.items():
        if "\n" in value:
            raise ValueError(f"--{name} has a line break, which a line of sbatch cannot have.")
    places = [number for number, line in enumerate(lines) if _option_of(line) is not None]
    if not places:
        raise ValueError(
            f"The template {printable(template)} has no line that begins with #SBATCH, so its "
            "options have no place. Start from cluster/slurm/study.sbatch."
        )
    # sbatch reads quotes as a shell does; without them a folder may have no space in its name.
    filled = [
        f"#SBATCH --{name}={shlex.quote(value)}" if value else f"#SBATCH --{name}"
        for name, value in options.items()
    ]
    at = places[-1] + 1
    kept = [line for line in lines[:at] if _option_of(line) not in options]
    driver = ["", "# The command of a driver.", f"set -- {shlex.join(command)}"]
    return "\n".join([*kept, *filled, *driver, *lines[at:], ""])


def _option_of(line: str) -> str | None:
    """Return the long name of the option in a line of sbatch; ``None`` for other lines.

    >>> _option_of("#SBATCH --time=1:00:00")
    'time'
    """
    match = re.match(r"#SBATCH\s+--([a-z0-9-]+)", line)
    return match[1] if match else None
