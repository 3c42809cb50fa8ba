"""Generated benchmark: small scenes on which weak supervision fails as it does on photographs.

The data set is written once, as a VOC-shaped folder, and then read like any other. The same config
gives the same bytes on every machine: ``_scene`` computes with integers only, and ``files/png.py``
does not compress.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import uuid
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from toco.config import RUN_ONLY, digest
from toco.data import _scene
from toco.data._dataset import Cache, DataConfig, Split
from toco.data._scene import CLASS_NAMES, SceneConfig, draw_scene
from toco.data.files import png as _png
from toco.data.files.file_dataset import FileDataset
from toco.data.files.layout import Layout, read_class_names, read_names
from toco.data.files.node_cache import user_cache
from toco.data.files.png import png_bytes
from toco.files import UnreadableError, printable, read_record, sha256, whole_file, write_record

__all__ = ["Config", "SceneConfig", "draw_scene", "generated_folder", "open_split", "write_folder"]

logger = logging.getLogger(__name__)

_LABELS = Path("image_labels.csv")
_MANIFEST = "manifest.json"
_PARTS = ("JPEGImages", "SegmentationClass")
_TEXTS = (
    Path("ImageSets/Segmentation/train.txt"),
    Path("ImageSets/Segmentation/val.txt"),
    Path("classes.txt"),
    _LABELS,
)
_NUM_READ = 4  # images whose bytes enter the manifest digest
_SPLITS: tuple[Split, ...] = ("train", "val")


class Config(DataConfig):
    """Generated benchmark.

    Attributes:
        num_train: Training images.
        num_val: Validation images.
        image_size_px: Side of the square images.
        num_classes: Foreground classes.
        seed: Seed of all scenes. An image depends on the seed, its split and its index, but not on
            the number of images.
        scene: Contents of the scenes.
        root: Folder in which the data set gets a subfolder; by default ``toco`` in the user's cache
            (``XDG_CACHE_HOME``, else ``~/.cache``).
    """

    name: str = "shapes"
    cache: Cache = Field(default="memory", json_schema_extra={RUN_ONLY: True})
    num_train: int = Field(default=1000, gt=0, le=100_000)
    num_val: int = Field(default=300, gt=0, le=100_000)
    image_size_px: int = Field(default=64, ge=32, le=512)
    num_classes: int = Field(default=8, ge=1, le=len(CLASS_NAMES))
    seed: int = Field(default=0, ge=0, lt=2**32)
    scene: SceneConfig = SceneConfig()
    root: Path | None = Field(default=None, json_schema_extra={RUN_ONLY: True})


class ShapesFolder(FileDataset):
    """Split of a generated folder; a damaged or missing file is generated again when it is read."""

    def __init__(self, folder: Path, split: Split, config: Config) -> None:
        layout = Layout.of_voc(folder)
        names, class_names = read_names(layout, split), read_class_names(layout)
        super().__init__(layout, names, class_names, _LABELS, config)
        self._split, self._config = split, config
        manifest = read_record(folder / _MANIFEST)
        self._digest: str = manifest[split]
        self._sha256: dict[str, str] = manifest["sha256"][split]

    def manifest_digest(self) -> str:
        """Return a digest of names, classes, labels, and all images and masks as generated.

        Only a few files are read here, because every start of a study needs this digest. Each file
        is compared with its stored checksum when it is read.
        """
        digest = hashlib.sha256(repr((self.class_names, self.names, self._digest)).encode())
        for index in range(len(self)):
            digest.update(self.class_labels(index).tobytes())
        for index in range(0, len(self), -(-len(self) // _NUM_READ)):
            for path in self._intact_files(index):
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width, the same for all images."""
        return self._config.image_size_px, self._config.image_size_px

    def mask(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """Return the ground truth."""
        if index not in self._masks:
            self._intact_files(index)
        return super().mask(index)

    def _decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        self._intact_files(index)
        return super()._decode(index)

    def _intact_files(self, index: int) -> tuple[Path, Path]:
        """Return the files of an image and its mask; draw them again if their checksum is wrong."""
        paths = _files_of(self.layout.root, self.names[index])
        for is_mask, path in enumerate(paths):
            try:
                is_intact = sha256(path) == self._sha256[f"{path.parent.name}/{path.stem}"]
            except OSError:
                is_intact = False
            if not is_intact:
                logger.warning("%s is damaged or missing and is drawn again.", printable(path))
                image, mask, _ = _draw(self._config, self._split, index)
                _rewrite(path, mask if is_mask else image)
        return paths


def open_split(config: Config, split: Split) -> ShapesFolder:
    """Open the training or the validation images; generate both first if they do not exist.

    Raises:
        ValueError: The folder cannot be written.
    """
    return ShapesFolder(generated_folder(config), split, config)


def generated_folder(config: Config) -> Path:
    """Return the folder of the generated data set; write or repair it if necessary.

    The folder's name has a digest of the config and the generator's code, so that changed code
    never reads old images. The folder appears complete, by one rename. Several processes that
    generate it at the same time write the same bytes; the first rename succeeds. This function
    checks that images and masks exist; their bytes are compared when they are read.

    Raises:
        ValueError: The folder cannot be written.
    """
    root = config.root if config.root is not None else user_cache()
    folder = root / f"shapes-{_generator_digest(config)}"
    damaged = _damaged_file(folder) if folder.is_dir() else None
    if folder.is_dir() and damaged is None:
        return folder
    unfinished = root / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        write_folder(config, unfinished)
        if damaged is not None:
            logger.warning(
                "%s is damaged or missing and is generated again, with its whole folder.",
                printable(damaged),
            )
            # Replace file by file, since trainings may be reading the folder; the manifest is last.
            files = sorted(path for path in unfinished.rglob("*") if path.is_file())
            for path in sorted(files, key=lambda path: path.name == _MANIFEST):
                (folder / path.relative_to(unfinished)).parent.mkdir(parents=True, exist_ok=True)
                path.replace(folder / path.relative_to(unfinished))
        else:
            unfinished.rename(folder)
    except OSError as error:
        if (
            not folder.is_dir() or _damaged_file(folder) is not None
        ):  # otherwise another process has written the folder
            raise ValueError(
                f"{root}: the generated data set cannot be written there ({error}); set data.root "
                "to another folder."
            ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def write_folder(config: Config, folder: Path) -> None:
    """Generate the data set into ``folder``, in VOC layout.

    Files are not synced to disk: after a crash, a lost file does not match its digest in the
    manifest and is written again.
    """
    lists = folder / "ImageSets/Segmentation"
    for part in (*_PARTS, lists):
        (folder / part).mkdir(parents=True)
    rows = ["name,class_ids"]
    digests: dict[str, str] = {}
    files: dict[str, dict[str, str]] = {split: {} for split in _SPLITS}
    for split, count in zip(_SPLITS, (config.num_train, config.num_val), strict=True):
        names = [f"{split}_{index:05d}" for index in range(count)]
        total = hashlib.sha256()
        for index, name in enumerate(names):
            image, mask, class_ids = _draw(config, split, index)
            for path, content in zip(_files_of(folder, name), (image, mask), strict=True):
                path.write_bytes(content)
                total.update(content)
                files[split][f"{path.parent.name}/{name}"] = hashlib.sha256(content).hexdigest()
            rows.append(f"{name},{' '.join(map(str, class_ids))}")
        _write_lines(lists / f"{split}.txt", names)
        digests[split] = total.hexdigest()
    _write_lines(folder / "classes.txt", CLASS_NAMES[: config.num_classes])
    _write_lines(folder / _LABELS, rows)
    texts = {str(text): sha256(folder / text) for text in _TEXTS}
    write_record(folder / _MANIFEST, {**digests, "texts": texts, "sha256": files}, durable=False)


def _damaged_file(folder: Path) -> Path | None:
    """Find a file that is missing or, among manifest, lists and labels, has a wrong checksum."""
    try:
        manifest = read_record(folder / _MANIFEST)
        texts: dict[str, str] = manifest["texts"]
        for text, expected in texts.items():
            if sha256(folder / text) != expected:
                return folder / text
        for path in (
            folder / f"{name}.png" for split in _SPLITS for name in manifest["sha256"][split]
        ):
            if not path.is_file():
                return path
        return None
    except (OSError, UnreadableError, KeyError) as error:
        return (
            Path(error.filename)
            if isinstance(error, OSError) and error.filename
            else folder / _MANIFEST
        )


def _files_of(folder: Path, name: str) -> tuple[Path, Path]:
    image, mask = (folder / part / f"{name}.png" for part in _PARTS)
    return image, mask


def _draw(config: Config, split: Split, index: int) -> tuple[bytes, bytes, tuple[int, ...]]:
    """Draw a scene: PNG of the image, PNG of the mask, and ascending ids of its classes."""
    seed = (config.seed, _SPLITS.index(split), index)
    scene = draw_scene(seed, config.image_size_px, config.num_classes, config.scene)
    return (
        png_bytes(scene.image),
        png_bytes(scene.mask),
        tuple(int(i) for i in np.unique(scene.mask) if i),
    )


def _rewrite(path: Path, content: bytes) -> None:
    try:
        with whole_file(path, durable=False) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise ValueError(
            f"{path}: is damaged and cannot be written again ({error}); delete the folder."
        ) from error


def _write_lines(path: Path, lines: list[str] | tuple[str, ...]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def _generator_digest(config: Config) -> str:
    total = hashlib.sha256(digest(config).encode())
    for source in (__file__, _png.__file__, _scene.__file__):
        total.update(Path(source).read_bytes())
    return total.hexdigest()[:16]
