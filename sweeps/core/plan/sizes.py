"""Check once for each size that a training can run.

Thousands of trials of a study have only a few different sizes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from sweeps.core.design.study import TRAIN
from toco.config import flatten
from toco.registry import load
from toco.train.run_config import RunConfig

# Settings that change the size of no tensor.
_WITHOUT_SIZE = (
    "data.",
    "optim.",
    "seed",
    "shuffle",
    "device",
    "num_workers",
    "log_every",
    "evaluate_every",
    "keep_checkpoints",
)
_SIZES = ("scale", "sigma")
"""Parts of the names of fractions that change a size. Of other fractions only 0 or not counts."""


def check_sizes(configs: Iterable[RunConfig], recipe: str, train: str) -> None:
    """Check that the sizes in each of ``configs`` fit together.

    See :func:`toco.train.dry_run.check_can_run`.

    Args:
        configs: Trainings.
        recipe: The recipe that all of them were changed from.
        train: The function that trains them. Only the project's own can be checked.

    Raises:
        ValueError: One of them cannot run.
    """
    if train != TRAIN:
        return
    # Import only here: networks take seconds to import, and a finished study needs none.
    from toco.train.dry_run import check_can_run

    base = load("toco.recipes", recipe).recipe()
    checked = set()
    for config in configs:
        if (sizes := _sizes(config)) not in checked:
            check_can_run(config, base)
            checked.add(sizes)


def _sizes(config: RunConfig) -> Hashable:
    # A decay of the rates is refused for backbones without layers, whatever its value. More frozen
    # layers than a backbone has are refused.
    return (
        config.optim.layer_decay < 1,
        config.optim.frozen_layers,
        *(
            (
                path,
                repr(
                    value > 0
                    if isinstance(value, float) and not any(part in path for part in _SIZES)
                    else value
                ),
            )
            for path, value in flatten(config).items()
            if not path.startswith(_WITHOUT_SIZE)
        ),
    )
