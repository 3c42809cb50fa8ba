"""A trained method from a run folder alone, without data set and pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toco.config import replace
from toco.files import printable
from toco.methods import Method
from toco.train import checkpoint
from toco.train.parts import method_of
from toco.train.run_config import RunConfig
from toco.train.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained method with its config and its classes.

    Attributes:
        method: The method, on the device of ``config``, in evaluation mode.
        config: Config of the run, with the caller's changes.
        step: Optimizer updates before the checkpoint.
        class_names: Foreground classes; ``class_names[j]`` has the label ``j + 1``.
        recipe: Name of the recipe that the run came from; ``None`` without a recipe.
        digest: Digest of the config that the run was started with.
    """

    method: Method
    config: RunConfig
    step: int
    class_names: tuple[str, ...]
    recipe: str | None
    digest: str

    def check_decoder(self) -> None:
        """Check that the method can segment.

        Raises:
            ValueError: The method has no decoder.
        """
        if not self.config.method.has_decoder():
            raise ValueError(
                f"The method {self.config.method.name!r} of this run has no decoder, and so "
                "segments nothing. `evaluate` scores its CAMs, and `export-cams` writes them."
            )


def open_trained(run_dir: Path, changes: Mapping[str, Any] | None = None) -> Trained:
    """Load the trained method of a run folder, from its newest checkpoint.

    Args:
        run_dir: The run folder.
        changes: Settings to change by their dotted paths, as for :func:`toco.config.replace`.

    Raises:
        ValueError: There is no run or no complete checkpoint, or a change does not fit.
    """
    folder = RunFolder(run_dir)
    if not folder.exists():
        raise ValueError(f"{printable(run_dir)} holds no run: expected a config.json in it.")
    config = replace(folder.config(), dict(changes or {})).resolved()
    saved = checkpoint.latest(folder.checkpoints)
    if saved is None:
        raise ValueError(f"{printable(run_dir)} holds no whole checkpoint to restore.")
    if saved.digest != folder.digest():
        raise ValueError(
            f"{printable(folder.checkpoints / checkpoint.folder_name(saved.step))} is a checkpoint "
            f"of another run: its config has the digest {saved.digest}, that of config.json "
            f"{folder.digest()}. Move it out of the folder."
        )
    class_names = folder.class_names()
    method = method_of(saved, config, len(class_names)).eval()
    return Trained(method, config, saved.step, class_names, folder.recipe(), folder.digest())
