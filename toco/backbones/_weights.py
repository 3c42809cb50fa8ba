"""Pretrained weights from a file, without ever unpickling code."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

_WRAPPERS = ("model", "state_dict")
_HEADS = ("head.", "head_dist.", "fc_norm.", "attn_pool.")


def load_file(model: nn.Module, path: Path, sha256: str | None = None) -> None:
    """Load an encoder's weights into ``model``, a network of timm; the heads of the pretraining are left out.

    A safetensors file, or a torch file that holds nothing but tensors and containers (it is opened with
    ``weights_only=True``; a ``model`` or ``state_dict`` entry around the tensors is unwrapped). Position embeddings
    of another grid are interpolated bicubically. A file with other names than timm's (DINOv2, DINOv3, EVA, CLIP or Swin
    as their authors released them) is converted as timm does it.

    Args:
        model: The encoder.
        path: The file.
        sha256: What its SHA-256 (hex) has to begin with.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is another file than ``sha256`` says, or does not hold exactly this model's tensors; the message
            names those that differ.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected pretrained weights at {path}, but there is no such file.")
    if sha256 is not None:
        _check_sha256(path, sha256)
    wanted = model.state_dict()
    state = _without_heads(read_tensors(path))
    if "pos_embed" in state and "pos_embed" in wanted:
        state["pos_embed"] = _fit_positions(state["pos_embed"], wanted["pos_embed"], model)
    if state.keys() != wanted.keys():
        state = _without_heads(_renamed(state, model, path))
    problems = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    problems += [f"{name} is not part of the model" for name in state.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:6])
        raise ValueError(f"{path} does not fit this backbone ({len(problems)} differences): {shown}.")
    model.load_state_dict(state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, opened without running anything in it.

    Raises:
        ValueError: It holds something else than tensors, or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # on what is no file of tensors (a page that says "quota exceeded") all can happen
        raise ValueError(
            f"{path} cannot be read as plain tensors: expected a safetensors file, or a torch file that holds nothing "
            "but tensors. Nothing in it was run."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict: expected names with tensors.")
    return content


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected):
        raise ValueError(
            f"{path} has SHA-256 {actual[: max(len(expected), 8)]}..., but backbone.weights_sha256 is {expected}: "
            "these are other weights than the recipe's. Give the file that it names, or set weights_sha256 to null."
        )


def _without_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what only a classifier needs. A norm of pooled tokens is that, unless there is no other final norm."""
    if "norm.weight" not in state:
        state = {f"norm.{name[8:]}" if name.startswith("fc_norm.") else name: value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.startswith(_HEADS)}


def _renamed(state: dict[str, Tensor], model: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401 - a model of timm
    """``state`` with timm's names; timm keeps the conversions of a network beside it."""
    kernel = model.patch_embed.proj.weight.shape
    if other := [tuple(value.shape) for value in state.values() if value.ndim == 4 and value.shape != kernel]:
        # Which timm would resample without a word.
        raise ValueError(f"{path} embeds patches with a kernel of shape {other[0]}, expected {tuple(kernel)}.")
    convert = importlib.import_module(type(model).__module__).checkpoint_filter_fn
    try:
        renamed: dict[str, Tensor] = convert(dict(state), model)
    except (AssertionError, AttributeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this backbone, nor can timm convert it: {error!r}.") from error
    return renamed


def _fit_positions(positions: Tensor, wanted: Tensor, model: Any) -> Tensor:  # noqa: ANN401 - a model of timm
    """Square grids only: pretrained ViTs have no other. What stands before the grid (class token, ...) stays."""
    if positions.ndim != 3 or positions.shape == wanted.shape or positions.shape[-1] != wanted.shape[-1]:
        return positions
    num_prefix = wanted.shape[1] - model.patch_embed.num_patches
    side = round(max(positions.shape[1] - num_prefix, 0) ** 0.5)
    if num_prefix + side * side != positions.shape[1]:
        return positions
    grid = positions[:, num_prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=model.patch_embed.grid_size, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :num_prefix], grid.flatten(2).transpose(1, 2)], dim=1)
