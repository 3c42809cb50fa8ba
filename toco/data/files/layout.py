"""Where the files of a data set lie, and its lists of names and classes."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from toco.data._dataset import Fault
from toco.files import UnreadableError, read_lines
from toco.types import IGNORE_INDEX

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
"""Foreground classes of PASCAL VOC 2012, in the order of their ids 1 to 20."""
_BACKGROUND_NAMES = frozenset({"background", "_background_", "__background__", "bg"})
_VOID_NAMES = frozenset(
    {"void", "_void_", "__void__", "ignore", "_ignore_", "__ignore__", "unlabeled", "unlabelled"}
)
_MAX_CLASSES = 254  # 0 is the background and 255 is void
_NUM_EXAMPLES = 5
_NUMBERED = re.compile(r"(\d+)[\s:;,.)]+\S")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files of the image ``name`` are. A name may hold slashes: the image then lies in a subfolder.

    Attributes:
        root: Folder of the whole data set, in which files of labels are looked for.
        images: Folder of the images.
        masks: Folder of the masks; ``None`` where there are none at all.
        lists: Folder of the lists of names.
        annotations: Folder of the XML annotations.
        suffixes: Of images, in the order in which they are looked for.
    """

    root: Path
    images: Path
    masks: Path | None
    lists: Path
    annotations: Path
    suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")

    @classmethod
    def of_voc(cls, root: Path, mask_folder: str | None = None) -> Layout:
        """The folders of PASCAL VOC 2012 under ``root``.

        Args:
            root: Folder that holds ``JPEGImages``, ``ImageSets/Segmentation`` and the masks.
            mask_folder: Name of the folder of masks; by default ``SegmentationClassAug`` where it
                exists (its masks cover the images of ``train_aug``, VOC's own only those of
                ``train`` and ``val``), else ``SegmentationClass``.
        """
        if mask_folder is None:
            aug = "SegmentationClassAug"
            mask_folder = aug if (root / aug).is_dir() else "SegmentationClass"
        lists = root / "ImageSets" / "Segmentation"
        return cls(root, root / "JPEGImages", root / mask_folder, lists, root / "Annotations")

    def image_paths(self, name: str) -> list[Path]:
        """Files that are the image ``name``: exactly one in a sound folder.

        A file counts whose name is ``name`` in another Unicode form, as a Mac may write it.
        """
        mask = None if self.masks is None else self.masks / f"{name}.png"
        paths: list[Path] = []
        for path in self._candidates(name):
            # On disks that ignore case, or the Unicode form, several spellings are one file.
            if path.is_file() and path != mask and not any(path.samefile(other) for other in paths):
                paths.append(path)
        return paths

    def image_path(self, name: str) -> Path:
        """The image's file.

        Raises:
            ValueError: There is none.
        """
        for path in self._candidates(name):
            if path.is_file():
                return path
        raise ValueError(
            f"{self.images / name}: expected an image with {' or '.join(self.suffixes)}."
        )

    def mask_path(self, name: str) -> Path:
        """Where the mask of ``name`` is, if it has one.

        Raises:
            LookupError: The data set has no masks.
        """
        if self.masks is None:
            raise LookupError(f"{self.root}: the data set has no masks.")
        return _first_file(self.masks, name, ".png")

    def annotation_path(self, name: str) -> Path:
        """Where the XML annotation of ``name`` is, if it has one."""
        return _first_file(self.annotations, name, ".xml")

    def _candidates(self, name: str) -> Iterable[Path]:
        for form in unicode_forms(name):
            stem = self.images / form
            for suffix in self.suffixes:
                yield stem.with_name(stem.name + suffix)

    def list_path(self, list_name: str) -> Path:
        """The file of the list ``list_name``."""
        return self.lists / f"{list_name}.txt"


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC): equal for names that look the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def unicode_forms(name: str) -> tuple[str, ...]:
    """The name as it is, composed (NFC) and decomposed (NFD), each once."""
    if name.isascii():
        return (name,)
    return tuple(
        dict.fromkeys(
            (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
        )
    )


def examples(names: Sequence[str]) -> str:
    """The first of some names, for a message.

    >>> examples(["b", "a"]), examples(list("abcdefg"))
    ("'b', 'a'", "'a', 'b', 'c', 'd', 'e' and 2 more")
    """
    more = f" and {len(names) - _NUM_EXAMPLES} more" if len(names) > _NUM_EXAMPLES else ""
    return ", ".join(map(repr, names[:_NUM_EXAMPLES])) + more


def count(number: int, thing: str) -> str:
    """How many there are, for a message.

    >>> count(1, "image"), count(2, "image")
    ('1 image', '2 images')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def leads_out(name: str) -> str | None:
    """Why ``name`` cannot be an image's name, or ``None``: it must stay inside the data set's folder."""
    if name.startswith("/") or PureWindowsPath(name).drive or ".." in PureWindowsPath(name).parts:
        return "leads out of the data set's folder"
    if "\\" in name:
        return "has a backslash; separate folders by /"
    return None


def name_fault(name: str) -> str | None:
    """The same, and that it is one word: what is not is a line of another kind of list.

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
    """The names in a list, in its order. Blank lines, and blanks around a name, are dropped.

    Args:
        layout: Says where the list is.
        list_name: Its name.
        fault: Why a line cannot be a name, or ``None``.

    Raises:
        ValueError: There is no such list, it is empty, or a name is doubled or leads out of the
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
    """Usable names of a list, once each, and what is wrong with the others."""
    written = [name for line in lines if (name := line.strip())]
    problems = [f"{name!r} {reason}" for name in dict.fromkeys(written) if (reason := fault(name))]
    problems += [
        f"{name!r} is there {count} times" for name, count in Counter(written).items() if count > 1
    ]
    problems += [
        f"{first!r} and {second!r} differ only in their Unicode form"
        for first, second in same_name(written)
    ]
    return tuple(name for name in dict.fromkeys(written) if not fault(name)), problems


def same_name(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that look the same: they differ in their Unicode form alone."""
    by_form: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(names):
        if (other := by_form.setdefault(composed(name), name)) != name:
            pairs.append((other, name))
    return pairs


def list_lines(path: Path) -> list[str]:
    """The lines of a list as they are, without line ends.

    Raises:
        ValueError: There is no such list (the message names those there are), or it is not text.
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
    """What to do about ``name``, which has no image, where a file has nearly this name; else nothing."""
    folder = (layout.images / name).parent
    wanted = PurePosixPath(name)
    if wanted.suffix in layout.suffixes and layout.image_paths(name.removesuffix(wanted.suffix)):
        return f" Names are without suffix: write {name.removesuffix(wanted.suffix)!r}."
    try:
        files = sorted(file.name for file in folder.iterdir())
    except OSError:
        return f" There is no folder {str(folder)!r}."
    near = [
        file
        for file in files
        if composed(Path(file).stem).casefold() == composed(wanted.name).casefold()
    ]
    if not near:
        return ""
    images = [file for file in near if Path(file).suffix in layout.suffixes]
    if images:
        return f" There is {images[0]!r}: write the name as the file has it."
    suffixes = ", ".join(dict.fromkeys(suffix.lower() for suffix in layout.suffixes))
    return (
        f" There is {near[0]!r}, which is not read: images end in {suffixes}; convert or rename it."
    )


def read_class_names(
    layout: Layout, path: Path | None = None, notes: list[Fault] | None = None
) -> tuple[str, ...]:
    """Foreground classes: from ``path``, from the ``classes.txt`` of the root, or else VOC's twenty.

    The file has one name a line in the order of the ids; a first line that names the background is
    left out.

    Args:
        layout: Says where the root is.
        path: Another file.
        notes: Gets what was left out of the file.

    Raises:
        ValueError: The file is missing, empty, no list of names, names a class twice, more than 254
            classes, or something that is no class.
    """
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
    names = [line for line in lines if line]
    if fault := _fault_of_lines(names):
        raise ValueError(f"{path}: expected one class name a line, but {fault}.")
    if names and names[0].lower() in _BACKGROUND_NAMES:
        names = names[1:]
    for name in names:
        if name.lower() in _BACKGROUND_NAMES:
            raise ValueError(
                f"{path}: {name!r} is the background, which has the id 0; write it in the first line or leave it out."
            )
        if name.lower() in _VOID_NAMES:
            raise ValueError(
                f"{path}: {name!r} reads as pixels without ground truth, which have the id {IGNORE_INDEX} and are no "
                "class; take it off the list, or give the class another name."
            )
    doubled = Counter(composed(name) for name in names)
    if not 0 < len(names) <= _MAX_CLASSES or len(doubled) != len(names):
        raise ValueError(
            f"{path}: expected 1 to {_MAX_CLASSES} different class names, but it has {len(names)}: {names}."
        )
    inner = lines[: max(index for index, line in enumerate(lines) if line)]
    if notes is not None and "" in inner:
        number = inner.index("") + 1
        notes.append(
            Fault(
                path,
                f"line {number} is blank and was left out; classes are numbered without a gap.",
            )
        )
    folded = Counter(name.casefold() for name in names)
    if notes is not None and (same := [name for name in names if folded[name.casefold()] > 1]):
        notes.append(
            Fault(path, f"the classes {examples(same)} differ in upper and lower case alone.")
        )
    return tuple(names)


def _fault_of_lines(lines: Sequence[str]) -> str | None:
    """Why the lines of a file are no list of class names, or ``None``."""
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
            return f"{line!r} is none; write plain text"
        if "\t" in line or (len(lines) == 1 and ("," in line or ";" in line)):
            return f"{line!r} is several; write each in a line of its own"
    return None


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def _first_file(folder: Path, name: str, suffix: str) -> Path:
    """The file of ``name`` in a folder, in whichever Unicode form; where there is none, the name as it is."""
    forms = unicode_forms(name)
    paths = (folder / f"{form}{suffix}" for form in forms)
    return next(
        (path for path in paths if len(forms) == 1 or path.is_file()), folder / f"{name}{suffix}"
    )
