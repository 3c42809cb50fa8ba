"""A folder with one output for every image, written as they come: work that is stopped goes on where it was.

Nothing is held in memory, and the processes that share the work need not talk to each other: which images are done is
read from the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from toco.types import Shard

ABOUT = "about.json"
"""Says how the outputs of a folder were made."""


class OutputFolder:
    """Outputs of a list of images under ``path``, all made in one way.

    Args:
        path: The folder; it is made if it is not there.
        about: How the outputs are made, as JSON values: everything that changes one of them.
        names: Names of the images; one with slashes lies in a subfolder.
        suffix: Of every output file, as in ``.png``.

    Raises:
        ValueError: The folder holds outputs that were made in another way, or two images would have one output.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], names: Sequence[str], suffix: str) -> None:
        self.path, self.names = path, tuple(names)
        self._suffix = suffix
        for name in names:
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts or not parts.parts:
                raise ValueError(f"Expected the name of an image as a relative path, got {name!r}.")
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"{twice!r} is there twice, so that two images would have one output; rename one.")
        path.mkdir(parents=True, exist_ok=True)
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self._check_same(self.about)

    def output(self, index: int) -> Path:
        """File of the output of image ``index``."""
        return self.path / f"{self.names[index]}{self._suffix}"

    def missing(self, shard: Shard = Shard()) -> list[int]:
        """Images of this share of the work that have no output yet; with the default, all that have none."""
        own = range(shard.rank, len(self.names), shard.world_size)
        return [index for index in own if not self.output(index).is_file()]

    def fill(
        self, make: Callable[[int], bytes], shard: Shard = Shard(), *, doing: str = "write", progress: bool = False
    ) -> None:
        """Make the outputs that this share lacks; each appears whole or not at all.

        Args:
            make: Content of the output of an image.
            shard: Which share of the images is made here.
            doing: What the bar says.
            progress: Show a bar.
        """
        missing = self.missing(shard)
        own = len(range(shard.rank, len(self.names), shard.world_size))
        with tqdm(total=own, initial=own - len(missing), desc=doing, unit="image", disable=not progress) as bar:
            for index in missing:
                self.write(index, make(index))
                bar.update()

    def write(self, index: int, content: bytes) -> None:
        """Write the output of image ``index``; it appears whole or not at all."""
        self._write(self.output(index), content)

    def _check_same(self, about: dict[str, Any]) -> None:
        file = self.path / ABOUT
        if not file.is_file():
            if any(self.path.rglob(f"*{self._suffix}")):
                raise ValueError(
                    f"{self.path} holds {self._suffix} files but no {ABOUT} that says how they were made; name a new "
                    "folder."
                )
            self._write(file, (json.dumps(about, indent=1) + "\n").encode())
            return
        if changed := "; ".join(_differences(json.loads(file.read_text()), about)):
            raise ValueError(
                f"{self.path} holds outputs that were made in another way: {changed}. Give the same settings, or "
                "another folder with --out."
            )

    def _write(self, file: Path, content: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(file)


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What differs, by dotted path."""
    for key in sorted({*was, *now}):
        old, new = was.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old!r} and is {new!r}"
