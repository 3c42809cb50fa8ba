"""Provenance of a run for its record: code, versions, machine, data, weights, command."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import toco
from toco.code_digest import code_digests
from toco.passwords import public_uri
from toco.train import distributed
from toco.train.inputs import Inputs
from toco.train.run_config import RunConfig

_PACKAGES = ("torch", "timm", "numpy", "pillow")
_COMMAND: ContextVar[tuple[str, ...] | None] = ContextVar("command", default=None)


@contextmanager
def recording_command(command: Sequence[str] | None) -> Iterator[None]:
    """Record ``command`` as the command of runs in the block; ``None``: this process's own.

    A worker of a study sets the command of the driver.
    """
    token = _COMMAND.set(None if command is None else tuple(command))
    try:
        yield
    finally:
        _COMMAND.reset(token)


def own_command() -> tuple[str, ...]:
    """Return this process's command line, without its program's folder and without passwords."""
    program = Path(sys.argv[0])
    # The file that ``python -m PACKAGE`` runs says nothing without its package.
    is_package = program.name == "__main__.py" and program.parent.name
    words = ("python", "-m", program.parent.name) if is_package else (program.name,)
    return (*words, *map(public_uri, sys.argv[1:]))


def own_code(config: RunConfig) -> dict[str, str]:
    """Digest the code of the user's own modules that ``config`` names; digests by module."""
    own_modules = [
        name for name in (config.backbone.name, config.data.name, config.method.name) if "." in name
    ]
    return code_digests(own_modules, without=[toco.__name__])


def provenance(device: torch.device, inputs: Inputs) -> dict[str, Any]:
    """Collect what one needs to repeat a run: code, versions, machine, data, weights, command."""
    commit, dirty = _commit()
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), "toco": toco.__version__, **versions},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU {platform.machine()}",
        "num_threads": torch.get_num_threads(),
        "world_size": distributed.shard().world_size,
        "data_manifest": {"train": inputs.train_data, "val": inputs.val_data},
        "weights_sha256": inputs.weights_sha256,
        "command": list(_COMMAND.get() or own_command()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of this package's source tree, and whether tracked files differ from it.

    Both are ``None`` where the package is no part of a repository, or where there is no git.
    """
    source = Path(toco.__file__).parent
    git = shutil.which("git")
    if git is None:
        return None, None

    def ask(*command: str) -> str | None:
        completed = subprocess.run(  # noqa: S603
            [git, "-C", str(source), *command], capture_output=True, text=True, check=False
        )
        return completed.stdout.strip() if completed.returncode == 0 else None

    # An installed copy may lie inside another project's repository, whose commit is not ours.
    if ask("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    return ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain", "--untracked-files=no"))
