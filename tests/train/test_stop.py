"""A training that is asked to stop loses no step, wherever the request meets it."""

import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from toco.config import replace
from toco.evaluate import evaluator
from toco.train import loop
from toco.train.checkpoint import TENSORS, all_in
from toco.train.loop import train
from toco.train.ranks import train_on_ranks
from toco.train.run_folder import RunFolder

NUM_STEPS, EVALUATE_EVERY = 6, 2


@pytest.fixture(scope="module")
def short(config):
    """Two batches an evaluation; the decoder's terms join, and other trainings may fork, at 4."""
    return replace(
        config,
        {
            "evaluate.num_pictures": 1,
            "evaluate.batch_size": 2,
            "evaluate.average_last": 2,
            "method.segmentation.start_step": 4,
            "method.energy.start_step": 4,
            "log_every": 3,
        },
    )


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory):
    """The uninterrupted training."""
    run_dir = tmp_path_factory.mktemp("stop") / "whole"
    train(short, run_dir, progress=False)
    return run_dir


class Moments:
    """Sets the event of the training that runs at given moments: ``("step", 3)`` during the third
    update, ``("evaluation", 4, 0)`` during the first batch of the evaluation after step 4.

    ``steps`` has every update that was computed.
    """

    def __init__(self, monkeypatch):
        self.moments, self.steps, self.stop = [], [], threading.Event()
        self.step, self.batch = 0, 0
        update, score = loop._Run._update, evaluator.Scores.update

        def counted_update(run, batch):
            self.step, self.batch = run.step + 1, 0
            self.steps.append(self.step)
            self.reached("step", self.step)
            update(run, batch)

        def counted_batch(*arguments):
            self.reached("evaluation", self.step, self.batch)
            self.batch += 1
            score(*arguments)

        monkeypatch.setattr(loop._Run, "_update", counted_update)
        monkeypatch.setattr(evaluator.Scores, "update", counted_batch)

    def reached(self, *moment):
        if self.moments and self.moments[0] == moment:
            self.moments.pop(0)
            self.stop.set()

    def train(self, config, run_dir, **options):
        self.stop, self.batch = threading.Event(), 0
        return train(config, run_dir, progress=False, resume=True, stop=self.stop, **options)


@pytest.fixture
def moments(monkeypatch):
    return Moments(monkeypatch)


def content(run_dir):
    """Everything but times, hosts and the origin."""
    folder = RunFolder(run_dir)
    rows = [
        (
            row["kind"],
            row["step"],
            {name: value for name, value in row["values"].items() if "time" not in name},
        )
        for row in folder.metrics()
    ]
    files = {
        str(path.relative_to(run_dir)): path.read_bytes()
        for name in ("evaluations", "pictures")
        for path in (run_dir / name).rglob("*.*")
    }
    result = {name: folder.result()[name] for name in ("status", "step", "metrics", "last_metrics")}
    return rows, files, result


def same_tensors(left, right):
    steps = [[path.name for path in all_in(run_dir / "checkpoints")] for run_dir in (left, right)]
    a, b = (load_file(all_in(run_dir / "checkpoints")[-1] / TENSORS) for run_dir in (left, right))
    names = [name for name in a if name != "averages/train/step_time_s"]
    return (
        steps[0] == steps[1]
        and a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) for name in names)
    )


CASES = {
    "between evaluations": ([("step", 3)], [3]),
    "in the first update": ([("step", 1)], [1]),
    "in the update before an evaluation": ([("step", 4)], [4]),
    "in an evaluation": ([("evaluation", 2, 0)], [2]),
    "in the last batch of an evaluation": ([("evaluation", 2, 1)], [2]),
    "in the last evaluation": ([("evaluation", 6, 0)], [6]),
    "in the same evaluation again and again": (
        [("evaluation", 4, 0), ("evaluation", 4, 0), ("evaluation", 4, 0)],
        [4, 4, 4],
    ),
    "everywhere": (
        [("step", 1), ("evaluation", 2, 0), ("step", 3), ("step", 4), ("evaluation", 6, 0)],
        [1, 2, 3, 4, 6],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_is_lost_and_the_end_is_the_same_to_the_last_bit(
    case, short, whole, moments, tmp_path
):
    moments.moments, stopped_at = [*CASES[case][0]], CASES[case][1]
    run_dir = tmp_path / "run"
    for step in stopped_at:
        result = moments.train(short, run_dir)
        assert (result.status, result.step) == ("stopped", step)
        assert RunFolder(run_dir).result()["status"] == "stopped"
        assert all_in(run_dir / "checkpoints")[-1].name == f"step_{step:08d}"
        torch.manual_seed(999)
    assert moments.train(short, run_dir).status == "finished"
    assert not moments.moments
    assert moments.steps == [1, 2, 3, 4, 5, 6]
    assert content(run_dir) == content(whole)
    assert same_tensors(run_dir, whole)


def test_an_observer_gets_every_evaluation_once(short, moments, tmp_path):
    seen = []

    class Observer:
        def on_evaluation(self, step, metrics, checkpoint):
            rows = RunFolder(checkpoint.parents[1]).metrics()
            assert rows[-1]["step"] == step
            assert rows[-1]["values"] == metrics
            seen.append(step)

    moments.moments = [("evaluation", 2, 0), ("step", 3), ("evaluation", 6, 0)]
    while moments.train(short, tmp_path / "run", observer=Observer()).status != "finished":
        pass
    assert seen == [2, 4, 6]


def test_a_snapshot_for_forks_has_the_evaluation_of_its_step(short, whole, moments, tmp_path):
    prefixes = tmp_path / "prefixes"
    moments.moments = [("evaluation", 4, 0)]
    moments.train(short, tmp_path / "first", prefixes=prefixes)
    assert not [*prefixes.glob("*")]
    moments.train(short, tmp_path / "first", prefixes=prefixes)
    (snapshot,) = prefixes.glob("*-4")
    assert [row["step"] for row in RunFolder(snapshot).metrics() if row["kind"] == "val"] == [2, 4]
    moments.steps = []
    other = replace(short, {"method.segmentation.weight": 0.7})
    moments.train(other, tmp_path / "forked", prefixes=prefixes)
    assert moments.steps == [5, 6]
    train(other, tmp_path / "alone", progress=False)
    assert content(tmp_path / "forked") == content(tmp_path / "alone")
    assert content(tmp_path / "first") == content(whole)


def test_a_training_that_is_asked_before_its_first_step_makes_none(short, moments, tmp_path):
    stop = threading.Event()
    stop.set()
    result = train(short, tmp_path / "run", progress=False, stop=stop)
    assert (result.status, result.step) == ("stopped", 1)
    assert moments.train(short, tmp_path / "run").status == "finished"
    assert moments.steps == [1, 2, 3, 4, 5, 6]


def stop_in_an_evaluation(config, run_dir, *, stop, **options):
    """What a rank does whose parent asks it to stop while it evaluates after step 4."""
    step = 0
    update, score = loop._Run._update, evaluator.Scores.update

    def counted_update(run, batch):
        nonlocal step
        update(run, batch)
        step = run.step

    def waiting(*arguments):
        marker = run_dir.with_suffix(".asked")
        if step == 4 and torch.distributed.get_rank() == 1 and not marker.exists():
            marker.touch()
            assert stop.wait(60)
        score(*arguments)

    loop._Run._update, evaluator.Scores.update = counted_update, waiting
    return train(config, run_dir, stop=stop, **options)


@pytest.mark.slow
def test_ranks_stop_together_in_an_evaluation(short, tmp_path):
    run_dir, stop = tmp_path / "run", threading.Event()
    # Two batches for each rank.
    short = replace(short, {"evaluate.batch_size": 1})

    def ask():
        while not run_dir.with_suffix(".asked").exists():
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=ask, daemon=True).start()
    options = {"progress": False, "resume": True}
    stopped = train_on_ranks(2, stop_in_an_evaluation, short, run_dir, stop=stop, **options)
    assert (stopped.status, stopped.step) == ("stopped", 4)
    assert [row["step"] for row in RunFolder(run_dir).metrics() if row["kind"] == "val"] == [2]
    assert train_on_ranks(2, train, short, run_dir, **options).status == "finished"
    train_on_ranks(2, train, short, tmp_path / "whole", progress=False)
    assert content(run_dir) == content(tmp_path / "whole")
    assert same_tensors(run_dir, tmp_path / "whole")


@pytest.mark.slow
def test_a_reevaluation_that_is_stopped_leaves_nothing(short, whole, tmp_path):
    from toco.train.reevaluate import reevaluate

    stop = threading.Event()
    stop.set()
    other = replace(short, {"evaluate.cam_flip": not short.evaluate.cam_flip})
    with pytest.raises(evaluator.EvaluationStoppedError):
        reevaluate(whole, tmp_path / "again", other, "evaluate", stop=stop)
    assert not [*tmp_path.iterdir()]
