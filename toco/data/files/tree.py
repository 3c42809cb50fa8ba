"""Contents of a folder of images: the images, and the files that are skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from toco.data._dataset import Finding
from toco.data.files.layout import count, examples
from toco.files import files_below


@dataclass(frozen=True, slots=True)
class Tree:
    """Files below a folder.

    Attributes:
        folder: The folder.
        suffixes: Suffixes of images, in lower case.
        names: Sorted relative paths of images, without suffix; twice if two images have the name.
        others: Number of files that are no images, by suffix.
        hidden: Hidden files and folders, which are skipped with their contents.
        links: Links to images that are already in ``names``; they are skipped.
        left_out: Phrases on other skipped items, such as broken links.
    """

    folder: Path
    suffixes: tuple[str, ...]
    names: tuple[str, ...]
    others: dict[str, int]
    hidden: tuple[str, ...]
    links: tuple[str, ...]
    left_out: tuple[str, ...]

    def notes(self) -> tuple[Finding, ...]:
        """Return notes on the skipped files."""
        notes = [f"left out: {phrase}." for phrase in self.left_out]
        if self.links:
            notes.append(
                f"{count(len(self.links), 'image')} left out, links to other images: "
                f"{examples(self.links)}."
            )
        if self.others:
            counts = ", ".join(
                f"{suffix or 'no suffix'} {number}" for suffix, number in self.others.items()
            )
            notes.append(
                f"{count(sum(self.others.values()), 'file')} left out, since images are "
                f"{', '.join(self.suffixes)}: {counts}."
            )
        if self.hidden:
            notes.append(
                f"hidden files and folders left out, {len(self.hidden)}: {examples(self.hidden)}."
            )
        return tuple(Finding(self.folder, note) for note in notes)


def read_tree(folder: Path, suffixes: Collection[str], without: Iterable[Path] = ()) -> Tree:
    """Read a folder and its subfolders; follow links, and list each image once.

    Args:
        folder: The folder.
        suffixes: Suffixes of images.
        without: Files and folders to ignore.

    Raises:
        ValueError: A folder cannot be opened.
    """
    contents = files_below(folder, without)
    if contents.closed:
        raise ValueError(
            f"{contents.closed[0]}: the folder cannot be opened; change its permissions."
        )
    images = [path for path in contents.files if path.suffix in suffixes]
    first_paths, links = _split_links(folder, images)
    others = Counter(path.suffix for path in contents.files if path.suffix not in suffixes)

    def names(paths: Iterable[Path]) -> tuple[str, ...]:
        return tuple(sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths))

    return Tree(
        folder,
        tuple(dict.fromkeys(suffix.lower() for suffix in suffixes)),
        names(first_paths),
        dict(sorted(others.items())),
        tuple(str(path.relative_to(folder)) for path in contents.hidden),
        names(links),
        contents.left_out,
    )


def _split_links(folder: Path, paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Split paths into different files and links to one of these files."""
    top = folder.resolve()
    parents: dict[Path, Path] = {}
    real: dict[Path, Path] = {}
    for path in paths:
        if path.parent not in parents:
            parents[path.parent] = path.parent.resolve()
        real[path] = path.resolve() if path.is_symlink() else parents[path.parent] / path.name

    def order(path: Path) -> tuple[bool, str]:
        # A path without links comes first.
        return real[path] != top / path.relative_to(folder), path.as_posix()

    first_paths: dict[Path, Path] = {}
    links = []
    for path in sorted(real, key=order):
        if first_paths.setdefault(real[path], path) != path:
            links.append(path)
    return list(first_paths.values()), links
