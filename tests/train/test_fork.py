import errno
import json
import os
import shutil
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from toco.config import digest, replace
from toco.methods import Method, toco
from toco.train import fork
from toco.train.checkpoint import TENSORS, all_in
from toco.train.fork import Snapshots, prefix_digest, prefix_step
from toco.train.loop import train
from toco.train.run_folder import RunFolder


@pytest.fixture(
    scope="module", params=[4, 3], ids=["after an evaluation", "between evaluations and log rows"]
)
def late(config, request):
    """The decoder's terms join at a step, with the terms of the first part in other settings than
    the second's.
    """
    start = {
        "method.segmentation.start_step": request.param,
        "method.energy.start_step": request.param,
    }
    return replace(config, {**start, "log_every": 2, "evaluate.average_last": 2})


def content(run_dir):
    """Everything but times, hosts and the origin."""
    rows = [
        (
            row["kind"],
            row["step"],
            {k: v for k, v in row["values"].items() if k != "train/step_time_s"},
        )
        for row in RunFolder(run_dir).metrics()
    ]
    kept = [
        path for folder in ("evaluations", "pictures") for path in (run_dir / folder).rglob("*.*")
    ]
    files = {str(path.relative_to(run_dir)): path.read_bytes() for path in kept}
    return rows, files, RunFolder(run_dir).result()["metrics"]


def same_checkpoint(left, right):
    a, b = (load_file(all_in(run_dir / "checkpoints")[-1] / TENSORS) for run_dir in (left, right))
    return a.keys() == b.keys() and all(
        torch.equal(a[n], b[n]) for n in a if n != "averages/train/step_time_s"
    )


OTHERS = (
    {"method.segmentation.weight": 0.7, "method.energy.weight": 0.0, "keep_checkpoints": 1},
    {
        "method.energy.start_step": 5,
        "method.dense_energy.sigma_rgb": 30.0,
        "method.aux_pseudo_labels_until_step": 5,
    },
)


@pytest.mark.parametrize(
    ("changes", "num_pictures"), [(OTHERS[0], 1), (OTHERS[1], 0)], ids=["weights", "energy"]
)
def test_a_forked_training_equals_the_unforked_one_bit_for_bit(
    late, tmp_path, changes, num_pictures, monkeypatch
):
    late = replace(late, {"evaluate.num_pictures": num_pictures})
    other, prefixes = replace(late, changes), tmp_path / "prefixes"
    train(late, tmp_path / "first", progress=False, prefixes=prefixes)
    train(late, tmp_path / "first alone", progress=False)
    train(other, tmp_path / "alone", progress=False)
    steps, real = [], toco.ToCo.training_losses

    def counted(self, batch, step, generator):
        steps.append(step)
        return real(self, batch, step, generator)

    monkeypatch.setattr(toco.ToCo, "training_losses", counted)
    torch.manual_seed(12345)
    train(other, tmp_path / "forked", progress=False, prefixes=prefixes)
    assert steps == list(range(prefix_step(late.resolved()), 6))
    assert content(tmp_path / "forked") == content(tmp_path / "alone")
    assert same_checkpoint(tmp_path / "forked", tmp_path / "alone")
    assert content(tmp_path / "first") == content(tmp_path / "first alone")
    assert content(tmp_path / "forked") != content(tmp_path / "first")
    folder = RunFolder(tmp_path / "forked")
    assert folder.provenance()["forked_at"] == prefix_step(late.resolved())
    assert folder.digest() == digest(other.resolved())
    states = [json.loads((path / "state.json").read_text()) for path in all_in(folder.checkpoints)]
    assert {state["digest"] for state in states} == {folder.digest()}
    assert [path.name.partition("-")[2] for path in prefixes.iterdir()] == [
        str(prefix_step(late.resolved()))
    ]


def test_a_forked_training_with_sgd_begins_the_momentum_of_late_terms_itself(late, tmp_path):
    late = replace(late, {"optim.name": "sgd"})
    other = replace(late, {"method.segmentation.weight": 0.7})
    train(late, tmp_path / "first", progress=False, prefixes=tmp_path / "prefixes")
    train(other, tmp_path / "alone", progress=False)
    train(other, tmp_path / "forked", progress=False, prefixes=tmp_path / "prefixes")
    folder = RunFolder(tmp_path / "forked")
    assert folder.provenance()["forked_at"] == prefix_step(late.resolved())
    assert content(tmp_path / "forked") == content(tmp_path / "alone")
    assert same_checkpoint(tmp_path / "forked", tmp_path / "alone")
    assert prefix_digest(late, 2) != prefix_digest(replace(late, {"optim.momentum": 0.8}), 2)


class CrashError(Exception):
    pass


class Watcher:
    def __init__(self, crash_at=None):
        self.crash_at, self.told = crash_at, []

    def on_evaluation(self, step, metrics, checkpoint):
        assert checkpoint.is_dir()
        self.told.append((step, metrics))
        if step == self.crash_at:
            raise CrashError


def test_a_forked_training_is_watched_and_resumed_as_any_other(late, tmp_path):
    other, prefixes = replace(late, OTHERS[0]), tmp_path / "prefixes"
    train(late, tmp_path / "first", progress=False, prefixes=prefixes)
    train(other, tmp_path / "alone", progress=False)
    cut = Watcher(crash_at=4)
    with pytest.raises(CrashError):
        train(other, tmp_path / "forked", progress=False, observer=cut, prefixes=prefixes)
    rest = Watcher()
    train(other, tmp_path / "forked", progress=False, resume=True, observer=rest, prefixes=prefixes)
    assert content(tmp_path / "forked") == content(tmp_path / "alone")
    metrics = {
        row["step"]: row["values"]
        for row in RunFolder(tmp_path / "alone").metrics()
        if row["kind"] == "val"
    }
    assert cut.told + rest.told == [(4, metrics[4]), (6, metrics[6])]


def test_what_a_crash_left_before_the_first_checkpoint_is_begun_anew(late, tmp_path):
    prefixes = tmp_path / "prefixes"
    train(late, tmp_path / "first", progress=False, prefixes=prefixes)
    (snapshot,) = prefixes.iterdir()
    shutil.copytree(snapshot, tmp_path / "cut", ignore=shutil.ignore_patterns("checkpoints"))
    train(late, tmp_path / "cut", progress=False, resume=True, prefixes=prefixes)
    assert content(tmp_path / "cut") == content(tmp_path / "first")
    assert RunFolder(tmp_path / "cut").provenance()["forked_at"] == prefix_step(late.resolved())


def test_a_damaged_snapshot_and_one_of_other_data_are_passed_over(late, tmp_path, data_root):
    prefixes = tmp_path / "prefixes"
    train(late, tmp_path / "first", progress=False, prefixes=prefixes)
    (snapshot,) = prefixes.iterdir()
    shutil.copytree(data_root, tmp_path / "data")
    names = [f"image{i:02}" for i in reversed(range(12))]
    (tmp_path / "data/ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    train(
        replace(late, {"data.root": str(tmp_path / "data")}),
        tmp_path / "moved",
        progress=False,
        prefixes=prefixes,
    )
    assert "forked_at" not in RunFolder(tmp_path / "moved").provenance()
    assert len(list(prefixes.iterdir())) == 2
    (tensors,) = snapshot.glob("checkpoints/*/*.safetensors")
    tensors.write_bytes(b"damaged")
    train(late, tmp_path / "again", progress=False, prefixes=prefixes)
    assert "forked_at" not in RunFolder(tmp_path / "again").provenance()
    assert content(tmp_path / "again") == content(tmp_path / "first")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        shutil.Error(
            [("a", "b", f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: 'a' -> 'b'")]
        ),
    ],
    ids=["a write", "a copy"],
)
def test_a_full_disk_of_the_snapshots_is_told_from_that_of_the_run(
    late, tmp_path, monkeypatch, error
):
    def save(*_):
        raise error

    monkeypatch.setattr(fork.checkpoint, "save", save)
    (tmp_path / "run").mkdir()
    snapshots = Snapshots(tmp_path / "shared", late.resolved(), dict.fromkeys(fork._CONDITIONS))
    with pytest.raises(OSError, match=r"No space left|quota exceeded") as raised:
        snapshots.store_snapshot(
            RunFolder(tmp_path / "run"), Mock(spec=Method), Mock(spec=torch.optim.Optimizer), {}
        )
    # The file name is text, as in errors of the system.
    assert os.path.dirname(raised.value.filename) == str(tmp_path / "shared")  # noqa: PTH120
    assert not list((tmp_path / "shared").iterdir())


def test_trainings_share_a_prefix_only_as_far_as_they_are_the_same(config):
    def of(**changes):
        changed = replace(
            config, {path.replace("__", "."): value for path, value in changes.items()}
        ).resolved()
        return prefix_step(changed), prefix_digest(changed, 2)

    base = of()
    assert base[0] == 2
    same = (
        ("method__segmentation__weight", 0.0),
        ("method__energy__start_step", 9),
        ("keep_checkpoints", 1),
    )
    assert [of(**{path: value}) for path, value in same] == [base] * 3
    different = (
        ("seed", 1),
        ("num_steps", 7),  # the rate decays towards the last step
        ("method__temperature", 0.3),
        ("method__par__iterations", 3),  # pictures show pseudo labels
        ("evaluate__cam_flip", True),
        ("evaluate__num_pictures", 2),
        ("log_every", 2),
        ("compile", True),  # a compiled step rounds otherwise
    )
    for path, value in different:
        assert of(**{path: value}) != base, path
    assert of(method__segmentation__start_step=0)[0] is None
    assert of(method__segmentation__start_step=1)[1] != base[1]
    assert of(method__segmentation__start_step=6, method__energy__start_step=6)[0] is None
    assert of(method__segmentation__start_step=0, method__segmentation__weight=0.0)[0] == 2


@pytest.mark.parametrize("key", fork._CONDITIONS)
def test_a_snapshot_fits_only_under_equal_conditions(late, tmp_path, key):
    def path(**changes):
        equal = dict.fromkeys(fork._CONDITIONS, "equal")
        return Snapshots(tmp_path, late.resolved(), {**equal, "commit": "a", **changes})._path

    assert path(commit="b", command=["c"]) == path()
    assert path(**{key: "other"}) != path()


def test_the_observer_gets_no_evaluation_before_the_snapshot(config, tmp_path):
    start = {"method.segmentation.start_step": 4, "method.energy.start_step": 4}
    often = replace(config, {**start, "evaluate_every": 2})
    first, second = Watcher(), Watcher()
    for name, watcher in (("first", first), ("second", second)):
        train(often, tmp_path / name, progress=False, observer=watcher, prefixes=tmp_path / "all")
    assert [step for step, _ in first.told] == [2, 4, 6]
    assert second.told == first.told[1:]
    rows = [row["step"] for row in RunFolder(tmp_path / "second").metrics() if row["kind"] == "val"]
    assert rows == [2, 4, 6]
