import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from toco.__main__ import main
from toco.config import digest, replace
from toco.data.files.images import MAX_PIXELS, read_ids, read_image
from toco.data.folder import Config, is_for_validation, open_split
from toco.train.run_folder import RunFolder

SIZE = (40, 48)  # height, width
NAMES = tuple(f"{kind}/tile {i}" for kind in ("field", "town") for i in range(8))
TIFF = ("JPEG", "PNG", "TIFF")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sixteen images in a folder for each of two classes; their names have spaces."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "tiles" / f"{name}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
    (tmp_path / "tiles/classes.txt").write_text("field\ntown\n")
    return tmp_path / "tiles"


def config(root: Path, **changes: object) -> Config:
    return Config.model_validate({"root": root, "labels": "folders", **changes})


def names(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return open_split(config, "train").names, open_split(config, "val").names


def test_folders_are_labels(root: Path) -> None:
    for split in ("train", "val"):
        dataset = open_split(config(root), split)
        assert dataset.class_names == ("field", "town")
        for index, name in enumerate(dataset.names):
            assert dataset.class_labels(index).tolist() == (
                [1, 0] if name.startswith("field") else [0, 1]
            )
            np.testing.assert_array_equal(
                dataset.image(index), np.asarray(Image.open(root / f"{name}.PNG"))
            )


def test_an_image_is_in_one_folder_of_a_class(root: Path) -> None:
    (root / "train.txt").write_text("field/a/b\n")
    (root / "val.txt").write_text("field/town/c\nd\n")
    for name in ("field/a/b", "field/town/c", "d"):
        path = root / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(path)
    assert open_split(config(root), "train").class_labels(0).tolist() == [1, 0]
    val = open_split(config(root), "val")
    with pytest.raises(ValueError, match=r"'field/town/c': .* found 2 among field, town"):
        val.class_labels(0)
    with pytest.raises(ValueError, match=r"'d': .* found 0 among none"):
        val.class_labels(1)


def test_without_lists_the_names_decide_alone(root: Path) -> None:
    train, val = names(config(root, val_share=0.5))
    assert sorted(train + val) == sorted(NAMES)
    assert val == tuple(name for name in NAMES if is_for_validation(name, 0.5))
    Image.new("RGB", SIZE).save(root / "town/new.jpg")
    train_then, val_then = names(config(root, val_share=0.5))
    assert set(train) < set(train_then) | {"town/new"}
    assert set(val_then) - set(val) <= {"town/new"}
    # A larger share only adds.
    assert set(names(config(root, val_share=0.25))[1]) < set(val)
    shares = [
        np.mean([is_for_validation(str(i), share) for i in range(20_000)]) for share in (0.1, 0.5)
    ]
    np.testing.assert_allclose(shares, (0.1, 0.5), atol=0.01)


def test_lists_and_hidden_files(root: Path) -> None:
    (root / "field/.tile 9.png").write_bytes(b"")
    (root / ".thumbnails").mkdir()
    Image.new("RGB", SIZE).save(root / ".thumbnails/field.png")
    assert sorted(sum(names(config(root)), ())) == sorted(NAMES)
    (root / "train.txt").write_text("town/tile 3\n")
    with pytest.raises(ValueError, match="no such list"):
        open_split(config(root), "val")
    (root / "val.txt").write_text("../secret\n")
    assert open_split(config(root), "train").names == ("town/tile 3",)
    with pytest.raises(ValueError, match="leads out"):
        open_split(config(root), "val")
    with pytest.raises(ValueError, match="belong together"):
        config(root, train_list="train")


def test_a_suffix_may_be_spelt_as_cameras_do(root: Path) -> None:
    before = names(config(root))
    (root / "town/tile 3.PNG").rename(root / "town/tile 3.Png")
    assert names(config(root)) == before
    dataset = open_split(config(root), "train" if "town/tile 3" in before[0] else "val")
    assert dataset.image(dataset.names.index("town/tile 3")).shape == (*SIZE, 3)


def test_a_name_of_two_images_is_refused(root: Path) -> None:
    Image.new("RGB", SIZE).save(root / "town/tile 3.jpg")
    with pytest.raises(ValueError, match="'town/tile 3' is the name of several images"):
        open_split(config(root), "train")


def test_too_few_images_to_split(root: Path) -> None:
    with pytest.raises(ValueError, match=r"of the 16 images there .*, none is for val"):
        open_split(config(root, val_share=1e-6), "val")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_files_of_labels(root: Path, kind: str) -> None:
    labels = {name: [1, 2] if "3" in name else [2] for name in NAMES}
    rows = "".join(f"{name},{' '.join(map(str, ids))}\n" for name, ids in labels.items())
    (root / f"labels.{kind}").write_text(
        json.dumps(labels) if kind == "json" else f"name,class_ids\n{rows}"
    )
    dataset = open_split(config(root, labels=f"labels.{kind}"), "train")
    for index, name in enumerate(dataset.names):
        assert (np.flatnonzero(dataset.class_labels(index)) + 1).tolist() == labels[name]


def save_tiff(path: Path, levels: list[list[int]], dtype: str = "<u2") -> None:
    Image.fromarray(np.array(levels, dtype=dtype)).save(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_as_the_levels_say(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan.{suffix}"
    save_tiff(path, [[0, 100, 610, 1120], [611, 65535, 104, 1118]])
    # 255 / (1120 - 100) = 1/4: 510/4 = 127.5 and 511/4 = 127.75 go to 128, 4/4 to 1, 1018/4 = 254.5
    # to 254 (even).
    image = read_image(path, MAX_PIXELS, TIFF, (100, 1120))
    assert image.shape == (2, 4, 3)
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], [[0, 0, 128, 255], [128, 255, 1, 254]])
    with pytest.raises(ValueError, match=r"data\.levels=\[low,high\]"):
        read_image(path, MAX_PIXELS, TIFF)


def test_tiff_is_for_this_reader_alone_and_has_one_page(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    Image.fromarray(np.full(SIZE, 7, np.uint8)).save(path)
    np.testing.assert_array_equal(
        read_image(path, MAX_PIXELS, TIFF, (0, 9)), np.full((*SIZE, 3), 7)
    )
    with pytest.raises(ValueError, match="cannot be read as JPEG or PNG"):
        read_image(path, MAX_PIXELS)
    Image.new("L", SIZE).save(path, save_all=True, append_images=[Image.new("L", SIZE)])
    with pytest.raises(ValueError, match="it has 2 pages"):
        read_image(path, MAX_PIXELS, TIFF)
    Image.fromarray(np.zeros(SIZE, np.float32)).save(path)
    with pytest.raises(ValueError, match="its mode is F"):
        read_image(path, MAX_PIXELS, TIFF, (0, 9))


def png_of(bits: int, colour: int, size: tuple[int, int], row: bytes) -> bytes:
    """A PNG as PIL does not write it: all rows the same."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * size[1]))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour", "channels", "stored"), [(2, 3, "RGB"), (4, 2, "LA"), (6, 4, "RGBA")]
)
def test_colours_of_sixteen_bits_are_refused_since_half_of_them_would_be_dropped(
    tmp_path: Path, colour: int, channels: int, stored: str
) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png_of(16, colour, (2, 2), b"\x03\xff" * channels * 2))
    for levels in (None, (0, 1023)):
        with pytest.raises(ValueError, match=rf"colours are of 16 bits \({stored};16B\)"):
            read_image(path, MAX_PIXELS, TIFF, levels)
    path.write_bytes(png_of(8, colour, (2, 2), b"\x03" * channels * 2))
    np.testing.assert_array_equal(read_image(path, MAX_PIXELS), np.full((2, 2, 3), 3))


@pytest.mark.parametrize(("bits", "row"), [(2, b"\x1b"), (4, b"\x01\x23")])
def test_masks_of_few_bits_are_ids_only_in_a_palette(tmp_path: Path, bits: int, row: bytes) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(png_of(bits, 0, (4, 1), row))
    with pytest.raises(ValueError, match=f"stored as L;{bits} and scaled to"):
        read_ids(path, MAX_PIXELS)
    of_palette = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8)).convert("P")
    of_palette.putpalette([0, 0, 0, 9, 9, 9, 8, 8, 8, 7, 7, 7])
    of_palette.save(path, bits=bits)
    np.testing.assert_array_equal(read_ids(path, MAX_PIXELS), [[0, 1, 2, 3]])


def test_a_mask_that_was_saved_as_jpeg_is_refused(tmp_path: Path) -> None:
    Image.new("L", SIZE, 1).save(tmp_path / "mask.png", "JPEG")
    with pytest.raises(ValueError, match="cannot be read as PNG"):
        read_ids(tmp_path / "mask.png", MAX_PIXELS)


def test_a_damaged_second_page_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    Image.new("L", SIZE).save(path)
    content = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<I", content, 4)
    (num_entries,) = struct.unpack_from("<H", content, directory)
    struct.pack_into("<I", content, directory + 2 + 12 * num_entries, len(content))
    path.write_bytes(content + bytes(6))  # a page that says nothing of itself
    with pytest.raises(ValueError, match=r"scan\.tif: cannot be decoded"):
        read_image(path, MAX_PIXELS, TIFF)


def test_levels_are_part_of_the_digest_and_of_the_node_cache(root: Path, tmp_path: Path) -> None:
    save_tiff(root / "town/scan.tiff", [[0, 50], [100, 200]])
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("town/scan\n")
    first, second = (
        config(root, levels=levels, cache="node", cache_root=tmp_path / "node")
        for levels in ((0, 100), (0, 200))
    )
    assert digest(first) != digest(second)
    assert open_split(first, "train").image(0)[..., 0].tolist() == [
        [0, 128],
        [255, 255],
    ]  # 127.5 goes to even
    assert open_split(second, "train").image(0)[..., 0].tolist() == [
        [0, 64],
        [128, 255],
    ]  # 63.75, 127.5
    with pytest.raises(ValueError, match="the lower and the higher"):
        config(root, levels=(100, 100))


def test_masks_are_an_option(root: Path) -> None:
    without = open_split(config(root), "val")
    np.testing.assert_array_equal(without.mask(0), np.full(SIZE, 255))
    with pytest.raises(ValueError, match="folder of masks"):
        config(root, labels="masks")
    with pytest.raises(ValueError, match=r"set data\.masks"):
        open_split(config(root, masks="masks"), "val")
    for name in NAMES:
        path = root / f"masks/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(SIZE, 2, np.uint8)).save(path)
    dataset = open_split(config(root, masks="masks", labels="masks"), "val")
    assert dataset.names == without.names  # masks are no images
    assert dataset.class_labels(0).tolist() == [0, 1]
    np.testing.assert_array_equal(dataset.mask(0), np.full(SIZE, 2))
    known = dataset.manifest_digest()
    assert known != without.manifest_digest()
    Image.fromarray(np.full(SIZE, 1, np.uint8)).save(root / f"masks/{dataset.names[0]}.png")
    assert open_split(config(root, masks="masks"), "val").manifest_digest() != known
    (root / f"masks/{dataset.names[0]}.png").unlink()
    with pytest.raises(LookupError, match="there is no mask"):
        open_split(config(root, masks="masks"), "val").mask(0)


def test_check_finds_every_fault(root: Path) -> None:
    (root / "train.txt").write_text("field/tile 0\nfield/tile 1\nfield/tile 2\ntown/tile 1\n")
    (root / "val.txt").write_text("field/tile 0\ntown/tile 2\n")
    rows = (
        "field/tile 0,1",
        "field/tile 1,1",
        "field/tile 2,1 2",
        "town/tile 1,2",
        "town/tile 2,2",
    )
    (root / "labels.csv").write_text("\n".join(("name,class_ids", *rows)))
    (root / "masks/field").mkdir(parents=True)
    Image.fromarray(np.full(SIZE, 2, np.uint8)).save(root / "masks/field/tile 0.png")
    Image.fromarray(np.full(SIZE, 3, np.uint8)).save(root / "masks/field/tile 2.png")
    (root / "field/tile 1.PNG").write_text("<html>")
    Image.new("RGB", (48, 20)).save(root / "town/tile 1.PNG")
    arguments = ["data", "check-set", "folder", "--set", f"root={root}", "--set", "masks=masks"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    faults = [line for line in result.stdout.splitlines() if line.startswith("FAULT")]
    for fault, (name, reason) in zip(
        faults,
        [
            ("val", "1 of 2 validation images also in training: 'field/tile 0'"),
            (root / "field/tile 1.PNG", "cannot be read as JPEG or PNG or TIFF"),
            (root / "masks/town/tile 2.png", "there is no mask"),
        ],
        strict=True,
    ):
        assert fault.startswith(f"FAULT {name}: ")
        assert reason in fault
    unread = next(
        line
        for line in result.stdout.splitlines()
        if line.startswith(f"note  {root}/masks/field/tile 2.png")
    )
    assert "but it also has 3" in unread
    assert unread.endswith("No training reads this mask.")
    assert (
        "note  masks: 2 masks with 'town' (2), which the image's label does not name"
        in result.stdout
    )
    assert "1 image with a side under 32 px: 'town/tile 1'" in result.stdout
    assert "11 images in neither split" in result.stdout
    assert "train images by class: field 3, town 2" in result.stdout


@pytest.mark.slow
def test_training_on_a_folder_without_masks(root: Path, tmp_path: Path) -> None:
    settings = {
        "data.name": "folder",
        "data.root": root,
        "data.labels": "folders",
        "data.val_share": 0.3,
        "views.crop_size_px": 48,
        "evaluate.size_px": 48,
        "batch_size": 4,
        "evaluate.num_pictures": 1,
        "num_steps": 2,
        "num_workers": 0,
        "evaluate_every": 2,
        "optim.warmup_steps": 1,
        "device": "cpu",
    }
    assignments = [item for key, value in settings.items() for item in ("--set", f"{key}={value}")]
    run_dir = tmp_path / "run"
    arguments = ["train", "shapes_nano", *assignments, "--run-dir", str(run_dir), "--no-progress"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    folder = RunFolder(run_dir)
    evaluation = folder.evaluation(2)
    assert "no scores of pixels" in evaluation.protocol
    assert {"val/label_f1", "val/label_map"} <= evaluation.metrics.keys()
    assert not [name for name in evaluation.metrics if "miou" in name or "threshold" in name]
    assert len(list(folder.pictures(2).glob("*.png"))) == 1
    assert "mIoU" not in result.output


def test_dotted_paths_set_a_folder() -> None:
    from toco.recipes.shapes_nano import recipe

    changed = replace(
        recipe(), {"data.name": "folder", "data.root": "tiles", "data.levels": "[0, 4095]"}
    ).data
    assert changed == Config(root=Path("tiles"), levels=(0, 4095))
