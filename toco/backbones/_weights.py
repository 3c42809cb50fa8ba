"""Pretrained weights from a file, without unpickling code."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from toco.backbones._config import ENTRY
from toco.files import sha256 as sha256_of

_BEGINNINGS = (
    (
        b"version https://git-lfs",
        "it is a pointer of Git LFS: fetch the file itself with git lfs pull",
    ),
    (b"<", "it is a web page, perhaps of a download that was refused: download it again"),
)
"""First bytes of files that people take for weights, and what such a file is."""
# The first bytes of a zip archive, the format of torch files.
_ZIP = b"PK\x03\x04"
_HEADS = (
    "head.",
    "head_dist.",
    "fc_norm.",
    "attn_pool.",
    "pre_logits.",  # VGG of timm
    "classifier.",  # VGG of torchvision
    "fc8.",  # ResNet38 of psa
)
"""Prefixes of tensors that only a classifier needs."""


def load_file(
    model: nn.Module, path: Path, sha256: str | None = None, entry: str | None = None
) -> None:
    """Load an encoder's weights into ``model`` without the heads.

    The file is a safetensors file, or a torch file that holds only tensors and containers (it is
    opened with ``weights_only=True``). A prefix that all names share, such as ``module.``, is
    removed. Position embeddings of another grid are interpolated bicubically. A file with other
    names than timm's (DINOv2, DINOv3, EVA, CLIP or Swin as their authors released them) is
    converted by timm's own function. Counters of batch norms may be missing: nothing here reads
    them.

    Args:
        model: The encoder.
        path: The file.
        sha256: Expected beginning of the file's SHA-256 (hex).
        entry: State dict to load, if the file holds several.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has another SHA-256, does not hold exactly this model's tensors, or
            holds values that are not finite. The message names the tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected pretrained weights at {path}, but there is no such file."
        )
    if sha256 is not None:
        _check_sha256(path, sha256)
    expected = model.state_dict()
    released = state = read_tensors(path, entry)
    if not state.keys() & expected.keys():
        # Twice, because names of heads may have the prefix, or be the only names without it.
        state = without_shared_prefix(_without_heads(without_shared_prefix(state)))
        # The encoder's own names may share a prefix, too, such as ``features.`` of a VGG.
        own_names = dict(zip(without_shared_prefix(expected), expected, strict=True))
        state = {own_names.get(name, name): value for name, value in state.items()}
    state = _without_heads(state)
    _check_finite(state, path)
    if "pos_embed" in state and "pos_embed" in expected:
        state["pos_embed"] = _fit_positions(state["pos_embed"], expected["pos_embed"], model)
    counters = {name for name in expected if name.endswith(".num_batches_tracked")}
    state = {name: expected[name] for name in counters} | state
    # timm has a function of this kind for networks that embed patches.
    if state.keys() != expected.keys() and hasattr(model, "patch_embed"):
        if state.keys() & expected.keys():
            released = state
        # With the names as they were released, because timm may recognise them by a prefix.
        state = _without_heads(_renamed(released, model, path))
    problems = [f"{name} is missing" for name in expected.keys() - state.keys()]
    problems += [f"{name} is not part of the model" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:6])
        raise ValueError(
            f"{path} does not fit this backbone ({len(problems)} differences): {listed}."
        )
    model.load_state_dict(state)


def without_shared_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the leading parts of names, up to a dot, that all names share.

    >>> list(without_shared_prefix({"module.net.a.w": 1, "module.net.b": 2}))
    ['a.w', 'b']
    """
    names = [name.split(".") for name in state]
    num_shared = 0
    while names and all(
        len(name) > num_shared + 1 and name[num_shared] == names[0][num_shared] for name in names
    ):
        num_shared += 1
    return {
        ".".join(name[num_shared:]): value
        for name, value in zip(names, state.values(), strict=True)
    }


def read_tensors(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a file by name, without running anything in it.

    Args:
        path: The file. It holds the tensors, or dictionaries around them.
        entry: State dict to read, as ``teacher`` or ``model/ema``.

    Raises:
        ValueError: The file holds something else than tensors, or is damaged; it holds several
            state dicts, or none of this name. The message names them.
    """
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        damaged = _damaged_entry(path)
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    # Any error is possible on a file that holds no tensors, such as a page "quota exceeded".
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors: {_describe_fault(path)}. Expected a "
            "safetensors file, or a torch file that holds nothing but tensors. Nothing in it was "
            "run."
        ) from error
    if damaged:
        raise ValueError(
            f"{path} is damaged: the bytes of {damaged!r} in it changed. Copy the file again."
        )
    state_dicts = dict(_state_dicts(content, ()))
    if not state_dicts:
        raise ValueError(f"{path} holds no state dict: expected names with tensors.")
    names = ", ".join(filter(None, state_dicts))
    if entry is not None and entry not in state_dicts:
        raise ValueError(
            f"{path} holds no state dict {entry!r}; it holds {names or 'one without a name'}."
        )
    if entry is None and len(state_dicts) > 1:
        raise ValueError(
            f"{path} holds several state dicts: {names}. Say which, as in "
            f"{path}{ENTRY}{next(iter(state_dicts))}."
        )
    return state_dicts[entry] if entry is not None else next(iter(state_dicts.values()))


def _damaged_entry(path: Path) -> str | None:
    """Return the first entry of a torch file that has a wrong checksum.

    torch compares no checksums. A checksum of 0 means none:
    ``torch.serialization.set_crc32_options(False)`` writes it.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        archive.filelist = [entry for entry in archive.filelist if entry.CRC]
        return archive.testzip()


def _state_dicts(content: object, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield all dictionaries of tensors, named by the keys that lead to each."""
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) for key in content)
    ):
        return
    if all(isinstance(value, Tensor) for value in content.values()):
        yield "/".join(keys), dict(content)
        return
    for key, value in content.items():
        yield from _state_dicts(value, (*keys, key))


def _describe_fault(path: Path) -> str:
    """Say why a file holds no tensors, as far as its beginning shows."""
    with path.open("rb") as file:
        beginning = file.read(512).lstrip()
    if not beginning:
        return "it is empty"
    for begins, fault in _BEGINNINGS:
        if beginning.startswith(begins):
            return fault
    if path.suffix == ".safetensors":
        return "it is no safetensors file, or a part of one: copy it again"
    if beginning.startswith(_ZIP):
        if not zipfile.is_zipfile(path):
            return "its end is missing: copy it again"
        return "it is damaged, or holds Python objects that are no tensors"
    return "it is no torch file, or holds Python objects that are no tensors"


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    bad_names = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if bad_names:
        more = f" and {len(bad_names) - 1} more tensors" if len(bad_names) > 1 else ""
        raise ValueError(
            f"{path}: {bad_names[0]}{more} holds values that are not finite. Take another copy of "
            "the weights."
        )


def _check_sha256(path: Path, expected: str) -> None:
    actual = sha256_of(path)
    if not actual.startswith(expected):
        raise ValueError(
            f"{path} has SHA-256 {actual[: max(len(expected), 8)]}..., but backbone.weights_sha256 "
            f"is {expected}: these are not the recipe's weights. Use the file that the recipe "
            "names, or set weights_sha256 to null."
        )


def _without_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove tensors that only a classifier needs.

    The norm of pooled tokens (``fc_norm``) is one of them, unless it is the only final norm.
    """
    if "norm.weight" not in state:
        state = {
            f"norm.{name[8:]}" if name.startswith("fc_norm.") else name: value
            for name, value in state.items()
        }
    return {name: value for name, value in state.items() if not name.startswith(_HEADS)}


def _renamed(
    state: dict[str, Tensor],
    model: Any,  # noqa: ANN401 - a model of timm
    path: Path,
) -> dict[str, Tensor]:
    """Convert ``state`` to timm's names, by the function that timm keeps beside the network."""
    kernel = model.patch_embed.proj.weight.shape
    if other_kernels := [
        tuple(value.shape) for value in state.values() if value.ndim == 4 and value.shape != kernel
    ]:
        # timm would resample such a kernel silently.
        raise ValueError(
            f"{path} embeds patches with a kernel of shape {other_kernels[0]}, expected "
            f"{tuple(kernel)}."
        )
    convert = importlib.import_module(type(model).__module__).checkpoint_filter_fn
    try:
        renamed: dict[str, Tensor] = convert(dict(state), model)
    except (AssertionError, AttributeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit this backbone, nor can timm convert it: {error!r}."
        ) from error
    return renamed


def _fit_positions(
    positions: Tensor,
    expected: Tensor,
    model: Any,  # noqa: ANN401 - a model of timm
) -> Tensor:
    """Interpolate position embeddings from a square grid to the model's grid.

    Pretrained ViTs have square grids only. Embeddings before the grid (class token, ...) stay.
    """
    if (
        positions.ndim != 3
        or positions.shape == expected.shape
        or positions.shape[-1] != expected.shape[-1]
    ):
        return positions
    num_prefix = expected.shape[1] - model.patch_embed.num_patches
    side = round(max(positions.shape[1] - num_prefix, 0) ** 0.5)
    if num_prefix + side * side != positions.shape[1]:
        return positions
    grid = positions[:, num_prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(
        grid, size=model.patch_embed.grid_size, mode="bicubic", align_corners=False
    )
    return torch.cat([positions[:, :num_prefix], grid.flatten(2).transpose(1, 2)], dim=1)
