"""Paths of a data set's files, and its lists of names and classes."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from toco.data._dataset import Finding
from toco.files import UnreadableError, read_lines
from toco.types import IGNORE_INDEX

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on
"""Foreground classes of PASCAL VOC 2012, in the order of their ids 1 to 20."""
_BACKGROUND_NAMES = frozenset({"background", "_background_", "__background__", "bg"})
_VOID_NAMES = frozenset(
    {"void", "_void_", "__void__", "ignore", "_ignore_", "__ignore__", "unlabeled", "unlabelled"}
)
_MAX_CLASSES = 254  # 0 is the background and 255 is void
_NUM_EXAMPLES = 5  # names that a message shows
_NUMBERED = re.compile(r"(\d+)[\s:;,.)]+\S")


@dataclass(frozen=True, slots=True)
class Layout:
    """Folders of a data set, and the paths of an image's files.

    A name with slashes belongs to an image in a subfolder.

    Attributes:
        root: Folder of the data set, with the label files.
        images: Folder of the images.
        masks: Folder of the masks; ``None`` for a data set without masks.
        lists: Folder of the lists of names.
        annotations: Folder of the XML annotations.
        suffixes: Suffixes of images, in the order in which they are tried.
    """

    root: Path
    images: Path
    masks: Path | None
    lists: Path
    annotations: Path
    suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")

    @classmethod
    def of_voc(cls, root: Path, mask_folder: str | None = None) -> Layout:
        """Return the layout of PASCAL VOC 2012 under ``root``.

        Args:
            root: Folder with ``JPEGImages``, ``ImageSets/Segmentation`` and the masks.
            mask_folder: Name of the folder of masks; by default ``SegmentationClassAug`` if it
                exists, else ``SegmentationClass``. The first has masks for ``train_aug``; VOC's own
                folder only has masks for ``train`` and ``val``.
        """
        if mask_folder is None:
            aug = "SegmentationClassAug"
            mask_folder = aug if (root / aug).is_dir() else "SegmentationClass"
        lists = root / "ImageSets" / "Segmentation"
        return cls(root, root / "JPEGImages", root / mask_folder, lists, root / "Annotations")

    def image_paths(self, name: str) -> list[Path]:
        """Return all files of the image ``name``: exactly one in a valid folder.

        File names in another Unicode form match as well; macOS may write them.
        """
        mask = None if self.masks is None else self.masks / f"{name}.png"
        paths: list[Path] = []
        for path in self._candidates(name):
            # On disks that ignore case or the Unicode form, several spellings are the same file.
            if path.is_file() and path != mask and not any(path.samefile(other) for other in paths):
                paths.append(path)
        return paths

    def image_path(self, name: str) -> Path:
        """Return the image's file.

        Raises:
            ValueError: There is no such file.
        """
        for path in self._candidates(name):
            if path.is_file():
                return path
        raise ValueError(
            f"{self.images / name}: expected an image with {' or '.join(self.suffixes)}."
        )

    def mask_path(self, name: str) -> Path:
        """Return the path of the mask of ``name``, which may not exist.

        Raises:
            LookupError: The data set has no masks.
        """
        if self.masks is None:
            raise LookupError(f"{self.root}: the data set has no masks.")
        return _first_file(self.masks, name, ".png")

    def annotation_path(self, name: str) -> Path:
        """Return the path of the XML annotation of ``name``, which may not exist."""
        return _first_file(self.annotations, name, ".xml")

    def _candidates(self, name: str) -> Iterable[Path]:
        for form in unicode_forms(name):
            stem = self.images / form
            for suffix in self.suffixes:
                yield stem.with_name(stem.name + suffix)

    def list_path(self, list_name: str) -> Path:
        """Return the file of the list ``list_name``."""
        return self.lists / f"{list_name}.txt"


def composed(name: str) -> str:
    """Return the name in Unicode's composed form (NFC), equal for names that look equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def unicode_forms(name: str) -> tuple[str, ...]:
    """Return the name as given, composed (NFC) and decomposed (NFD), without duplicates."""
    if name.isascii():
        return (name,)
    return tuple(
        dict.fromkeys(
            (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
        )
    )


def examples(names: Sequence[str]) -> str:
    """Format the first of some names for a message.

    >>> examples(["b", "a"]), examples(list("abcdefg"))
    ("'b', 'a'", "'a', 'b', 'c', 'd', 'e' and 2 more")
    """
    more = f" and {len(names) - _NUM_EXAMPLES} more" if len(names) > _NUM_EXAMPLES else ""
    return ", ".join(map(repr, names[:_NUM_EXAMPLES])) + more


def count(number: int, thing: str) -> str:
    """Format a number with its noun for a message.

    >>> count(1, "image"), count(2, "image")
    ('1 image', '2 images')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def leads_out(name: str) -> str | None:
    """Explain why a name leads out of the data set's folder; ``None`` for a valid name."""
    if name.startswith("/") or PureWindowsPath(name).drive or ".." in PureWindowsPath(name).parts:
        return "leads out of the data set's folder"
    if "\\" in name:
        return "has a backslash; separate folders by /"
    return None


def name_fault(name: str) -> str | None:
    """Explain why a line of a list is no name of an image; ``None`` for a valid name.

    A valid name stays in the data set's folder and is one word; other lines belong to another kind
    of list.

    >>> name_fault("2007_000063"), name_fault("../secret")
    (None, "leads out of the data set's folder")
    """
    if any(character.isspace() or not character.isprintable() for character in name):
        return (
            leads_out(name)
            or "is not one name (a list holds one name a line, without paths or labels)"
        )
    return leads_out(name)


def read_names(
    layout: Layout, list_name: str, fault: Callable[[str], str | None] = name_fault
) -> tuple[str, ...]:
    """Read the names of a list in order; ignore blank lines and surrounding blanks.

    Args:
        layout: Paths of the data set.
        list_name: Name of the list.
        fault: Function that explains why a line is no name, or returns ``None``.

    Raises:
        ValueError: The list is missing or empty, or a name is a duplicate or leads out of the
            folder.
    """
    path = layout.list_path(list_name)
    names, problems = check_names(list_lines(path), fault)
    if not names and not problems:
        raise ValueError(f"{path}: expected one name a line, but the list is empty.")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems[:5])} ({len(problems)} faults in all).")
    return names


def check_names(
    lines: Iterable[str], fault: Callable[[str], str | None] = name_fault
) -> tuple[tuple[str, ...], list[str]]:
    """Return the usable names of a list without duplicates, and the problems of its lines."""
    all_names = [name for line in lines if (name := line.strip())]
    problems = [
        f"{name!r} {reason}" for name in dict.fromkeys(all_names) if (reason := fault(name))
    ]
    problems += [
        f"{name!r} appears {count} times" for name, count in Counter(all_names).items() if count > 1
    ]
    problems += [
        f"{first!r} and {second!r} differ only in their Unicode form"
        for first, second in lookalike_pairs(all_names)
    ]
    return tuple(name for name in dict.fromkeys(all_names) if not fault(name)), problems


def lookalike_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ only in their Unicode form and look the same."""
    by_form: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(names):
        if (other := by_form.setdefault(composed(name), name)) != name:
            pairs.append((other, name))
    return pairs


def list_lines(path: Path) -> list[str]:
    """Read the lines of a list, without line ends.

    Raises:
        ValueError: The list is missing (the message names the existing lists), or is no text.
    """
    try:
        return read_lines(path)
    except FileNotFoundError:
        present = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise ValueError(
            f"{path}: there is no such list of names; lists there: {present}."
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: the list cannot be read: {error.strerror}.") from error


def advise_on_missing(layout: Layout, name: str) -> str:
    """Advise on a name without an image if a file has a similar name; else return empty text."""
    folder = (layout.images / name).parent
    name_path = PurePosixPath(name)
    if name_path.suffix in layout.suffixes and layout.image_paths(
        name.removesuffix(name_path.suffix)
    ):
        return f" Names are without suffix: write {name.removesuffix(name_path.suffix)!r}."
    try:
        files = sorted(file.name for file in folder.iterdir())
    except OSError:
        return f" There is no folder {str(folder)!r}."
    similar_files = [
        file
        for file in files
        if composed(Path(file).stem).casefold() == composed(name_path.name).casefold()
    ]
    if not similar_files:
        return ""
    images = [file for file in similar_files if Path(file).suffix in layout.suffixes]
    if images:
        return f" There is {images[0]!r}: write the name as the file has it."
    suffixes = ", ".join(dict.fromkeys(suffix.lower() for suffix in layout.suffixes))
    return (
        f" There is {similar_files[0]!r}, which is not read: images end in {suffixes}; convert or "
        "rename it."
    )


def read_class_names(
    layout: Layout, path: Path | None = None, notes: list[Finding] | None = None
) -> tuple[str, ...]:
    """Read the foreground classes from ``path`` or ``classes.txt``, or return VOC's twenty.

    The file has one name per line in the order of the ids. A first line that names the background
    is skipped.

    Args:
        layout: Paths of the data set.
        path: File of class names; by default ``classes.txt`` in the root, if it exists.
        notes: List to which remarks on the file are added.

    Raises:
        ValueError: The file is missing, empty or no list of names, or it has a duplicate, more than
            254 classes, or a line that is no class.
    """
    # Lines of the file.
    if path is None:
        path = layout.root / "classes.txt"
        if not path.exists():
            return VOC_CLASSES
    try:
        lines = [line.strip() for line in read_lines(path)]
    except UnreadableError:
        raise
    except OSError as error:
        raise ValueError(
            f"{path}: expected a file with one class name a line ({error.strerror})."
        ) from error

    # Names, without background and void.
    names = [line for line in lines if line]
    if fault := _fault_of_lines(names):
        raise ValueError(f"{path}: expected one class name a line, but {fault}.")
    if names and names[0].lower() in _BACKGROUND_NAMES:
        names = names[1:]
    for name in names:
        if name.lower() in _BACKGROUND_NAMES:
            raise ValueError(
                f"{path}: {name!r} is the background, which has the id 0; write it in the first "
                "line or leave it out."
            )
        if name.lower() in _VOID_NAMES:
            raise ValueError(
                f"{path}: {name!r} reads as pixels without ground truth, which have the id "
                f"{IGNORE_INDEX} and are no class; remove it from the list, or give the class "
                "another name."
            )
    name_counts = Counter(composed(name) for name in names)
    if not 0 < len(names) <= _MAX_CLASSES or len(name_counts) != len(names):
        raise ValueError(
            f"{path}: expected 1 to {_MAX_CLASSES} different class names, but it has {len(names)}: "
            f"{names}."
        )

    # Notes on blank lines and on names that differ only in case.
    inner = lines[: max(index for index, line in enumerate(lines) if line)]
    if notes is not None and "" in inner:
        number = inner.index("") + 1
        notes.append(
            Finding(
                path,
                f"line {number} is blank and was left out; classes are numbered without a gap.",
            )
        )
    case_counts = Counter(name.casefold() for name in names)
    if notes is not None and (
        case_variants := [name for name in names if case_counts[name.casefold()] > 1]
    ):
        notes.append(
            Finding(
                path, f"the classes {examples(case_variants)} differ in upper and lower case alone."
            )
        )
    return tuple(names)


def _fault_of_lines(lines: Sequence[str]) -> str | None:
    """Explain why the lines of a file are no list of class names; ``None`` if they are."""
    numbers = [int(match[1]) for line in lines if (match := _NUMBERED.match(line))]
    if (
        len(lines) > 1
        and len(numbers) == len(lines)
        and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    ):
        return f"its lines are numbered, as in {lines[0]!r}; write the names alone"
    if _is_json("\n".join(lines)):
        return f"{lines[0]!r} begins JSON; write plain text"
    for line in lines:
        if line[0] in "\"'#<" or line in ("[", "{", "]", "}"):
            return f"{line!r} is no class name; write plain text"
        if "\t" in line or (len(lines) == 1 and ("," in line or ";" in line)):
            return f"{line!r} has several names; write one per line"
    return None


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def _first_file(folder: Path, name: str, suffix: str) -> Path:
    """Return the file of ``name`` in any Unicode form; the name as given if no file exists."""
    forms = unicode_forms(name)
    paths = (folder / f"{form}{suffix}" for form in forms)
    return next(
        (path for path in paths if len(forms) == 1 or path.is_file()), folder / f"{name}{suffix}"
    )
