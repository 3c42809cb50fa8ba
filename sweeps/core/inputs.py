"""What trainings read besides their config: the data and the weights.

Where these lie is in no digest, so that results do not depend on a path. What they hold must be in the study's record,
or one folder would mix results of several data sets.
"""

from __future__ import annotations

from sweeps.core.study import Plan
from toco.train.loop import open_data, weights_sha256

Inputs = list[dict[str, str | None]]
"""Digests by ``train``, ``val`` and ``weights``; one item unless the study varies what is read."""


def training_inputs(plan: Plan) -> Inputs:
    """Open everything that the trainings of ``plan`` will read, and say what it is.

    Raises:
        ValueError: A data set is not there or is wrong.
        OSError: A file cannot be read.
    """
    inputs: dict[str, dict[str, str | None]] = {}
    for config in (trial.config for trial in plan.trials):
        read = config.model_dump_json(include={"data", "backbone"})
        if read not in inputs:
            train, val = open_data(config)
            inputs[read] = {
                "train": train.manifest_digest(),
                "val": val.manifest_digest(),
                "weights": weights_sha256(config),
            }
    return list(inputs.values())
