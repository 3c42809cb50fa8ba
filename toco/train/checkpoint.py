"""Atomic checkpoints with checksums, in safetensors and JSON: reading one runs no code.

A checkpoint is a folder with two files. ``tensors.safetensors`` holds model, teacher, optimizer and
random states. ``state.json`` holds format version, step, digest of the config, SHA-256 of the
tensors, and number and SHA-256 of the rows of metrics. The folder gets its name only when both
files are complete and on disk. A checkpoint holds neither the position in the data nor the learning
rate: both are functions of the step.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from toco.files import UnreadableError, printable, sha256, whole_folder
from toco.train import records
from toco.train.records import RowsMark

if TYPE_CHECKING:
    # The functions that read, write or copy tensors import torch. Finding checkpoints needs none.
    import torch
    from torch import Tensor, nn

TENSORS, STATE = "tensors.safetensors", "state.json"
_NO_ROWS = RowsMark.of(())
_DAMAGED = "Delete this folder to resume from the checkpoint before it."

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or belongs to another run."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        step: Optimizer updates before the checkpoint.
        digest: Digest of the run's config.
        tensors: Tensors by name.
        rows: Mark of the rows of metrics until the step; ``None`` in checkpoints of toco 0.4 or
            before, which did not record it.
    """

    step: int
    digest: str
    tensors: dict[str, Tensor]
    rows: RowsMark | None

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under ``prefix/``, by their names without the prefix."""
        start = f"{prefix}/"
        return {
            name.removeprefix(start): value
            for name, value in self.tensors.items()
            if name.startswith(start)
        }


def folder_name(step: int) -> str:
    """Return the name of the folder of ``step``, for checkpoints, evaluations and pictures.

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
    rows: RowsMark = _NO_ROWS,
) -> Path:
    """Write the state after ``step`` updates to ``folder / step_...`` and return that path.

    A crash at any moment leaves either no checkpoint of this step or a complete one.

    Args:
        folder: Folder of the run's checkpoints.
        step: Optimizer updates so far.
        digest: Digest of the run's config.
        model: The model.
        optimizer: The optimizer of ``model``.
        extra: Further tensors, by prefix and name; :meth:`Checkpoint.part` returns them.
        rows: Mark of the rows of metrics so far.
    """
    tensors = _tensors(model, optimizer, extra)
    return _write(
        folder,
        step,
        digest,
        {name: value.cpu().contiguous() for name, value in tensors.items()},
        rows,
    )


def save_model(folder: Path, step: int, digest: str, model: nn.Module) -> Path:
    """Write a model without optimizer, which can be used but not resumed."""
    tensors = {
        f"model/{name}": value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    return _write(folder, step, digest, tensors, _NO_ROWS)


class Writer:
    """Writer of checkpoints in a thread, one at a time.

    The training goes on meanwhile, and waits only for a copy of its state in host memory, which all
    checkpoints share. Leaving the context waits until the last checkpoint is written.

    Args:
        folder: Folder of the checkpoints.
        digest: Digest of the run's config.
        keep: How many of the newest checkpoints are kept.
        is_due: Whether a training writes a checkpoint after a step even if it is not stopped there.
            Others are kept only until the next one is written. So a stop does not change which
            checkpoints a training has in the end.
    """

    def __init__(
        self, folder: Path, digest: str, keep: int, is_due: Callable[[int], bool] = lambda _: True
    ) -> None:
        self._folder, self._digest, self._keep, self._is_due = folder, digest, keep, is_due
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
        rows: RowsMark = _NO_ROWS,
    ) -> None:
        """Copy the present state and start to write it as :func:`save` does.

        Args:
            step: Optimizer updates so far.
            model: The model.
            optimizer: The optimizer of ``model``.
            extra: Further tensors, by prefix and name.
            then: Called with the checkpoint's path when it is complete, in the writing thread.
            rows: Mark of the rows of metrics so far.

        Raises:
            Exception: The error of the previous checkpoint, as in :meth:`wait`.
        """
        self.wait()
        tensors = self._copied(_tensors(model, optimizer, extra))

        def write() -> None:
            path = _write(self._folder, step, self._digest, tensors, rows)
            prune(self._folder, self._keep, self._is_due)
            then(path)

        self._writing = self._thread.submit(write)

    def check(self) -> None:
        """Raise the error of the last checkpoint if its writing has already failed."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk and its ``then`` has returned.

        Raises:
            Exception: The error of writing the checkpoint, or of ``then``.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

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
    """Collect all tensors of a checkpoint, on the devices where they are."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= _optimizer_tensors(model, optimizer)
    tensors |= _random_states()
    tensors |= {
        f"{prefix}/{name}": value for prefix, part in extra.items() for name, value in part.items()
    }
    return {name: value.detach() for name, value in tensors.items()}


def _write(
    folder: Path, step: int, digest: str, tensors: Mapping[str, Tensor], rows: RowsMark
) -> Path:
    from safetensors.torch import save_file

    target = folder / folder_name(step)
    with whole_folder(target) as partial:
        try:
            save_file(dict(tensors), partial / TENSORS)
        except SafetensorError as error:
            raise _as_os_error(error) from error
        _write_state(partial, step, digest, sha256(partial / TENSORS), rows)
    return target


def _write_state(
    folder: Path, step: int, digest: str, tensors_sha256: str, rows: RowsMark | None
) -> None:
    state = {"step": step, "digest": digest, "sha256": tensors_sha256}
    records.write(folder / STATE, state | {"rows": None if rows is None else rows.to_json()})


def _as_os_error(error: SafetensorError) -> OSError:
    """Return the operating system's error, whose number safetensors has in its message only."""
    quoted = re.search(r"os error (\d+)", str(error))
    number = int(quoted[1]) if quoted else errno.EIO
    return OSError(number, os.strerror(number) if quoted else str(error))


def adopt(path: Path, folder: Path, digest: str) -> Path:
    """Copy the checkpoint ``path`` of another run into ``folder``, for the run with ``digest``.

    Raises:
        CheckpointError: ``state.json`` of ``path`` is missing or damaged.
    """
    state = _read_state(path)
    target = folder / path.name
    with whole_folder(target) as partial:
        shutil.copyfile(path / TENSORS, partial / TENSORS)
        _write_state(partial, state.step, digest, state.tensors_sha256, state.rows)
    return target


def read(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: A file is missing or of an unknown format, or the SHA-256 of the tensors
            differs from the recorded one.
    """
    from safetensors.torch import load_file

    state = _read_state(path)
    try:
        actual = sha256(path / TENSORS)
        if actual != state.tensors_sha256:
            raise CheckpointError(
                f"{printable(path / TENSORS)} has SHA-256 {actual[:12]}..., but "
                f"{state.tensors_sha256[:12]}... was recorded when it was written: the file is "
                f"damaged. {_DAMAGED}"
            )
        tensors = load_file(path / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(path / TENSORS)} cannot be read, so its checkpoint is incomplete: "
            f"{_reason(error)}. {_DAMAGED}"
        ) from error
    return Checkpoint(state.step, state.digest, tensors, state.rows)


def recorded_rows(path: Path) -> RowsMark | None:
    """Read the mark of a checkpoint's rows; ``None`` from toco 0.4 or before.

    Raises:
        CheckpointError: ``state.json`` is missing or damaged.
    """
    return _read_state(path).rows


@dataclass(frozen=True, slots=True)
class _State:
    """The content of ``state.json``."""

    step: int
    digest: str
    tensors_sha256: str
    rows: RowsMark | None


def _read_state(path: Path) -> _State:
    try:
        content = records.read(path / STATE, advice=_DAMAGED)
    except OSError as error:
        raise CheckpointError(
            f"{printable(path / STATE)} cannot be read, so its checkpoint is incomplete: "
            f"{_reason(error)}. {_DAMAGED}"
        ) from error
    except UnreadableError as error:
        raise CheckpointError(str(error)) from error
    try:
        rows = content.get("rows")
        state = _State(
            content["step"],
            content["digest"],
            content["sha256"],
            None if rows is None else RowsMark(**rows),
        )
        is_complete = path.name == folder_name(state.step) and isinstance(
            state.digest + state.tensors_sha256, str
        )
    except (KeyError, TypeError, ValueError):
        is_complete = False
    if not is_complete:
        raise CheckpointError(
            f"{printable(path / STATE)} is not the state of the checkpoint {printable(path.name)}: "
            f"expected its step, digest, sha256 and rows. {_DAMAGED}"
        )
    return state


def latest(folder: Path) -> Checkpoint | None:
    """Read the newest undamaged checkpoint in ``folder``; warnings name damaged ones."""
    for path in reversed(all_in(folder)):
        try:
            return read(path)
        except CheckpointError as error:
            logger.warning("Skipping a checkpoint: %s", error)
    return None


def all_in(folder: Path) -> list[Path]:
    """List the checkpoint folders in ``folder``, oldest first."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def drop_after(folder: Path, step: int) -> None:
    """Delete the checkpoints after ``step``, which a run that resumes from ``step`` makes again."""
    for path in all_in(folder):
        if path.name > folder_name(step):
            shutil.rmtree(path)


def prune(folder: Path, keep: int, is_due: Callable[[int], bool] = lambda _: True) -> None:
    """Delete all but the newest ``keep`` checkpoints, and partial folders of crashed writers.

    Before, checkpoints that are not due are deleted, except the newest.
    """
    *older, newest = all_in(folder)
    due = [path for path in older if is_due(int(path.name.removeprefix("step_")))]
    for path in {*older} - {*[*due, newest][-keep:]}:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Load a checkpoint into ``model`` and, to resume, into ``optimizer`` and torch's generators.

    Raises:
        CheckpointError: The model has other tensors than the checkpoint; or ``optimizer`` is given
            and the checkpoint holds a model alone.
    """
    import torch

    load_model(checkpoint, model)
    if optimizer is None:
        return
    parameters = dict(model.named_parameters())
    # A parameter that had no gradient yet has no state: SGD begins its momentum with the first one.
    optimizer.state.clear()
    for entry, value in checkpoint.part("optimizer").items():
        key, _, name = entry.partition("/")
        # The fused optimizer keeps its step count on the parameter's device, too.
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)
    random = checkpoint.part("random")
    if "cpu" not in random:
        raise CheckpointError(
            f"The checkpoint of step {checkpoint.step} holds a model alone: it can be used, but "
            "not trained on."
        )
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def load_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load the tensors of the model alone.

    Raises:
        CheckpointError: Names or shapes differ; the message names the first few.
    """
    saved, expected = checkpoint.part("model"), model.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - saved.keys()]
    problems += [f"{name} is unknown" for name in saved.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(saved[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in saved.keys() & expected.keys()
        if saved[name].shape != expected[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"The checkpoint does not fit this model ({len(problems)} differences): "
            f"{'; '.join(sorted(problems)[:4])}. Use the config.json that lies beside it."
        )
    model.load_state_dict(saved)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
    return {
        f"optimizer/{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _random_states() -> dict[str, Tensor]:
    """Return the states of torch's global generators.

    All other random draws come from generators that are seeded by (seed, epoch, index) or by step.
    """
    import torch

    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return states


def _reason(error: Exception) -> str:
    """Return an error's message, without the number and the path of an ``OSError``."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
