"""One study in MLflow: a parent run that its trainings are shown under, with the study's table and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from toco.tracking.chart_view import save_chart_view
from toco.tracking.mlflow_store import STUDY_TAG, answers, open_store, tag_value


def ensure_parent(
    *,
    tracking_uri: str,
    experiment: str,
    study_id: str,
    run_name: str,
    tags: Mapping[str, str] | None = None,
) -> str:
    """The parent run of a study: the one with this ``study_id``, RUNNING again if it had ended, else a new one.

    Args:
        tracking_uri: ``sqlite:///PATH`` or the address of an MLflow server.
        experiment: Name of the experiment.
        study_id: What a restored driver knows the study by; another start of the same study needs another one.
        run_name: Name in the UI.
        tags: Further tags.

    Returns:
        The run's id, for ``track_run`` and ``finish_parent``.
    """
    store = open_store(tracking_uri, experiment)
    wanted = {**(tags or {}), STUDY_TAG: tag_value(study_id)}
    with answers(store.uri):
        save_chart_view(store)
        run = store.find_run({STUDY_TAG: wanted[STUDY_TAG]})
        if run is None:
            run = store.create_run(run_name, wanted)
        run_id: str = run.info.run_id
        store.set_tags(run, wanted)
        if run.info.status != "RUNNING":
            store.client.update_run(run_id, status="RUNNING")
    return run_id


def finish_parent(
    parent_run_id: str,
    *,
    tracking_uri: str,
    experiment: str,
    files: Iterable[Path] = (),
    status: str = "FINISHED",
    note: str | None = None,
) -> None:
    """End a study's run: its files (table.md, table.csv, report.html) as artifacts, a note in Markdown, its status.

    Args:
        parent_run_id: From ``ensure_parent``.
        tracking_uri: As there.
        experiment: As there.
        files: Logged at the top of the run's artifacts; those of the same name are replaced.
        status: ``FINISHED``, ``FAILED`` or ``KILLED``.
        note: Shown on the run's page; the study's table reads well there.
    """
    store = open_store(tracking_uri, experiment)
    with answers(store.uri):
        store.upload(parent_run_id, files)
        if note is not None:
            store.client.set_tag(parent_run_id, "mlflow.note.content", note[:8000])
        store.client.set_terminated(parent_run_id, status)
