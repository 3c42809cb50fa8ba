"""What trials read besides their config: the data and the weights.

Where these lie is in no digest, so that results do not depend on a path; what they hold is part of a trial's identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.core.design.study import Trial

if TYPE_CHECKING:
    from toco.train.run_config import RunConfig

Inputs = dict[str, str | None]
"""Digests by ``train``, ``val`` and ``weights``."""


def config_inputs(config: RunConfig) -> Inputs:
    """What a training of ``config`` reads.

    Raises:
        ValueError: A data set is not there or is wrong.
        OSError: A file cannot be read.
    """
    # Here, as who only names what was read does without torch.
    from toco.train.parts import open_data, weights_sha256

    train, val = open_data(config)
    return {"train": train.manifest_digest(), "val": val.manifest_digest(), "weights": weights_sha256(config)}


def trial_inputs(trials: Sequence[Trial]) -> list[Inputs]:
    """Open everything that ``trials`` will read, and say what it is, for each of them.

    Raises:
        ValueError: A data set is not there or is wrong.
        OSError: A file cannot be read.
    """
    known: dict[tuple[object, object], Inputs] = {}
    by_identity: dict[tuple[int, int], Inputs] = {}
    inputs = []
    for trial in trials:
        config = trial.config
        # Most trials share these parts as objects, and comparing thousands of configs by value takes seconds.
        identity = (id(config.data), id(config.backbone))
        if identity not in by_identity:
            read = (config.data.model_dump_json(), config.backbone.model_dump_json())
            if read not in known:
                known[read] = config_inputs(config)
            by_identity[identity] = known[read]
        inputs.append(by_identity[identity])
    return inputs
