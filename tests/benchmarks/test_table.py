"""The committed summary, and the way from JSON to it."""

import json

import pytest

from benchmarks._record import RESULTS, write
from benchmarks.table import README, render


def test_the_committed_summary_is_that_of_the_committed_results():
    assert (RESULTS / README).read_text(encoding="utf-8") == render(RESULTS), (
        "run python -m benchmarks table"
    )


def side(seconds, gflop, phases):
    return {
        "median_s": seconds,
        "images_per_s": 2 / seconds,
        "gflop_per_image": gflop,
        "tflop_per_s": 2 * gflop / seconds / 1000,
        "share_of_matrix_peak": 0.5,
        "peak_memory_bytes": 3 * 2**30,
        "phases_s": phases,
    }


STEP = {
    "backbone": "vit_base",
    "size_px": 448,
    "batch": 2,
    "precision": "bfloat16",
    "phase": "full",
    "energy": True,
    "compiled": False,
    "device": "cpu",
    "ratio": 3.456,
    "ratio_of_minima": 3.4,
    "plain": side(80.0, 3190.0, {"PAR": 2.0, "backward": 16.0}),
    "ours": side(20.0, 2140.0, {"backward": 8.25}),
    "energy_term": {
        "plain": {"filter": "lattice", "median_s": 0.25},
        "ours": {"filter": "exact", "median_s": 0.125},
    },
}


def cells(text, beginning):
    (line,) = [line for line in text.splitlines() if line.startswith(beginning)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_step_is_a_row_and_its_phases_another(tmp_path):
    write(tmp_path / "step.json", "step", STEP)
    text = render(tmp_path)
    steps, phases = (line for line in text.splitlines() if line.startswith("| vit_base"))
    for figure in (
        "full + energy",
        "bfloat16",
        "**3.46**",
        "3190 → 2140",
        "0.025 → 0.1",
        "50% → 50%",
        "3 → 3",
    ):
        assert f" {figure} " in steps, figure
    assert "0.25 s (lattice)" in steps
    assert "0.125 s (exact)" in steps
    assert " 2 → 0 " in phases
    assert " 16 → 8.25 " in phases


def test_any_other_result_is_shown_figure_by_figure(tmp_path):
    result = {
        "reruns_s": [3.0, 1.0, 2.0],
        "page_bytes": 2_500_000,
        "open_s": {"median": 0.5},
        "rows": [{"px": 224}],
    }
    write(tmp_path / "other.json", "other", result)
    text = render(tmp_path)
    assert cells(text, "| reruns_s") == ["reruns_s", "2 (1 to 3, 3 values)"]
    assert cells(text, "| page_bytes") == ["page_bytes", "2.5 MB"]
    assert cells(text, "| open_s.median") == ["open_s.median", "0.5"]
    assert text.partition("rows:")[2].replace("-", "").split() == [
        "|",
        "px",
        "|",
        "||",
        "|",
        "224",
        "|",
    ]


def test_a_file_that_is_no_result_is_refused(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"trials": 3}))
    with pytest.raises(ValueError, match=r"old\.json is not a result in version 1"):
        render(tmp_path)
