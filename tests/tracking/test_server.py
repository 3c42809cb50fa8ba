"""A real MLflow server on loopback; over HTTP some things are refused that sqlite takes (a tag that
is no text).
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.tracking.servers import serving
from toco.tracking import Tracker, open_store, track_run
from toco.tracking.ui import server_command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(template, folder / "mlflow.db")

    with serving(partial(server_command, folder / "mlflow.db"), folder / "server.log") as address:
        yield address


def test_over_http_as_over_sqlite(run_folder, server: str, tmp_path: Path):
    where: dict[str, Any] = {"tracking_uri": server, "experiment": "over http"}
    parent = Tracker(**where).ensure_parent("s", "s")
    training = run_folder()
    run_id = track_run(
        training.path, open_store(**where), parent_run_id=parent, tags={"cell": "aux_block=9"}
    )
    training.add_rows(range(3, 6))
    training.add_evaluation(5, 0.5)
    training.end("finished", 5)
    assert track_run(training.path, open_store(**where), parent_run_id=parent) == run_id
    assert track_run(training.path, open_store(**where), parent_run_id=parent) == run_id
    client = open_store(**where).client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.params["method.aux_block"] == "9"
    history = client.get_metric_history(run_id, "train/loss_total")
    assert sorted((metric.step, metric.value) for metric in history) == [
        (step, 2.0 / step) for step in range(1, 6)
    ]
    fetched = client.download_artifacts(
        run_id, "pictures/step_00000005/scene_0001.png", str(tmp_path)
    )
    assert (
        Path(fetched).read_bytes()
        == (training.path / "pictures/step_00000005/scene_0001.png").read_bytes()
    )
    (tmp_path / "report.html").write_text("<p>report</p>")
    Tracker(**where).finish_parent(parent, files=[tmp_path / "report.html"], note="done")
    assert client.get_run(parent).info.status == "FINISHED"


@pytest.mark.parametrize(
    "name", ["a#b.png", "a?b.png", "a%20b.png", "100%.png", "ünï c.png", "plain"]
)
def test_a_picture_of_any_name_arrives_whole_and_once(
    run_folder, server: str, tmp_path: Path, name: str
):
    where: dict[str, Any] = {"tracking_uri": server, "experiment": "pictures"}
    training = run_folder(tmp_path.name)  # another run than that of the other names
    training.add_evaluation(2, 0.5)
    picture = training.path / "pictures" / "step_00000002" / "scene_0001.png"
    content = picture.read_bytes()
    picture.rename(picture.with_name(name if name.endswith(".png") else "plain.png"))
    client = open_store(**where).client
    run_id = track_run(training.path, open_store(**where))
    (stored,) = client.list_artifacts(run_id, "pictures/step_00000002")
    assert (
        Path(client.download_artifacts(run_id, stored.path, str(tmp_path))).read_bytes() == content
    )
    assert track_run(training.path, open_store(**where)) == run_id
    assert len(client.list_artifacts(run_id, "pictures/step_00000002")) == 1


def test_artifacts_in_a_folder_of_another_machine_are_refused(
    run_folder, server: str, tmp_path: Path
):
    elsewhere = tmp_path / "not here" / "mlartifacts" / "x"
    MlflowClient(server).create_experiment("of another machine", elsewhere.as_uri())
    with pytest.raises(
        ValueError, match="on the server's machine, and there is no such folder on this one"
    ):
        track_run(run_folder().path, open_store(server, "of another machine"))
    assert not (tmp_path / "not here").exists()
