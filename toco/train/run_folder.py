"""The run folder: the record of a run, from which trackers and reports are filled.

::

    config.json        the resolved config and its digest
    provenance.json    commit, versions, data, weights, device
    metrics.jsonl      one row a line, unique by (kind, step)
    evaluations/       everything an evaluation measured, by step; the .npz of those that the result is the mean of
    pictures/          panels of fixed validation images, by step
    checkpoints/       see toco.train.checkpoint
    result.json        how the run ended and its metrics
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import toco
from toco.config import diff, digest
from toco.evaluate import Evaluation
from toco.files import sync
from toco.train import distributed
from toco.train.checkpoint import folder_name
from toco.train.run_config import RunConfig

FORMAT_VERSION = 1
LOCK = ".lock"
METRICS = "metrics.jsonl"
_PACKAGES = ("torch", "timm", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run depends on besides its config: digests of the data, and of the file of weights where there is one."""

    train_data: str
    val_data: str
    weights_sha256: str | None


class RunFolder:
    """Reads and writes one run folder; every file appears whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics = path / METRICS

    def create(
        self, config: RunConfig, recipe: str | None, class_names: Sequence[str], provenance: Mapping[str, Any]
    ) -> None:
        """Start a new run.

        Raises:
            FileExistsError: The folder already holds a run.
        """
        if (self.path / "config.json").exists():
            raise FileExistsError(
                f"{self.path} already holds a run. Give --resume to continue it, or another folder to start a new one."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._write("provenance.json", provenance)
        resolved = config.model_dump(mode="json")
        head = {"digest": digest(config), "recipe": recipe, "class_names": list(class_names)}
        self._write("config.json", {**head, "config": resolved})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder at the same time.

        Raises:
            ValueError: One does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"Another process is training in {self.path}. Wait for it, or end it.") from None
            yield

    def check_same_run(self, config: RunConfig, inputs: Inputs) -> None:
        """See that the run here is the one that ``config`` and ``inputs`` describe.

        Raises:
            ValueError: It is not (the message names what differs), or it was trained elsewhere and cannot go on here.
        """
        if (imported := self.provenance().get("imported")) is not None:
            raise ValueError(
                f"{self.path} was made of {imported['file']}, which holds a network and no state of its optimizer: "
                "it can be used, but not trained on. Start a training in another folder."
            )
        self.check_same_config(config)
        was = self.inputs()
        if was != inputs:
            names = [field.name for field in fields(Inputs) if getattr(was, field.name) != getattr(inputs, field.name)]
            raise ValueError(
                f"{self.path} holds a run of the same config on other inputs ({', '.join(names)} differ from what "
                "provenance.json records). Use another folder for this one."
            )

    def check_same_config(self, config: RunConfig) -> None:
        """See that the run here has the config ``config``.

        Raises:
            ValueError: It has not; the message names what differs.
        """
        if self.digest() != digest(config):
            changes = diff(self.config(), config).items()
            changed = ", ".join(f"{path} ({was!r} -> {now!r})" for path, (was, now) in changes)
            raise ValueError(f"{self.path} holds a run of another config: {changed}. Use another folder for this one.")

    def inputs(self) -> Inputs:
        """What the run was started on."""
        recorded = self.provenance()
        data = recorded["data_manifest"]
        return Inputs(data["train"], data["val"], recorded["weights_sha256"])

    def provenance(self) -> dict[str, Any]:
        """Code, versions, machine and inputs that the run was started with."""
        return self._read("provenance.json")

    def set_forked_at(self, step: int) -> None:
        """Record that the first ``step`` updates were another training's."""
        self._write("provenance.json", {**self.provenance(), "forked_at": step})

    def config(self) -> RunConfig:
        """The resolved config of the run."""
        return RunConfig.model_validate(self._read("config.json")["config"])

    def digest(self) -> str:
        """Digest of the config the run was started with."""
        return str(self._read("config.json")["digest"])

    def recipe(self) -> str | None:
        """Name of the recipe that the run came from."""
        recipe: str | None = self._read("config.json")["recipe"]
        return recipe

    def class_names(self) -> tuple[str, ...]:
        """Foreground classes of the run's data.

        Raises:
            ValueError: A version before 0.4 made the run, which did not record them.
        """
        names = self._read("config.json").get("class_names")
        if names is None:
            raise ValueError(
                f"{self.path} was made by a version before 0.4 and does not name its classes; train again."
            )
        return tuple(names)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").is_file()

    def result(self) -> dict[str, Any] | None:
        """How the run ended, or ``None`` while it has not."""
        return self._read("result.json") if (self.path / "result.json").is_file() else None

    def add_metrics(self, step: int, kind: str, time_s: float, values: Mapping[str, float]) -> None:
        """Append a row; durable when this returns."""
        row = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "kind": kind,
            "time_s": round(time_s, 3),
            "values": dict(values),
        }
        with self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line that a crash cut off is left out."""
        if not self._metrics.is_file():
            return []
        rows = []
        for line in self._metrics.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def set_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put ``rows``, as :meth:`metrics` gives them, in the place of all rows."""
        self._replace(self._metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def forget_after(self, step: int) -> None:
        """Drop rows, evaluations and pictures of later steps, which a resumed run makes again, and the result."""
        self.set_metrics([row for row in self.metrics() if row["step"] <= step])
        for evaluation in (self.path / "evaluations").glob("step_*.*"):
            if evaluation.stem > folder_name(step):
                evaluation.unlink()
        for pictures in (self.path / "pictures").glob("step_*"):
            if pictures.name > folder_name(step):
                shutil.rmtree(pictures, ignore_errors=True)
        (self.path / "result.json").unlink(missing_ok=True)

    def add_evaluation(self, step: int, evaluation: Evaluation, keep_counts: int) -> None:
        """Keep everything an evaluation measured, and what it counted for as long as it is one of the last few.

        Args:
            step: Optimizer updates before it.
            evaluation: What was measured.
            keep_counts: Newest evaluations whose confusion matrices are kept, which are larger than all the rest.
        """
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        if (counted := evaluation.confusions) is not None:
            with self._whole(self.counts(step)) as partial, partial.open("wb") as file:
                np.savez_compressed(file, **counted.arrays())
            for older in sorted(folder.glob("step_*.npz"))[:-keep_counts]:
                older.unlink()
        self._write(f"evaluations/{folder_name(step)}.json", {**json.loads(evaluation.to_json()), "step": step})

    def evaluation(self, step: int) -> Evaluation:
        """The evaluation after ``step`` updates, without pictures and counts.

        Raises:
            FileNotFoundError: There was none.
        """
        return Evaluation.from_json((self.path / "evaluations" / f"{folder_name(step)}.json").read_text())

    def counts(self, step: int) -> Path:
        """File of what the evaluation after ``step`` updates counted; see :func:`toco.evaluate.read_confusions`."""
        return self.path / "evaluations" / f"{folder_name(step)}.npz"

    def pictures(self, step: int) -> Path:
        """Folder for the pictures of ``step``, made."""
        folder = self.path / "pictures" / folder_name(step)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write how the run ended."""
        self._write("result.json", result)

    def _read(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / name).read_text())
        if content.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{self.path / name} has format version {content.get('format_version')}; "
                f"this version of toco reads {FORMAT_VERSION}."
            )
        return content

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self._replace(self.path / name, json.dumps({"format_version": FORMAT_VERSION, **content}, indent=2) + "\n")

    def _replace(self, path: Path, text: str) -> None:
        with self._whole(path) as partial:
            partial.write_text(text)

    @contextmanager
    def _whole(self, path: Path) -> Iterator[Path]:
        """Another name to write ``path`` under; the file gets its own name when it is complete and on disk."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)


def provenance(device: torch.device, inputs: Inputs) -> dict[str, Any]:
    """What a reader needs to know to run it again: code, versions, machine, data, weights."""
    commit, dirty = _commit()
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), "toco": toco.__version__, **versions},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}",
        "num_threads": torch.get_num_threads(),
        "world_size": distributed.shard().world_size,
        "data_manifest": {"train": inputs.train_data, "val": inputs.val_data},
        "weights_sha256": inputs.weights_sha256,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the source tree this package is imported from, and whether it has uncommitted changes."""
    source = Path(toco.__file__).parent
    git = shutil.which("git")
    if git is None:
        return None, None

    def ask(*command: str) -> str | None:
        done = subprocess.run([git, "-C", str(source), *command], capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy inside somebody else's repository must not report that repository's commit.
    if ask("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    return ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain", "--untracked-files=no"))
