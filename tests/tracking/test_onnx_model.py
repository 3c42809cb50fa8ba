"""The registered model takes, turns and refuses the images that the library's own reader of loose
files does.
"""

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModelContext
from PIL import Image

from toco.data.files.images import MAX_PIXELS, read_upright
from toco.tracking._onnx_model import _MAX_PIXELS, OnnxSegmenter

ORIENTATION = 0x0112
CONTEXT = PythonModelContext({}, None)


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def header_of(width, height, depth=1, colour=0):
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    )


def encoded(image, file_format="PNG", **options):
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)
RGB_OF_16_BITS = (
    header_of(9, 9, 16, 2)
    + chunk(b"IDAT", zlib.compress(bytes(9 * (1 + 9 * 6))))
    + chunk(b"IEND", b"")
)
FILES = {
    **{f"turned {k}": encoded(PHOTO, exif=turned(k)) for k in range(1, 9)},
    "lying jpeg": encoded(PHOTO, "JPEG", exif=turned(6)),
    **{mode: encoded(PHOTO.convert(mode)) for mode in ("L", "LA", "P", "RGBA", "1")},
    "CMYK": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "16 bits": encoded(Image.fromarray(np.zeros((9, 9), np.uint16))),
    "16 bits of colour": RGB_OF_16_BITS,
    "cut": encoded(PHOTO)[:-60],
    "cut jpeg": encoded(PHOTO, "JPEG")[:-60],
    "gif": encoded(PHOTO, "GIF"),
    "nothing": b"",
    "just too large": header_of(10_001, 5000) + chunk(b"IDAT", zlib.compress(b"")),
    "larger than PIL warns of": header_of(10_000, 10_000) + chunk(b"IDAT", zlib.compress(b"")),
    "larger than PIL opens": header_of(14_000, 13_000) + chunk(b"IDAT", zlib.compress(b"")),
}
TAKEN = {name for name in FILES if name.startswith("turned")} | {
    "lying jpeg",
    "L",
    "LA",
    "P",
    "RGBA",
    "CMYK",
}


@pytest.fixture
def model():
    class Session:
        def run(self, names, inputs):
            return [inputs["images"][..., 0]]

    model = OnnxSegmenter()
    model._session, model._class_names, model._patch_size_px = (
        Session(),
        [str(i) for i in range(256)],
        8,
    )
    return model


def read_by(read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read().tolist()
        except ValueError:
            return "refused"


@pytest.mark.parametrize("name", FILES)
def test_one_rule_for_the_registered_model_and_for_files(model, name, monkeypatch):
    expected = read_by(lambda: read_upright(Path(name), _MAX_PIXELS, FILES[name])[..., 0])
    asked = pd.DataFrame({"image": [FILES[name]]})
    # The model runs where the library, which lifts this limit, is not imported.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    assert read_by(lambda: model.predict(CONTEXT, asked)["labels"][0]) == expected
    assert (expected != "refused") == (name in TAKEN)


def test_a_large_image_is_refused_by_its_size(model):
    assert _MAX_PIXELS == MAX_PIXELS
    for name in ("just too large", "larger than PIL warns of", "larger than PIL opens"):
        with pytest.raises(ValueError, match="expected 50000000 pixels or fewer"):
            model.predict(CONTEXT, pd.DataFrame({"image": [FILES[name]]}))
