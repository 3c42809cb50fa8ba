"""The real MLflow over sqlite: what stands in it after a run folder was tracked once, twice, in
pieces.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from toco.passwords import public_text, public_uri
from toco.tracking import Tracker, address, client_uri, open_store, track_run
from toco.tracking.address import log_in
from toco.tracking.moved_store import artifact_location
from toco.tracking.training_run import MAX_PARAM_CHARACTERS


def history(uri: str, experiment: str, run_id: str, key: str) -> list[tuple[int, float, int]]:
    found = open_store(uri, experiment).client.get_metric_history(run_id, key)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in found)


def artifacts(uri: str, experiment: str, run_id: str, folder: str = "") -> set[str]:
    return {item.path for item in open_store(uri, experiment).client.list_artifacts(run_id, folder)}


def test_a_finished_run_in_full(run_folder, sqlite_uri: str, tmp_path: Path):
    training = run_folder()
    training.add_evaluation(2, 0.25)
    training.end("finished", 2)
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "full"}
    run_id = track_run(
        training.path,
        open_store(**where),
        run_name="aux_block=#10, seed 0",
        tags={"study": "layer_ablation"},
    )
    client = open_store(**where).client
    run = client.get_run(run_id)
    assert run.info.run_name == "aux_block=#10, seed 0"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1767323045000
    assert run.info.end_time == 1767323045000 + 10_000
    assert run.data.params == {
        "seed": "0",
        "method.aux_block": "9",
        "method.scales": "[1.0, 0.5]",
        "data.root": "null",
        "evaluate.background_threshold": "0.5",
    }
    expected = {
        "study": "layer_ablation",
        "seed": "0",
        "digest": "0123456789abcdef",
        "commit": "c0ffee",
    }
    assert expected.items() <= run.data.tags.items()
    assert run.data.tags["dirty"] == "false"
    assert run.data.tags["version.torch"] == "2.13.0"
    assert history(sqlite_uri, "full", run_id, "train/ptc") == [
        (1, 0.5, 1767323045500),
        (2, 0.25, 1767323046000),
    ]
    assert history(sqlite_uri, "full", run_id, "val/cam_miou") == [(2, 0.25, 1767323046000)]
    assert "val/aux_cam_miou" not in run.data.metrics
    assert history(sqlite_uri, "full", run_id, "final/cam_miou") == [(2, 0.4375, 1767323055000)]
    assert [row[:2] for row in history(sqlite_uri, "full", run_id, "blocks/patch_similarity")] == [
        (1, 0.5),
        (2, 0.625),
        (3, 0.75),
    ]
    assert artifacts(sqlite_uri, "full", run_id) == {
        "config.json",
        "provenance.json",
        "result.json",
        "pictures",
        "evaluation",
    }
    assert artifacts(sqlite_uri, "full", run_id, "evaluation") == {
        "evaluation/per_class.json",
        "evaluation/patch_similarity.png",
        "evaluation/cam_thresholds.png",
    }
    fetched = client.download_artifacts(
        run_id, "pictures/step_00000002/scene_0001.png", str(tmp_path)
    )
    assert (
        Path(fetched).read_bytes()
        == (training.path / "pictures/step_00000002/scene_0001.png").read_bytes()
    )
    table = json.loads(
        Path(
            client.download_artifacts(run_id, "evaluation/per_class.json", str(tmp_path))
        ).read_text()
    )
    assert table["columns"] == ["class", "seg_iou", "cam_iou"]
    assert table["data"] == [["background", 0.9, 0.8], ["disc", 0.5, 0.4], ["star", None, 0.2]]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "evaluation/per_class.json", "type": "table"}
    ]


def test_artifacts_lie_beside_the_database(
    run_folder, sqlite_uri: str, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    training = run_folder()
    before = sorted(tmp_path.iterdir())
    track_run(training.path, open_store(sqlite_uri, "beside / the database"))
    assert sorted(tmp_path.iterdir()) == before
    folder = Path(sqlite_uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert list(folder.glob("beside*/*/artifacts/config.json")) != []


def test_in_pieces_gives_one_run_and_no_row_twice(run_folder, sqlite_uri: str, tmp_path: Path):
    training = run_folder()
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "pieces"}
    client = open_store(**where).client
    run_id = track_run(training.path, open_store(**where))
    assert client.get_run(run_id).info.status == "RUNNING"
    training.add_rows(range(3, 5))
    training.add_evaluation(4, 0.5)
    # Another process, as after a crash of the first.
    code = (
        "from toco.tracking import *; from pathlib import Path; "
        f"track_run(Path({str(training.path)!r}), open_store(**{where!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    training.end("stopped", 4, "Interrupted by SIGTERM.")
    assert track_run(training.path, open_store(**where)) == run_id
    stopped = client.get_run(run_id)
    assert stopped.info.status == "KILLED"
    assert stopped.data.tags["mlflow.note.content"] == "Interrupted by SIGTERM."
    assert "final/cam_miou" not in stopped.data.metrics
    # Resumed: running again, then finished.
    (training.path / "result.json").unlink()
    training.add_rows(range(5, 6))
    track_run(training.path, open_store(**where))
    assert client.get_run(run_id).info.status == "RUNNING"
    training.end("finished", 5)
    track_run(training.path, open_store(**where))
    assert track_run(training.path, open_store(**where)) == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [row[:2] for row in history(sqlite_uri, "pieces", run_id, "train/loss_total")] == [
        (step, 2.0 / step) for step in range(1, 6)
    ]
    assert len(history(sqlite_uri, "pieces", run_id, "final/cam_miou")) == 1
    assert len(client.search_runs([open_store(**where).experiment_id])) == 1
    table = Path(client.download_artifacts(run_id, "evaluation/per_class.json", str(tmp_path)))
    assert len(json.loads(table.read_text())["data"]) == 3


def test_a_training_begun_anew_is_another_run(run_folder, sqlite_uri: str):
    training = run_folder()
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "anew"}
    first = track_run(training.path, open_store(**where))
    provenance = json.loads((training.path / "provenance.json").read_text())
    provenance["started"] = "2026-01-02T09:00:00+00:00"
    (training.path / "provenance.json").write_text(json.dumps(provenance))
    assert track_run(training.path, open_store(**where)) != first


def test_a_picture_cut_off_by_a_crash_is_sent_again(run_folder, sqlite_uri: str, tmp_path: Path):
    training = run_folder()
    training.add_evaluation(2, 0.25)
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "torn"}
    run_id = track_run(training.path, open_store(**where))
    client = open_store(**where).client
    torn = tmp_path / "torn" / "scene_0001.png"
    torn.parent.mkdir()
    torn.write_bytes(b"\x89PNG")
    client.log_artifact(run_id, str(torn), "pictures/step_00000002")
    track_run(training.path, open_store(**where))
    fetched = client.download_artifacts(
        run_id, "pictures/step_00000002/scene_0001.png", str(torn.parent)
    )
    assert (
        Path(fetched).read_bytes()
        == (training.path / "pictures/step_00000002/scene_0001.png").read_bytes()
    )


def test_more_metrics_and_params_than_one_call_takes(run_folder, sqlite_uri: str, monkeypatch):
    training = run_folder(many={f"field_{i}": i for i in range(150)})
    training.add_rows(range(3, 1203))  # 1202 rows of 2 metrics
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "many"}
    from mlflow import MlflowClient

    sizes: list[tuple[int, int]] = []
    log_batch = MlflowClient.log_batch

    def counting(
        self: MlflowClient,
        run_id: str,
        metrics: Any = (),
        params: Any = (),
        tags: Any = (),
        **more: Any,
    ):
        sizes.append((len(metrics), len(params)))
        return log_batch(self, run_id, metrics, params, tags, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    run_id = track_run(training.path, open_store(**where))
    assert [size for size in sizes if size != (0, 0)] == [
        (0, 100),
        (0, 55),
        (1000, 0),
        (1000, 0),
        (404, 0),
    ]
    assert len(history(sqlite_uri, "many", run_id, "train/ptc")) == 1202
    sizes.clear()
    track_run(training.path, open_store(**where))
    assert sizes == []


def test_a_long_param_is_cut_with_a_sentence(run_folder, sqlite_uri: str):
    training = run_folder(names="x" * 7000)
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "long"}
    value = (
        open_store(**where)
        .client.get_run(track_run(training.path, open_store(**where)))
        .data.params["names"]
    )
    assert len(value) == MAX_PARAM_CHARACTERS
    assert value.endswith(
        "xxx ... Cut from 7000 characters: the whole value stands in config.json."
    )


def test_a_number_that_is_not_finite_is_tracked_too(run_folder, sqlite_uri: str):
    training = run_folder()
    with (training.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "train", "time_s": 1.5, "values": {"train/ptc": NaN}}\n')
    training.end("diverged", 3, "The loss ptc is not finite at step 3.")
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "diverged"}
    run_id = track_run(training.path, open_store(**where))
    track_run(training.path, open_store(**where))
    rows = history(sqlite_uri, "diverged", run_id, "train/ptc")
    assert [row[0] for row in rows] == [1, 2, 3]
    assert rows[2][1] != rows[2][1]
    assert open_store(**where).client.get_run(run_id).info.status == "FAILED"


def test_an_unknown_status_is_refused(run_folder, sqlite_uri: str):
    training = run_folder()
    training.end("tired", 2)
    with pytest.raises(ValueError, match="status 'tired', expected finished, stopped, diverged"):
        track_run(training.path, open_store(sqlite_uri, "status"))


def test_a_study_has_one_parent_and_its_children(run_folder, sqlite_uri: str, tmp_path: Path):
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "study"}
    parent = Tracker(**where).ensure_parent("layer_ablation it's", "layer ablation")
    children = [
        track_run(
            run_folder(f"aux_block={block}-seed=0").path,
            open_store(**where),
            parent_run_id=parent,
            tags={"cell": f"b={block}"},
        )
        for block in (8, 9)
    ]
    (tmp_path / "table.md").write_text("| a |")
    Tracker(**where).finish_parent(parent, files=[tmp_path / "table.md"], note="| a |")
    client = open_store(**where).client
    assert client.get_run(parent).info.status == "FINISHED"
    assert artifacts(sqlite_uri, "study", parent) == {"table.md"}
    # A restored driver: same study, same run, running again.
    assert Tracker(**where).ensure_parent("layer_ablation it's", "layer ablation") == parent
    assert client.get_run(parent).info.status == "RUNNING"
    assert Tracker(**where).ensure_parent("another", "another") != parent
    assert {client.get_run(child).data.tags["mlflow.parentRunId"] for child in children} == {parent}
    # The same trial in another study is another run; filled again by itself, it is found without
    # its parent.
    other = Tracker(**where).ensure_parent("another", "another")
    assert (
        track_run(tmp_path / "aux_block=9-seed=0", open_store(**where), parent_run_id=other)
        not in children
    )
    assert track_run(tmp_path / "aux_block=8-seed=0", open_store(**where)) == children[0]


def test_a_study_brings_a_view_of_its_trainings_and_their_maps(sqlite_uri: str):
    tracker, store = Tracker(sqlite_uri, "view"), open_store(sqlite_uri, "view")

    def saved() -> tuple[str, dict[str, Any]]:
        tags = store.client.get_experiment(store.experiment_id).tags
        (view,) = (
            json.loads(value)
            for tag, value in tags.items()
            if tag.startswith("mlflow.sharedViewState.")
        )
        return view["name"], json.loads(
            zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;")))
        )

    tracker.ensure_parent("one", "one", maps=("cam", "walked_cam"))
    name, state = saved()
    assert name == "Trainings by row"
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "cell"}]
    of_maps = ["metrics.`final/cam_miou`", "metrics.`final/walked_cam_miou`"]
    assert state["selectedColumns"] == ["attributes.`Duration`", *of_maps]
    # The study has another method now.
    tracker.ensure_parent("two", "two", maps=("cam", "seg"))
    assert saved()[1]["selectedColumns"][1:] == [
        "metrics.`final/cam_miou`",
        "metrics.`final/seg_miou`",
    ]


def test_a_folder_name_with_a_quote(run_folder, sqlite_uri: str):
    training = run_folder('it\'s a "run" `x`')
    where: dict[str, Any] = {"tracking_uri": sqlite_uri, "experiment": "quotes"}
    assert track_run(training.path, open_store(**where)) == track_run(
        training.path, open_store(**where)
    )


def test_a_deleted_experiment_is_named(run_folder, sqlite_uri: str):
    store = open_store(sqlite_uri, "deleted")
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(ValueError, match="The MLflow experiment 'deleted' was deleted"):
        track_run(run_folder().path, open_store(sqlite_uri, "deleted"))


def test_a_server_out_of_reach_is_a_sentence_without_the_password(run_folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    with pytest.raises(
        ConnectionError, match=r"MLflow at http://127\.0\.0\.1:1 failed: API request"
    ) as caught:
        track_run(run_folder().path, open_store("http://me:secret@127.0.0.1:1", "x"))
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused_at_once(run_folder, tmp_path: Path):
    (tmp_path / "notes.db").write_text(
        "Not a database, but a text that is long enough for one." * 4
    )
    for path, problem in ((tmp_path / "notes.db", "not a database"), (tmp_path, "unable to open")):
        with pytest.raises(ConnectionError, match=problem):
            track_run(run_folder().path, open_store(f"sqlite:///{path}", "x"))


def test_uris(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert client_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert client_uri(f"sqlite:///{tmp_path}/a.db") == f"sqlite:///{tmp_path}/a.db"
    assert client_uri("http://127.0.0.1:5000/") == "http://127.0.0.1:5000"
    assert client_uri("http://me:p%40ss@[::1]:5000") == "http://me:p%40ss@[::1]:5000"
    for wrong in (
        "mlruns",
        "file:///tmp/mlruns",
        "sqlite:///",
        "postgresql://me:secret@host/db?password=secret",
    ):
        with pytest.raises(ValueError, match="is neither sqlite:///PATH nor http") as caught:
            client_uri(wrong)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://me:sec/ret@host",
        "http://me:sec@ret/x@host:5000",
        "http://me:sec?ret@host",
        "http://me:sec#ret@host",
        "http://me:sec ret@host",
        "https://host?password=sec",
        "https://host/#sec",
    ],
)
def test_what_is_no_address_of_a_server_is_refused_without_its_password(uri: str):
    with pytest.raises(
        ValueError, match="in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    ) as caught:
        client_uri(uri)
    if uri != "https://host/#sec":
        assert "sec" not in str(caught.value)


@pytest.mark.parametrize(
    "password", ["secret", "p@ss", "a:b", "p/w", "a?b", "p#w", "it's", 'a"b', "sp ace", "<x>"]
)
def test_no_password_is_shown(password: str):
    shown = "..." if "?" in password else "host"
    assert (
        public_uri(f"--tracking-uri=http://me:{password}@host") == f"--tracking-uri=http://{shown}"
    )
    both = public_uri(f"http://me:{password}@host/a?password={password}")
    assert both == ("http://..." if {"?", "@"} & set(password) else "http://host/a")
    encoded = quote(password, safe="")
    said = public_text(
        f"GET 'http://me:{encoded}@host/api?token={encoded}' failed (http://host/b): ask me@there"
    )
    assert said == "GET 'http://host/api' failed (http://host/b): ask me@there"


def test_a_login_goes_to_mlflow_by_its_environment(monkeypatch):
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    for name in names:
        monkeypatch.setenv(name, "before")
    assert log_in("http://host:5000/x") == "http://host:5000/x"
    assert [os.environ[name] for name in names] == ["before", "before"]
    assert log_in("http://me:p%40s%2Fs:x@host:5000/x") == "http://host:5000/x"
    assert [os.environ[name] for name in names] == ["me", "p@s/s:x"]


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "ha#sh",
        "100%",
        "dol$lar",
        "it's",
        'a"b',
        "ünï 漢字",
        "at@b:c",
        "a;b&c=d",
        "[x]{y}",
        "n" * 250,
    ],
)
def test_a_database_in_a_folder_of_any_name(run_folder, template: Path, tmp_path: Path, name: str):
    folder = tmp_path / "stores" / name
    folder.mkdir(parents=True)
    shutil.copy(template, folder / "mlflow.db")
    training = run_folder()
    training.end("finished", 2)
    where: dict[str, Any] = {
        "tracking_uri": address.sqlite_uri(folder / "mlflow.db"),
        "experiment": name,
    }
    run_id = track_run(training.path, open_store(**where))
    fetched = open_store(**where).client.download_artifacts(run_id, "result.json", str(tmp_path))
    assert Path(fetched).read_bytes() == (training.path / "result.json").read_bytes()
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [name]
    assert sorted(path.name for path in folder.iterdir()) == ["mlartifacts", "mlflow.db"]


@pytest.mark.parametrize("name", ["que?ry", "a%20b"])
def test_a_path_that_mlflow_would_read_as_another_is_refused_before_anything_is_made(
    tmp_path: Path, name: str
):
    for make in (
        lambda: address.sqlite_uri(tmp_path / name / "mlflow.db"),
        lambda: client_uri(f"sqlite:///{tmp_path}/{name}"),
    ):
        with pytest.raises(
            ValueError, match=r"MLflow cannot open the database .* its path contains"
        ):
            make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("experiment", ["..", ".", ".hidden", "a/b", "漢" * 100, "n" * 400])
def test_no_name_of_an_experiment_leads_out_of_its_folder(tmp_path: Path, experiment: str):
    location = Path(unquote(urlsplit(artifact_location(tmp_path / "mlflow.db", experiment)).path))
    assert location.parent == tmp_path / "mlartifacts"
    assert len(location.name.encode()) <= 255
    location.mkdir(parents=True)


def test_importing_the_package_does_not_import_mlflow():
    code = "import sys, json, toco.tracking; print(json.dumps('mlflow' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) is False
