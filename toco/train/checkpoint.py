"""Atomic, hash-checked checkpoints: safetensors and JSON, nothing that runs code when it is read.

A checkpoint is a folder with ``tensors.safetensors`` (model, teacher, optimizer, random states) and
``state.json`` (format version, step, digest of the config, SHA-256 of the tensors, the rows of
metrics until the step). The folder appears under its name only when both files are complete and on
disk. The position in the data and the learning rate are functions of the step.
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
    # Imported where tensors are read, written or copied: who looks for checkpoints needs no torch.
    import torch
    from torch import Tensor, nn

TENSORS, STATE = "tensors.safetensors", "state.json"
_NO_ROWS = RowsMark.of(())
_DAMAGED = "Delete this folder to resume from the checkpoint before it."

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or of another run."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back.

    Attributes:
        step: Optimizer updates it was made after.
        digest: Of its run's config.
        tensors: By name.
        rows: Rows of metrics that its run had then; ``None`` where a version made it that did not
            record them.
    """

    step: int
    digest: str
    tensors: dict[str, Tensor]
    rows: RowsMark | None

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix/``, without the prefix."""
        start = f"{prefix}/"
        return {
            name.removeprefix(start): value
            for name, value in self.tensors.items()
            if name.startswith(start)
        }


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
    rows: RowsMark = _NO_ROWS,
) -> Path:
    """Write the state after ``step`` updates to ``folder / step_...`` and return that path.

    A crash at any moment leaves either no checkpoint of this step or a whole one. ``extra`` holds
    further parts by their prefix; :meth:`Checkpoint.part` gives them back. ``rows`` says which rows
    of metrics the run has by now.
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
    """Write a model alone, as :func:`save` does: enough to use it, not to train it on."""
    tensors = {
        f"model/{name}": value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    return _write(folder, step, digest, tensors, _NO_ROWS)


class Writer:
    """Writes checkpoints while the training goes on, one at a time.

    The training waits only for a copy of its state in host memory. That memory is kept from one
    checkpoint to the next. Leaving the context waits for what is being written.

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
        rows: RowsMark = _NO_ROWS,
    ) -> None:
        """Write the state as it is now, as :func:`save` does, and call ``then`` in the writing thread when it is whole.

        Raises:
            Exception: As :meth:`wait`.
        """
        self.wait()
        tensors = self._copied(_tensors(model, optimizer, extra))

        def write() -> None:
            path = _write(self._folder, step, self._digest, tensors, rows)
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
    """All that a checkpoint holds, where it is."""
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
    """What the system said, which safetensors only quotes."""
    quoted = re.search(r"os error (\d+)", str(error))
    number = int(quoted[1]) if quoted else errno.EIO
    return OSError(number, os.strerror(number) if quoted else str(error))


def adopt(path: Path, folder: Path, digest: str) -> Path:
    """Copy the checkpoint ``path`` of another run into ``folder`` as one of the run with ``digest``.

    Raises:
        CheckpointError: ``path`` is damaged.
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
        CheckpointError: A file is missing, of an unknown format, or its hash is not the recorded
            one.
    """
    from safetensors.torch import load_file

    state = _read_state(path)
    try:
        actual = sha256(path / TENSORS)
        if actual != state.tensors_sha256:
            raise CheckpointError(
                f"{printable(path / TENSORS)} has SHA-256 {actual[:12]}..., but {state.tensors_sha256[:12]}... was "
                f"recorded when it was written: the file is damaged. {_DAMAGED}"
            )
        tensors = load_file(path / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(path / TENSORS)} cannot be read, so its checkpoint is not whole: {_reason(error)}. {_DAMAGED}"
        ) from error
    return Checkpoint(state.step, state.digest, tensors, state.rows)


def recorded_rows(path: Path) -> RowsMark | None:
    """The rows that a checkpoint belongs to; ``None`` where a version without digests made it.

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
            f"{printable(path / STATE)} cannot be read, so its checkpoint is not whole: {_reason(error)}. {_DAMAGED}"
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
        is_whole = path.name == folder_name(state.step) and isinstance(
            state.digest + state.tensors_sha256, str
        )
    except (KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise CheckpointError(
            f"{printable(path / STATE)} is not the state of the checkpoint {printable(path.name)}: expected its step, "
            f"digest, sha256 and rows. {_DAMAGED}"
        )
    return state


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
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put a checkpoint's state into ``model`` and, for training on, into ``optimizer`` and the random generators.

    Raises:
        CheckpointError: The model has other tensors than the checkpoint, or it holds no state to
            train on.
    """
    import torch

    load_model(checkpoint, model)
    if optimizer is None:
        return
    moments = checkpoint.part("optimizer")
    for name, parameter in model.named_parameters():
        entries = {
            key: moments[f"{key}/{name}"]
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{key}/{name}" in moments
        }
        if entries:
            # The fused optimizer has its number of steps beside the parameter, too.
            optimizer.state[parameter] = {
                key: value.to(parameter.device) for key, value in entries.items()
            }
    random = checkpoint.part("random")
    if "cpu" not in random:
        raise CheckpointError(
            f"The checkpoint of step {checkpoint.step} holds a model alone: it can be used, but not trained on."
        )
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


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
    return {
        f"optimizer/{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _random_states() -> dict[str, Tensor]:
    """Only torch's own: everything else here is drawn from generators seeded by (seed, epoch, index) or by step."""
    import torch

    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return states


def _reason(error: Exception) -> str:
    """What a library says is wrong, without the number and the path of an error of the system."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
