"""A trial, with a channel that keeps everything and, where a test says so, breaks at a report."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sweeps.core.run.failures import LeftOutError, ScratchError, StoppedError, kind_of
from sweeps.core.run.worker import Spec, run_trial
from sweeps.core.store.identity import identify
from sweeps.core.store.runs import CONTENTS
from toco.config import replace
from toco.recipes.voc_deit_b import recipe
from toco.train.inputs import Inputs
from toco.train.loop import Result
from toco.train.provenance import own_command, provenance
from toco.train.records import make_row, rows_text
from toco.train.run_config import RunConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
import fake_training
from fake_training import chain, metrics_of

STEPS = {"num_steps": 20, "evaluate_every": 5, "optim.warmup_steps": 0, "seed": 3}


INPUTS = {"train": "aa", "val": "bb", "weights": None}


def make_spec(config, train="fake_training:train"):
    key = identify(RunConfig.model_validate(config), train, INPUTS).key
    return Spec(key, "voc_deit_b", train, config, inputs=INPUTS)


class Lost(BaseException):
    """The worker is gone."""


class Channel:
    """Keeps rows and snapshots in a folder; the report number ``breaks_at`` does not come back,
    before or after.
    """

    left_out = False
    stop = threading.Event()

    def __init__(self, folder, newest=None, breaks_at=None, after=False):
        self.folder, self.newest, self.breaks_at, self.after = folder, newest, breaks_at, after
        self.rows = []
        self.errors = []

    @contextmanager
    def restored(self):
        yield self.newest

    def report(self, row, snapshot):
        breaks = len(self.rows) == self.breaks_at
        if breaks and not self.after:
            raise Lost
        self.newest = self.folder / f"{len(list(self.folder.iterdir())):06d}"
        shutil.copytree(snapshot, self.newest)
        self.rows.append(row)
        if breaks:
            raise Lost

    def begin(self):
        if self.left_out:
            raise LeftOutError("Elsewhere.")

    def fail(self, error):
        self.errors.append(error)


@pytest.fixture
def spec(monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_ORDERS", str(tmp_path / "orders"))
    (tmp_path / "orders").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    config = replace(recipe(), STEPS)
    return make_spec(config.model_dump(mode="json"))


def row(step, status="running"):
    return {"status": status, "step": step, **metrics_of(chain(3, 9, step))}


def metric_rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


EXPECTED = [row(5), row(10), row(15), row(20, "finished")]


def test_every_evaluation_is_reported_once_and_the_last_with_the_result(spec, tmp_path):
    channel = Channel(tmp_path / "kept")
    run_trial(spec, channel)
    assert channel.rows == EXPECTED
    assert json.loads((channel.newest / "result.json").read_text())["status"] == "finished"
    assert [item["step"] for item in metric_rows(channel.newest)] == [5, 10, 15, 20]
    assert json.loads((channel.newest / "config.json").read_text())["recipe"] == "voc_deit_b"


def test_a_snapshot_holds_the_newest_checkpoint_only_and_its_own_rows(spec, tmp_path):
    channel = Channel(tmp_path / "kept")
    run_trial(spec, channel)
    for number, snapshot in enumerate(sorted((tmp_path / "kept").iterdir())):
        step = 5 * (number + 1)
        assert [path.name for path in (snapshot / "checkpoints").iterdir()] == [f"step_{step:08d}"]
        assert [item["step"] for item in metric_rows(snapshot)] == list(range(5, step + 1, 5))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("breaks_at", range(4))
def test_a_trial_whose_worker_is_lost_at_a_report_goes_on_from_the_last_one_kept(
    spec, tmp_path, breaks_at, after
):
    first = Channel(tmp_path / "kept", breaks_at=breaks_at, after=after)
    with pytest.raises(Lost):
        run_trial(spec, first)
    second = Channel(tmp_path / "kept", newest=first.newest)
    run_trial(spec, second)
    # Lost after its very last report it has nothing to do but to say so again.
    assert first.rows + second.rows == EXPECTED + ([EXPECTED[-1]] if len(first.rows) == 4 else [])
    assert [item["step"] for item in metric_rows(second.newest)] == [5, 10, 15, 20]
    starts = (tmp_path / "orders" / "starts").read_text().splitlines()
    assert [int(line.split()[2]) for line in starts] == [0, 5 * len(first.rows)]


def test_a_diverged_training_is_a_result_and_is_not_tried_again(spec, tmp_path):
    (tmp_path / "orders" / "diverge-3-9").touch()
    channel = Channel(tmp_path / "kept")
    run_trial(spec, channel)
    assert channel.rows == [{"status": "diverged"}]
    assert json.loads((channel.newest / "result.json").read_text())["status"] == "diverged"


def stopped(config, run_dir, **_):
    run_dir.mkdir()
    return Result("stopped", 7, {})


def test_a_training_that_a_signal_stopped_is_a_failure_that_a_restart_makes_up_for(spec, tmp_path):
    spec = make_spec(spec.config, f"{__name__}:stopped")
    channel = Channel(tmp_path / "kept")
    with pytest.raises(RuntimeError, match="stopped by a signal after step 7") as raised:
        run_trial(spec, channel)
    assert channel.errors == [raised.value]
    assert kind_of(raised.value) == "machine"


def stops_when_asked(config, run_dir, *, stop, **options):
    """The training of ``fake_training``, asked to stop after its first evaluation."""

    class Observer:
        def on_evaluation(self, step, metrics, checkpoint):
            options["observer"].on_evaluation(step, metrics, checkpoint)
            stop.set()

    return fake_training.train(config, run_dir, **{**options, "observer": Observer()}, stop=stop)


def test_a_trial_that_is_asked_to_stop_hands_over_its_present_step(spec, tmp_path):
    spec = make_spec(spec.config, f"{__name__}:stops_when_asked")
    channel = Channel(tmp_path / "kept")
    channel.stop = threading.Event()
    with pytest.raises(StoppedError, match="Stopped after step 5, as requested") as raised:
        run_trial(spec, channel)
    assert channel.errors == [raised.value]
    assert kind_of(raised.value) == "stopped"
    assert [(row["status"], row["step"]) for row in channel.rows] == [
        ("running", 5),
        ("stopped", 5),
    ]


def refused(config, run_dir, **_):
    raise ValueError("image7.png cannot be decoded")


def test_a_config_or_data_that_is_wrong_is_a_failure_that_no_restart_makes_up_for(spec, tmp_path):
    wrong_data = make_spec(spec.config, f"{__name__}:refused")
    wrong_config = Spec(spec.key, spec.recipe, spec.train, {**spec.config, "num_steps": -1})
    for wrong, message in ((wrong_data, r"image7\.png"), (wrong_config, "num_steps")):
        channel = Channel(tmp_path / "kept")
        with pytest.raises(ValueError, match=message) as raised:
            run_trial(wrong, channel)
        assert channel.errors == [raised.value]
        assert kind_of(raised.value) == "hopeless"


def test_a_file_system_without_links_has_copies(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here"))
    )
    channel = Channel(tmp_path / "kept")
    run_trial(spec, channel)
    assert channel.rows == EXPECTED


def test_nothing_stays_on_the_workers_disk(spec, tmp_path):
    with pytest.raises(Lost):
        run_trial(spec, Channel(tmp_path / "kept", breaks_at=1))
    run_trial(spec, Channel(tmp_path / "kept"))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_node_without_room_is_said_before_the_training_begins(spec, tmp_path, monkeypatch):
    full = dataclasses.replace(spec, scratch_bytes=10**18)
    channel = Channel(tmp_path / "kept")
    with pytest.raises(
        ScratchError,
        match=r"scratch has no room: .* are free, and about 1000000000.0 GB are needed",
    ):
        run_trial(full, channel)
    assert [kind_of(error) for error in channel.errors] == ["room"]
    assert not (tmp_path / "orders" / "starts").exists()


@pytest.mark.parametrize(("folder", "kind"), [("scratch", "room"), ("prefixes", "storage")])
def test_a_disk_that_fills_up_on_the_way_is_a_sentence_with_its_folder(
    spec, tmp_path, monkeypatch, folder, kind
):
    def train(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / folder / "file"))

    monkeypatch.setattr(fake_training, "train", train)
    channel = Channel(tmp_path / "kept")
    with pytest.raises(
        RuntimeError, match=rf"{folder} has no room: No space left on device. About 1 MB are needed"
    ):
        run_trial(dataclasses.replace(spec, prefixes=str(tmp_path / "prefixes")), channel)
    assert [kind_of(error) for error in channel.errors] == [kind]


def test_a_node_that_is_left_out_trains_nothing(spec, tmp_path):
    channel = Channel(tmp_path / "kept")
    channel.left_out = True
    with pytest.raises(LeftOutError):
        run_trial(spec, channel)
    assert [kind_of(error) for error in channel.errors] == ["left out"]
    assert not (tmp_path / "orders" / "starts").exists()


def test_the_record_has_the_command_of_the_study(spec, tmp_path):
    channel = Channel(tmp_path / "kept")
    command = ("sweeps", "run", "table5")
    run_trial(
        dataclasses.replace(make_spec(spec.config, f"{__name__}:recorded"), command=command),
        channel,
    )
    assert json.loads((channel.newest / "command.json").read_text()) == list(command)


def test_the_command_is_recorded_without_passwords(monkeypatch):
    words = [
        "/repository/sweeps/table5.py",
        "--tracking-uri",
        "http://me:secret@host/x?token=y",
        "--seeds",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert own_command() == ("table5.py", "--tracking-uri", "http://host/x", "--seeds", "0")


def test_the_command_of_a_package_can_be_repeated(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/repository/toco/__main__.py", "train", "shapes_nano"])
    assert own_command() == ("python", "-m", "toco", "train", "shapes_nano")


def recorded(config, run_dir, **_):
    run_dir.mkdir()
    inputs = Inputs("train", "val", None)
    (run_dir / "command.json").write_text(
        json.dumps(provenance(torch.device("cpu"), inputs)["command"])
    )
    return Result("finished", 0, {})


@pytest.mark.parametrize(
    ("damaged", "starts"), [("result.json", [20]), ("config.json", [0]), (None, [20])]
)
def test_a_run_folder_with_a_damaged_file_does_not_end_its_trial_for_good(
    spec, tmp_path, damaged, starts
):
    channel = Channel(tmp_path / "kept")
    run_trial(spec, channel)
    if damaged:
        (channel.newest / damaged).write_bytes(b"")
    (tmp_path / "orders" / "starts").unlink()
    again = Channel(tmp_path / "kept", newest=channel.newest)
    run_trial(spec, again)
    assert again.rows[-1] == EXPECTED[-1]
    assert [
        int(line.split()[2]) for line in (tmp_path / "orders" / "starts").read_text().splitlines()
    ] == starts


def test_every_snapshot_is_sealed(spec, tmp_path):
    run_trial(spec, Channel(tmp_path / "kept"))
    for snapshot in (tmp_path / "kept").iterdir():
        found = {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()}
        assert json.loads((snapshot / CONTENTS).read_text()).keys() == found - {CONTENTS}


def test_rows_of_steps_after_the_evaluation_are_not_in_its_snapshot(spec, tmp_path):
    """A training goes on while its evaluation is reported."""
    channel = Channel(tmp_path / "kept")
    run_trial(make_spec(spec.config, f"{__name__}:going_on"), channel)
    seen = [
        [item["step"] for item in metric_rows(snapshot)]
        for snapshot in sorted((tmp_path / "kept").iterdir())
    ]
    assert seen == [[3, 5], [3, 5, 8]]
    for snapshot in (tmp_path / "kept").iterdir():
        sealed = json.loads((snapshot / CONTENTS).read_text())
        assert (
            sealed["metrics.jsonl"]
            == hashlib.sha256((snapshot / "metrics.jsonl").read_bytes()).hexdigest()
        )


def going_on(config, run_dir, *, observer, **_):
    def rows(*steps):
        (run_dir / "metrics.jsonl").write_text(
            rows_text([make_row(step, "val", 0.0, {}) for step in steps])
        )

    (run_dir / "checkpoints" / "step_00000005").mkdir(parents=True)
    rows(3, 5, 8)
    observer.on_evaluation(5, {}, run_dir / "checkpoints" / "step_00000005")
    return Result("finished", 8, {})


@pytest.mark.slow
def test_a_trial_of_several_gpus_is_trained_by_as_many_ranks(spec, tmp_path):
    channel = Channel(tmp_path / "kept")
    together = make_spec(spec.config, "fake_training:train_together")
    run_trial(dataclasses.replace(together, world_size=2), channel)
    assert channel.rows == EXPECTED
    (start,) = (tmp_path / "orders" / "starts").read_text().splitlines()
    assert (
        len({os.getpid(), int(start.split()[3]), int((tmp_path / "orders" / "beside").read_text())})
        == 3
    )


def test_a_worker_with_other_code_than_the_drivers_is_refused(spec, tmp_path):
    channel = Channel(tmp_path / "kept")
    with pytest.raises(ValueError, match="is not the code that the study was planned with"):
        run_trial(Spec("0" * 20, spec.recipe, spec.train, spec.config, inputs=INPUTS), channel)
    assert len(channel.errors) == 1
    assert channel.rows == []
