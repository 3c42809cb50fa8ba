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


@pytest.mark.parametrize(
    ("row", "base", "column", "number", "sign"),
    [
        ("RCA", "CAM", "cam_miou", 7, "CAM"),
        ("RCA", "CAM", "seg_miou", 7, "segmentation"),
        ("ToCo", "CAM", "cam_miou", 7, "CAM"),
        ("ToCo", "CAM", "seg_miou", 5, "segmentation"),
        ("ToCo + RCA", "ToCo", "cam_miou", 10, "CAM"),
        ("ToCo + RCA", "ToCo", "seg_miou", 5, "segmentation"),
    ],
)
def test_a_difference_is_that_of_the_first_pairs(row, base, column, number, sign):
    """``number`` is the number of seeds at which the test ended."""
    pairs = list(zip(values(row, column), values(base, column), strict=False))[:number]
    difference = statistics.mean([100 * (a - b) for a, b in pairs])
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row} against {base} |")]
    cell = line.split("|")[2 if sign == "CAM" else 3]
    assert cell.startswith(f" +{difference:.1f} (")
    assert f"with {number} seeds" in cell or f"after {number} seeds" in cell


def test_the_base_again_has_the_mean_of_its_trainings():
    again = 100 * statistics.mean(values("base again (A/A)", "cam_miou"))
    assert f"the A/A row has {again:.1f} with three other seeds" in PAGE
