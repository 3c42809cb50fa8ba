"""What lies below a folder of images: what is read, and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from toco.data._dataset import Fault
from toco.data.files.layout import count, examples
from toco.files import files_below


@dataclass(frozen=True, slots=True)
class Tree:
    """The files below a folder.

    Attributes:
        folder: The folder.
        suffixes: Of images, in small letters.
        names: Relative paths of images without their suffix, sorted; a name is there twice if two
            images have it.
        others: Number of files that are no images, by suffix.
        hidden: Hidden files and folders, which are left out with all that is in them.
        again: Images that are there by another name, too: a link leads to them. They are left out.
        left_out: Phrases for what else is left out, such as links to nothing.
    """

    folder: Path
    suffixes: tuple[str, ...]
    names: tuple[str, ...]
    others: dict[str, int]
    hidden: tuple[str, ...]
    again: tuple[str, ...]
    left_out: tuple[str, ...]

    def notes(self) -> tuple[Fault, ...]:
        """What was left out."""
        notes = [f"left out: {phrase}." for phrase in self.left_out]
        if self.again:
            notes.append(
                f"{count(len(self.again), 'image')} left out, met again by a link: {examples(self.again)}."
            )
        if self.others:
            counts = ", ".join(
                f"{suffix or 'no suffix'} {number}" for suffix, number in self.others.items()
            )
            notes.append(
                f"{count(sum(self.others.values()), 'file')} left out, since images are {', '.join(self.suffixes)}: "
                f"{counts}."
            )
        if self.hidden:
            notes.append(
                f"hidden files and folders left out, {len(self.hidden)}: {examples(self.hidden)}."
            )
        return tuple(Fault(self.folder, note) for note in notes)


def read_tree(folder: Path, suffixes: Collection[str], without: Iterable[Path] = ()) -> Tree:
    """Look through a folder and the folders in it. Links are followed, and each image is taken once.

    Args:
        folder: The folder.
        suffixes: Suffixes of images.
        without: Files and folders that are neither read nor counted.

    Raises:
        ValueError: A folder cannot be opened.
    """
    contents = files_below(folder, without)
    if contents.closed:
        raise ValueError(
            f"{contents.closed[0]}: the folder cannot be opened; change its permissions."
        )
    images = [path for path in contents.files if path.suffix in suffixes]
    taken, again = _each_once(folder, images)
    others = Counter(path.suffix for path in contents.files if path.suffix not in suffixes)

    def names(paths: Iterable[Path]) -> tuple[str, ...]:
        return tuple(sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths))

    return Tree(
        folder,
        tuple(dict.fromkeys(suffix.lower() for suffix in suffixes)),
        names(taken),
        dict(sorted(others.items())),
        tuple(str(path.relative_to(folder)) for path in contents.hidden),
        names(again),
        contents.left_out,
    )


def _each_once(folder: Path, paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Paths of different files below a folder, and paths by which a link leads to one of these."""
    top = folder.resolve()
    parents: dict[Path, Path] = {}
    real: dict[Path, Path] = {}
    for path in paths:
        if path.parent not in parents:
            parents[path.parent] = path.parent.resolve()
        real[path] = path.resolve() if path.is_symlink() else parents[path.parent] / path.name

    def order(path: Path) -> tuple[bool, str]:
        return real[path] != top / path.relative_to(
            folder
        ), path.as_posix()  # a path without links comes first

    taken: dict[Path, Path] = {}
    again = []
    for path in sorted(real, key=order):
        if taken.setdefault(real[path], path) != path:
            again.append(path)
    return list(taken.values()), again
