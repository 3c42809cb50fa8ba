"""A folder of results that was moved or copied: what was uploaded is found in it, what comes goes
there, too.
"""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from toco.tracking import open_store, sqlite_uri, track_run
from toco.tracking.model import log_network
from toco.tracking.moved_store import follow_move
from toco.tracking.ui import experiment_pages

EXPERIMENT = "a study, moved"


def where(folder: Path) -> dict[str, Any]:
    return {"tracking_uri": sqlite_uri(folder / "mlflow.db"), "experiment": EXPERIMENT}


@pytest.fixture
def first(template: Path, tmp_path: Path, run_folder) -> tuple[Path, str]:
    """A store in a folder ``A`` with one run, and the run's id."""
    folder = tmp_path / "A"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    training = run_folder("one")
    training.end("finished", 2)
    return folder, track_run(training.path, open_store(**where(folder)))


def result_of(folder: Path, run_id: str, scratch: Path) -> Any:
    client = open_store(**where(folder)).client
    return json.loads(
        Path(client.download_artifacts(run_id, "result.json", str(scratch))).read_text()
    )


def locations(folder: Path) -> str:
    with sqlite3.connect(folder / "mlflow.db") as connection:
        return "\n".join(connection.iterdump())


def test_artifacts_of_a_moved_store_lie_in_the_new_folder(first, run_folder, tmp_path: Path):
    old, run_id = first
    new = tmp_path / "deeper" / "B c"
    new.parent.mkdir()
    old.rename(new)
    second = run_folder("two")
    second.end("stopped", 2)
    other_id = track_run(second.path, open_store(**where(new)))
    assert not old.exists()
    (tmp_path / "fetched").mkdir()
    assert result_of(new, run_id, tmp_path / "fetched")["status"] == "finished"
    assert result_of(new, other_id, tmp_path / "fetched")["status"] == "stopped"
    assert len(list(new.glob("mlartifacts/*/*/artifacts/result.json"))) == 2
    # The run that was there before is filled further, not made again.
    assert track_run(tmp_path / "one", open_store(**where(new))) == run_id
    assert f"{tmp_path}/A" not in locations(new)


def test_the_ui_finds_what_was_uploaded_before_the_move(first, tmp_path: Path):
    old, _ = first
    new = tmp_path / "B"
    old.rename(new)
    pages = experiment_pages(new / "mlflow.db", 5001)
    assert list(pages) == [EXPERIMENT]
    assert pages[EXPERIMENT].startswith("http://127.0.0.1:5001/#/experiments/")
    assert "/runs?workflowType=machine_learning&compareRunsMode=CHART&" in pages[EXPERIMENT]
    assert f"{new}/mlartifacts" in locations(new)
    assert f"{tmp_path}/A" not in locations(new)


def test_a_path_from_the_current_folder_is_the_same_store(first, tmp_path: Path, monkeypatch):
    old, _ = first
    monkeypatch.chdir(tmp_path)
    before = locations(old)
    assert list(experiment_pages(Path("A") / "mlflow.db", 5001)) == [EXPERIMENT]
    assert locations(old) == before
    old.rename(tmp_path / "B")
    assert list(experiment_pages(Path("B") / "mlflow.db", 5001)) == [EXPERIMENT]
    assert f"{tmp_path.resolve()}/B/mlartifacts" in locations(Path("B"))


def test_a_copy_is_a_store_of_its_own(first, run_folder, tmp_path: Path):
    old, _ = first
    new = tmp_path / "B"
    shutil.copytree(old, new)
    training = run_folder("two")
    track_run(training.path, open_store(**where(new)))
    assert len(list(new.glob("mlartifacts/*/*/artifacts/config.json"))) == 2
    assert len(list(old.glob("mlartifacts/*/*/artifacts/config.json"))) == 1
    assert f"{old}/mlartifacts" in locations(old)


def test_artifacts_that_lie_elsewhere_on_purpose_stay_there(first, tmp_path: Path):
    old, _ = first
    elsewhere = tmp_path / "disk" / "mlartifacts" / "mine"
    elsewhere.mkdir(parents=True)
    client = open_store(**where(old)).client
    client.create_experiment("mine", elsewhere.as_uri())
    client.create_experiment("bucket", "s3://bucket/mlartifacts/mine")
    client.create_experiment("plain", (tmp_path / "gone" / "folder").as_uri())
    before = locations(old)
    follow_move(old / "mlflow.db")
    assert locations(old) == before


def test_a_registered_network_is_found_after_a_move(first, tmp_path: Path, monkeypatch):
    old, run_id = first
    # What is logged does not matter here, where it lies does.
    monkeypatch.setattr(
        "toco.tracking.model._save",
        lambda folder, head, network, about: (
            folder.mkdir(),
            (folder / "MLmodel").write_text(head.artifact_path),
        ),
    )
    network = log_network(
        open_store(**where(old)), run_id, tmp_path / "network.onnx", {"a": "b"}, 2, "moved"
    )
    assert network == "models:/moved/1"
    new = tmp_path / "B"
    old.rename(new)
    client = open_store(**where(new)).client
    version = client.get_model_version("moved", "1")
    assert version.source.startswith((new / "mlartifacts").as_uri())
    (logged,) = client.get_run(run_id).outputs.model_outputs
    assert client.get_logged_model(logged.model_id).artifact_location == version.source
    (file,) = new.glob("mlartifacts/**/MLmodel")
    assert str(old) not in file.read_text()
    assert str(old) not in locations(new)


def test_an_experiment_of_a_server_is_refused_by_its_database(
    template: Path, tmp_path: Path, run_folder
):
    shutil.copy(template, tmp_path / "mlflow.db")
    client = open_store(**where(tmp_path)).client
    client.create_experiment("by a server", "mlflow-artifacts:/7")
    with pytest.raises(
        ValueError, match="was made through a server, which alone can reach its artifacts"
    ):
        track_run(run_folder().path, open_store(sqlite_uri(tmp_path / "mlflow.db"), "by a server"))


def test_what_is_no_database_of_mlflow_is_not_shown(tmp_path: Path):
    with pytest.raises(ValueError, match=r"There is no .*mlflow\.db yet"):
        experiment_pages(tmp_path / "mlflow.db", 5000)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("CREATE TABLE notes (text)")
    with pytest.raises(
        ConnectionError, match="is no database of MLflow: no such table: experiments"
    ):
        experiment_pages(tmp_path / "mlflow.db", 5000)
