"""A saved view for MLflow's page of an experiment: the trainings of a study grouped by row, as charts or as a table.

Left to itself the page shows a study as one collapsed line and no curve of its trainings.
"""

from __future__ import annotations

import base64
import json
import time
import zlib

from toco.tracking.mlflow_store import Store

VIEW_NAME = "Trainings by row"

# Not documented; read out of the pages of MLflow 3.17. Another version that does not know the tag shows its own view.
_TAG = "mlflow.sharedViewState.trainings-by-row"
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
    """Save the view, if the experiment does not have it; it groups runs by their tag ``cell``."""
    if _TAG in store.client.get_experiment(store.experiment_id).tags:
        return
    now_ms = round(time.time() * 1000)
    state = "deflate;" + base64.b64encode(zlib.compress(json.dumps(_STATE).encode())).decode()
    view = {"name": VIEW_NAME, "createdAt": now_ms, "updatedAt": now_ms, "state": state}
    store.client.set_experiment_tag(store.experiment_id, _TAG, json.dumps(view))
