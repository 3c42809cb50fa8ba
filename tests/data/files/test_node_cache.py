import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from toco.data import ViewsConfig
from toco.data.files import file_dataset as files_module
from toco.data.files.file_dataset import FileDataset
from toco.data.loading.loader import TrainLoader
from toco.data.voc import Config, open_split
from toco.files import record_text


@pytest.fixture
def cached(folder: Path, tmp_path: Path) -> Config:
    return Config(root=folder, train_list="train", cache="node", cache_root=tmp_path / "node")


def caches(config: Config) -> list[Path]:
    return sorted(config.cache_root.glob("decoded-*"))


def pixels(dataset: FileDataset) -> list[np.ndarray]:
    return [dataset.image(i) for i in range(len(dataset))]


def assert_decoded(config: Config) -> None:
    """The images are what their files say."""
    for ours, theirs in zip(
        pixels(open_split(config, "train")),
        pixels(open_split(config.model_copy(update={"cache": "none"}), "train")),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(files_module, "read_image", refuse)


def test_every_image_is_decoded_once_and_read_from_the_file(
    cached: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_decoded(cached)
    expected = [image.copy() for image in pixels(open_split(cached, "train"))]
    refuse_to_decode(monkeypatch)
    dataset = open_split(cached, "train")
    for image, known in zip(pixels(dataset), expected, strict=True):
        np.testing.assert_array_equal(image, known)
    with pytest.raises(ValueError, match="read-only"):
        dataset.image(0)[0, 0, 0] = 1
    (folder,) = caches(cached)
    assert (folder / "pixels.bin").stat().st_size == sum(image.nbytes for image in expected)
    assert [path.name for path in cached.cache_root.iterdir() if "unfinished" in path.name] == []


def test_nothing_is_written_before_an_image_is_asked_for(cached: Config) -> None:
    dataset = open_split(cached, "train")
    dataset.manifest_digest()
    dataset.class_labels(0)
    assert not cached.cache_root.exists()
    dataset.prepare()
    assert len(caches(cached)) == 1


def test_a_pickle_holds_no_pixels_and_reads_the_same_file(
    cached: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_split(cached, "train")
    image = dataset.image(0)
    content = pickle.dumps(dataset)
    assert len(content) < image.nbytes
    refuse_to_decode(monkeypatch)
    # As a loader process does.
    np.testing.assert_array_equal(pickle.loads(content).image(0), image)  # noqa: S301


def test_the_other_split_and_a_changed_file_have_a_cache_of_their_own(cached: Config) -> None:
    for split in ("train", "val"):
        open_split(cached, split).prepare()
    assert len(caches(cached)) == 2
    path = cached.root / "JPEGImages/a1.png"
    known = path.stat()
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
    open_split(cached, "train").prepare()
    assert len(caches(cached)) == 3


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("pixels.bin", b"short"),
        ("pixels.bin", None),
        ("index.json", b'{"format_version": 1'),
        ("index.json", b"[]"),
        ("index.json", b"{}"),
        ("index.json", b"\xff\xfe"),
        ("index.json", None),
        ("index.json", b'{"format_version": 1, "manifest": "of others", "bytes": 0, "places": []}'),
        (
            "index.json",
            record_text(
                {"format_version": 2, "manifest": "of others", "bytes": 0, "places": []}
            ).encode(),
        ),
    ],
)
def test_a_damaged_cache_is_said_and_written_again(
    cached: Config, caplog: pytest.LogCaptureFixture, file: str, content: bytes | None
) -> None:
    open_split(cached, "train").prepare()
    (folder,) = caches(cached)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert_decoded(cached)
    assert "they cannot be read" in caplog.text
    assert "is written again" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    caplog.clear()
    assert_decoded(cached)
    assert caplog.text == ""


@pytest.mark.parametrize("is_pickled", [False, True])
def test_a_flipped_bit_of_a_pixel_reaches_nobody_and_the_cache_is_written_again(
    cached: Config, caplog: pytest.LogCaptureFixture, is_pickled: bool
) -> None:
    open_split(cached, "train").prepare()
    (folder,) = caches(cached)
    whole = (folder / "pixels.bin").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (folder / "pixels.bin").write_bytes(flipped)
    dataset = open_split(cached, "train")
    dataset.prepare()
    if is_pickled:
        dataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - what a loader process does
    plain = open_split(cached.model_copy(update={"cache": "none"}), "train")
    for ours, theirs in zip(pixels(dataset), pixels(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "the next training writes the folder again" in caplog.text
    assert_decoded(cached)
    assert (folder / "pixels.bin").read_bytes() == whole


def test_an_index_with_a_changed_number_is_damaged(
    cached: Config, caplog: pytest.LogCaptureFixture
) -> None:
    open_split(cached, "train").prepare()
    (folder,) = caches(cached)
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace("[5760,", "[5761,"))
    assert (folder / "index.json").read_text() != text
    assert_decoded(cached)
    assert (folder / "index.json").read_text() == text


def test_without_room_images_are_decoded(
    cached: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toco.data.files.node_cache._SPARE_BYTES", 2**60)
    assert_decoded(cached)
    assert "are needed" in caplog.text
    assert caches(cached) == []


def test_a_folder_that_cannot_be_made_is_said_and_images_are_decoded(
    cached: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert_decoded(cached.model_copy(update={"cache_root": tmp_path / "file" / "node"}))
    assert "cannot be stored there" in caplog.text


def test_a_write_that_fails_leaves_nothing(
    cached: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "toco.data.files.node_cache.os.pwrite", lambda descriptor, data, start: len(data) - 1
    )
    assert_decoded(cached)
    assert "could not be written whole" in caplog.text
    assert [path.suffix for path in cached.cache_root.iterdir()] == [".lock"]


def test_what_a_killed_writer_left_is_replaced(cached: Config) -> None:
    open_split(cached, "train").prepare()
    (folder,) = caches(cached)
    folder.rename(folder.with_name(f".{folder.name}.unfinished"))
    assert_decoded(cached)
    assert caches(cached) == [folder]
    assert list(cached.cache_root.glob("*unfinished")) == []


def test_a_broken_image_is_left_out_and_refused_when_it_is_asked_for(cached: Config) -> None:
    path = cached.root / "JPEGImages/a2.png"
    path.write_bytes(path.read_bytes()[:2000])
    dataset = open_split(cached, "train")
    dataset.prepare()
    index = json.loads((caches(cached)[0] / "index.json").read_text())
    assert [place[1:3] for place in index["places"]] == [
        [40, 48],
        [0, 0],
        [40, 48],
        [40, 48],
        [40, 48],
    ]
    with pytest.raises(ValueError, match="truncated or damaged"):
        dataset.image(1)
    path.unlink()
    assert dataset.image(4).shape == (40, 48, 3)


def _write(config: Config, barrier: object, written: object) -> None:
    number = 0

    def count(*arguments: object) -> np.ndarray:
        nonlocal number
        number += 1
        return original(*arguments)

    original, files_module.read_image = files_module.read_image, count
    dataset = open_split(config, "train")
    barrier.wait()
    dataset.prepare()
    written.put((number, dataset.image(4).tobytes()))


@pytest.mark.slow
def test_of_processes_that_start_at_once_one_decodes(cached: Config) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier, written = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_write, args=(cached, barrier, written)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [written.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(number for number, _ in results) == [0, 0, 5]
    assert len({content for _, content in results}) == 1
    assert_decoded(cached)


@pytest.mark.slow
def test_loader_processes_read_what_the_training_process_wrote(cached: Config) -> None:
    dataset = open_split(cached, "train")
    loader = TrainLoader(dataset, ViewsConfig(crop_size_px=32), batch_size=2, seed=0, num_workers=2)
    with_cache = [batch.views for batch in loader.batches(0, 3)]
    assert len(caches(cached)) == 1
    plain = open_split(cached.model_copy(update={"cache": "none"}), "train")
    without = TrainLoader(plain, ViewsConfig(crop_size_px=32), batch_size=2, seed=0).batches(0, 3)
    for ours, theirs in zip(with_cache, without, strict=True):
        np.testing.assert_array_equal(ours, theirs.views)
