import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from toco.data import ColourConfig, Dataset, ViewsConfig
from toco.data.loading import loader_processes as _loader_processes
from toco.data.loading.loader import TrainLoader, epoch_order, sample_generator
from toco.data.loading.loader_processes import LoaderError, _Packed, _receive, _send
from toco.data.views import views as views_module
from toco.data.views.normalise import denormalise_255
from toco.data.views.raw_batch import RawBatch
from toco.data.voc import Config, open_split
from toco.tensors import Batch
from toco.types import ExtraView, Shard

VIEWS = ViewsConfig(crop_size_px=32)
STILL = ColourConfig(jitter_probability=0, grey_probability=0, blur_probability=0)


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return open_split(Config(root=folder, train_list="train"), "train")


def batches(
    dataset: Dataset,
    start: int,
    num: int,
    seed: int = 3,
    num_workers: int = 0,
    views: ViewsConfig = VIEWS,
) -> list[Batch]:
    loader = TrainLoader(dataset, views, batch_size=2, seed=seed, num_workers=num_workers)
    return [batch.to("cpu") for batch in loader.batches(start, num)]


def assert_same(left: Sequence[Batch], right: Sequence[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.names == b.names
        for name in (
            "images",
            "second_view",
            "crop_source",
            "class_labels",
            "valid_box",
            "present",
        ):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)


def test_batch(dataset: Dataset) -> None:
    (batch,) = batches(dataset, 0, 1)
    assert (
        batch.images.shape == batch.second_view.shape == batch.crop_source.shape == (2, 3, 32, 32)
    )
    assert batch.images.dtype == batch.class_labels.dtype == torch.float32
    assert batch.valid_box.dtype == torch.int64
    for name, label in zip(batch.names, batch.class_labels, strict=True):
        assert label.tolist() == dataset.class_labels(dataset.names.index(name)).tolist()


@pytest.mark.parametrize("extra_views", [(), ("second_view",), ("crop_source",)], ids=str)
def test_views_that_a_method_does_not_use_are_not_made_and_change_no_other(
    dataset: Dataset, extra_views: tuple[ExtraView, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = batches(dataset, 0, 1)
    made: list[str] = []
    for name in ("_planes", "resized_crop", "draw_colour"):
        function = getattr(views_module, name)
        monkeypatch.setattr(
            views_module, name, lambda *a, n=name, f=function: made.append(n) or f(*a)
        )
    (raw,) = TrainLoader(dataset, VIEWS, batch_size=2, seed=3, extra_views=extra_views).batches(
        0, 1
    )
    has_second = "second_view" in extra_views
    # Of each of the two images.
    assert made.count("_planes") == 2 * (1 + len(extra_views))
    assert made.count("resized_crop") == 2 * has_second
    assert made.count("draw_colour") == 2 * (1 + has_second)
    assert len(raw.colours.hue_step) == 2 * (1 + has_second)
    assert raw.views.nbytes == (1 + len(extra_views)) * 2 * 3 * 32 * 32
    batch = raw.to("cpu")
    for name in ("images", "second_view", "crop_source"):
        if name == "images" or name in extra_views:
            assert torch.equal(getattr(batch, name), getattr(whole, name)), name
        else:
            assert getattr(batch, name) is None, name


def test_pixels_of_a_batch_are_the_images(dataset: Dataset) -> None:
    views = ViewsConfig(
        crop_size_px=48, rescale=(1, 1), flip_probability=0, first_view=STILL, second_view=STILL
    )
    (batch,) = batches(dataset, 0, 1, views=views)
    y0, y1, x0, x1 = batch.valid_box[0].tolist()
    assert (y1 - y0, x1 - x0) == (40, 48)
    pixels = denormalise_255(batch.images, truncate=False)[0, :, y0:y1, x0:x1].permute(1, 2, 0)
    image = dataset.image(dataset.names.index(batch.names[0]))
    np.testing.assert_allclose(pixels.numpy(), image, atol=1e-3)


def test_an_epoch_shows_every_image_once_and_epochs_differ(dataset: Dataset) -> None:
    assert TrainLoader(dataset, VIEWS, batch_size=2, seed=3).steps_per_epoch == 2
    names = [name for batch in batches(dataset, 0, 8) for name in batch.names]
    epochs = [tuple(names[i : i + 4]) for i in range(0, 16, 4)]
    assert all(len(set(epoch)) == 4 for epoch in epochs)
    assert len(set(epochs)) > 1


def test_without_shuffling_every_epoch_has_the_order_of_the_data_set(dataset: Dataset) -> None:
    assert len(dataset) == 5

    def names(loader: TrainLoader, start: int, number: int) -> list[tuple[str, ...]]:
        return [batch.names for batch in loader.batches(start, number)]

    loader = TrainLoader(dataset, VIEWS, batch_size=2, seed=3, shuffle=False)
    assert loader.steps_per_epoch == 2
    epoch = [tuple(dataset.names[:2]), tuple(dataset.names[2:4])]
    # The fifth image fills no batch, and is seen in no epoch.
    assert names(loader, 0, 6) == epoch * 3
    assert names(loader, 3, 3) == [*epoch, *epoch][1:]
    other_seed = TrainLoader(dataset, VIEWS, batch_size=2, seed=4, shuffle=False)
    assert names(other_seed, 0, 2) == epoch
    shards = [
        TrainLoader(dataset, VIEWS, 4, seed=3, shard=Shard(rank, 2), shuffle=False)
        for rank in range(2)
    ]
    assert [names(shard, 2, 1) for shard in shards] == [[part] for part in epoch]


def test_views_still_change_from_epoch_to_epoch_without_shuffling(dataset: Dataset) -> None:
    loader = TrainLoader(dataset, VIEWS, batch_size=2, seed=3, shuffle=False)
    first, _, second, _ = loader.batches(0, 4)
    assert first.names == second.names
    assert not torch.equal(first.views, second.views)
    # An image has the views of the shuffled training of this seed and epoch.
    shuffled = TrainLoader(dataset, VIEWS, batch_size=2, seed=3).batches(0, 2)
    same = {name: (raw, index) for raw in shuffled for index, name in enumerate(raw.names)}
    found = [name for name in first.names if name in same]
    assert found
    for name in found:
        raw, index = same[name]
        assert torch.equal(raw.views[:, index], first.views[:, first.names.index(name)])


def test_views_of_an_image_change_with_epoch_and_seed(dataset: Dataset) -> None:
    def views_of(seed: int) -> list[torch.Tensor]:
        return [
            b.images[b.names.index("a1")] for b in batches(dataset, 0, 16, seed) if "a1" in b.names
        ]

    first, second, *_ = views_of(3)
    other, *_ = views_of(4)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_resumed_batches_are_the_uninterrupted_ones(dataset: Dataset) -> None:
    whole = batches(dataset, 0, 7)
    assert_same(whole[3:], batches(dataset, 3, 4))


@pytest.mark.slow
def test_loader_processes_give_the_same_batches_and_draw_no_global_random_numbers(
    dataset: Dataset,
) -> None:
    state = torch.get_rng_state()
    with_processes = batches(dataset, 1, 5, num_workers=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(batches(dataset, 1, 5), with_processes)


@pytest.mark.slow
def test_fault_in_a_loader_process_names_the_file(dataset: Dataset, folder: Path) -> None:
    for path in (folder / "JPEGImages").iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated or damaged") as here:
        batches(dataset, 0, 1)
    with pytest.raises(ValueError, match="truncated or damaged") as raised:
        batches(dataset, 0, 1, num_workers=1)
    assert (type(raised.value), str(raised.value)) == (type(here.value), str(here.value))
    assert raised.tb is not None, "which keeps all frames alive"
    assert not multiprocessing.active_children()


class Bad(Dataset):
    """Images of which the second batch's do harm to the process that reads them."""

    class_names = ("disc",)
    names = tuple("abcd")

    def __init__(self, harm: str) -> None:
        self.harm = harm

    def image(self, index: int) -> np.ndarray:
        first = epoch_order(4, 0, 0)[:2]
        if index not in first:
            HARMS[self.harm]()
        return np.zeros((40, 40, 3), dtype=np.uint8)

    def class_labels(self, index: int) -> np.ndarray:
        return np.ones(1, dtype=np.float32)

    def mask(self, index: int) -> np.ndarray:
        raise LookupError

    def manifest_digest(self) -> str:
        return ""


class TwoPartError(Exception):
    """Cannot be read back from a pickle."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def time_out() -> None:
    raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", "im00.jpg")


def fail() -> None:
    raise TwoPartError("the rack", "burns")


HARMS = {harm.__name__: harm for harm in (kill, hang, time_out, fail)}


def harmed(
    harm: str,
    stop: threading.Event | None = None,
    shard: Shard = Shard(),
    patience_s: float = 600.0,
) -> list[RawBatch]:
    loader = TrainLoader(
        Bad(harm), VIEWS, 2, seed=0, num_workers=1, patience_s=patience_s, shard=shard
    )
    got = []
    for batch in loader.batches(0, 3, stop):
        got.append(batch)
        if stop is not None:
            stop.set()
    return got


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "error", "sentence"),
    [
        (
            "kill",
            LoaderError,
            r"^A loader process was killed by signal 9 while it made a batch; usually the memory",
        ),
        (
            "hang",
            LoaderError,
            r"^A loader process has delivered no batch for 10 s\. Check that the disk",
        ),
        ("time_out", TimeoutError, r"Connection timed out: 'im00.jpg'"),
        ("fail", RuntimeError, r"^TwoPartError: the rack: burns\nIn a loader process:\n"),
    ],
)
def test_what_goes_wrong_in_a_loader_process_is_an_error_here(
    harm: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as raised:
        # Starting the process takes some seconds, too.
        harmed(harm, patience_s=10.0 if harm == "hang" else 600.0)
    assert "\n" not in str(raised.value)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_wait_for_a_batch_ends_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(harmed("hang", threading.Event())) == 1
    assert not multiprocessing.active_children()
    # Others that share the batches do not know of it, and go on to the next one.
    monkeypatch.setattr(_loader_processes, "_GRACE_S", 1.0)
    with pytest.raises(LoaderError, match="delivered no batch within 1 s after a signal"):
        harmed("hang", threading.Event(), Shard(0, 2))


def test_a_batch_travels_without_a_copy_on_the_way_and_without_shared_memory_of_torch(
    dataset: Dataset,
) -> None:
    (batch,) = TrainLoader(dataset, VIEWS, batch_size=2, seed=3).batches(0, 1)
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        # The next request is on its way already.
        ours.send("request")
        packed = _Packed.of(batch)
        assert packed.size >= batch.views.nbytes
        assert len(packed.head) < 5000
        _send(theirs, packed)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(packed.file)
        received = _receive(ours)
        assert theirs.recv() == "request"
    assert isinstance(received, RawBatch)
    assert not received.views.is_shared()
    assert received.views.data_ptr() % 64 == 0
    assert received.names == batch.names
    assert torch.equal(received.views, batch.views)
    assert torch.equal(received.colours.blends, batch.colours.blends)
    assert_same([received.to("cpu")], [batch.to("cpu")])


def test_more_files_than_this_process_may_have_are_an_error_of_the_system(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch,) = TrainLoader(dataset, VIEWS, batch_size=2, seed=3).batches(0, 1)
    ours, theirs = multiprocessing.Pipe()
    # The system cuts off the descriptors that a process cannot have.
    left_behind = (b"F", [], socket.MSG_CTRUNC, None)
    monkeypatch.setattr(_loader_processes.socket, "recv_fds", lambda *_: left_behind)
    with ours, theirs:
        _send(theirs, _Packed.of(batch))
        with pytest.raises(OSError, match="Too many open files"):
            _receive(ours)


@pytest.mark.slow
def test_python_exits_while_loader_processes_are_at_work(folder: Path, tmp_path: Path) -> None:
    # They block SIGTERM, by which Python would end them before it waits for them.
    script = tmp_path / "script.py"
    script.write_text(f"""
from pathlib import Path
from toco.data import ViewsConfig
from toco.data.loading.loader import TrainLoader
from toco.data.voc import Config, open_split

if __name__ == "__main__":
    dataset = open_split(Config(root=Path({str(folder)!r}), train_list="train"), "train")
    loader = TrainLoader(dataset, ViewsConfig(crop_size_px=32), 2, seed=0, num_workers=1)
    kept = loader.batches(0, 1000)
    print(next(kept).views.shape[0])
""")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout.split()) == (0, ["3"]), done.stderr


def test_without_processes_no_multiprocessing_is_used(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("toco.data.loading.loader.LoaderProcesses", refuse)
    assert len(batches(dataset, 0, 2)) == 2


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_travels_is_whole_levels(dataset: Dataset, num_workers: int) -> None:
    (raw,) = TrainLoader(dataset, VIEWS, batch_size=2, seed=3, num_workers=num_workers).batches(
        0, 1
    )
    batch = raw.to("cpu")
    assert raw.views.dtype == torch.uint8
    pixels = [batch.images, batch.second_view, batch.crop_source]
    assert 4 * raw.views.nbytes == sum(view.nbytes for view in pixels)
    assert torch.equal(
        denormalise_255(batch.crop_source, truncate=False).round().to(torch.uint8), raw.views[2]
    )


def test_pinning_reaches_every_tensor(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # Page-locked memory needs a GPU; which tensors ask for it does not.
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    (raw,) = TrainLoader(dataset, VIEWS, batch_size=2, seed=3, pin_memory=True).batches(0, 1)
    colours = [getattr(raw.colours, f.name) for f in fields(raw.colours)]
    expected = [
        *colours,
        *(value for f in fields(raw) if isinstance(value := getattr(raw, f.name), torch.Tensor)),
    ]
    assert len(expected) == 8
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in expected}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_cuda_device_gets_the_same_batches(dataset: Dataset, num_workers: int) -> None:
    loader = TrainLoader(
        dataset, VIEWS, batch_size=2, seed=3, num_workers=num_workers, pin_memory=True
    )
    for raw, expected in zip(loader.batches(0, 3), batches(dataset, 0, 3), strict=True):
        assert raw.views.is_pinned()
        batch = raw.to("cuda")
        for name in ("images", "second_view", "crop_source"):
            levels = [
                denormalise_255(getattr(b, name).cpu(), truncate=False).round()
                for b in (batch, expected)
            ]
            torch.testing.assert_close(*levels, rtol=0, atol=1)
        for name in ("class_labels", "valid_box", "present"):
            assert torch.equal(getattr(batch, name).cpu(), getattr(expected, name))


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_shards_are_the_rows_of_the_global_batch(dataset: Dataset, num_workers: int) -> None:
    def of(shard: Shard) -> list[Batch]:
        loader = TrainLoader(
            dataset, VIEWS, batch_size=4, seed=3, num_workers=num_workers, shard=shard
        )
        assert loader.steps_per_epoch == 1
        return [batch.to("cpu") for batch in loader.batches(1, 3)]

    shards = [of(Shard(rank, 2)) for rank in range(2)]
    for whole, left, right in zip(of(Shard()), *shards, strict=True):
        assert (whole.shard, left.shard, right.shard) == (Shard(), Shard(0, 2), Shard(1, 2))
        assert whole.names == left.names + right.names
        for name in ("images", "second_view", "crop_source", "class_labels", "valid_box"):
            assert torch.equal(
                getattr(whole, name), torch.cat([getattr(left, name), getattr(right, name)])
            )


def test_a_batch_that_cannot_be_shared_equally_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="3 processes can share equally, got 4"):
        TrainLoader(dataset, VIEWS, batch_size=4, seed=0, shard=Shard(0, 3))


def test_generators_of_order_and_samples_are_apart() -> None:
    # A plain SeedSequence([3, 0]) and SeedSequence([3, 0, 0]) are one stream.
    order = np.random.default_rng(np.random.SeedSequence([3, 0])).permutation(100)
    assert not np.array_equal(epoch_order(100, 3, 0), order)
    draws = {
        sample_generator(s, e, i).integers(2**60)
        for s in range(4)
        for e in range(4)
        for i in range(4)
    }
    assert len(draws) == 64


@pytest.mark.parametrize(
    ("batch_size", "seed", "message"), [(6, 0, "5 images"), (0, 0, "5 images"), (2, -1, "seed")]
)
def test_settings_out_of_range_are_refused(
    dataset: Dataset, batch_size: int, seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainLoader(dataset, VIEWS, batch_size, seed)
