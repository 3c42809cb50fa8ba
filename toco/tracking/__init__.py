"""Copy run folders to MLflow.

The run folder is the record, from which MLflow can be filled again at any time. Only this package
imports MLflow, and only when a run is tracked, because the import takes seconds.
"""

from toco.tracking.address import Pages, client_uri, database_of, has_password, sqlite_uri
from toco.tracking.mlflow_store import (
    Store,
    StoreError,
    import_mlflow,
    open_store,
    part_of_name,
)
from toco.tracking.run_record import MetricRow, RunRecord, read_run_record
from toco.tracking.tracker import Tracker, TrackingWarning
from toco.tracking.training_run import track_run

__all__ = [
    "MetricRow",
    "Pages",
    "RunRecord",
    "Store",
    "StoreError",
    "Tracker",
    "TrackingWarning",
    "client_uri",
    "database_of",
    "has_password",
    "import_mlflow",
    "open_store",
    "part_of_name",
    "read_run_record",
    "sqlite_uri",
    "track_run",
]
