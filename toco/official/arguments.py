"""Translate command lines of the official training scripts into recipes with settings."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from toco.config import flatten, replace
from toco.registry import load


class _Script(NamedTuple):
    """Properties of an official training script.

    Attributes:
        data: First part of the names of its recipes.
        num_gpus: Number of GPUs in the authors' trainings.
        ignored: Flags that the script ignores, because their values, given here, are literals in
            it.
        complete_lists: Names of lists that hold a complete split, for which the data set here needs
            no list.
        settings: Settings in which the script differs from the recipe with DeiT-B, which follows
            the authors' log.
    """

    data: str
    num_gpus: int
    ignored: Mapping[str, str]
    complete_lists: tuple[str, ...]
    settings: Mapping[str, Any]


_SCRIPTS = {
    "dist_train_voc_seg_neg.py": _Script("voc", 2, {}, (), {}),
    "dist_train_coco_seg_neg.py": _Script(
        "coco",
        4,
        {"temp": "1.0", "aux_layer": "9"},
        ("train", "val"),
        {"method.ptc.start_step": 12_001, "method.ctc.start_step": 12_001},
    ),
}
_BACKBONES = {"deit_base_patch16_224": "deit_b", "vit_base_patch16_224": "vit_b"}
_DEFAULT_BACKBONE = "deit_base_patch16_224"
# Default of the official option ``--spg``, and the number of blocks of both backbones.
_SAMPLES_PER_GPU = 2
"""Default of the official flag ``--spg``."""
_DEPTH = 12
"""Blocks of the official backbones."""


def _numbers(text: str) -> list[float]:
    return [float(part) for part in re.split(r"[\s,()\[\]]+", text) if part]


def _aux_block(text: str) -> int:
    """Officially an index into the outputs of the blocks, which may count from the end."""
    index = int(text)
    if not -_DEPTH <= index < _DEPTH:
        raise ValueError(f"the network has {_DEPTH} blocks")
    return index % _DEPTH


_SETTINGS: Mapping[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "seed": (int, ("seed",)),
    "max_iters": (int, ("num_steps",)),
    "eval_iters": (int, ("evaluate_every",)),
    "log_iters": (int, ("log_every",)),
    "num_workers": (int, ("num_workers",)),
    "lr": (float, ("optim.lr",)),
    # A fraction of lr, whatever its name says.
    "warmup_lr": (float, ("optim.warmup_ratio",)),
    "warmup_iters": (int, ("optim.warmup_steps",)),
    "wt_decay": (float, ("optim.weight_decay",)),
    "betas": (_numbers, ("optim.betas",)),
    "power": (float, ("optim.power",)),
    "crop_size": (int, ("views.crop_size_px",)),
    "scales": (_numbers, ("views.rescale",)),
    "local_crop_size": (int, ("method.local_crop_size_px",)),
    "high_thre": (float, ("method.high_threshold",)),
    "low_thre": (float, ("method.low_threshold",)),
    "bkg_thre": (float, ("evaluate.background_threshold",)),
    "cam_scales": (_numbers, ("method.cam_scales", "evaluate.cam_scales")),
    "temp": (float, ("method.temperature",)),
    # The weight of the old value.
    "momentum": (float, ("method.ema_decay",)),
    "aux_layer": (_aux_block, ("method.aux_block",)),
    "w_ptc": (float, ("method.ptc.weight",)),
    "w_ctc": (float, ("method.ctc.weight",)),
    "w_seg": (float, ("method.segmentation.weight",)),
    "w_reg": (float, ("method.energy.weight",)),
    "train_set": (str, ("data.train_list",)),
    "val_set": (str, ("data.val_list",)),
    "data_folder": (str, ("data.root",)),
}
"""Flags with a counterpart: a parser of the value, and the settings that get it."""
_NOTES = {
    "pooling": (
        "had no effect: the script reads it and then always uses max pooling, like the recipe"
    ),
    "pretrained": (
        "has no counterpart: recipes start from pretrained weights, with backbone.weights=null "
        "from random"
    ),
    "num_classes": "has no counterpart: the classes are those of the data set",
    "ignore_index": "has no counterpart: void is 255 in every mask",
    "optimizer": (
        "has no counterpart: AdamW with warm-up and polynomial decay, optim.name=adamw, is the "
        "only one of the official code"
    ),
    "backend": "has no counterpart: it follows from the device",
    "local_rank": "has no counterpart: torchrun sets it",
    "save_ckpt": "has no counterpart: a checkpoint is kept at every evaluation",
    "list_folder": "has no counterpart: lists are read from the data set's folder",
    "img_folder": (
        "has no counterpart: data.root is the one folder of COCO; see `python -m toco data "
        "prepare-coco`"
    ),
    "label_folder": (
        "has no counterpart: data.root is the one folder of COCO; see `python -m toco data "
        "prepare-coco`"
    ),
}
"""Flags without a counterpart or without effect, and why."""
_FLAGS = {*_SETTINGS, *_NOTES, "spg", "backbone", "work_dir"}


@dataclass(frozen=True, slots=True)
class Translation:
    """A recipe and settings that train the same as an official command line.

    Attributes:
        recipe: The recipe to train.
        settings: Settings that differ from the recipe, by dotted path.
        run_dir: Folder for the run.
        num_gpus: Processes of the official command.
        notes: Sentences on flags that have no counterpart, had no effect, or were assumed.
    """

    recipe: str
    settings: Mapping[str, Any]
    run_dir: str
    num_gpus: int
    notes: tuple[str, ...]

    def command(self) -> str:
        """Return the shell command that starts the training."""
        values = [
            f"{path}={value if isinstance(value, str) else json.dumps(value)}"
            for path, value in self.settings.items()
        ]
        options = [part for value in values for part in ("--set", value)]
        return shlex.join(
            ["python", "-m", "toco", "train", self.recipe, *options, "--run-dir", self.run_dir]
        )


def translate(command: Sequence[str]) -> Translation:
    """Translate an official command line into a recipe and settings.

    Args:
        command: The command, with or without its launcher: ``python -m torch.distributed.launch
            --nproc_per_node=2 scripts/dist_train_voc_seg_neg.py --work_dir DIR``.

    Raises:
        ValueError: The command has no official training script, a flag is unknown (the nearest is
            named), or a value does not fit.
    """
    launcher, name, arguments = _split(command)
    script = _SCRIPTS[name]
    flags = _flags(arguments)
    notes = []

    # Recipe: from the script and the backbone.
    backbone = flags.pop("backbone", None)
    if backbone is None:
        backbone = _DEFAULT_BACKBONE
        notes.append(
            f"The command names no --backbone, so {backbone} is assumed. If the log of your run "
            f"says vit_base_patch16_224, the recipe is {script.data}_vit_b."
        )
    if backbone not in _BACKBONES:
        raise ValueError(
            f"--backbone is {backbone!r}, but there are recipes for {' and '.join(_BACKBONES)} "
            "only."
        )
    recipe = f"{script.data}_{_BACKBONES[backbone]}"
    base = load("toco.recipes", recipe).recipe()

    # Batch: from the number of processes and the images of each.
    num_gpus = _num_processes(launcher)
    if num_gpus is None:
        num_gpus = script.num_gpus
        notes.append(
            f"The command names no number of GPUs, so {num_gpus} are assumed, as in the authors' "
            "trainings."
        )
    per_gpu = _value("spg", flags.pop("spg", str(_SAMPLES_PER_GPU)), int)
    settings: dict[str, Any] = {
        "batch_size": num_gpus * per_gpu,
        "method.loss_group_size": per_gpu,
        **script.settings,
    }
    run_dir = flags.pop("work_dir", f"runs/{recipe}")

    # Settings: one flag after the other, with a note for each flag that sets nothing.
    for flag, text in flags.items():
        if flag in script.ignored:
            notes.append(
                f"--{flag} had no effect: {name} always uses {script.ignored[flag]}, like the "
                "recipe."
            )
        elif flag in _NOTES:
            notes.append(f"--{flag} {_NOTES[flag]}.")
        else:
            parse, paths = _SETTINGS[flag]
            is_complete = flag.endswith("_set") and text in script.complete_lists
            settings |= dict.fromkeys(paths, None if is_complete else _value(flag, text, parse))
    if "crop_size" in flags:
        notes.append(
            "--crop_size is the training's; evaluations stay at "
            f"evaluate.size_px={base.evaluate.size_px}."
        )

    # Keep the settings that differ from the recipe.
    config, official = flatten(replace(base, settings)), flatten(base)
    different = {path: config[path] for path in settings if config[path] != official[path]}
    if "method.ptc.start_step" in different:
        notes.append(
            f"{name} adds PTC and CTC after step 12000. In the authors' log of this very training "
            f"they act from the beginning, as in {recipe}: leave both start_step out to train what "
            "the log shows."
        )
    if num_gpus > 1:
        notes.append(
            f"On {num_gpus} GPUs: torchrun --standalone --nproc-per-node {num_gpus} -m toco train "
            "..., with the same settings; batch_size is over all of them."
        )
    return Translation(recipe, different, run_dir, num_gpus, tuple(notes))


def _split(command: Sequence[str]) -> tuple[Sequence[str], str, Sequence[str]]:
    """Split a command into launcher, name of the script, and arguments."""
    for index, word in enumerate(command):
        if (name := PurePosixPath(word).name) in _SCRIPTS:
            return command[:index], name, command[index + 1 :]
    scripts = [word for word in command if word.endswith(".py")]
    raise ValueError(
        f"Expected a command with {' or '.join(_SCRIPTS)}, got {' '.join(scripts) or 'no script'}. "
        "For the official test tools, use `python -m toco test`."
    )


def _num_processes(launcher: Sequence[str]) -> int | None:
    """Number of processes that the launcher starts; ``None`` without a launcher."""
    text = " ".join(launcher)
    if not re.search(r"torchrun|torch\.distributed", text):
        return None
    num_processes = 1
    for option in ("nproc", "nnodes"):
        match = re.search(rf"--{option}(?:[_-]per[_-]node)?[= ](\S+)", text)
        num_processes *= _value(option, match.group(1), int) if match else 1
    return num_processes


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """Parse flags, each with its values as one text.

    As in argparse, a flag may be abbreviated, and the last of two values counts.
    """
    flags: dict[str, str] = {}
    current = None
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            current = _full_name(name)
            flags[current] = value if equals else ""
        elif current is None:
            raise ValueError(f"Expected a flag of the official script, got {word!r}.")
        else:
            flags[current] = f"{flags[current]} {word}".strip()
    return flags


def _full_name(name: str) -> str:
    if name in _FLAGS:
        return name
    beginnings = [flag for flag in _FLAGS if flag.startswith(name)]
    if len(beginnings) == 1:
        return beginnings[0]
    near = difflib.get_close_matches(name, _FLAGS, n=1)
    hint = f" Did you mean --{near[0]}?" if near else ""
    raise ValueError(f"The official scripts have no flag --{name}.{hint}")


def _value(flag: str, text: str, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401 - any value
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"--{flag} is {text!r}, which is not a valid value: {error}.") from error
