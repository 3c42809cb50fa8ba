"""Atomic, hash-checked checkpoints: safetensors and JSON, nothing that runs code when it is read.

A checkpoint is a folder with ``tensors.safetensors`` (model, teacher, optimizer, random states) and ``state.json``
(format version, step, digest of the config, SHA-256 of the tensors). The folder appears under its name only when both
files are complete and on disk. The position in the data and the learning rate are functions of the step.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toco.files import sha256, sync

FORMAT_VERSION = 1
TENSORS, STATE = "tensors.safetensors", "state.json"

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or of another run."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back: the step it was made after, the digest of its run's config, and its tensors."""

    step: int
    digest: str
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix/``, without the prefix."""
        start = f"{prefix}/"
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def folder_name(step: int) -> str:
    """Name of the folder of everything that belongs to ``step``.

    >>> folder_name(150)
    'step_00000150'
    """
    return f"step_{step:08d}"


def save(
    folder: Path,
    step: int,
    digest: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> Path:
    """Write the state after ``step`` updates to ``folder / step_...`` and return that path.

    A crash at any moment leaves either no checkpoint of this step or a whole one. ``extra`` holds further parts by
    their prefix; :meth:`Checkpoint.part` gives them back.
    """
    tensors = _tensors(model, optimizer, extra)
    return _write(folder, step, digest, {name: value.cpu().contiguous() for name, value in tensors.items()})


def save_model(folder: Path, step: int, digest: str, model: nn.Module) -> Path:
    """Write a model alone, as :func:`save` does: enough to use it, not to train it on."""
    tensors = {f"model/{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return _write(folder, step, digest, tensors)


class Writer:
    """Writes checkpoints while the training goes on, one at a time.

    The training waits only for a copy of its state in host memory. That memory is kept from one checkpoint to the next.
    Leaving the context waits for what is being written.

    Args:
        folder: Where the checkpoints lie.
        digest: Of the run's config.
        keep: Newest checkpoints that are kept.
    """

    def __init__(self, folder: Path, digest: str, keep: int) -> None:
        self._folder, self._digest, self._keep = folder, digest, keep
        self._copies: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def start(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, Mapping[str, Tensor]],
        then: Callable[[Path], None],
    ) -> None:
        """Write the state as it is now, as :func:`save` does, and call ``then`` in the writing thread when it is whole.

        Raises:
            Exception: As :meth:`wait`.
        """
        self.wait()
        tensors = self._copied(_tensors(model, optimizer, extra))

        def write() -> None:
            path = _write(self._folder, step, self._digest, tensors)
            prune(self._folder, self._keep)
            then(path)

        self._writing = self._thread.submit(write)

    def check(self) -> None:
        """Raise what went wrong with the last checkpoint, if it is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint is on disk.

        Raises:
            Exception: What writing it raised, or what was called then.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, value in tensors.items():
            copy = self._copies.get(name)
            if copy is None:
                copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            copies[name] = copy.copy_(value, non_blocking=value.is_cuda)
        for device in {value.device for value in tensors.values() if value.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        self._copies = copies
        return copies


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, extra: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """All that a checkpoint holds, where it is."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= _optimizer_tensors(model, optimizer)
    tensors |= _random_states()
    tensors |= {f"{prefix}/{name}": value for prefix, part in extra.items() for name, value in part.items()}
    return {name: value.detach() for name, value in tensors.items()}


def _write(folder: Path, step: int, digest: str, tensors: Mapping[str, Tensor]) -> Path:
    target = folder / folder_name(step)
    partial = _partial(target)
    save_file(dict(tensors), partial / TENSORS)
    state = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "digest": digest,
        "sha256": sha256(partial / TENSORS),
    }
    _publish(partial, state, target)
    return target


def adopt(path: Path, folder: Path, digest: str) -> Path:
    """Copy the checkpoint ``path`` of another run into ``folder`` as one of the run with ``digest``."""
    target = folder / path.name
    partial = _partial(target)
    shutil.copyfile(path / TENSORS, partial / TENSORS)
    _publish(partial, {**json.loads((path / STATE).read_text()), "digest": digest}, target)
    return target


def read(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: A file is missing, of an unknown format, or its hash is not the recorded one.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
        actual = sha256(path / TENSORS)
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {state.get('format_version')}; this version of toco reads {FORMAT_VERSION}."
        )
    if actual != state["sha256"]:
        raise CheckpointError(
            f"{path / TENSORS} has SHA-256 {actual[:12]}..., but {state['sha256'][:12]}... was recorded when it was "
            "written: the file is damaged. Delete this folder to resume from the checkpoint before it."
        )
    return Checkpoint(state["step"], state["digest"], load_file(path / TENSORS))


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in ``folder``; damaged ones are passed over with a warning."""
    for path in reversed(all_in(folder)):
        try:
            return read(path)
        except CheckpointError as error:
            logger.warning("Passing over a checkpoint: %s", error)
    return None


def all_in(folder: Path) -> list[Path]:
    """Checkpoint folders in ``folder``, oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def drop_after(folder: Path, step: int) -> None:
    """Delete checkpoints of later steps: a run that goes on from ``step`` makes them again, and they may be damaged."""
    for path in all_in(folder):
        if path.name > folder_name(step):
            shutil.rmtree(path)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and what crashed writers left."""
    for path in all_in(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step_*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put a checkpoint's state into ``model`` and, for training on, into ``optimizer`` and the random generators.

    Raises:
        CheckpointError: The model has other tensors than the checkpoint.
    """
    load_model(checkpoint, model)
    if optimizer is None:
        return
    moments = checkpoint.part("optimizer")
    for name, parameter in model.named_parameters():
        entries = {
            key: moments[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in moments
        }
        if entries:
            # The fused optimizer has its number of steps beside the parameter, too.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in entries.items()}
    random = checkpoint.part("random")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def load_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put the model's tensors back.

    Raises:
        CheckpointError: Names or shapes differ; the message gives the first few.
    """
    saved, wanted = checkpoint.part("model"), model.state_dict()
    problems = [f"{name} is missing" for name in wanted.keys() - saved.keys()]
    problems += [f"{name} is unknown" for name in saved.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(saved[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in saved.keys() & wanted.keys()
        if saved[name].shape != wanted[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"The checkpoint does not fit this model ({len(problems)} differences): {'; '.join(sorted(problems)[:4])}. "
            "Use the config.json that lies beside it."
        )
    model.load_state_dict(saved)


def _partial(target: Path) -> Path:
    """An empty folder beside ``target``, to be written first."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _publish(partial: Path, state: Mapping[str, Any], target: Path) -> None:
    """Complete ``partial``, which holds the tensors, and give it its name."""
    (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
    for path in (partial / TENSORS, partial / STATE, partial):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    sync(target.parent)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
    return {
        f"optimizer/{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _random_states() -> dict[str, Tensor]:
    """Only torch's own: everything else here is drawn from generators seeded by (seed, epoch, index) or by step."""
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return states
