import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from toco.data import convert_labels
from toco.data.files.label_conversion import read_pickled_labels
from toco.data.files.labels import read_table

LABELS = {"x": np.array([1, 0, 1], np.float32), "y": np.array([0, 1, 0], np.float32)}
CLASSES = ("a", "b", "c")


def save(path: Path, content: object, protocol: int = 4) -> Path:
    """As ``np.save`` writes an object, for any content and protocol."""
    return save_bytes(path, pickle.dumps(content, protocol))


def save_bytes(path: Path, payload: bytes) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|O", "fortran_order": False, "shape": ()}
    )
    path.write_bytes(header.getvalue() + payload)
    return path


@pytest.mark.parametrize("target", ["labels.npz", "labels.json"])
def test_what_numpy_saves_comes_back_as_a_label_file(tmp_path: Path, target: str) -> None:
    np.save(tmp_path / "source.npy", LABELS, allow_pickle=True)
    assert convert_labels(tmp_path / "source.npy", tmp_path / target) == 2
    assert read_table(tmp_path / target, CLASSES) == {"x": (1, 3), "y": (2,)}
    assert {path.name for path in tmp_path.iterdir()} == {"source.npy", target}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "i8", ">f4", "?"])
def test_protocols_and_dtypes(tmp_path: Path, protocol: int, dtype: str) -> None:
    table = {name: vector.astype(dtype) for name, vector in LABELS.items()}
    # Protocol 5 writes arrays by another function, which numpy's own files do not use.
    source = save(tmp_path / "l.npy", np.array(table, dtype=object), protocol)
    if protocol == 5:
        with pytest.raises(ValueError, match="refused"):
            read_pickled_labels(source)
        return
    names, labels = read_pickled_labels(source)
    assert names == ("x", "y")
    np.testing.assert_array_equal(labels, [[1, 0, 1], [0, 1, 0]])


def test_module_name_of_numpy_1(tmp_path: Path) -> None:
    payload = pickle.dumps(np.array(LABELS, dtype=object), 3)
    old = payload.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != payload
    assert read_pickled_labels(save_bytes(tmp_path / "l.npy", old))[0] == ("x", "y")


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "wrap", [lambda e: e, lambda e: {"x": e}, lambda e: np.array({"x": e}, dtype=object)]
)
def test_malicious_pickle_is_refused_and_does_not_run(
    tmp_path: Path, protocol: int, wrap: object
) -> None:
    source = save(tmp_path / "l.npy", wrap(Evil(tmp_path / "ran")), protocol)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"refused, it is not a label file"):
        convert_labels(source, tmp_path / "out.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"l.npy"}


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",  # a text global and its call
        b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.",  # another name of an allowed module
        b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.class\x93.",  # a dotted path below an allowed name
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"\x80\x04P1\n.",  # a persistent id
        b"\x80\x04\x82\x01.",  # an extension code
        b"\x80\x04N" + b"r" + (2**31).to_bytes(4, "little") + b".",  # a memo index of gigabytes
        b"\x80\x04" + b"B" + (2**31).to_bytes(4, "little") + b".",  # bytes longer than the file
        b"\x80\x04}.",  # a bare dict
        b"\x80\x04",
        b"",
    ],
)
def test_other_programs_are_refused(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(ValueError, match="refused"):
        read_pickled_labels(save_bytes(tmp_path / "l.npy", payload))


def test_forged_dtype_state_reaches_no_numpy_object(tmp_path: Path) -> None:
    payload = pickle.dumps(np.array({"x": np.array([1, 0], np.float32)}, dtype=object), 4)
    # A dtype of pointers with its flags cleared makes numpy take raw bytes for addresses.
    forged = payload.replace(b"\x8c\x02f4", b"\x8c\x02O8")
    assert forged != payload
    pickletools.dis(forged, io.StringIO())
    with pytest.raises(ValueError, match="an array of dtype 'O8'"):
        read_pickled_labels(save_bytes(tmp_path / "l.npy", forged))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"x": np.array([0, 2.0])}, "0 and 1 only"),
        ({"x": np.array([0, 1.0]), "y": np.array([1.0])}, "one length"),
        ({1: np.array([0, 1.0])}, "dictionary of image names"),
        ({"x": [0, 1]}, "not an array of numbers"),
        ({"x": np.zeros((1, 2))}, "has the shape"),
        ({}, "one length"),
        ([1], "expected one pickled object"),
        ("x", "dictionary of image names"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, table: object, message: str) -> None:
    np.save(tmp_path / "l.npy", np.array(table, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_pickled_labels(tmp_path / "l.npy")


def test_plain_array_missing_file_and_target(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match="expected one pickled object"):
        read_pickled_labels(tmp_path / "l.npy")
    with pytest.raises(ValueError, match="No such file"):
        read_pickled_labels(tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"\.npz or \.json"):
        convert_labels(tmp_path / "l.npy", tmp_path / "l.pkl")


@pytest.mark.skipif(
    "TOCO_VOC_ROOT" not in os.environ, reason="TOCO_VOC_ROOT names no folder of real VOC images"
)
def test_official_file_agrees_with_the_csv(tmp_path: Path) -> None:
    root = Path(os.environ["TOCO_VOC_ROOT"])
    convert_labels(root / "ImageSets/Segmentation/cls_labels_onehot.npy", tmp_path / "labels.json")
    classes = tuple(map(str, range(20)))
    assert read_table(tmp_path / "labels.json", classes) == read_table(
        root / "image_labels.csv", classes
    )
