"""The memory of RCA and its clusters: slots, momentum, threshold, start, clusters and period.

    python -m sweeps run rca_memory

One setting at a time varies around the recipe. ``noise`` is the official start of the memory, with
which slots and clusters count before a region has filled them.

Default: the embedded benchmark. 10 rows besides the base, and the A/A row; each is compared with
the base after 3, 5, 7 and 10 seeds. These are 36 to 113 trainings of half a minute on one core,
about 11 minutes on two cores for the first 36. The paper's own tables could not be had.

Expected: not measured.
"""

from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study

MEMORY, AGGREGATION = "method.region_memory", "method.aggregation"
# The values of the recipe ``shapes_rca`` are the bases.
FACTORS = (
    Factor(f"{MEMORY}.slots", (12, 48, 192), 48),
    Factor(f"{MEMORY}.momentum", (0.0, 0.7, 0.99), 0.7),
    Factor(f"{MEMORY}.threshold", (0.3, 0.5, 0.8), 0.5),
    Factor(f"{MEMORY}.start", ("empty", "noise"), "empty"),
    Factor(f"{AGGREGATION}.centroids", (1, 3, 8), 3),
    Factor(f"{AGGREGATION}.every", (20, 80), 20, title="steps between clusterings"),
)

STUDY = Study(
    name="rca_memory",
    title="RCA: the memory and its clusters",
    recipe="shapes_rca",
    design=OneFactor(FACTORS),
    seeds=Sequential(),
    metrics=(Metric(CAM_MIOU, "M"), Metric(AUX_CAM_MIOU, "M_m"), Metric(SEG_MIOU, "seg")),
    purpose="direction",
)
main = study_command(STUDY, __doc__)

if __name__ == "__main__":
    main()
