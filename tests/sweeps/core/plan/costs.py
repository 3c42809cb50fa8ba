"""The cost of a training in two phases, made up."""

from sweeps.core.plan.probe import Cost, Phase
from toco.config import replace
from toco.registry import load

NANO = replace(
    load("toco.recipes", "shapes_nano").recipe(),
    {
        "num_steps": 160,
        "evaluate_every": 80,
        "method.segmentation.start_step": 80,
        "method.energy.start_step": 80,
    },
)
COST = Cost(
    NANO, "CPU x86_64", (Phase(0, 80, 0.5), Phase(80, 160, 1.0)), 3.0, 5.0, 10**9, 10**7, 2 * 10**7
)
