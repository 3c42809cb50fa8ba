"""A saved view of MLflow's experiment page: a study's trainings by row, as charts or table.

MLflow's default view shows a study as one collapsed line, without curves of its trainings.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable

from toco.tracking.address import VIEW_KEY
from toco.tracking.mlflow_store import KIND_TAGS, Store

VIEW_NAME = "Trainings by row"

# Undocumented; taken from the pages of MLflow 3.17. A version that does not know the tag shows its
# default view.
_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
_STATE = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "runsHiddenMode": "FIRST_20_RUNS",
    "runsVisibilityMap": {},
    "groupBy": {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": "cell"}],
    },
    "groupsExpanded": {},
    "useGroupedValuesInCharts": True,
    "viewMaximized": False,
    "runListHidden": False,
    "isAccordionReordered": False,
    "hideEmptyCharts": True,
    "chartsSearchFilter": "",
    "autoRefreshEnabled": True,
}


def save_chart_view(store: Store, maps: Iterable[str]) -> None:
    """Save the view, and tag the experiment as one of trainings unless it has another kind.

    The view groups runs by their tag ``cell``. It replaces an earlier view, such as one of other
    maps.

    Args:
        store: The experiment.
        maps: Names of the maps whose mIoU the view lists.
    """
    experiment = store.client.get_experiment(store.experiment_id)
    columns = ["attributes.`Duration`", *(f"metrics.`final/{name}_miou`" for name in maps)]
    state = zlib.compress(json.dumps({**_STATE, "selectedColumns": columns}).encode())
    times = {"createdAt": experiment.creation_time, "updatedAt": experiment.creation_time}
    view = {"name": VIEW_NAME, **times, "state": f"deflate;{base64.b64encode(state).decode()}"}
    kind = {tag: value for tag, value in KIND_TAGS.items() if tag not in experiment.tags}
    for tag, value in {**kind, _TAG: json.dumps(view)}.items():
        store.client.set_experiment_tag(store.experiment_id, tag, value)
