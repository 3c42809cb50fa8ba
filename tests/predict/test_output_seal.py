import io

import numpy as np
import pytest
from PIL import Image

from toco.predict.formats import index_png, npz
from toco.predict.output_seal import is_sealed, sealed

LABEL = np.arange(12, dtype=np.uint8).reshape(3, 4)
FILES = {"png": index_png(LABEL), "npz": npz(label=LABEL), "empty npz": npz(label=np.zeros((0, 2)))}
MINE, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize("kind", FILES)
def test_a_seal_says_what_a_file_was_made_of_and_notices_every_byte(kind):
    content = sealed(FILES[kind], MINE)
    assert is_sealed(content, MINE)
    assert not is_sealed(content, OTHER)
    assert not is_sealed(FILES[kind], MINE)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        assert not is_sealed(bytes(changed), MINE)
        assert not is_sealed(content[:place], MINE)
    assert not is_sealed(content + b"x", MINE)


def test_what_reads_pngs_and_arrays_passes_over_the_seal():
    with Image.open(io.BytesIO(sealed(FILES["png"], MINE))) as image:
        image.verify()
    with Image.open(io.BytesIO(sealed(FILES["png"], MINE))) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), LABEL)
    with np.load(io.BytesIO(sealed(FILES["npz"], MINE)), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["label"], LABEL)


@pytest.mark.parametrize("content", [b"", b"GIF89a", FILES["png"][:-1]])
def test_other_content_takes_no_seal(content):
    with pytest.raises(ValueError, match="PNG or NPZ"):
        sealed(content, MINE)
