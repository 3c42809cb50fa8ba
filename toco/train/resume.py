"""Begin a run in its folder, or resume the run that the folder holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toco.config import digest
from toco.files import printable
from toco.train import checkpoint
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder

logger = logging.getLogger(__name__)


def begin_or_resume(
    folder: RunFolder,
    config: RunConfig,
    recipe: str | None,
    class_names: Sequence[str],
    provenance: Mapping[str, Any],
    check_room: Callable[[], None],
    *,
    resume: bool,
) -> checkpoint.Checkpoint | None:
    """Begin a run in ``folder``, or return the checkpoint from which its run resumes.

    The result is ``None`` for a new run, for a finished run, and without a complete checkpoint.

    Args:
        folder: The run folder.
        config: The run, resolved.
        recipe: Name of the recipe that ``config`` came from.
        class_names: Foreground classes of the data.
        provenance: Provenance of this run.
        check_room: Raises where the checkpoints do not fit on the disk; not called for a finished
            run, which needs no room.
        resume: Resume a run that made steps.

    Raises:
        FileExistsError: The folder holds a run that made steps, and ``resume`` is not set.
        ValueError: The folder holds another run, or one that cannot be resumed.
    """
    if not (resume and folder.has_steps()):
        check_room()
        _warn_of_replaced_run(folder, config)
        folder.create(config, recipe, class_names, provenance)
        return None
    folder.check_same_run(config, recipe, class_names, provenance)
    if _is_finished(folder):
        return None
    check_room()
    return _go_back_to_checkpoint(folder, config)


def _is_finished(folder: RunFolder) -> bool:
    """Whether the run in ``folder`` is finished; a warning names damaged rows."""
    result = folder.result()
    if result is None or result["status"] != "finished":
        return False
    if (fault := folder.fault_of_rows()) is not None:
        # The result carries its own digest: a damaged curve is no reason to train again.
        logger.warning(
            "%s The run has ended and its result stands; its curves lack what is damaged.", fault
        )
    return True


def _go_back_to_checkpoint(folder: RunFolder, config: RunConfig) -> checkpoint.Checkpoint | None:
    """Read the newest complete checkpoint, and remove everything of later steps from ``folder``.

    Without such a checkpoint everything is removed, and the training begins anew.

    Raises:
        ValueError: The run was made by toco 0.4 or before, which recorded no digests.
        CheckpointError: The checkpoint belongs to another run.
    """
    if folder.is_unsealed():
        raise ValueError(
            f"{printable(folder.path)} holds an unfinished run of toco 0.4 or before, whose files "
            "carry no digests: damage of its rows could not be found. Use it as it is, or train "
            "again in another folder."
        )
    newest = folder.newest()
    if newest is None:
        logger.warning(
            "%s holds no whole checkpoint; the training begins anew.", printable(folder.path)
        )
        folder.remove_after(0, ())
        return None
    restored, rows = newest
    if restored.digest != digest(config):
        raise checkpoint.CheckpointError(
            f"{printable(folder.checkpoints / checkpoint.folder_name(restored.step))} is a "
            f"checkpoint of another run: its config has the digest {restored.digest}, this run's "
            f"{digest(config)}. Move it out of the folder."
        )
    folder.remove_after(restored.step, rows)
    return restored


def _warn_of_replaced_run(folder: RunFolder, config: RunConfig) -> None:
    """Warn that a run of another config, which made no step, is replaced."""
    if not folder.exists() or folder.has_steps():
        return
    try:
        is_same = folder.digest() == digest(config)
    except ValueError:
        is_same = False
    if not is_same:
        logger.warning(
            "%s holds a run of another config that made no step; it is replaced.",
            printable(folder.path),
        )
