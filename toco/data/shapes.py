"""The generated benchmark: small scenes on which weak supervision fails as it does on photographs.

The data set is written once, as a VOC-shaped folder, and then read as any other. The same config gives the same bytes
on every machine: see ``_scene`` (whole numbers only) and ``_png`` (nothing compressed).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from toco.config import RUN_ONLY, digest
from toco.data import _png, _scene
from toco.data._dataset import Cache, DataConfig, Split
from toco.data._files import FileDataset
from toco.data._layout import Layout, read_class_names, read_names
from toco.data._node_cache import user_cache
from toco.data._png import png_bytes
from toco.data._scene import CLASS_NAMES, SceneConfig, draw_scene

__all__ = ["Config", "SceneConfig", "draw_scene", "folder_digest", "generated_folder", "open_split", "write_folder"]

_LABELS = Path("image_labels.csv")
_MANIFEST = "manifest.json"
_NUM_READ = 4
_SPLITS: tuple[Split, ...] = ("train", "val")


class Config(DataConfig):
    """The generated benchmark.

    Attributes:
        num_train: Training images.
        num_val: Validation images.
        image_size_px: Side of the square images.
        num_classes: Foreground classes.
        seed: Seed of all scenes. An image depends on it, its split and its index only, not on the counts.
        scene: What the scenes show.
        root: Folder under which the data set is generated, in a folder of its own; by default ``toco`` in the user's
            cache (``XDG_CACHE_HOME``, else ``~/.cache``).
    """

    name: Literal["shapes"] = "shapes"
    cache: Cache = Field(default="memory", json_schema_extra={RUN_ONLY: True})
    num_train: int = Field(default=1000, gt=0, le=100_000)
    num_val: int = Field(default=300, gt=0, le=100_000)
    image_size_px: int = Field(default=64, ge=32, le=512)
    num_classes: int = Field(default=8, ge=1, le=len(CLASS_NAMES))
    seed: int = Field(default=0, ge=0, lt=2**32)
    scene: SceneConfig = SceneConfig()
    root: Path | None = Field(default=None, json_schema_extra={RUN_ONLY: True})


class ShapesFolder(FileDataset):
    """A split of a generated folder, which holds a digest of all that was written to it."""

    def __init__(self, folder: Path, split: Split, config: Config) -> None:
        layout = Layout.of_voc(folder)
        names, class_names = read_names(layout, split), read_class_names(layout)
        super().__init__(layout, names, class_names, _LABELS, config)
        self._split = split

    def manifest_digest(self) -> str:
        """Digest of names, classes, labels, and all images and masks as they were generated.

        Of the files themselves only a few are read, to see that they still are what they were: to read all takes
        seconds on a cold disk, and every start of a study asks for this digest.
        """
        written = json.loads((self.layout.root / _MANIFEST).read_text())[self._split]
        digest = hashlib.sha256(repr((self.class_names, self.names, written)).encode())
        for index in range(len(self)):
            digest.update(self.class_labels(index).tobytes())
        for name in self.names[:: -(-len(self) // _NUM_READ)]:
            digest.update(self.layout.image_path(name).read_bytes() + self.layout.mask_path(name).read_bytes())
        return digest.hexdigest()


def open_split(config: Config, split: Split) -> ShapesFolder:
    """Open the training or the validation images; generate both first, if they are not there.

    Raises:
        ValueError: The folder cannot be written.
    """
    return ShapesFolder(generated_folder(config), split, config)


def generated_folder(config: Config) -> Path:
    """The folder of the generated data set, written first if need be.

    Its name says what generated it, code included, so a changed generator never meets old images. It appears by one
    rename when it is complete; processes that generate it at once write the same bytes, and the first rename counts.

    Raises:
        ValueError: The folder cannot be written.
    """
    root = config.root if config.root is not None else user_cache()
    folder = root / f"shapes-{_generator_digest(config)}"
    if folder.is_dir():
        return folder
    unfinished = root / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        write_folder(config, unfinished)
        unfinished.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was first
            raise ValueError(
                f"{root}: the generated data set cannot be written there ({error}); set data.root to another folder."
            ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def write_folder(config: Config, folder: Path) -> None:
    """Generate the data set into ``folder``, in VOC layout."""
    images, masks, lists = (folder / part for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"))
    for part in (images, masks, lists):
        part.mkdir(parents=True)
    rows = ["name,class_ids"]
    digests: dict[str, str] = {}
    for split_key, (split, count) in enumerate(zip(_SPLITS, (config.num_train, config.num_val), strict=True)):
        names = [f"{split}_{index:05d}" for index in range(count)]
        total = hashlib.sha256()
        for index, name in enumerate(names):
            scene = draw_scene((config.seed, split_key, index), config.image_size_px, config.num_classes, config.scene)
            for folder_of_kind, pixels in ((images, scene.image), (masks, scene.mask)):
                content = png_bytes(pixels)
                (folder_of_kind / f"{name}.png").write_bytes(content)
                total.update(content)
            rows.append(f"{name},{' '.join(str(i) for i in np.unique(scene.mask) if i)}")
        _write_lines(lists / f"{split}.txt", names)
        digests[split] = total.hexdigest()
    _write_lines(folder / "classes.txt", CLASS_NAMES[: config.num_classes])
    _write_lines(folder / _LABELS, rows)
    _write_lines(folder / _MANIFEST, [json.dumps(digests)])


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) of the paths and bytes of all files under ``folder``, the manifest aside."""
    total = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    for path in sorted(path.relative_to(folder).as_posix() for path in files):
        total.update(f"{path}\0{hashlib.sha256((folder / path).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _write_lines(path: Path, lines: list[str] | tuple[str, ...]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def _generator_digest(config: Config) -> str:
    sources = (str(module) for module in (__file__, _png.__file__, _scene.__file__))
    total = hashlib.sha256(digest(config).encode())
    for source in sources:
        total.update(Path(source).read_bytes())
    return total.hexdigest()[:16]
