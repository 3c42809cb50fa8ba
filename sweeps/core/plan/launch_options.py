"""Where and how a study runs. Nothing here affects results."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sweeps.core.plan.ray_environment import resolve_address
from sweeps.core.store.ledger import refuse_address
from toco.tracking import client_uri, sqlite_uri


@dataclass(frozen=True, slots=True)
class Launch:
    """Where and how a study runs; none of it affects results.

    Attributes:
        storage: Folder of studies; every node of a cluster must see it under this path.
        tracking_uri: MLflow store; by default a database in ``storage``.
        address: Ray cluster; see ``ray_environment.resolve_address``.
        concurrent: Trials at once.
        cpus_per_trial: CPU cores of a trial.
        gpus_per_trial: A part of a GPU, or whole GPUs. With several, each GPU gets one rank of the
            training.
        max_failures: Restarts of one trial; -1 for any number.
        accept_underpowered: Run a study although its seeds cannot decide its comparisons.
        ahead: Whether free workers start seeds of a sequential study before its present look is
            complete. They are wasted where that look decides.
        probe: Whether a few steps are timed for the forecast, where the ledger has no history.
        leave: Whether the driver ends as soon as other drivers run all trials that are left.
        budget_hours: Hours of GPUs, or of CPU cores where trials have no GPU, that a sequential
            study may use; it begins no look whose trials would exceed them. ``None`` for no limit.
        price_per_hour: Price of a GPU hour, or of a CPU core hour where trials have no GPU; in any
            currency.
        sync_command: The command that fills MLflow again, without a password.
    """

    storage: Path
    tracking_uri: str | None = None
    address: str | None = None
    concurrent: int = 2
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_failures: int = 3
    accept_underpowered: bool = False
    ahead: bool = False
    probe: bool = True
    leave: bool = False
    budget_hours: float | None = None
    price_per_hour: float | None = None
    sync_command: str = "python -m sweeps sync STUDY"

    def __post_init__(self) -> None:
        if self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ValueError(
                f"--gpus-per-trial {self.gpus_per_trial:g} is neither a part of a GPU nor a number "
                "of GPUs; give 0.5, 1 or 2, for example."
            )

    @property
    def world_size(self) -> int:
        """Ranks of a training, see ``toco.train.distributed``."""
        return max(int(self.gpus_per_trial), 1)

    @property
    def resources(self) -> dict[str, float | int]:
        """Resources of a trial, for the record."""
        return {
            "cpus": self.cpus_per_trial,
            "gpus": self.gpus_per_trial,
            "world_size": self.world_size,
        }

    def check_addresses(self) -> None:
        """Refuse an invalid address of a Ray cluster or of an MLflow store.

        Raises:
            ValueError: One of them is invalid; see :func:`resolve_address` and :attr:`tracking`.
        """
        _ = resolve_address(self.address), self.tracking

    @property
    def tracking(self) -> str:
        """MLflow store.

        Raises:
            ValueError: The address is no store, or MLflow cannot open a database in ``storage``.
        """
        return (
            client_uri(self.tracking_uri)
            if self.tracking_uri
            else sqlite_uri(self.storage / "mlflow.db")
        )


def default_storage() -> Path:
    """Return ``results`` in the current folder, or ``~/toco-results`` in a Ray job.

    The current folder of a Ray job is deleted with the job.
    """
    return Path.home() / "toco-results" if _in_ray_job() else Path("results")


def checked_storage(storage: Path) -> Path:
    """Return the absolute path of ``storage``.

    Raises:
        ValueError: The folder would be lost with the Ray job, or is a file.
    """
    if _in_ray_job() and not storage.expanduser().is_absolute():
        raise ValueError(
            "A Ray job runs in a copy of the working folder that is thrown away with the job, and "
            f"--storage {storage} lies in it: give an absolute path that every node sees."
        )
    folder = refuse_address(storage).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--storage {storage} is a file; give a folder, which need not exist yet.")
    return folder


def _in_ray_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
