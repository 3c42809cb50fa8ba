"""Convert the official pickled label file (``cls_labels_onehot.npy``) safely.

The file is a pickled dictionary of arrays, and a pickle is a program. This reader accepts only the
operations that such a dictionary needs. It resolves only the four names that numpy writes, to
stand-ins without behaviour. It never builds a numpy object from the file's own description, because
a forged dtype state could make numpy treat bytes as pointers.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from toco.files import whole_file

# fmt: off
_OPERATIONS = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET",
    "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "EMPTY_TUPLE", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM",
    "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
})
# fmt: on
_DTYPES = ("f4", "f8", "u1", "i1", "i4", "i8", "b1")
_MAX_BYTES = 1 << 28  # the official files are smaller


def convert_labels(source: Path, target: Path) -> int:
    """Convert the pickled label file ``source`` to ``target``; return the number of labels.

    ``target`` is a ``.npz`` or a ``.json`` file.

    Raises:
        ValueError: ``source`` is no dictionary of names with 0/1 vectors of the same length, or
            ``target`` has another suffix.
    """
    if target.suffix not in (".npz", ".json"):
        raise ValueError(f"{target}: expected a .npz or .json file to write the labels to.")
    names, labels = read_pickled_labels(source)
    with whole_file(target) as partial, partial.open("wb") as file:
        if target.suffix == ".npz":
            np.savez_compressed(file, names=np.array(names), class_labels=labels)
        else:
            rows = {
                n: (np.flatnonzero(row) + 1).tolist() for n, row in zip(names, labels, strict=True)
            }
            file.write(json.dumps(rows, indent=0).encode())
    return len(names)


def read_pickled_labels(source: Path) -> tuple[tuple[str, ...], UInt8[np.ndarray, "n k"]]:
    """Read names and 0/1 labels from a pickled label file, in the file's order.

    Raises:
        ValueError: The file differs in form from the official file.
    """
    try:
        payload = _payload(source)
        _refuse_operations(payload)
        outer = _Unpickler(io.BytesIO(payload)).load()
        if (
            not isinstance(outer, _Array)
            or outer.shape != ()
            or not isinstance(outer.content, list)
        ):
            raise ValueError("expected one array that holds a dictionary")
        (table,) = outer.content
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
            raise ValueError("expected a dictionary of image names")
        rows = [_vector(name, value) for name, value in table.items()]
        if len({row.size for row in rows}) != 1 or not rows[0].size:
            raise ValueError("expected labels of one length")
        labels = np.stack(rows)
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("expected labels 0 and 1 only")
    # A forged file can cause any exception; report each as an invalid file.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{source}: refused, it is not a label file like cls_labels_onehot.npy: {reason}."
        ) from error
    return tuple(table), labels.astype(np.uint8)


class _Dtype:
    """Stand-in for a dtype in the file; valid only if it is one of ``_DTYPES``."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = str(state[1])

    def resolve(self) -> np.dtype:
        if self.code not in _DTYPES or self.order not in "<>|=":
            raise ValueError(f"an array of dtype {self.code!r}")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """Stand-in for an array in the file: shape, dtype, and bytes or a list."""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _version, self.shape, self.dtype, _fortran, self.content = state


def _reconstruct(_kind: object, _shape: object, _code: object) -> _Array:
    return _Array()


_NAMES: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) not in _NAMES:
            raise ValueError(f"it asks for {module}.{name}")
        return _NAMES[module, name]


def _payload(source: Path) -> bytes:
    """Read the pickle after the npy header."""
    if source.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    with source.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _fortran, dtype = header(file)
        if shape != () or dtype != np.dtype(object):
            raise ValueError(f"expected one pickled object, found an array {shape} of {dtype}")
        return file.read()


def _refuse_operations(payload: bytes) -> None:
    for operation, argument, _position in pickletools.genops(payload):
        if operation.name not in _OPERATIONS:
            raise ValueError(f"it uses the operation {operation.name}")
        if operation.name == "GLOBAL" and tuple(str(argument).split(" ", 1)) not in _NAMES:
            raise ValueError(f"it asks for {argument}")
        # The unpickler's memo is an array: a forged index could allocate gigabytes.
        if "PUT" in operation.name and isinstance(argument, int) and argument > len(payload):
            raise ValueError("it uses a memo index beyond its own length")


def _vector(name: str, value: object) -> np.ndarray:
    if (
        not isinstance(value, _Array)
        or not isinstance(value.dtype, _Dtype)
        or not isinstance(value.content, bytes)
    ):
        raise ValueError(f"the label of {name!r} is not an array of numbers")
    vector = np.frombuffer(value.content, dtype=value.dtype.resolve())
    if value.shape != (vector.size,):
        raise ValueError(
            f"the label of {name!r} has the shape {value.shape} but {vector.size} numbers"
        )
    return vector
