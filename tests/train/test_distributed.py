"""Two ranks on a CPU, which find each other through gloo."""

import json
import multiprocessing
import os
import sys
from multiprocessing.context import SpawnProcess
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
import torch
from safetensors.torch import load_file

from toco.config import replace
from toco.data import shapes
from toco.data.loading.loader import TrainLoader
from toco.train import checkpoint, distributed, loop, ranks
from toco.train import step as training_step
from toco.train.averages import DivergedError
from toco.train.distributed import Place, RankError, check_shares
from toco.train.loop import train
from toco.train.parts import build_method
from toco.train.ranks import train_on_ranks
from toco.train.run_folder import RunFolder
from toco.types import Shard

TIME = "train/step_time_s"
# A batch norm follows, so its gradient is 0 but for rounding, which AdamW enlarges.
WITHOUT_EFFECT = "rca_parts.embedding.layers.0.bias"


def values(run_dir):
    """Step, kind and numbers of every row, without times."""
    return [
        (
            row["step"],
            row["kind"],
            {name: value for name, value in row["values"].items() if name != TIME},
        )
        for row in RunFolder(run_dir).metrics()
    ]


def assert_same_rows(left, right):
    left, right = values(left), values(right)
    assert [row[:2] for row in left] == [row[:2] for row in right]
    for (step, kind, ours), (_, _, theirs) in zip(left, right, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            # Counted pixels: one on the edge of a class may fall to the other side of it.
            bound = pytest.approx(theirs[name], rel=1e-4, abs=2e-4 if kind == "val" else 1e-6)
            assert ours[name] == bound, (step, kind, name)


def assert_same_tensors(left, right, step):
    left, right = (
        load_file(run_dir / "checkpoints" / checkpoint.folder_name(step) / checkpoint.TENSORS)
        for run_dir in (left, right)
    )
    assert left.keys() == right.keys()
    moments = {name.split("/")[1] for name in left if name.startswith("optimizer/")} - {"step"}
    assert moments in ({"exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
    for part in ("model/", *(f"optimizer/{moment}/" for moment in moments)):
        names = [
            name for name in left if name.startswith(part) and not name.endswith(WITHOUT_EFFECT)
        ]
        ours, theirs = (
            torch.cat([state[name].double().flatten() for name in names]) for state in (left, right)
        )
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm(), part
        for name in names:
            # Of one rank alone they would be other ones altogether; those of the biases of keys are
            # 0 but for rounding.
            bound = 1e-2 * right[name].double().norm() + 1e-9
            assert (left[name].double() - right[name].double()).norm() <= bound, name
    assert all(
        torch.equal(left[name], right[name]) for name in left if name.startswith("optimizer/step/")
    )


class Told:
    """Remembers what it was told, and whether the checkpoint was whole by then."""

    def __init__(self):
        self.evaluations = []

    def on_evaluation(self, step, metrics, path):
        self.evaluations.append((step, sorted(metrics), checkpoint.read(path).step, os.getpid()))


@pytest.fixture(scope="module")
def config(tiny_config):
    # Paths are dropped for the same images by any number of ranks.
    return replace(tiny_config, {"backbone.drop_path": 0.3})


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "alone"
    train(config, run_dir, progress=False)
    return run_dir


@pytest.fixture
def forked_ranks(monkeypatch):
    """Ranks are forks of the server that has imported what they need, see tests/conftest.py."""
    server = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(
        ranks, "multiprocessing", SimpleNamespace(get_context=lambda method: server)
    )


@pytest.mark.slow
def test_two_ranks_compute_what_one_process_does(config, alone, tmp_path):
    told = Told()
    result = train_on_ranks(
        2, train, config, tmp_path / "two", observer=told, recipe="test", progress=False
    )
    assert (result.status, result.step) == ("finished", 6)
    assert_same_rows(tmp_path / "two", alone)
    for step in (2, 4, 6):
        assert_same_tensors(tmp_path / "two", alone, step)
    folder, single = RunFolder(tmp_path / "two"), RunFolder(alone)
    assert result.metrics == folder.result()["metrics"]
    assert folder.digest() == single.digest()
    assert (folder.provenance()["world_size"], single.provenance()["world_size"]) == (2, 1)
    assert [(step, whole, pid) for step, _, whole, pid in told.evaluations] == [
        (s, s, os.getpid()) for s in (2, 4, 6)
    ]
    assert told.evaluations[-1][1] == sorted(result.metrics)


@pytest.mark.slow
def test_two_ranks_with_sgd_skip_the_same_parameters_as_one_process(config, tmp_path):
    sgd = replace(config, {"optim.name": "sgd", "shuffle": False})
    train(sgd, tmp_path / "alone", progress=False)
    train_on_ranks(2, train, sgd, tmp_path / "two", progress=False)
    assert_same_rows(tmp_path / "two", tmp_path / "alone")
    # The decoder has no gradient, and so no momentum, before step 2.
    for step in (2, 4, 6):
        assert_same_tensors(tmp_path / "two", tmp_path / "alone", step)


REGIONS = {
    "method.aux_block": 1,
    "method.cam_scales": [1.0],
    "method.decoder_width": 8,
    "method.region_contrast": {"weight": 0.5, "start_step": 2, "embedding": "points"},
    "method.region_memory": {"slots": 4, "momentum": 0.5, "threshold": 0.2},
    "method.aggregation": {"kind": "softmax", "centroids": 2, "every": 3, "num_starts": 2},
}
MEMORIES = {
    "toco": REGIONS,
    "rca": {
        "method.name": "rca",
        "method.loss_group_size": 2,
        **REGIONS,
        "method.segmentation": {"weight": 0.1, "start_step": 2},
    },
    "rca with convolutions": {
        "method.name": "rca",
        "method.loss_group_size": 2,
        **REGIONS,
        "method.class_maps": "convs",
        "method.region_contrast": {
            "weight": 0.5,
            "start_step": 1,
            "partner": "any",
            "embedding": "convs",
        },
        "method.region_memory": {
            "slots": 4,
            "momentum": 0.5,
            "threshold": 0.2,
            "start": "noise",
            "own_masks": False,
        },
        "method.aggregation": {"kind": "linear", "centroids": 2, "every": 2, "num_starts": 2},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_two_ranks_fill_and_cluster_the_memory_of_one_process(config, tmp_path, forked_ranks, name):
    scenes = {"data.name": "shapes", "data.num_train": 12, "data.num_val": 4}
    config = replace(
        config,
        {
            **scenes,
            "data.image_size_px": 32,
            "data.num_classes": 3,
            "data.root": str(tmp_path / "data"),
            **MEMORIES[name],
        },
    )
    # The images of the two ranks differ in their largest number of classes.
    dataset = shapes.open_split(config.data, "train")
    numbers = [
        [
            batch.present.shape[1]
            for batch in TrainLoader(
                dataset, config.views, 4, config.seed, shard=Shard(rank, 2)
            ).batches(0, 6)
        ]
        for rank in (0, 1)
    ]
    assert numbers[0] != numbers[1]
    train(config, tmp_path / "one", progress=False)
    train_on_ranks(2, train, config, tmp_path / "two", progress=False)
    assert_same_rows(tmp_path / "two", tmp_path / "one")
    for step in (2, 4, 6):
        assert_same_tensors(tmp_path / "two", tmp_path / "one", step)
        one, two = (
            load_file(
                tmp_path / run / "checkpoints" / checkpoint.folder_name(step) / checkpoint.TENSORS
            )
            for run in ("one", "two")
        )
        for buffer in ("pointer", "filled", "is_clustered"):
            key = f"model/rca_parts.memory.{buffer}"
            assert torch.equal(one[key], two[key]), key
        for buffer in ("slots", "centroids"):
            key = f"model/rca_parts.memory.{buffer}"
            torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5, msg=key)
    assert one["model/rca_parts.memory.filled"].min() > 0
    assert one["model/rca_parts.memory.is_clustered"].all()


@pytest.mark.slow
def test_a_run_is_resumed_by_another_number_of_ranks(config, alone, tmp_path, forked_ranks):
    class Crash:
        def on_evaluation(self, step, metrics, path):
            raise OSError("the disk is gone")

    for first, second in ((1, 2), (2, 1)):
        run_dir = tmp_path / str(first)
        with pytest.raises(OSError, match="the disk is gone"):
            start(first, config, run_dir, observer=Crash())
        start(second, config, run_dir, resume=True)
        assert_same_rows(run_dir, alone)
        assert_same_tensors(run_dir, alone, 6)


def start(world_size, config, run_dir, **options):
    if world_size == 1:
        return train(config, run_dir, progress=False, **options)
    return train_on_ranks(world_size, train, config, run_dir, progress=False, **options)


def failing(config, run_dir, *, observer=None, **options):
    """A training in which the second rank fails after a while."""
    if torch.distributed.get_rank() == 1:
        real, number = training_step.set_lr, []

        def set_lr(*arguments):
            number.append(None)
            if len(number) == 3:
                raise FAILURES[config.seed]()
            real(*arguments)

        training_step.set_lr = set_lr
    return train(config, run_dir, observer=observer, **options)


class UnreadableError(Exception):
    """Cannot be read back from a pickle: it needs two arguments."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


FAILURES = (
    lambda: ValueError("image7.png cannot be decoded."),
    lambda: os.kill(os.getpid(), 9),
    lambda: UnreadableError("the rack", "burns"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (0, ValueError, r"^image7.png cannot be decoded\.\nOn rank 1:\n"),
        (1, RankError, r"^Rank 1 of 2 was killed, exit code -9\.$"),
        (2, RuntimeError, r"^UnreadableError: the rack: burns\nOn rank 1:\n"),
    ],
)
def test_a_rank_that_fails_ends_all_with_what_it_says(
    config, tmp_path, forked_ranks, seed, error, message
):
    with pytest.raises(error, match=message):
        train_on_ranks(
            2, failing, replace(config, {"seed": seed}), tmp_path / "run", progress=False
        )
    (server,) = (
        child
        for child in psutil.Process().children()
        if "multiprocessing.forkserver" in str(child.cmdline())
    )
    assert server.children() == []
    with RunFolder(tmp_path / "run").locked():
        assert checkpoint.latest(tmp_path / "run" / "checkpoints").step == 2


def diverging(config, run_dir, **options):
    """A training in which one rank alone has a loss that is not a number."""
    from toco.methods import _toco

    if torch.distributed.get_rank() == 1:
        real, calls = _toco.patch_token_contrast_loss, []

        def broken(features, pairs):
            calls.append(None)
            return real(features, pairs) * (float("nan") if len(calls) > 3 else 1.0)

        _toco.patch_token_contrast_loss = broken
    return train(config, run_dir, **options)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_the_end_of_the_run(
    config, tmp_path, forked_ranks
):
    with pytest.raises(DivergedError, match="At step 3, ptc is nan and gradient_norm is nan"):
        train_on_ranks(2, diverging, config, tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").result()["status"] == "diverged"


def remembering(config, run_dir, **options):
    """A training whose method remembers the means of its batches: of all ranks, or at first of its
    own.
    """
    real = loop.build_method

    def build_method(*arguments):
        method = real(*arguments)
        method.register_buffer("counted", torch.zeros((), dtype=torch.int64))
        method.register_buffer("memory", torch.zeros(3))
        method.register_buffer("scratch", torch.zeros(3), persistent=False)
        losses = method.training_losses

        def training_losses(batch, step, generator):
            own = batch.images.mean(dim=(0, 2, 3))
            method.counted += 1
            method.scratch.copy_(own)
            alone = config.seed == OWN_SHARE and step == 0
            method.memory.lerp_(own if alone else distributed.mean(own), 0.5)
            return losses(batch, step, generator)

        method.training_losses = training_losses
        return method

    loop.build_method = build_method
    return train(config, run_dir, **options)


ALL_RANKS, OWN_SHARE = 0, 1


@pytest.mark.slow
def test_ranks_whose_buffers_differ_are_refused_before_a_checkpoint(config, tmp_path, forked_ranks):
    config = replace(config, {"num_steps": 3, "evaluate_every": 3})
    train_on_ranks(
        2, remembering, replace(config, {"seed": ALL_RANKS}), tmp_path / "all", progress=False
    )
    saved = load_file(
        tmp_path / "all" / "checkpoints" / checkpoint.folder_name(3) / checkpoint.TENSORS
    )
    assert saved["model/counted"] == 3
    assert saved["model/memory"].count_nonzero() == 3
    with pytest.raises(
        ValueError,
        match=r"^Buffer memory of rank 1 differs from that of rank 0\. .* values of all ranks",
    ):
        train_on_ranks(
            2, remembering, replace(config, {"seed": OWN_SHARE}), tmp_path / "own", progress=False
        )
    assert checkpoint.all_in(tmp_path / "own" / "checkpoints") == []
    assert RunFolder(tmp_path / "own").metrics()[-1]["kind"] == "train"


def checksum(buffer):
    return distributed._checksum(buffer, distributed._byte_weights(buffer.device)).item()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
def test_a_checksum_tells_values_and_their_places(dtype):
    """Of a buffer that is read in many parts."""
    numbers = 9 * torch.randn(500, 300, generator=torch.Generator().manual_seed(0))
    memory = numbers.clamp_min(0).to(dtype)
    others = [
        memory.roll(1, 0),
        memory[[1, 0, *range(2, 500)]],
        memory.flip(1),
        torch.cat([memory[:1].logical_not().to(dtype), memory[1:]]),
        torch.cat([memory[:-1], memory[-1:].logical_not().to(dtype)]),
    ]
    assert len({checksum(buffer) for buffer in (memory, *others)}) == 1 + len(others)
    assert checksum(memory.clone()) == checksum(memory) == checksum(memory.t().contiguous().t())


def test_a_checksum_of_one_number_is_that_of_its_bytes():
    weights = distributed._byte_weights(torch.device("cpu"))
    assert checksum(torch.tensor(True)) == weights[0]
    assert checksum(torch.tensor(-1, dtype=torch.int16)) == 255 * (weights[0] + weights[1])
    assert checksum(torch.zeros(0)) == 0


def test_one_process_checks_no_buffers(config):
    method = build_method(config, 2)
    method.register_buffer("memory", torch.zeros(3))
    distributed.check_buffers(method)


@pytest.mark.slow
def test_torchrun_trains_one_run_and_a_signal_stops_all_ranks_at_one_step(long_training, tmp_path):
    run_dir = tmp_path / "run"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    process = long_training(run_dir, *launcher)
    # As a scheduler does; torchrun passes it on.
    process.terminate()
    output, _ = process.communicate(timeout=600)
    result = RunFolder(run_dir).result()
    assert result["status"] == "stopped", output
    assert checkpoint.latest(run_dir / "checkpoints").step == result["step"]
    assert output.count(f"stopped after step {result['step']}") == 1
    assert json.loads((run_dir / "provenance.json").read_text())["world_size"] == 2


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        (
            {},
            4,
            "batch_size 4, the images of all 4 ranks together, is not a multiple of 4 ranks x "
            ".*size 2",
        ),
        ({"method.loss_group_size": None}, 2, "loss_group_size is null"),
        ({"batch_size": 6}, 2, "batch_size 6"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(config, changes, world_size, message):
    with pytest.raises(ValueError, match=message):
        check_shares(replace(config, changes), world_size)
    check_shares(replace(config, changes), 1)


def test_half_of_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        ValueError, match="LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"
    ):
        Place.of_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Place.of_torchrun() is None


def test_a_rank_that_is_killed_before_it_reads_an_answer_was_killed():
    ours, theirs = multiprocessing.Pipe()
    ours.send(None)
    theirs.close()
    process = Mock(spec=SpawnProcess, exitcode=-9)
    process.name = "Rank 0 of 1"
    with ours, pytest.raises(RankError, match=r"^Rank 0 of 1 was killed, exit code -9\.$"):
        ranks._receive_results({ours: process}, None)
