"""Folder with one output file per image, which interrupted work continues.

The identity of an output is a digest of its input's bytes and of the settings, including the
network. Each file stores this identity and a digest of its own bytes (see
:mod:`toco.predict.output_seal`). An output is therefore made again when its input or a byte of the
file changed. A folder with outputs of other settings is refused. Processes that share the work do
not need to communicate: the folder shows which images are done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from toco.config import diff
from toco.files import (
    UnreadableError,
    check_version,
    printable,
    read_json,
    read_record,
    whole_file,
    write_record,
)
from toco.predict.output_seal import is_sealed, sealed
from toco.types import Shard

ABOUT = "about.json"
"""File that records how the outputs of a folder were made."""
FORMAT_VERSION = 2
"""Version of this file. Folders of version 1 did not record the inputs of each output."""


class OutputFolder:
    """Outputs of a list of images under ``path``, all made with the same settings.

    Nothing is written before the first output.

    Args:
        path: The folder.
        about: Everything that determines the outputs, apart from the inputs, as JSON values.
        names: Names of the images; an image with slashes in its name lies in a subfolder.
        suffix: Suffix of every output file, ``.png`` or ``.npz``.
        input_sha256: Function that returns the SHA-256 of an image's input. It is called once per
            image, by the first method that needs it. Call :meth:`missing` before the input is read:
            if the image changes later, the next call of the program makes the output again. It
            raises ``OSError`` or ``ValueError`` for an unreadable image.

    Raises:
        ValueError: ``path`` is no folder, it has outputs of other or unknown settings, or two
            images would have the same output file.
    """

    def __init__(
        self,
        path: Path,
        about: Mapping[str, Any],
        names: Sequence[str],
        suffix: str,
        input_sha256: Callable[[int], str],
    ) -> None:
        self.path, self.names = path, tuple(names)
        self._suffix = suffix
        for name in names:
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts or not parts.parts:
                raise ValueError(f"Expected the name of an image as a relative path, got {name!r}.")
        if len(set(names)) < len(names):
            duplicate = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(
                f"{duplicate!r} appears twice, so that two images would have the same output; "
                "rename one."
            )
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        settings = json.dumps(self.about, sort_keys=True)
        self._identity = cache(
            lambda index: hashlib.sha256(f"{input_sha256(index)} {settings}".encode()).hexdigest()
        )
        self._made: set[int] = set()
        self._is_begun = False
        self._check_settings()

    def output(self, index: int) -> Path:
        """Return the output file of image ``index``."""
        return self.path / f"{self.names[index]}{self._suffix}"

    def missing(self, shard: Shard = Shard()) -> list[int]:
        """List the images of a shard (by default all) without a complete, current output."""
        indices = range(shard.rank, len(self.names), shard.world_size)
        with ThreadPoolExecutor() as threads:
            return [
                index
                for index, is_made in zip(indices, threads.map(self._is_made, indices), strict=True)
                if not is_made
            ]

    def fill(
        self,
        make: Callable[[int], bytes],
        shard: Shard = Shard(),
        *,
        without: Collection[int] = (),
        task: str = "write",
        progress: bool = False,
    ) -> None:
        """Make the missing outputs of a shard; each file appears complete or not at all.

        Args:
            make: Function that returns the content of an image's output.
            shard: Part of the images that this process handles.
            without: Images to skip.
            task: Text of the progress bar.
            progress: Whether to show a progress bar.
        """
        missing = [index for index in self.missing(shard) if index not in without]
        num_images = len(range(shard.rank, len(self.names), shard.world_size))
        with tqdm(
            total=num_images,
            initial=num_images - len(missing),
            desc=task,
            unit="image",
            disable=not progress,
        ) as bar:
            for index in missing:
                self.write(index, make(index))
                bar.update()

    def write(self, index: int, content: bytes) -> None:
        """Write the output of image ``index``, a PNG or NPZ file.

        The file appears complete or not at all.
        """
        identity = self._identity(index)
        self._begin()
        with whole_file(self.output(index)) as partial:
            partial.write_bytes(sealed(content, identity))
        self._made.add(index)

    def _is_made(self, index: int) -> bool:
        if index in self._made:
            return True
        try:
            identity = self._identity(index)
            is_made = is_sealed(self.output(index).read_bytes(), identity)
        except (OSError, ValueError):
            return False
        if is_made:
            self._made.add(index)
        return is_made

    def _begin(self) -> None:
        if not self._is_begun:
            self._check_settings()  # another process may have started with other settings
            if not (self.path / ABOUT).exists():
                write_record(
                    self.path / ABOUT, {"format_version": FORMAT_VERSION, **self.about}, indent=1
                )
            self._is_begun = True

    def _check_settings(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                f"{printable(self.path)} is no folder; name another path for the outputs."
            )
        file = self.path / ABOUT
        advice = f"Name another folder, or delete {printable(self.path)}."
        try:
            stored_about = read_record(file, advice=advice)
        except FileNotFoundError:
            if any(self.path.rglob(f"*{self._suffix}")):
                if file.exists():  # another process created it in the meantime
                    self._check_settings()
                    return
                raise ValueError(
                    f"{printable(self.path)} has {self._suffix} files but no {ABOUT} with their "
                    "settings; name a new folder."
                ) from None
            return
        except UnreadableError:
            if not _is_of_version_1(file):
                raise
            raise ValueError(
                f"{printable(self.path)} was written by toco 0.4 or older, which did not record "
                f"the input of each output: an output may belong to another image. {advice}"
            ) from None
        check_version(file, stored_about.pop("format_version", None), FORMAT_VERSION, advice)
        if changes := diff(stored_about, self.about):
            changed = "; ".join(
                f"{path} was {old!r} and is {new!r}" for path, (old, new) in changes.items()
            )
            raise ValueError(
                f"{printable(self.path)} has outputs of other settings: {changed}. Use the same "
                "settings, or another folder with --out."
            )


def _is_of_version_1(about: Path) -> bool:
    try:
        stored_about = read_json(about)
    except UnreadableError:
        return False
    return isinstance(stored_about, dict) and "format_version" not in stored_about
