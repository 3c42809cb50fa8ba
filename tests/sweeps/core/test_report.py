"""The report of a study made by hand, whose means and deviations can be computed on paper."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sweeps.core.report import write_report
from sweeps.core.report.gallery import MAX_WIDTH_PX, data_uri
from sweeps.core.report.study_record import read_study_record
from sweeps.core.report.table import finding

# Three cells, two seeds; the very last training diverged.
# The sample standard deviation of two values is their distance / sqrt(2).
CAM = {3: (0.40, 0.60), 4: (0.60, 0.62), 5: (0.20, None)}
MILLI = {3: (0.30, 0.30), 4: (0.50, 0.54), 5: (0.10, None)}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(run_dir: Path, block: int, seed: int, cam: float | None, aux_cam: float | None, status: str) -> None:
    config = {"seed": seed, "method": {"aux_block": block}, "note": "<b>&"}
    write_json(run_dir / "config.json", {"format_version": 1, "digest": f"{block}{seed}" * 8, "config": config})
    provenance = {
        "commit": "c0ffee",
        "dirty": True,
        "versions": {"torch": "2.13.0"},
        "platform": "Linux",
        "device": "CPU x86_64",
        "data_manifest": {"train": "ab" * 32},
        "weights_sha256": None,
        "started": "2026-01-02T03:04:05+00:00",
    }
    write_json(run_dir / "provenance.json", provenance)
    rows: list[dict[str, Any]] = [
        {"step": step, "kind": "train", "time_s": step, "values": {"train/loss_total": 10.0 / step}}
        for step in (10, 20)
    ]
    rows.append({"step": 20, "kind": "val", "time_s": 21.0, "values": {"val/cam_miou": cam}})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(
        run_dir / "evaluations/step_00000020.json",
        {"step": 20, "protocol": "ground-truth labels", "patch_similarity": [0.5, 0.6 + seed / 10, 0.7]},
    )
    (run_dir / "pictures/step_00000020").mkdir(parents=True)
    for name in ("scene_1", "scene_2"):
        Image.new("RGB", (60, 10), (40 * block, 0, 0)).save(run_dir / f"pictures/step_00000020/{name}.png")
    metrics = {"val/cam_miou": cam, "val/aux_cam_miou": aux_cam}
    result = {"status": status, "step": 20, "metrics": metrics, "wall_time_s": 30.0, "peak_memory_bytes": 2**28}
    if status == "diverged":
        result["message"] = "The loss ptc is not finite at step 20."
    write_json(run_dir / "result.json", result)


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Block 5's second seed diverged; with one seed there is nothing else to it."""

    def make(seeds: tuple[int, ...] = (0, 1), data: str = "shapes", **changes: Any) -> Path:
        study_dir = tmp_path / "layer_ablation-01234567"
        rows = [
            {"label": label, "metrics": {"val/cam_miou": cam, "val/aux_cam_miou": aux_cam}, "default": False}
            for label, cam, aux_cam in (("#8", 0.635, 0.481), ("#9", 0.676, 0.551))
        ]
        study = {
            "format_version": 1,
            "name": "layer_ablation",
            "title": "Index of the <auxiliary> block",
            "digest": "0123456789abcdef",
            "recipe": "shapes_nano",
            "changes": {"num_steps": 20},
            "data": data,
            "factors": [
                {"path": "method.aux_block", "name": "aux_block", "values": list(CAM), "labels": ["#4", "#5", "#6"]}
            ],
            "seeds": list(seeds),
            "metrics": [{"key": "val/cam_miou", "title": "M"}, {"key": "val/aux_cam_miou", "title": "M_m"}],
            "paper": {"source": "Table 5 (a)", "setting": "VOC val.", "rows": rows},
            "cells": [
                {"label": f"#{block + 1}", "values": {"method.aux_block": block}, "paper_row": paper}
                for block, paper in zip(CAM, ("#8", "#9", None), strict=True)
            ],
            "trials": [
                {"name": f"{block}-{seed}", "cell": cell, "label": f"#{block + 1}", "seed": seed, "digest": "00"}
                for cell, block in enumerate(CAM)
                for seed in seeds
            ],
            "start_id": "x",
            **changes,
        }
        write_json(study_dir / "study.json", study)
        for block in CAM:
            for seed in seeds:
                status = "finished" if CAM[block][seed] is not None else "diverged"
                run_dir = study_dir / "trials" / f"{block}-{seed}"
                write_run(run_dir, block, seed, CAM[block][seed], MILLI[block][seed], status)
        return study_dir

    return make


def test_the_printed_table(make_study):
    text = write_report(make_study()).text
    table = [re.split(r"\s{2,}", line.strip()) for line in text.split("\n\n")[1].splitlines()]
    assert table[0] == ["block", "M", "M_m", "n", "paper's row", "paper M", "paper M_m"]
    assert table[2:] == [
        ["#4", "50.0 ± 14.1", "30.0 ± 0.0", "2", "#8", "63.5", "48.1"],
        ["#5", "61.0 ± 1.4", "52.0 ± 2.8", "2", "#9", "67.6", "55.1"],
        ["#6", "20.0", "10.0", "1", "-", "-", "-"],
    ]
    assert "M: mIoU of the CAM of the last block, in percent." in text
    text = " ".join(text.split())
    assert "block: the block that feeds the auxiliary classifier; #n counts from 1, the config from 0." in text
    assert "It is not PASCAL VOC" in text
    assert "#6, seed 1: diverged; it does not count. The loss ptc is not finite at step 20." in text
    assert (
        "Highest M: #5 with 61.0 ± 1.4, then #4 with 50.0 ± 14.1. The gap of 11.0 is no more than the larger of their "
        "standard deviations (14.1): these seeds do not tell the two apart."
    ) in text


def test_markdown_is_the_same_table(make_study):
    report = write_report(make_study())
    lines = (report.page.parent / "table.md").read_text().splitlines()
    assert lines[0] == "# Index of the <auxiliary> block"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[3] == ["#5", "61.0 ± 1.4", "52.0 ± 2.8", "2", "#9", "67.6", "55.1"]


def test_csv_holds_fractions(make_study):
    report = write_report(make_study())
    rows = list(csv.DictReader(io.StringIO((report.page.parent / "table.csv").read_text())))
    assert [row["row"] for row in rows] == ["#4", "#5", "#6"]
    assert [row["method.aux_block"] for row in rows] == ["3", "4", "5"]
    assert float(rows[0]["val/cam_miou_mean"]) == pytest.approx(0.5)
    assert float(rows[0]["val/cam_miou_std"]) == pytest.approx(0.1 * 2**0.5)
    assert [row["val/cam_miou_n"] for row in rows] == ["2", "2", "1"]
    assert [row["n_planned"] for row in rows] == ["2", "2", "2"]
    assert rows[2]["val/cam_miou_std"] == ""
    assert [row["val/cam_miou_paper"] for row in rows] == ["0.635", "0.676", ""]


def test_one_seed_has_no_spread(make_study):
    text = write_report(make_study(seeds=(0,))).text
    assert "±" not in text.split("\n\n")[1]
    assert "With one seed a row nothing is known about the spread" in " ".join(text.split())


def test_rows_that_the_seeds_tell_apart(make_study):
    study_dir = make_study()
    for seed, cam in enumerate((0.50, 0.51)):
        write_json_metric(study_dir / f"trials/3-{seed}/result.json", cam)
    assert "The gap of 10.5 is more than the larger of their standard deviations (1.4)." in str(
        finding(read_study_record(study_dir))
    )


def write_json_metric(path: Path, cam: float) -> None:
    result = json.loads(path.read_text())
    result["metrics"]["val/cam_miou"] = cam
    path.write_text(json.dumps(result))


def test_a_study_that_has_only_begun(make_study):
    study_dir = make_study()
    for path in study_dir.glob("trials/*/result.json"):
        path.unlink()
    for path in (study_dir / "trials/5-1").rglob("*"):
        if path.is_file():
            path.unlink()
    (study_dir / "trials/3-0").rename(study_dir / "elsewhere")
    report = write_report(study_dir)
    assert "#4, seed 0: has left no run folder; it does not count." in report.text
    assert "#4, seed 1: has not finished; it does not count. Its last row is of step 20." in report.text
    assert "#6, seed 1: has a run folder that cannot be read; it does not count." in report.text
    assert "<svg" not in report.page.read_text()


def test_another_data_set_is_not_called_the_benchmark(make_study):
    report = write_report(make_study(data="voc"))
    assert "embedded benchmark" not in report.text
    assert "Not PASCAL VOC" not in report.page.read_text()


def test_a_study_without_published_rows(make_study):
    cells = [{"label": f"#{b + 1}", "values": {"method.aux_block": b}, "paper_row": None} for b in CAM]
    report = write_report(make_study(paper=None, cells=cells))
    assert "paper" not in report.text.split("\n\n")[1]
    assert "Paper: PASCAL VOC" not in report.page.read_text()


class Page(HTMLParser):
    """Collects what a page would fetch, its tags and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_no_network(make_study):
    html = write_report(make_study()).page.read_text()
    page = Page(html)
    assert [link for link in page.fetched if not link.startswith(("data:image/", "#"))] == []
    assert {"script", "link", "iframe", "object"} & set(page.tags) == set()
    assert re.findall(r"@import|url\((?!#)", html) == []
    assert page.tags.count("svg") == 3


def test_the_page_says_what_was_run(make_study):
    text = re.sub(r"\s+", " ", " ".join(Page(write_report(make_study()).page.read_text()).text))
    assert "Index of the <auxiliary> block" in text  # escaped in the source, as the next line proves
    assert '"<b>&"' in text
    assert "Not PASCAL VOC." in text
    assert "5 of 6 finished" in text
    assert "c0ffee with uncommitted changes" in text
    assert "3 min 0 s in all trainings together, 30 s the longest" in text
    assert "256 MiB in one training" in text
    assert "num_steps = 20" in text
    assert "method.aux_block varies" in text


def test_the_gallery_shows_every_row_of_every_image(make_study):
    page = Page(write_report(make_study()).page.read_text())
    pictures = [link for link in page.fetched if link.startswith("data:image/webp")]
    assert len(pictures) == 2 * 3
    sizes = {Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size for uri in pictures}
    assert sizes == {(60, 10)}


def test_figures_take_their_colours_from_the_page(make_study):
    html = write_report(make_study()).page.read_text()
    svg = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert re.findall(r"#0[1-4]0[0-9a-f]{3}\b", svg) == []
    assert "var(--ink)" in svg
    assert "var(--series-1)" in svg
    ids = re.findall(r'<clipPath id="(\w+)"', svg)
    assert len(ids) == len(set(ids)) > 0


def test_a_wide_picture_is_scaled_down(tmp_path: Path):
    Image.new("RGB", (3200, 100)).save(tmp_path / "wide.png")
    uri = data_uri(tmp_path / "wide.png")
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (MAX_WIDTH_PX, 50)


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not a study's folder: it has no study\.json"):
        write_report(tmp_path)
