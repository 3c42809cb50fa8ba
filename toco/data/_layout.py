"""Where the files of a data set lie, and its lists of names and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
"""Foreground classes of PASCAL VOC 2012, in the order of their ids 1 to 20."""
_BACKGROUND_NAMES = ("background", "_background_")
_MAX_CLASSES = 254  # 0 is the background and 255 is void


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
            mask_folder: Name of the folder of masks; by default ``SegmentationClassAug`` where it exists (its masks
                cover the images of ``train_aug``, VOC's own only those of ``train`` and ``val``), else
                ``SegmentationClass``.
        """
        if mask_folder is None:
            aug = "SegmentationClassAug"
            mask_folder = aug if (root / aug).is_dir() else "SegmentationClass"
        lists = root / "ImageSets" / "Segmentation"
        return cls(root, root / "JPEGImages", root / mask_folder, lists, root / "Annotations")

    def image_paths(self, name: str) -> list[Path]:
        """Files that are the image ``name``: exactly one in a sound folder."""
        stem = self.images / name
        return [path for suffix in self.suffixes if (path := stem.with_name(stem.name + suffix)).is_file()]

    def image_path(self, name: str) -> Path:
        """The image's file.

        Raises:
            ValueError: There is none.
        """
        stem = self.images / name
        for suffix in self.suffixes:
            if (path := stem.with_name(stem.name + suffix)).is_file():
                return path
        raise ValueError(f"{stem}: expected an image with {' or '.join(self.suffixes)}.")

    def mask_path(self, name: str) -> Path:
        """Where the mask of ``name`` is, if it has one.

        Raises:
            LookupError: The data set has no masks.
        """
        if self.masks is None:
            raise LookupError(f"{self.root}: the data set has no masks.")
        return self.masks / f"{name}.png"

    def annotation_path(self, name: str) -> Path:
        """Where the XML annotation of ``name`` is, if it has one."""
        return self.annotations / f"{name}.xml"

    def list_path(self, list_name: str) -> Path:
        """The file of the list ``list_name``."""
        return self.lists / f"{list_name}.txt"


def leads_out(name: str) -> str | None:
    """Why ``name`` cannot be an image's name, or ``None``: it must stay inside the data set's folder."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or PureWindowsPath(name).drive or ".." in parts:
        return "leads out of the data set's folder"
    return None


def name_fault(name: str) -> str | None:
    """The same, and that it is one word: what is not is a line of another kind of list.

    >>> name_fault("2007_000063"), name_fault("../secret")
    (None, "leads out of the data set's folder")
    """
    if any(character.isspace() or not character.isprintable() for character in name):
        return leads_out(name) or "is not one name (a list holds one name a line, without paths or labels)"
    return leads_out(name)


def read_names(layout: Layout, list_name: str, fault: Callable[[str], str | None] = name_fault) -> tuple[str, ...]:
    """The names in a list, in its order. Blank lines and carriage returns are dropped.

    Args:
        layout: Says where the list is.
        list_name: Its name.
        fault: Why a line cannot be a name, or ``None``.

    Raises:
        ValueError: There is no such list, it is empty, or a name is doubled or leads out of the folder.
    """
    path = layout.list_path(list_name)
    names = tuple(line for line in map(str.strip, list_lines(path)) if line)
    if not names:
        raise ValueError(f"{path}: expected one name a line, but the list is empty.")
    problems = [f"{name!r} {reason}" for name in names if (reason := fault(name))]
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


def read_class_names(layout: Layout, path: Path | None = None) -> tuple[str, ...]:
    """Foreground classes: from ``path``, from the ``classes.txt`` of the root, or else VOC's twenty.

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
