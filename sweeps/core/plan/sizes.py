"""See that trainings can run, each sort of them once: thousands of trials of a study have a few different sizes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from sweeps.core.design.study import TRAIN
from toco.config import flatten
from toco.registry import load
from toco.train.run_config import RunConfig

_WITHOUT_SIZE = (
    "data.",
    "optim.",
    "seed",
    "device",
    "num_workers",
    "log_every",
    "evaluate_every",
    "keep_checkpoints",
)
_SIZES = ("scale", "sigma")
"""Parts of the names of the fractions that change the size of something; of others only whether they are 0 counts."""


def check_sizes(configs: Iterable[RunConfig], recipe: str, train: str) -> None:
    """See that the sizes in each of ``configs`` fit together; see :func:`toco.train.dry_run.check_can_run`.

    Args:
        configs: Trainings.
        recipe: What all of them were changed from.
        train: What trains them; of any other than ours nothing is known.

    Raises:
        ValueError: One of them cannot run.
    """
    if train != TRAIN:
        return
    # Only here: this imports networks, which takes seconds, and a finished study needs none.
    from toco.train.dry_run import check_can_run

    base = load("toco.recipes", recipe).recipe()
    checked = set()
    for config in configs:
        if (sizes := _sizes(config)) not in checked:
            check_can_run(config, base)
            checked.add(sizes)


def _sizes(config: RunConfig) -> Hashable:
    return tuple(
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
    )
