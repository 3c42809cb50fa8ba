"""Read image-level labels from CSV, JSON and npz files."""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from pathlib import Path

import numpy as np

from toco.data.files.layout import lookalike_pairs
from toco.files import UnreadableError, read_json, read_text

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
_MAX_ARRAY_BYTES = 2**30
"""Largest array of an npz file: enough for names or labels of a few million images."""
_Rows = list[tuple[str, list[int]]]


def read_table(path: Path, class_names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Read a label file as ``{name: ids}`` with ascending ids from 1.

    - ``.csv``: columns ``name`` and ``class_ids`` (separated by spaces); other columns are ignored.
    - ``.json``: ``{"2007_000063": [9, 12], ...}``.
    - ``.npz``: ``names`` (text, n) and ``class_labels`` (0 or 1, n x k), as written by
      ``convert_labels``.

    Raises:
        ValueError: The file is missing or has another suffix, names an image twice, or has invalid
            ids.
    """
    readers = {".csv": _read_csv, ".json": _read_json, ".npz": _read_npz}
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: expected labels in a {', '.join(readers)} file; `python -m toco data "
            "convert-labels` makes one of the official cls_labels_onehot.npy."
        )
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of labels.")
    try:
        rows = readers[path.suffix](path, class_names)
        _check_ids(rows, class_names)
    except UnreadableError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as labels: {error.strerror or error}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as labels: {error}.") from error
    table: dict[str, tuple[int, ...]] = {}
    for name, ids in rows:
        if name in table:
            raise ValueError(f"{path}: {name!r} appears twice.")
        table[name] = tuple(sorted(set(ids)))
    if pairs := lookalike_pairs(table):
        first, second = pairs[0]
        raise ValueError(
            f"{path}: {first!r} and {second!r} differ only in their Unicode form; keep one."
        )
    return table


def _check_ids(rows: _Rows, class_names: tuple[str, ...]) -> None:
    """Refuse invalid class ids: 0/1 vectors, ids that begin at 0, and ids out of range."""
    num_classes = len(class_names)
    # With a single class, [1] is both a list of ids and a vector.
    if (
        rows
        and num_classes > 1
        and all(len(ids) == num_classes and set(ids) <= {0, 1} for _, ids in rows)
    ):
        name, ids = rows[0]
        raise ValueError(
            f"{name!r} has {ids}, which reads as a vector of 0 and 1, one for each class; write "
            "the ids of the classes that the image shows, from 1"
        )
    for name, ids in rows:
        if wrong := [i for i in ids if not 1 <= i <= num_classes]:
            hint = ""
            if 0 in wrong:
                used = {i for _, row in rows for i in row}
                hint = "; 0 is the background, which is no label"
                if max(used) < num_classes:
                    hint = f"; ids begin at 1 ({class_names[0]!r}), and these seem to begin at 0"
            raise ValueError(f"{name!r} has the class ids {wrong}, expected 1..{num_classes}{hint}")


def _read_csv(path: Path, class_names: tuple[str, ...]) -> _Rows:
    try:
        lines = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from error
    header = [field.strip() for field in lines[0]] if lines else []
    if header.count("name") != 1 or header.count("class_ids") != 1:
        hint = ""
        if len(header) == 1 and re.search(r"[;\t]", header[0]):
            hint = "; separate columns by commas"
        elif len(header) > 1 and _WHOLE_NUMBER.fullmatch(
            header[1].split()[0] if header[1].split() else ""
        ):
            hint = "; write name,class_ids above the first row"
        raise ValueError(
            f"expected the columns name and class_ids in the first line, found {header}{hint}"
        )
    name_column, ids_column = header.index("name"), header.index("class_ids")
    rows = []
    for number, fields in enumerate(lines[1:], start=2):
        if not any(field.strip() for field in fields):
            continue
        if any(field.strip() for field in fields[len(header) :]) or len(fields) <= max(
            name_column, ids_column
        ):
            raise ValueError(
                f"row {number} has {len(fields)} fields, and the first line {len(header)}: "
                f"{fields}; separate ids by spaces, as in name,1 2"
            )
        name = fields[name_column].strip()
        if not name:
            raise ValueError(f"row {number} has no name: {fields}")
        rows.append((name, _ids_of_text(name, fields[ids_column], class_names)))
    return rows


def _ids_of_text(name: str, text: str, class_names: tuple[str, ...]) -> list[int]:
    parts = text.split()
    if all(_WHOLE_NUMBER.fullmatch(part) for part in parts):
        return [int(part) for part in parts]
    raise ValueError(
        f"expected class ids separated by spaces for {name!r}, found "
        f"{text!r}{_hint(text, class_names)}"
    )


def _hint(value: object, class_names: tuple[str, ...]) -> str:
    """Suggest the ids to write if the value has class names; empty text otherwise."""
    if isinstance(value, str) and value.strip() in class_names:
        return f"; write its id, {class_names.index(value.strip()) + 1}"
    parts = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    if parts and all(isinstance(part, str) and part in class_names for part in parts):
        ids = [class_names.index(part) + 1 for part in parts]
        return f"; write ids in place of names, here {' '.join(map(str, ids))}"
    return ""


def _read_json(path: Path, class_names: tuple[str, ...]) -> _Rows:
    # Pairs instead of a dict keep duplicate names, which are then refused.
    content = read_json(path, object_pairs_hook=tuple)
    if not isinstance(content, tuple):
        raise ValueError("expected one object of names with lists of class ids")
    for name, ids in content:
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            value_text = _short(dict(ids) if isinstance(ids, tuple) else ids)
            raise ValueError(
                f"expected a list of class ids for {name!r}, found "
                f"{value_text}{_hint(ids, class_names)}"
            )
    return list(content)


def _read_npz(path: Path, class_names: tuple[str, ...]) -> _Rows:
    """Read names and 0/1 vectors; check the shapes before memory is allocated."""
    num_classes = len(class_names)
    try:
        with zipfile.ZipFile(path) as archive:
            shape, dtype = _read_header(archive, "names")
            if len(shape) != 1 or dtype.kind != "U":
                raise ValueError(
                    f"expected names as text in one dimension, found {dtype} of shape {shape}"
                )
            expected = (*shape, num_classes)
            shape, dtype = _read_header(archive, "class_labels")
            if shape != expected:
                raise ValueError(f"expected labels of shape {expected}, found {shape}")
            if dtype.kind not in "biuf":
                raise ValueError(f"expected labels 0 and 1, found {dtype}")
            names, labels = _read_array(archive, "names"), _read_array(archive, "class_labels")
    # zipfile, zlib and numpy report damaged files by many kinds of errors.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(str(error).rstrip(".") or type(error).__name__) from error
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("expected labels 0 and 1 only")
    return [
        (str(name), (np.flatnonzero(row) + 1).tolist())
        for name, row in zip(names, labels, strict=True)
    ]


def _read_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Read shape and type of an array from its header alone."""
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(
            "expected the arrays names and class_labels, found "
            f"{', '.join(archive.namelist()) or 'none'}"
        )
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(
            f"{name} holds Python objects, which are not loaded (allow_pickle); save it as text or "
            "numbers"
        )
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > _MAX_ARRAY_BYTES:
        raise ValueError(
            f"{name} of shape {shape} takes {num_bytes} bytes, more than {_MAX_ARRAY_BYTES}"
        )
    return shape, dtype


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array; never decompress more than its header declares."""
    with archive.open(f"{name}.npy") as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
