"""Pretrained weights from a file, without ever unpickling code."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

_WRAPPERS = ("model", "state_dict")
_CLASSIFIERS = ("head.", "head_dist.", "fc_norm.")


def load_file(model: nn.Module, path: Path) -> None:
    """Load an encoder's weights into ``model``; the classifier of the pretraining is left out.

    A safetensors file, or a torch file that holds nothing but tensors and containers (it is opened with
    ``weights_only=True``; a ``model`` or ``state_dict`` entry around the tensors is unwrapped). Position embeddings
    of another grid are interpolated bicubically.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file does not hold exactly this model's tensors; the message names those that differ.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected pretrained weights at {path}, but there is no such file.")
    state = _read(path)
    state = {name: value for name, value in state.items() if not name.startswith(_CLASSIFIERS)}
    wanted = model.state_dict()
    if "pos_embed" in state and "pos_embed" in wanted:
        state["pos_embed"] = _fit_positions(state["pos_embed"], wanted["pos_embed"])
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


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
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


def _fit_positions(positions: Tensor, wanted: Tensor) -> Tensor:
    """Square grids only: pretrained ViTs have no other."""
    if positions.ndim != 3 or positions.shape == wanted.shape or positions.shape[-1] != wanted.shape[-1]:
        return positions
    side, target = (round((p.shape[1] - 1) ** 0.5) for p in (positions, wanted))
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
