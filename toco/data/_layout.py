"""Where things lie in a VOC-shaped folder, and its lists of names and classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
"""Foreground classes of PASCAL VOC 2012, in the order of their ids 1 to 20."""
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_BACKGROUND_NAMES = ("background", "_background_")
_MAX_CLASSES = 254  # 0 is the background and 255 is void


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of PASCAL VOC 2012 under ``root``.

    Attributes:
        root: Folder that holds ``JPEGImages``, ``ImageSets/Segmentation`` and the masks.
        mask_folder: Name of the folder of masks; by default ``SegmentationClassAug`` where it exists (its masks cover
            the images of ``train_aug``, VOC's own only those of ``train`` and ``val``), else ``SegmentationClass``.
    """

    root: Path
    mask_folder: str | None = None

    def image_paths(self, name: str) -> list[Path]:
        """Files that are the image ``name``: exactly one in a sound folder."""
        stem = self.root / "JPEGImages" / name
        return [path for suffix in _IMAGE_SUFFIXES if (path := stem.with_name(stem.name + suffix)).is_file()]

    def image_path(self, name: str) -> Path:
        """The image's file.

        Raises:
            ValueError: There is none.
        """
        paths = self.image_paths(name)
        if not paths:
            raise ValueError(
                f"{self.root / 'JPEGImages' / name}: expected an image with {' or '.join(_IMAGE_SUFFIXES)}."
            )
        return paths[0]

    def mask_path(self, name: str) -> Path:
        """Where the mask of ``name`` is, if it has one."""
        folder = self.mask_folder
        if folder is None:
            aug = "SegmentationClassAug"
            folder = aug if (self.root / aug).is_dir() else "SegmentationClass"
        return self.root / folder / f"{name}.png"

    def annotation_path(self, name: str) -> Path:
        """Where the XML annotation of ``name`` is, if it has one."""
        return self.root / "Annotations" / f"{name}.xml"

    def list_path(self, list_name: str) -> Path:
        """The file of the list ``list_name``."""
        return self.root / "ImageSets" / "Segmentation" / f"{list_name}.txt"


def read_names(layout: Layout, list_name: str) -> tuple[str, ...]:
    """The names in a list, in its order. Blank lines and carriage returns are dropped.

    Raises:
        ValueError: There is no such list, it is empty, or a name is doubled or leads out of the folder.
    """
    path = layout.list_path(list_name)
    names = tuple(line for line in map(str.strip, list_lines(path)) if line)
    if not names:
        raise ValueError(f"{path}: expected one name a line, but the list is empty.")
    problems = [f"{name!r} {reason}" for name in names if (reason := name_fault(name))]
    problems += [f"{name!r} is there {count} times" for name, count in Counter(names).items() if count > 1]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems[:5])} ({len(problems)} faults in all).")
    return names


def list_lines(path: Path) -> list[str]:
    """The lines of a list as they are, line ends of Windows included, split at line feeds only.

    Raises:
        ValueError: There is no such list (the message names those there are), or it is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        present = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise ValueError(f"{path}: there is no such list of names; lists there: {present}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text ({error}).") from error


def name_fault(name: str) -> str | None:
    """Why ``name`` cannot be an image's name, or ``None``: it must stay inside the folder and be one word.

    >>> name_fault("2007_000063"), name_fault("../secret")
    (None, "leads out of the data set's folder")
    """
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or PureWindowsPath(name).drive or ".." in parts:
        return "leads out of the data set's folder"
    if any(character.isspace() or not character.isprintable() for character in name):
        return "is not one name (a list holds one name a line, without paths or labels)"
    return None


def read_class_names(layout: Layout, path: Path | None = None) -> tuple[str, ...]:
    """Foreground classes: from ``path``, from the folder's ``classes.txt``, or else VOC's twenty.

    The file has one name a line in the order of the ids; a first line that names the background is left out.

    Raises:
        ValueError: The file is missing, empty, or names a class twice or more than 254 classes.
    """
    if path is None:
        path = layout.root / "classes.txt"
        if not path.is_file():
            return VOC_CLASSES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a file with one class name a line ({error}).") from error
    names = [line.strip() for line in lines if line.strip()]
    if names and names[0].lower() in _BACKGROUND_NAMES:
        names = names[1:]
    if not 0 < len(names) <= _MAX_CLASSES or len(set(names)) != len(names):
        raise ValueError(
            f"{path}: expected 1 to {_MAX_CLASSES} different class names, but it has {len(names)}: {names}."
        )
    return tuple(names)
