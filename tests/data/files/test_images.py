"""Which images are read, up to which size, and which way up."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco.data.files.images import open_checked, read_image, read_upright

ORIENTATION = 0x0112
TURNED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: np.rot90(pixels, 2),
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_images_of_a_data_set_stay_as_they_are_stored_and_others_are_turned_upright(
    tmp_path, orientation
):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path, 100), pixels)
    np.testing.assert_array_equal(read_upright(path, 100), TURNED[orientation](pixels))
    np.testing.assert_array_equal(
        read_upright(Path("photo"), 100, path.read_bytes()), TURNED[orientation](pixels)
    )


def test_no_limit_but_the_reader_s_own_holds(tmp_path):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    # More pixels than PIL opens by itself, of which it needs no more than the header.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 14_000, 13_000, 1, 0, 0, 0, 0))
    (tmp_path / "big.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_checked(tmp_path / "big.png", 182_000_000) as image:
            assert image.size == (14_000, 13_000)
        for read in (read_image, read_upright):
            with pytest.raises(
                ValueError, match=r"expected at most 181999999 pixels, but it has 14000 x 13000\."
            ):
                read(tmp_path / "big.png", 181_999_999)


@pytest.mark.parametrize("read", [read_image, read_upright])
def test_a_file_that_cannot_be_read_is_named(tmp_path, read):
    (tmp_path / "folder.png").mkdir()
    for name in ("folder.png", "nowhere.png"):
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name, 100)
