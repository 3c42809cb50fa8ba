"""The numbers of the page are those of the recorded trainings."""

import csv
import statistics
from pathlib import Path

import pytest

from sweeps import methods

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/side_by_side.md").read_text()
with (ROOT / "benchmarks/results/methods_shapes.csv").open(newline="") as file:
    TRAININGS = list(csv.DictReader(file))
PERCENT = ("cam_miou", "cam_best_miou", "seg_miou")


def values(row, column):
    return [float(training[column]) for training in TRAININGS if training["row"] == row]


@pytest.mark.parametrize("row", methods.RECIPES)
def test_a_row_has_the_means_of_its_trainings(row):
    cells = [
        f"{100 * statistics.mean(of_row):.1f} ± {100 * statistics.stdev(of_row):.1f}"
        for of_row in (values(row, column) for column in PERCENT)
    ]
    cells += [
        f"{statistics.mean(values(row, column)):.{digits}f}"
        for column, digits in (
            ("patch_similarity_last", 3),
            ("step_time_s", 3),
            ("peak_memory_gb", 2),
            ("parameters_m", 3),
        )
    ]
    assert f"| {' | '.join([row, *cells, str(len(values(row, 'seed')))])} |" in PAGE


@pytest.mark.parametrize("row", methods.RECIPES)
def test_the_threshold_of_the_table_is_the_tuned_one(row):
    """At its own best threshold a map cannot score less than at the tuned one."""
    pairs = zip(values(row, "cam_miou"), values(row, "cam_best_miou"), strict=True)
    assert all(at_tuned <= at_best for at_tuned, at_best in pairs)


@pytest.mark.parametrize(("row", "base"), [("RCA", "CAM"), ("ToCo", "CAM"), ("ToCo + RCA", "ToCo")])
def test_a_difference_is_that_of_the_pairs(row, base):
    number = min(len(values(row, "seed")), len(values(base, "seed")))
    pairs = zip(values(row, "cam_miou"), values(base, "cam_miou"), strict=False)
    difference = statistics.mean([100 * (a - b) for a, b in pairs])
    assert f"| {row} against {base} | +{difference:.1f} (" in PAGE
    assert f"shown with {number} seeds" in PAGE
