"""Fill one MLflow run from a run folder: params, metrics, tags, pictures, tables."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toco.config import flatten
from toco.tracking.mlflow_store import (
    RUN_TAG,
    STARTED_TAG,
    Store,
    store_errors_as_sentences,
    tag_value,
)
from toco.tracking.run_record import RunRecord, read_run_record

if TYPE_CHECKING:
    from mlflow.entities import Run

# Limits of MLflow (mlflow/utils/validation.py, 3.17); a longer param is an error on some stores.
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 8000
MAX_PARAMS_PER_CALL = 100

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED"}
"""MLflow's run status by the status in ``result.json``."""

_UPLOADED_TAG = "toco.artifacts_of_step"
"""Tag with the step of the last evaluation whose files are uploaded."""


def track_run(
    run_dir: Path,
    store: Store,
    *,
    parent_run_id: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Fill one MLflow run from a run folder, finished or not, and return its id.

    Any process may call this again at any time. The run is found by digest, folder name and start
    (tags ``toco.run`` and ``toco.started``), under the same parent if one is given. Only missing
    values and files are added. Checkpoints stay in the run folder.

    Args:
        run_dir: The run folder.
        store: The experiment to fill.
        parent_run_id: Parent of the run in the UI, see ``Tracker.ensure_parent``.
        run_name: Name in the UI, such as the changes of a study's row; by default the folder's
            name.
        tags: Further tags, such as ``study`` and ``cell``.

    Raises:
        ValueError: ``run_dir`` is no run folder.
        ConnectionError: The store cannot be reached, read or written.
    """
    record = read_run_record(run_dir)
    all_tags = {
        **_tags(record),
        **{key: str(value)[:MAX_TAG_CHARACTERS] for key, value in (tags or {}).items()},
    }
    status = _status(record)
    with store_errors_as_sentences(store.uri):
        run = store.find_run({tag: all_tags[tag] for tag in (RUN_TAG, STARTED_TAG)}, parent_run_id)
        if run is None:
            run = store.create_run(
                run_name or record.path.resolve().name, all_tags, record.started_ms, parent_run_id
            )
        store.set_tags(run, all_tags)
        _add_params(store, run, record)
        store.add_metrics(run, _metric_rows(record))
        _add_artifacts(store, run, record)
        _set_status(store, run, record, status)
    run_id: str = run.info.run_id
    return run_id


def _tags(record: RunRecord) -> dict[str, str]:
    provenance, result = record.provenance, record.result or {}
    commit = provenance.get("commit")
    tags = {
        RUN_TAG: tag_value(f"{record.digest}/{record.path.resolve().name}"),
        STARTED_TAG: str(record.started_ms),
        "digest": record.digest,
        "recipe": record.recipe,
        "seed": record.config.get("seed"),
        "commit": commit,
        "mlflow.source.git.commit": commit,
        "dirty": provenance.get("dirty"),
        "device": provenance.get("device"),
        "platform": provenance.get("platform"),
        "run_dir": record.path.resolve(),
        **{f"version.{name}": version for name, version in provenance.get("versions", {}).items()},
        **{
            f"data.{split}": digest for split, digest in provenance.get("data_manifest", {}).items()
        },
        "mlflow.note.content": result.get("message"),
    }
    return {
        key: _text(value)[:MAX_TAG_CHARACTERS] for key, value in tags.items() if value is not None
    }


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return (
        json.dumps(value) if isinstance(value, bool | list | dict) or value is None else str(value)
    )


def _param_text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = _text(value)
    if len(text) <= MAX_PARAM_CHARACTERS:
        return text
    remark = f" ... Cut from {len(text)} characters: the whole value stands in config.json."
    return text[: MAX_PARAM_CHARACTERS - len(remark)] + remark


def _add_params(store: Store, run: Run, record: RunRecord) -> None:
    from mlflow.entities import Param

    # MLflow never changes a param. Within one digest only fields without effect on results can
    # differ, such as the device after a resume. Their params keep the first value, and the artifact
    # config.json has the newest.
    missing = [
        Param(key, _param_text(value))
        for key, value in flatten(record.config).items()
        if key not in run.data.params
    ]
    for start in range(0, len(missing), MAX_PARAMS_PER_CALL):
        store.client.log_batch(run.info.run_id, params=missing[start : start + MAX_PARAMS_PER_CALL])


def _metric_rows(record: RunRecord) -> list[tuple[str, float, int, int]]:
    """List key, value, time in ms and step of all metrics of the run.

    The time comes from the folder and not from the clock, so that every process sends the same
    rows.
    """
    rows = [
        (key, value, record.started_ms + round(row.time_s * 1000), row.step)
        for row in record.rows
        for key, value in row.values.items()
    ]
    if record.result is None or record.result["status"] == "stopped":
        return rows
    result = record.result
    ended_ms = record.started_ms + round(1000 * (result.get("wall_time_s") or 0))
    final = {
        f"final/{key.rpartition('/')[2]}": value for key, value in result.get("metrics", {}).items()
    }
    final |= {
        f"final/{key}": result.get(key)
        for key in ("step_time_s", "wall_time_s", "peak_memory_bytes")
    }
    rows += [
        (key, float(value), ended_ms, result["step"])
        for key, value in final.items()
        if value is not None
    ]
    if record.last_evaluation is not None:
        # A curve over blocks, so that the UI can compare runs in one chart. Its "step" is the
        # block, from 1.
        similarity = record.last_evaluation.get("patch_similarity") or []
        rows += [
            ("blocks/patch_similarity", float(value), ended_ms, block)
            for block, value in enumerate(similarity, start=1)
            if value is not None
        ]
    return rows


def _add_artifacts(store: Store, run: Run, record: RunRecord) -> None:
    run_id = run.info.run_id
    names = ("config.json", "provenance.json", "result.json")
    store.upload(run_id, [record.path / name for name in names if (record.path / name).is_file()])
    uploaded_step = int(run.data.tags.get(_UPLOADED_TAG, -1))
    for step, pictures in record.pictures.items():
        if step >= uploaded_step:
            store.upload(run_id, pictures, f"pictures/step_{step:08d}", overwrite=False)
    evaluation = record.last_evaluation
    if evaluation is None or evaluation["step"] <= uploaded_step:
        return
    with tempfile.TemporaryDirectory() as scratch:
        files = _evaluation_files(evaluation, record.config, Path(scratch))
        store.upload(run_id, files, "evaluation")
    tables = json.dumps([{"path": "evaluation/per_class.json", "type": "table"}])
    # The tag last: after a crash before here, the next call uploads all files of this step again.
    store.set_tags(run, {"mlflow.loggedArtifacts": tables, _UPLOADED_TAG: str(evaluation["step"])})


def _evaluation_files(
    evaluation: dict[str, Any], config: dict[str, Any], scratch: Path
) -> list[Path]:
    """Write the per-class table and two curves, and return their files.

    The table has the form of ``mlflow.log_table``, which would append to an existing table. A curve
    that cannot be drawn is left out with a warning.
    """
    from toco.evaluate.pictures import draw_similarity_curve, draw_threshold_curve, save_figure
    from toco.evaluate.report import ThresholdCurve

    columns = evaluation["per_class"]
    table = [list(row) for row in zip(evaluation["class_names"], *columns.values(), strict=True)]
    file = scratch / "per_class.json"
    file.write_text(json.dumps({"columns": ["class", *columns], "data": table}), encoding="utf-8")
    similarity = {f"step {evaluation['step']}": evaluation["patch_similarity"]}
    curve = ThresholdCurve.from_json(evaluation["threshold_curve"])
    figures = {
        scratch / "patch_similarity.png": lambda: draw_similarity_curve(similarity),
        scratch / "cam_thresholds.png": lambda: draw_threshold_curve(
            curve, config["evaluate"]["background_threshold"]
        ),
    }
    return [file, *(path for path, draw in figures.items() if save_figure(draw, path))]


def _status(record: RunRecord) -> str:
    """Return MLflow's status of a run."""
    if record.result is None:
        return "RUNNING"
    status = STATUS.get(record.result["status"])
    if status is None:
        statuses = ", ".join(STATUS)
        raise ValueError(
            f"{record.path / 'result.json'} has status {record.result['status']!r}, expected "
            f"{statuses}."
        )
    return status


def _set_status(store: Store, run: Run, record: RunRecord, status: str) -> None:
    if run.info.status == status:
        return
    if record.result is None:
        store.client.update_run(run.info.run_id, status=status)
        return
    ended_ms = record.started_ms + round(1000 * (record.result.get("wall_time_s") or 0))
    store.client.set_terminated(run.info.run_id, status, ended_ms)
