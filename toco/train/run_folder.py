"""The run folder: the record of a run, from which trackers and reports are filled.

::

    config.json        the resolved config, its digest, and the digests of the data and the weights
    provenance.json    commit, versions, data, weights, device metrics.jsonl      one row a line,
    unique by (kind, step) evaluations/       everything an evaluation measured, by step; the .npz
    of those that the result is the mean of pictures/          panels of fixed validation images, by
    step checkpoints/       see toco.train.checkpoint result.json        how the run ended and its
    metrics

Every JSON file and every row carries its own digest, see :mod:`toco.train.records`: what is damaged
is as if missing.
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
    """Reads and writes one run folder; every file appears whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics = path / METRICS
        self._rows: list[Row] | None = None
        """All rows, where this object wrote them: a training does not depend on reading back what it wrote."""

    def create(
        self,
        config: RunConfig,
        recipe: str | None,
        class_names: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> None:
        """Start a new run; what a run without a step left here is replaced.

        Raises:
            FileExistsError: The folder already holds a run that made steps.
        """
        if self.has_steps():
            raise FileExistsError(
                f"{printable(self.path)} already holds a run. Give --resume to continue it, or another folder to start "
                "a new one."
            )
        if self.exists():
            self.forget_after(0, ())
        self._rows = []
        self._write("provenance.json", provenance)
        self._write_config(config, recipe, class_names, recorded_inputs(provenance))

    def has_steps(self) -> bool:
        """Whether a training left a checkpoint or a row here; a folder without may be used for another run."""
        return bool(checkpoint.all_in(self.checkpoints)) or (
            self._metrics.is_file() and self._metrics.stat().st_size > 0
        )

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
                raise ValueError(
                    f"Another process is training in {printable(self.path)}. Wait for it, or end it."
                ) from None
            yield

    def check_same_run(
        self,
        config: RunConfig,
        recipe: str | None,
        class_names: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> None:
        """See that the run here, which has steps, is the one that :meth:`create` would start, and can be trained on.

        One of ``config.json`` and ``provenance.json`` may be damaged or missing. If the rest of the
        folder shows that the run is the same, the file is written again.

        Raises:
            ValueError: It is another run (the message names what differs), cannot be trained on, or
                what is left of it does not show which run it is.
        """
        inputs = recorded_inputs(provenance)
        if (fault := self._fault("config.json")) is not None:
            saved = checkpoint.latest(self.checkpoints)
            shows_config = saved is not None and saved.digest == digest(config)
            if self._fault("provenance.json") is not None or not shows_config:
                raise UnreadableError(
                    f"{fault} What else is in the folder does not show that its run is the one that is asked for. "
                    "Restore the file from a copy, or train in another folder."
                )
            logger.warning(
                "%s It is written again: provenance.json and a checkpoint show that the run is this.",
                fault,
            )
            self._check_inputs(inputs)
            self._write_config(config, recipe, class_names, inputs)
        self.check_same_config(config)
        if (fault := self._fault("provenance.json")) is not None:
            if self.inputs() is None:
                raise UnreadableError(
                    f"{fault} Without it nothing says which data and weights the run was trained on. Restore the file "
                    "from a copy, or train in another folder."
                )
            logger.warning(
                "%s It is written again: config.json shows that the inputs are the same.", fault
            )
            self._check_inputs(inputs)
            self._write("provenance.json", {**provenance, "restored": True})
        if (imported := self.provenance().get("imported")) is not None:
            raise ValueError(
                f"{printable(self.path)} was made of {printable(imported['file'])}, which holds a network and no state "
                "of its optimizer: it can be used, but not trained on. Start a training in another folder."
            )
        self._check_inputs(inputs)
        was, now = (record.get("own_code", {}) for record in (self.provenance(), provenance))
        if changed := sorted(name for name in {*was, *now} if was.get(name) != now.get(name)):
            logger.warning(
                "The code of %s was changed after %s was begun; the steps that follow are computed by the new code.",
                ", ".join(changed),
                printable(self.path),
            )

    def _check_inputs(self, inputs: Inputs | None) -> None:
        was = self.inputs()
        if was != inputs:
            names = [
                f.name
                for f in fields(Inputs)
                if getattr(was, f.name, "") != getattr(inputs, f.name, "")
            ]
            raise ValueError(
                f"{printable(self.path)} holds a run of the same config on other inputs ({', '.join(names)} differ "
                "from what it records). Use another folder for this one."
            )

    def check_same_config(self, config: RunConfig) -> None:
        """See that the run here has the config ``config``.

        Raises:
            ValueError: It has not; the message names what differs.
        """
        if self.digest() != digest(config):
            changes = diff(self.config(), config).items()
            changed = ", ".join(f"{path} ({was!r} -> {now!r})" for path, (was, now) in changes)
            raise ValueError(
                f"{printable(self.path)} holds a run of another config: {changed}. Use another folder for this one."
            )

    def inputs(self) -> Inputs | None:
        """What the run was started on; ``None`` where it was made of an imported network."""
        if (
            self._fault("config.json") is None
            and (recorded := self._head().get("inputs")) is not None
        ):
            return Inputs(**recorded)
        return (
            recorded_inputs(self.provenance()) if self._fault("provenance.json") is None else None
        )

    def provenance(self) -> dict[str, Any]:
        """Code, versions, machine and inputs that the run was started with."""
        return records.read(self.path / "provenance.json")

    def set_forked_at(self, step: int) -> None:
        """Record that the first ``step`` updates were another training's."""
        self._write("provenance.json", {**self.provenance(), "forked_at": step})

    def config(self) -> RunConfig:
        """The resolved config of the run.

        A module of the user's own that it names is imported, unless that lies in the run folder
        itself.

        Raises:
            UnreadableError: It is damaged, of settings that this version does not have, or of a
                module of the user's own that cannot be imported.
        """
        try:
            return RunConfig.model_validate(self._head()["config"], context={UNTRUSTED: self.path})
        except ValidationError as error:
            if any(
                isinstance(item.get("ctx", {}).get("error"), OwnModuleError)
                for item in error.errors()
            ):
                raise UnreadableError(
                    f"{printable(self.path / 'config.json')} names a module that cannot be used. {sentences(error)}"
                ) from error
            raise UnreadableError(
                f"{printable(self.path / 'config.json')} holds settings that this version of toco does not take: "
                f"{sentences(error)} Use the version that wrote it (provenance.json names it)."
            ) from error

    def digest(self) -> str:
        """Digest of the config the run was started with."""
        return str(self._head()["digest"])

    def recipe(self) -> str | None:
        """Name of the recipe that the run came from."""
        recipe: str | None = self._head()["recipe"]
        return recipe

    def class_names(self) -> tuple[str, ...]:
        """Foreground classes of the run's data.

        Raises:
            ValueError: A version before 0.4 made the run, which did not record them.
        """
        names = self._head().get("class_names")
        if names is None:
            raise ValueError(
                f"{printable(self.path)} was made by a version before 0.4 and does not name its classes; train again."
            )
        return tuple(names)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").is_file()

    def is_unsealed(self) -> bool:
        """Whether a version without digests made the run."""
        return bool(self._head()["format_version"] == records.UNSEALED_VERSION)

    def result(self) -> dict[str, Any] | None:
        """How the run ended; ``None`` while it has not, or where the file is damaged."""
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
        """Append a row; durable when this returns."""
        row = records.make_row(step, kind, time_s, values)
        append(self._metrics, records.rows_text([row]).encode())
        if self._rows is not None:
            self._rows.append(row)

    def metrics(self) -> list[Row]:
        """All rows; a last line that a crash cut off is left out.

        Raises:
            UnreadableError: A row is damaged.
        """
        if self._rows is not None:
            return list(self._rows)
        found = records.read_rows(self._metrics)
        if found.fault is not None:
            raise UnreadableError(
                f"{found.fault} --resume trains again from before it; or restore it from a copy."
            )
        return list(found.whole)

    def mark(self) -> RowsMark:
        """The mark of all rows, which a checkpoint records."""
        return RowsMark.of(self.metrics())

    def set_metrics(self, rows: Sequence[Row]) -> None:
        """Put ``rows``, as :meth:`metrics` gives them, in the place of all rows."""
        write_text(self._metrics, records.rows_text(rows))
        self._rows = list(rows)

    def newest(self) -> tuple[checkpoint.Checkpoint, list[Row]] | None:
        """The newest whole checkpoint whose rows are whole, too, with these rows; the others are named in warnings."""
        found = records.read_rows(self._metrics)
        for path in reversed(checkpoint.all_in(self.checkpoints)):
            try:
                saved = checkpoint.read(path)
            except checkpoint.CheckpointError as error:
                logger.warning("Passing over a checkpoint: %s", error)
                continue
            rows = (
                list(found.whole) if saved.rows is None else list(found.whole[: saved.rows.count])
            )
            if saved.rows is not None and RowsMark.of(rows) == saved.rows:
                return saved, rows
            fault = (
                found.fault
                or f"{printable(self._metrics)} lacks rows, or has others than those that were written."
            )
            logger.warning(
                "Passing over the checkpoint of step %d, whose rows are not whole: %s",
                saved.step,
                fault,
            )
        return None

    def fault_of_rows(self) -> str | None:
        """What is wrong with the rows, by what the newest readable checkpoint says of them; ``None`` if nothing is."""
        found = records.read_rows(self._metrics)
        for path in reversed(checkpoint.all_in(self.checkpoints)):
            try:
                mark = checkpoint.recorded_rows(path)
            except checkpoint.CheckpointError:
                continue
            if mark is not None and RowsMark.of(found.whole[: mark.count]) != mark:
                return found.fault or f"{printable(self._metrics)} lacks rows that were written."
            break
        return found.fault

    def forget_after(self, step: int, rows: Sequence[Row]) -> None:
        """Go back to ``step``: what is of later steps is removed, which a resumed run makes again, and the result.

        Args:
            step: Step of the checkpoint that the run goes on from; 0 to begin anew.
            rows: The rows until then.
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
        """Keep everything an evaluation measured, and what it counted for as long as it is one of the last few.

        Args:
            step: Optimizer updates before it.
            evaluation: What was measured.
            keep_counts: Newest evaluations whose confusion matrices are kept, which are larger than
                all the rest.
        """
        folder = self.path / "evaluations"
        if (counted := evaluation.confusions) is not None:
            with whole_file(self.counts(step)) as partial, partial.open("wb") as file:
                np.savez_compressed(file, **counted.arrays())
            for older in sorted(folder.glob("step_*.npz"))[:-keep_counts]:
                older.unlink()
        content = {**json.loads(evaluation.to_json()), "step": step}
        write_record(folder / f"{folder_name(step)}.json", content, indent=1)

    def evaluation(self, step: int) -> Evaluation:
        """The evaluation after ``step`` updates, without pictures and counts.

        Raises:
            FileNotFoundError: There was none.
            ValueError: The file is damaged.
        """
        return Evaluation.from_json(
            json.dumps(records.read(self.path / "evaluations" / f"{folder_name(step)}.json"))
        )

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

    def _head(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        path = self.path / "config.json"
        head = records.read(path)
        if missing := [name for name in ("digest", "recipe", "config") if name not in head]:
            raise UnreadableError(
                f"{printable(path)} lacks {', '.join(missing)}. Restore it from a copy, or train again in another "
                "folder."
            )
        return head

    def _fault(self, name: str) -> str | None:
        """What is wrong with a JSON file of the run, in a sentence; ``None`` where it can be read."""
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
