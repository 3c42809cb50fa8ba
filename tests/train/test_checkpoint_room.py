import errno
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from toco.files import is_no_room
from toco.methods import Method
from toco.room import NoRoomError
from toco.train import checkpoint
from toco.train.checkpoint_room import check_room, checkpoint_bytes, explain_disk_errors
from toco.train.loop import train
from toco.train.optim import build_optimizer
from toco.train.optim_config import AdamWConfig, SgdConfig
from toco.train.run_folder import RunFolder


def rows(run_dir):
    return [
        (
            row["step"],
            row["kind"],
            {key: value for key, value in row["values"].items() if "time" not in key},
        )
        for row in RunFolder(run_dir).metrics()
    ]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    train(config, run_dir, progress=False)
    return run_dir


class Network(Method):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.BatchNorm1d(200))

    def forward(self, x):
        return self.network(x)

    def parameter_groups(self):
        return {"backbone": list(self.parameters())}


Network.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    "optim",
    [AdamWConfig(), SgdConfig(), SgdConfig(momentum=0.0, nesterov=False)],
    ids=["adamw", "sgd", "sgd without momentum"],
)
def test_the_bytes_of_a_checkpoint_are_known_before_the_first(tmp_path, optim):
    model = Network()
    optimizer = build_optimizer(model, optim)
    expected = checkpoint_bytes(model, optimizer, optim)
    model(torch.zeros(2, 300)).sum().backward()
    optimizer.step()
    written = checkpoint.save(tmp_path, 1, "digest", model, optimizer, {}) / checkpoint.TENSORS
    assert expected < written.stat().st_size < expected + 10_000


def disk(free, f_favail=3):
    return SimpleNamespace(f_bavail=free, f_frsize=1, f_files=10, f_favail=f_favail)


def test_checkpoints_that_cannot_fit_are_refused_before_the_training(config, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: disk(free=1000))
    with pytest.raises(NoRoomError) as raised:
        train(config, tmp_path / "run", progress=False)
    assert "run has no room: 1 kB are free, and about " in str(raised.value)
    assert "lower keep_checkpoints, which is 3" in str(raised.value)
    assert not (tmp_path / "run/config.json").exists()


def test_checkpoints_that_are_there_already_count(tmp_path, monkeypatch):
    (tmp_path / "checkpoints/step_00000002").mkdir(parents=True)
    (tmp_path / "checkpoints/step_00000002/tensors.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr(os, "statvfs", lambda path: disk(free=2000))
    check_room(tmp_path, 1000, keep=2)
    with pytest.raises(NoRoomError, match="2 kB are free, and about 3 kB are needed"):
        check_room(tmp_path, 1000, keep=3)


def test_a_disk_without_inodes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: disk(free=10**9, f_favail=0))
    with pytest.raises(NoRoomError, match="has no room: its disk has no free inodes"):
        check_room(tmp_path, 1000, keep=1)


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def full_at(number, real):
    """Fails as on a full disk at a call, as safetensors says it."""
    calls = []

    def save(tensors, path):
        calls.append(path)
        if len(calls) == number:
            path.write_bytes(b"a part")
            raise SafetensorError(FULL)
        real(tensors, path)

    return save


def test_a_disk_that_is_full_at_a_checkpoint_costs_nothing_but_the_way_back(
    config, finished, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full_at(2, safetensors.torch.save_file))
        with pytest.raises(NoRoomError) as raised:
            train(config, tmp_path, progress=False)
    sentence = (
        rf"^{re.escape(str(tmp_path))} has no room: No space left on device\. About \d+ "
        rf"kB are needed"
    )
    assert re.match(sentence, str(raised.value))
    assert "--resume goes on" in str(raised.value)
    assert is_no_room(raised.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        checkpoint.folder_name(2)
    ]
    train(config, tmp_path, resume=True, progress=False)
    assert rows(tmp_path) == rows(finished)
    assert RunFolder(tmp_path).result()["metrics"] == RunFolder(finished).result()["metrics"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_a_row_leaves_whole_rows(
    config, finished, tmp_path, monkeypatch, number
):
    real = os.fsync
    with monkeypatch.context() as patched:

        def fsync(file):
            if (
                Path(f"/proc/self/fd/{file}").readlink().name == "metrics.jsonl"
                and len(rows(tmp_path)) == 5
            ):
                raise OSError(number, os.strerror(number))
            real(file)

        patched.setattr(os, "fsync", fsync)
        with pytest.raises(NoRoomError, match=f"has no room: {os.strerror(number)}"):
            train(config, tmp_path, progress=False)
    assert len(rows(tmp_path)) == 4
    train(config, tmp_path, resume=True, progress=False)
    assert rows(tmp_path) == rows(finished)


def test_other_faults_of_the_system_stay_what_they_are(tmp_path):
    elsewhere = OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file")
    for error in (
        elsewhere,
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a")),
    ):
        with pytest.raises(OSError) as raised, explain_disk_errors(tmp_path, 1000):  # noqa: PT011 - the same object
            raise error
        assert raised.value is error


def test_too_many_files_are_a_sentence_and_cross_to_another_process(tmp_path):
    with (
        pytest.raises(NoRoomError, match=r"Raise the limit \(ulimit -n\)") as raised,
        explain_disk_errors(tmp_path, 1),
    ):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(tmp_path / "checkpoints"))
    copy = pickle.loads(pickle.dumps(raised.value))  # noqa: S301
    assert (str(copy), copy.errno) == (str(raised.value), errno.EMFILE)
