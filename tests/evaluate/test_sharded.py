"""Processes that divide an evaluation: as threads here, and once as processes that talk through
gloo.
"""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import fields

import numpy as np
import pytest
import torch

from toco.backbones import vit_nano
from toco.data import voc
from toco.evaluate import EvaluateConfig
from toco.evaluate.evaluator import evaluate
from toco.methods import toco
from toco.types import Shard

SIZES = [(20, 31), (33, 18), (20, 31), (16, 16), (33, 18), (20, 31), (20, 31)]


@pytest.fixture
def in_threads(monkeypatch):
    """Run a function of a shard once for every rank; results, or what was raised, in the order of
    the ranks.
    """

    def run(function, world_size):
        barrier, said = threading.Barrier(world_size, timeout=600), {}
        rank_of = threading.local()

        def all_gather_object(everything, mine):
            said[rank_of.value] = mine
            barrier.wait()
            everything[:] = [deepcopy(said[rank]) for rank in range(world_size)]

        def call(rank):
            rank_of.value = rank
            try:
                return function(Shard(rank, world_size))
            except Exception as error:
                return error

        monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
        with ThreadPoolExecutor(world_size) as threads:
            return list(threads.map(call, range(world_size)))

    return run


def content(evaluation):
    """All that an evaluation holds, by name, as arrays."""
    pictures = {
        f"{picture.name}_{field.name}": np.asarray(getattr(picture, field.name))
        for picture in evaluation.pictures
        for field in fields(picture)
        if field.name != "cams"
    }
    cams = {f"{p.name}_{name}": cam for p in evaluation.pictures for name, cam in p.cams.items()}
    return {
        "json": np.asarray(evaluation.to_json()),
        **evaluation.confusions.arrays(),
        **pictures,
        **cams,
    }


def assert_same(left, right):
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert np.array_equal(left[name], right[name]), name


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize(
    "config",
    [
        EvaluateConfig(size_px=24, batch_size=2, num_pictures=3),
        EvaluateConfig(size_px=None, batch_size=2, num_pictures=3),
        EvaluateConfig(
            size_px=24, batch_size=4, max_images=5, num_pictures=0
        ),  # fewer batches than processes
    ],
)
def test_every_process_gets_what_one_would_have_found(
    method, random_dataset, in_threads, config, world_size
):
    dataset = random_dataset(SIZES)
    whole = evaluate(method, dataset, config, "cpu", step=3)
    methods = [type(method)() for _ in range(world_size)]
    found = in_threads(
        lambda shard: evaluate(methods[shard.rank], dataset, config, "cpu", step=3, shard=shard),
        world_size,
    )
    for evaluation in found:
        assert_same(content(evaluation), content(whole))
    # No image was looked at twice, and no process looked at more batches than its share.
    batches = [len(each.calls) for each in methods]
    assert sum(batches) == len(method.calls)
    assert max(batches) - min(batches) <= 1


def test_a_process_that_fails_does_not_leave_the_others_waiting(method, random_dataset, in_threads):
    dataset = random_dataset(SIZES)
    dataset.masks[3] = np.full((16, 16), 7, np.uint8)
    config = EvaluateConfig(size_px=24, batch_size=1, num_pictures=0)
    methods = [type(method)(), type(method)()]
    first, second = in_threads(
        lambda shard: evaluate(methods[shard.rank], dataset, config, "cpu", shard=shard), 2
    )
    assert isinstance(second, ValueError)
    assert "holds the value 7" in str(second)
    assert isinstance(first, RuntimeError)
    assert str(first).startswith(
        "Process 1 could not evaluate its part of the images: ValueError: The ground truth"
    )


def evaluate_part(rank, world_size, root, folder):
    """What one process does; it writes all that it has found."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if world_size > 1:
        store = torch.distributed.FileStore(str(folder / "store"), world_size)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    torch.manual_seed(0)
    backbone = vit_nano.build(vit_nano.Config(weights=None))
    dataset = voc.open_split(voc.Config(root=root, train_list="train", val_list="train"), "val")
    method = toco.build(toco.Config(aux_block=1), backbone, len(dataset.class_names))
    config = EvaluateConfig(size_px=48, batch_size=3, num_pictures=3)
    evaluation = evaluate(method, dataset, config, "cpu", step=1, shard=Shard(rank, world_size))
    np.savez(folder / f"{rank}of{world_size}.npz", **content(evaluation))
    if world_size > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_over_gloo_find_what_one_finds(data_root, tmp_path):
    context = multiprocessing.get_context("forkserver")
    started = [
        context.Process(target=evaluate_part, args=(rank, of, data_root, tmp_path))
        for rank, of in ((0, 1), (0, 2), (1, 2))
    ]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(600)
        assert [process.exitcode for process in started] == [0, 0, 0]
    finally:
        for process in started:
            process.kill()
    whole, *sharded = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("0of1", "0of2", "1of2"))
    assert sum(name.endswith("_mask") for name in whole) == 3
    for evaluation in sharded:
        assert_same(evaluation, whole)
