"""The run folder: the record of a run, which trackers and reports read.

::

    config.json        the resolved config, its digest, digests of the data and the weights
    provenance.json    commit, versions, data, weights, device
    metrics.jsonl      one row a line, unique by (kind, step)
    evaluations/       all measurements of each evaluation, by step; counts (.npz) of the last ones
    pictures/          panels of fixed validation images, by step
    checkpoints/       see toco.train.checkpoint
    result.json        status, last step and metrics of a run that has ended

Every JSON file and every row carries its own digest, see :mod:`toco.train.records`. A damaged file
counts as missing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from toco.config import diff, digest, sentences
from toco.evaluate import Evaluation
from toco.files import UnreadableError, append, printable, whole_file, write_record, write_text
from toco.own_modules import OwnModuleError
from toco.registry import UNTRUSTED
from toco.train import checkpoint, records
from toco.train.checkpoint import folder_name
from toco.train.inputs import Inputs, recorded_inputs
from toco.train.records import METRICS, Row, RowsMark
from toco.train.run_config import RunConfig

LOCK = ".lock"

logger = logging.getLogger(__name__)


class RunFolder:
    """Reader and writer of one run folder. Files appear complete or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics = path / METRICS
        self._rows: list[Row] | None = None
        """All rows, where this object wrote them, so that a training does not read them back."""

    def create(
        self,
        config: RunConfig,
        recipe: str | None,
        class_names: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> None:
        """Start a new run, which replaces a run that made no step.

        Args:
            config: The run, resolved.
            recipe: Name of the recipe that ``config`` came from.
            class_names: Foreground classes of the data.
            provenance: Provenance of the run.

        Raises:
            FileExistsError: The folder already holds a run that made steps.
        """
        if self.has_steps():
            raise FileExistsError(
                f"{printable(self.path)} already holds a run. Give --resume to continue it, or "
                "another folder to start a new one."
            )
        if self.exists():
            self.remove_after(0, ())
        self._rows = []
        self._write("provenance.json", provenance)
        self._write_config(config, recipe, class_names, recorded_inputs(provenance))

    def has_steps(self) -> bool:
        """Whether the folder holds a checkpoint or a row; otherwise another run may replace it."""
        return bool(checkpoint.all_in(self.checkpoints)) or (
            self._metrics.is_file() and self._metrics.stat().st_size > 0
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, so that no other process trains in it at the same time.

        Raises:
            ValueError: Another process is training in the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"Another process is training in {printable(self.path)}. Wait for it, or end "
                    "it."
                ) from None
            yield

    def check_same_run(
        self,
        config: RunConfig,
        recipe: str | None,
        class_names: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> None:
        """Check that the folder's run, which has steps, can be resumed with these arguments.

        One of ``config.json`` and ``provenance.json`` may be damaged or missing. If the rest of the
        folder shows that the run is the same, the file is written again. Arguments are those of
        :meth:`create`.

        Raises:
            ValueError: The folder holds another run (the message names the differences), a run
                that cannot be resumed, or too little to show which run it is.
        """
        inputs = recorded_inputs(provenance)
        # Config: a checkpoint with the config's digest stands in for a damaged config.json.
        if (fault := self._fault("config.json")) is not None:
            saved = checkpoint.latest(self.checkpoints)
            shows_config = saved is not None and saved.digest == digest(config)
            if self._fault("provenance.json") is not None or not shows_config:
                raise UnreadableError(
                    f"{fault} The rest of the folder does not show that its run is the requested "
                    "one. Restore the file from a copy, or train in another folder."
                )
            logger.warning(
                "%s It is written again: provenance.json and a checkpoint show that the run is the "
                "same.",
                fault,
            )
            self._check_inputs(inputs)
            self._write_config(config, recipe, class_names, inputs)
        self.check_same_config(config)
        # Provenance: the inputs in config.json stand in for a damaged provenance.json.
        if (fault := self._fault("provenance.json")) is not None:
            if self.inputs() is None:
                raise UnreadableError(
                    f"{fault} Without it the data and weights of the run are unknown. Restore the "
                    "file from a copy, or train in another folder."
                )
            logger.warning(
                "%s It is written again: config.json shows that the inputs are the same.", fault
            )
            self._check_inputs(inputs)
            self._write("provenance.json", {**provenance, "restored": True})
        if (imported := self.provenance().get("imported")) is not None:
            raise ValueError(
                f"{printable(self.path)} was made from {printable(imported['file'])}, which holds "
                "a network and no state of its optimizer: it can be used, but not trained on. "
                "Start a training in another folder."
            )
        self._check_inputs(inputs)
        # Code: changed modules of the user's own are only a warning.
        recorded_code, present_code = (
            record.get("own_code", {}) for record in (self.provenance(), provenance)
        )
        if changed := sorted(
            name
            for name in {*recorded_code, *present_code}
            if recorded_code.get(name) != present_code.get(name)
        ):
            logger.warning(
                "The code of %s was changed after %s was begun; the steps that follow are "
                "computed by the new code.",
                ", ".join(changed),
                printable(self.path),
            )

    def _check_inputs(self, inputs: Inputs | None) -> None:
        recorded = self.inputs()
        if recorded != inputs:
            names = [
                f.name
                for f in fields(Inputs)
                if getattr(recorded, f.name, "") != getattr(inputs, f.name, "")
            ]
            raise ValueError(
                f"{printable(self.path)} holds a run of the same config on other inputs "
                f"({', '.join(names)} differ from what it records). Use another folder for this "
                "one."
            )

    def check_same_config(self, config: RunConfig) -> None:
        """Check that the folder's run has the config ``config``.

        Raises:
            ValueError: The configs differ; the message names the settings.
        """
        if self.digest() != digest(config):
            changes = diff(self.config(), config).items()
            changed = ", ".join(f"{path} ({old!r} -> {new!r})" for path, (old, new) in changes)
            raise ValueError(
                f"{printable(self.path)} holds a run of another config: {changed}. Use another "
                "folder for this one."
            )

    def inputs(self) -> Inputs | None:
        """Return the run's digests of data and weights; ``None`` for an imported network."""
        if (
            self._fault("config.json") is None
            and (recorded := self._head().get("inputs")) is not None
        ):
            return Inputs(**recorded)
        return (
            recorded_inputs(self.provenance()) if self._fault("provenance.json") is None else None
        )

    def provenance(self) -> dict[str, Any]:
        """Read code, versions, machine and inputs of the start of the run."""
        return records.read(self.path / "provenance.json")

    def set_forked_at(self, step: int) -> None:
        """Record that the run started from another training's state after ``step`` updates."""
        self._write("provenance.json", {**self.provenance(), "forked_at": step})

    def config(self) -> RunConfig:
        """Read the resolved config of the run.

        This imports modules of the user's own that the config names, but none from the run folder
        itself.

        Raises:
            UnreadableError: ``config.json`` is damaged, has settings that this version does not
                know, or names a module of the user's own that cannot be imported.
        """
        try:
            return RunConfig.model_validate(self._head()["config"], context={UNTRUSTED: self.path})
        except ValidationError as error:
            if any(
                isinstance(item.get("ctx", {}).get("error"), OwnModuleError)
                for item in error.errors()
            ):
                raise UnreadableError(
                    f"{printable(self.path / 'config.json')} names a module that cannot be used. "
                    f"{sentences(error)}"
                ) from error
            raise UnreadableError(
                f"{printable(self.path / 'config.json')} holds settings that this version of toco "
                f"does not take: {sentences(error)} Use the version that wrote it (provenance.json "
                "names it)."
            ) from error

    def digest(self) -> str:
        """Read the digest of the run's config."""
        return str(self._head()["digest"])

    def recipe(self) -> str | None:
        """Read the name of the recipe that the run came from; ``None`` without a recipe."""
        recipe: str | None = self._head()["recipe"]
        return recipe

    def class_names(self) -> tuple[str, ...]:
        """Read the foreground classes of the run's data.

        Raises:
            ValueError: A version before 0.4 made the run, which did not record them.
        """
        names = self._head().get("class_names")
        if names is None:
            raise ValueError(
                f"{printable(self.path)} was made by a version before 0.4 and does not name its "
                "classes; train again."
            )
        return tuple(names)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").is_file()

    def is_unsealed(self) -> bool:
        """Whether the run was made by toco 0.4 or before, whose files carry no digests."""
        return bool(self._head()["format_version"] == records.UNSEALED_VERSION)

    def result(self) -> dict[str, Any] | None:
        """Read the result of the run; ``None`` before its end, or where the file is damaged."""
        path = self.path / "result.json"
        try:
            result = records.read(path)
        except FileNotFoundError:
            return None
        except UnreadableError as error:
            logger.warning("%s", error)
            return None
        if isinstance(result.get("status"), str) and isinstance(result.get("step"), int):
            return result
        logger.warning(
            "%s does not say how a run ended and at which step; it is no result.", printable(path)
        )
        return None

    def add_metrics(self, step: int, kind: str, time_s: float, values: Mapping[str, float]) -> None:
        """Append a row, which is on disk when this returns."""
        row = records.make_row(step, kind, time_s, values)
        append(self._metrics, records.rows_text([row]).encode())
        if self._rows is not None:
            self._rows.append(row)

    def metrics(self) -> list[Row]:
        """Return all rows, without a last line that a crash cut off.

        Raises:
            UnreadableError: A row is damaged.
        """
        if self._rows is not None:
            return list(self._rows)
        rows = records.read_rows(self._metrics)
        if rows.fault is not None:
            raise UnreadableError(
                f"{rows.fault} --resume trains again from before it; or restore it from a copy."
            )
        return list(rows.before_fault)

    def mark(self) -> RowsMark:
        """Return the mark of all rows, for a checkpoint."""
        return RowsMark.of(self.metrics())

    def set_metrics(self, rows: Sequence[Row]) -> None:
        """Replace all rows by ``rows``, which have the form of :meth:`metrics`."""
        write_text(self._metrics, records.rows_text(rows))
        self._rows = list(rows)

    def newest(self) -> tuple[checkpoint.Checkpoint, list[Row]] | None:
        """Find the newest undamaged checkpoint whose rows are undamaged, too.

        Newer checkpoints, which are damaged, are named in warnings.

        Returns:
            The checkpoint and the rows until its step; ``None`` if there is none.
        """
        stored_rows = records.read_rows(self._metrics)
        for path in reversed(checkpoint.all_in(self.checkpoints)):
            try:
                saved = checkpoint.read(path)
            except checkpoint.CheckpointError as error:
                logger.warning("Skipping a checkpoint: %s", error)
                continue
            rows = (
                list(stored_rows.before_fault)
                if saved.rows is None
                else list(stored_rows.before_fault[: saved.rows.count])
            )
            if saved.rows is not None and RowsMark.of(rows) == saved.rows:
                return saved, rows
            fault = (
                stored_rows.fault
                or f"{printable(self._metrics)} lacks rows, or has other rows than were written."
            )
            logger.warning(
                "Skipping the checkpoint of step %d, whose rows are damaged or missing: %s",
                saved.step,
                fault,
            )
        return None

    def fault_of_rows(self) -> str | None:
        """Describe what is wrong with the rows; ``None`` if nothing is.

        Missing rows are found by the mark in the newest readable checkpoint.
        """
        rows = records.read_rows(self._metrics)
        for path in reversed(checkpoint.all_in(self.checkpoints)):
            try:
                mark = checkpoint.recorded_rows(path)
            except checkpoint.CheckpointError:
                continue
            if mark is not None and RowsMark.of(rows.before_fault[: mark.count]) != mark:
                return rows.fault or f"{printable(self._metrics)} lacks rows that were written."
            break
        return rows.fault

    def remove_after(self, step: int, rows: Sequence[Row]) -> None:
        """Remove the result and everything of steps after ``step``, which the run makes again.

        Args:
            step: Step of the checkpoint that the run resumes from; 0 to begin anew.
            rows: The rows until ``step``.
        """
        self.set_metrics(rows)
        checkpoint.drop_after(self.checkpoints, step)
        for evaluation in (self.path / "evaluations").glob("step_*.*"):
            if evaluation.stem > folder_name(step):
                evaluation.unlink()
        for pictures in (self.path / "pictures").glob("step_*"):
            if pictures.name > folder_name(step):
                shutil.rmtree(pictures, ignore_errors=True)
        (self.path / "result.json").unlink(missing_ok=True)

    def add_evaluation(self, step: int, evaluation: Evaluation, keep_counts: int) -> None:
        """Store an evaluation, and its counts while it is one of the newest.

        Args:
            step: Optimizer updates before the evaluation.
            evaluation: The evaluation.
            keep_counts: How many of the newest evaluations keep their counts, the largest files of
                an evaluation.
        """
        folder = self.path / "evaluations"
        if (confusions := evaluation.confusions) is not None:
            with whole_file(self.counts(step)) as partial, partial.open("wb") as file:
                np.savez_compressed(file, **confusions.arrays())
            for older in sorted(folder.glob("step_*.npz"))[:-keep_counts]:
                older.unlink()
        content = {**json.loads(evaluation.to_json()), "step": step}
        write_record(folder / f"{folder_name(step)}.json", content, indent=1)

    def evaluation(self, step: int) -> Evaluation:
        """Read the evaluation after ``step`` updates, without pictures and counts.

        Raises:
            FileNotFoundError: No evaluation of ``step`` is stored.
            ValueError: The file is damaged.
        """
        return Evaluation.from_json(
            json.dumps(records.read(self.path / "evaluations" / f"{folder_name(step)}.json"))
        )

    def counts(self, step: int) -> Path:
        """Return the path of ``step``'s counts, see :func:`toco.evaluate.read_confusions`."""
        return self.path / "evaluations" / f"{folder_name(step)}.npz"

    def pictures(self, step: int) -> Path:
        """Make the folder for the pictures of ``step``, and return its path."""
        folder = self.path / "pictures" / folder_name(step)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        self._write("result.json", result)

    def _head(self) -> dict[str, Any]:
        """Read ``config.json``."""
        path = self.path / "config.json"
        head = records.read(path)
        if missing := [name for name in ("digest", "recipe", "config") if name not in head]:
            raise UnreadableError(
                f"{printable(path)} lacks {', '.join(missing)}. Restore it from a copy, or train "
                "again in another folder."
            )
        return head

    def _fault(self, name: str) -> str | None:
        """Describe what is wrong with a JSON file of the run; ``None`` where it can be read."""
        try:
            records.read(self.path / name, advice="")
        except FileNotFoundError:
            return f"{printable(self.path / name)} is missing."
        except UnreadableError as error:
            return str(error).rstrip()
        return None

    def _write_config(
        self,
        config: RunConfig,
        recipe: str | None,
        class_names: Sequence[str],
        inputs: Inputs | None,
    ) -> None:
        self._write(
            "config.json",
            {
                "digest": digest(config),
                "recipe": recipe,
                "class_names": list(class_names),
                "inputs": None if inputs is None else asdict(inputs),
                "config": config.model_dump(mode="json"),
            },
        )

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        records.write(self.path / name, content)
