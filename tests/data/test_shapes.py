import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco.data import shapes, voc
from toco.data._scene import _PART_COLOURS, CLASS_NAMES, SceneConfig, draw_scene
from toco.data.check import check_folder
from toco.data.files.png import png_bytes

BENCHMARK_DIGEST = "03975719b006d847f5139463dfaa00fb7215dab050cf3601b842932a2954a287"


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) of the paths and bytes of all files under ``folder``, the manifest aside."""
    total = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    for path in sorted(path.relative_to(folder).as_posix() for path in files):
        total.update(
            f"{path}\0{hashlib.sha256((folder / path).read_bytes()).hexdigest()}\n".encode()
        )
    return total.hexdigest()


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.generated_folder(shapes.Config(root=tmp_path_factory.mktemp("cache")))


def test_the_benchmark_has_the_same_bytes_everywhere(benchmark: Path) -> None:
    # A change of this value changes the benchmark: every number measured on it has to be measured
    # anew.
    assert folder_digest(benchmark) == BENCHMARK_DIGEST


def test_the_benchmark_is_a_sound_voc_folder(benchmark: Path) -> None:
    report = check_folder(voc.Config(root=benchmark, train_list="train", labels="image_labels.csv"))
    assert report.faults == []


def test_labels_are_the_classes_of_the_masks(benchmark: Path) -> None:
    config = shapes.Config(root=benchmark.parent)
    for split, count in (("train", 1000), ("val", 300)):
        dataset = shapes.open_split(config, split)
        assert len(dataset) == count
        assert dataset.class_names == CLASS_NAMES
        for index in range(0, count, 50):
            present = np.flatnonzero(dataset.class_labels(index)) + 1
            assert present.tolist() == [i for i in np.unique(dataset.mask(index)) if i]
            assert dataset.image(index).shape == (64, 64, 3)


def test_the_problem_is_built_in(benchmark: Path) -> None:
    dataset = shapes.open_split(shapes.Config(root=benchmark.parent), "train")
    labels = np.stack([dataset.class_labels(i) for i in range(len(dataset))])
    assert labels.sum(axis=0).min() > 150  # every class is there often enough to be learned
    assert labels.sum(axis=1).min() == 1
    assert 1.5 < labels.sum(axis=1).mean() < 2  # several objects an image


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path, benchmark: Path) -> None:
    config = shapes.Config(root=tmp_path, num_train=3, num_val=2)
    few, many = (
        shapes.open_split(config, "val"),
        shapes.open_split(shapes.Config(root=benchmark.parent), "val"),
    )
    np.testing.assert_array_equal(few.image(1), many.image(1))
    np.testing.assert_array_equal(few.mask(1), many.mask(1))


def test_splits_and_seeds_differ(tmp_path: Path) -> None:
    config = shapes.Config(root=tmp_path, num_train=2, num_val=2)
    train, val = shapes.open_split(config, "train"), shapes.open_split(config, "val")
    other = shapes.open_split(config.model_copy(update={"seed": 1}), "train")
    assert (train.image(0) != val.image(0)).any()
    assert (train.image(0) != other.image(0)).any()
    assert train.manifest_digest() != other.manifest_digest()


def test_the_manifest_says_what_was_written(tmp_path: Path) -> None:
    def digests(config: shapes.Config) -> tuple[str, str]:
        return tuple(
            shapes.open_split(config, split).manifest_digest() for split in ("train", "val")
        )

    here, there = (
        shapes.Config(root=tmp_path / name, num_train=9, num_val=3) for name in ("here", "there")
    )
    before = digests(here)
    assert digests(there) == before  # of what was generated, not of where it lies
    manifest = shapes.generated_folder(there) / "manifest.json"
    written = json.loads(manifest.read_text())
    content = b"".join(
        (manifest.parent / folder / f"val_0000{index}.png").read_bytes()
        for index in range(3)
        for folder in ("JPEGImages", "SegmentationClass")
    )
    assert written["val"] == hashlib.sha256(content).hexdigest()


def open_and_read(config: shapes.Config) -> tuple[shapes.ShapesFolder, list[np.ndarray]]:
    """A newly opened split, and all that it holds."""
    dataset = shapes.open_split(config, "train")
    parts = [dataset.image(i) for i in range(len(dataset))] + [
        dataset.mask(i) for i in range(len(dataset))
    ]
    return dataset, [*parts, *(dataset.class_labels(i) for i in range(len(dataset)))]


DAMAGES = {
    "flipped": lambda path: path.write_bytes(
        bytes([*path.read_bytes()[:-20], 1, *path.read_bytes()[-19:]])
    ),
    "pixel": lambda path: path.write_bytes(
        png_bytes(np.zeros((32, 32, 3) if path.parent.name == "JPEGImages" else (32, 32), np.uint8))
    ),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "file",
    [
        "JPEGImages/train_00001.png",
        "SegmentationClass/train_00000.png",
        "ImageSets/Segmentation/train.txt",
        "classes.txt",
        "image_labels.csv",
        "manifest.json",
    ],
)
def test_what_is_damaged_is_generated_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    config = shapes.Config(root=tmp_path, num_train=3, num_val=2, image_size_px=32)
    before, values = open_and_read(config)
    folder = before.layout.root
    known, digest = folder_digest(folder), before.manifest_digest()
    DAMAGES[damage](folder / file)
    again, values_again = open_and_read(config)
    for value, expected in zip(values_again, values, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert again.manifest_digest() == digest
    assert folder_digest(folder) == known
    assert file in caplog.text
    caplog.clear()
    open_and_read(config)
    assert caplog.text == ""


def test_damage_that_cannot_be_mended_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shapes.Config(root=tmp_path, num_train=2, num_val=2, image_size_px=32)
    dataset = shapes.open_split(config, "train")
    path = dataset.layout.image_path(dataset.names[0])
    path.write_bytes(b"")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shapes, "whole_file", refuse)
    with pytest.raises(
        ValueError,
        match=r"train_00000\.png: is damaged and cannot be written again .*delete the folder",
    ):
        dataset.image(0)


def test_generation_at_once_gives_one_whole_folder(tmp_path: Path) -> None:
    config = shapes.Config(root=tmp_path, num_train=20, num_val=10)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(shapes.generated_folder, [config] * 4))
    assert len(folders) == 1
    assert [path.name for path in tmp_path.iterdir()] == [
        folders.pop().name
    ]  # nothing unfinished is left


def test_an_existing_folder_is_used_as_it_is(tmp_path: Path) -> None:
    config = shapes.Config(root=tmp_path, num_train=2, num_val=2)
    marker = shapes.generated_folder(config) / "marker"
    marker.touch()
    assert shapes.generated_folder(config) == marker.parent
    assert marker.exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written there .* set data\.root"):
        shapes.generated_folder(shapes.Config(root=tmp_path / "file", num_train=1, num_val=1))


def test_parts_carry_the_full_colour_and_bodies_a_tint() -> None:
    plain = SceneConfig(num_objects=(1, 1), body_jitter=0, tint_percent=0)
    whole, hidden = (
        draw_scene((5, 0, 7), 64, 8, plain.model_copy(update={"hidden_part_percent": percent}))
        for percent in (0, 100)
    )
    part = (whole.image != hidden.image).any(axis=2)
    body = whole.mask > 0
    np.testing.assert_array_equal(whole.mask, hidden.mask)
    assert 0 < part.sum() < body.sum() / 3
    assert (part <= body).all()
    # Without tint and jitter nothing tells a body's class: its pixels are grey up to its soft
    # shade.
    assert np.abs(hidden.image[body].astype(int) - 128).max() <= 10


def test_a_scene_without_objects_is_a_background() -> None:
    scene = draw_scene((5, 0, 7), 64, 8, SceneConfig(num_objects=(0, 0)))
    assert not scene.mask.any()
    assert scene.image.std() > 10


def test_decoys_have_an_objects_colour_and_the_other_pattern() -> None:
    with_decoy = SceneConfig(num_objects=(1, 1), body_jitter=0, tint_percent=100, num_decoys=(1, 1))
    plain = with_decoy.model_copy(update={"num_decoys": (0, 0)})
    y, x = np.mgrid[:64, :64]
    dark_of_pattern = (y // 2 % 2 == 1, (x // 2 + y // 2) % 2 == 1)  # stripes, checks
    scenes = 0
    for index in range(60):
        before, after = (draw_scene((5, 0, index), 64, 8, c) for c in (plain, with_decoy))
        decoy = (before.image != after.image).any(axis=2)
        if not decoy.any():
            continue
        scenes += 1
        # A decoy is background, and hides at most a part of the object.
        assert not after.mask[decoy | (after.mask != before.mask)].any()
        assert after.mask.any()
        # Most pixels of a decoy are its body, whose colour is that of an object in another light.
        class_index = int(before.mask.max()) - 1
        colour = _PART_COLOURS[class_index]
        light = (after.image[decoy] - colour).astype(int)
        assert (np.ptp(light, axis=1) <= 2).mean() > 0.5
        dark = decoy & (after.image == colour // 3).all(axis=2)
        assert dark_of_pattern[1 - class_index % 2][dark].all()
        assert dark.any()
    assert scenes > 50


def test_a_scene_without_objects_may_have_decoys_of_any_colour() -> None:
    config = SceneConfig(num_objects=(0, 0), num_decoys=(1, 1))
    for index in range(5):
        with_decoy = draw_scene((5, 0, index), 64, 8, config)
        plain = draw_scene((5, 0, index), 64, 8, SceneConfig(num_objects=(0, 0)))
        assert not with_decoy.mask.any()
        assert (with_decoy.image != plain.image).any(axis=2).sum() > 30


def test_context_goes_with_the_first_classes_only() -> None:
    def colour(seed: int, percent: int) -> tuple[int, int]:
        config = SceneConfig(num_objects=(1, 1), context_percent=percent)
        scene = draw_scene((seed, 0, 0), 64, 4, config)
        return int(scene.mask.max()), int(scene.image[scene.mask == 0].mean(axis=0).argmax())

    # Green waves (class 1) and blue blotches (class 3) are the backgrounds with a dominant channel.
    scenes = [colour(seed, 100) for seed in range(60)]
    assert {label for label, _ in scenes} == {1, 2, 3, 4}
    assert np.mean([channel == 1 for label, channel in scenes if label == 1]) > 0.7
    assert np.mean([channel == 2 for label, channel in scenes if label == 3]) > 0.7


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (200, 130, 3)])
def test_png_is_read_back_as_written(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(BytesIO(png_bytes(pixels)))
    image.verify()  # checks the checksums
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png_bytes(pixels)))), pixels)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="0 <= least <= most"):
        SceneConfig(num_objects=(3, 1))
    with pytest.raises(ValueError, match="num_decoys: expected 0 <= least <= most"):
        SceneConfig(num_decoys=(-1, 1))
    with pytest.raises(ValueError, match="less than or equal to 8"):
        shapes.Config(num_classes=9)
