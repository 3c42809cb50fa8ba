"""A saved view for MLflow's page of an experiment: the trainings of a study grouped by row, as charts or as a table.

Left to itself the page shows a study as one collapsed line and no curve of its trainings.
"""

from __future__ import annotations

import base64
import json
import time
import zlib

from toco.tracking.address import VIEW_KEY
from toco.tracking.mlflow_store import KIND_TAGS, Store

VIEW_NAME = "Trainings by row"

# Not documented; read out of the pages of MLflow 3.17. Another version that does not know the tag shows its own view.
_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
_STATE = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "selectedColumns": [
        "attributes.`Duration`",
        "metrics.`final/cam_miou`",
        "metrics.`final/aux_cam_miou`",
        "metrics.`final/seg_miou`",
    ],
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "runsHiddenMode": "FIRST_20_RUNS",
    "runsVisibilityMap": {},
    "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "cell"}]},
    "groupsExpanded": {},
    "useGroupedValuesInCharts": True,
    "viewMaximized": False,
    "runListHidden": False,
    "isAccordionReordered": False,
    "hideEmptyCharts": True,
    "chartsSearchFilter": "",
    "autoRefreshEnabled": True,
}


def save_chart_view(store: Store) -> None:
    """Save the view, and say that the experiment is one of trainings, unless its tags say so or say otherwise.

    The view groups runs by their tag ``cell``.
    """
    now_ms = round(time.time() * 1000)
    state = "deflate;" + base64.b64encode(zlib.compress(json.dumps(_STATE).encode())).decode()
    view = {"name": VIEW_NAME, "createdAt": now_ms, "updatedAt": now_ms, "state": state}
    there = store.client.get_experiment(store.experiment_id).tags
    for tag, value in {**KIND_TAGS, _TAG: json.dumps(view)}.items():
        if tag not in there:
            store.client.set_experiment_tag(store.experiment_id, tag, value)
