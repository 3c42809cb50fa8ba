"""Every command runs, with the smallest settings, and writes its JSON. No time is judged here."""

import importlib
import json
import math

import pytest
from click.testing import CliRunner

from benchmarks import overhead
from benchmarks.__main__ import main
from benchmarks._chromium import find_chromium

SMALL = {
    "crf": "--backbone nano --height 32 --width 40 --times 1 --threads 1",
    "energy": "--maps 1 --times 1 --threads 1",
    "evaluate": "--size 64 --images 2 --batch 2 --times 1",
    "input": "--images 8 --size 64 --batch 2 --workers 0 --times 1",
    "ledger-rerun": "--trials 20 --seeds 2 --times 1",
    "overhead": "--times 1 --steps 1 --threads 1 --no-ray --no-voc",
    "preemptions": "--number 1 --num-steps 40",
    "report-scale": "--trials 2000 --times 1",
    "sequential-seeds": "--studies 2 --case null",
    "step": "--size 48 --batch 2 --times 1 --threads 1",
}


def run(*arguments):
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_starts_are_measured_on_the_device_of_the_option(monkeypatch):
    devices = []

    def train(config, run_dir, **options):
        overhead._record_event("call")
        devices.append(config.device)

    def run_study(study, launch):
        overhead._record_event("call")
        devices.append(study.changes["device"])
        study.resolve()

    monkeypatch.setattr(overhead, "train_recording_times", train)
    monkeypatch.setattr(overhead, "run_study", run_study)
    overhead.starts_in_a_process(1, "cpu")
    overhead.starts_in_a_worker(1, "cpu")
    assert devices == ["cpu"] * 3


def test_every_command_but_the_table_is_run_here():
    assert set(main.list_commands(None)) == {*SMALL, "table"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"step"}))
def test_a_command_runs_and_writes(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if name == "report-scale":
        if find_chromium() is None:
            pytest.skip("needs Chromium")
        monkeypatch.setattr("benchmarks.report_scale.LIMIT_S", math.inf)
    out = tmp_path / "out.json"
    result = run(name, *SMALL[name].split(), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.output
    assert json.loads(out.read_text())["name"] == name


@pytest.mark.slow
def test_the_step_runs_and_compares_both_sides(tmp_path):
    out = tmp_path / "out.json"
    result = run(
        "step",
        *SMALL["step"].split(),
        "--precision",
        "bfloat16",
        "--phase",
        "warmup",
        "--out",
        str(out),
    )
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["name"] == "step"
    plain, ours = record["plain"], record["ours"]
    assert record["ratio"] == pytest.approx(plain["median_s"] / ours["median_s"])
    assert (plain["precision"], ours["precision"]) == ("float32", "bfloat16")
    assert plain["gflop_per_image"] > ours["gflop_per_image"] > 0
    assert ours["images_per_s"] == pytest.approx(2 / ours["median_s"])
    assert ours["tflop_per_s"] == pytest.approx(
        ours["images_per_s"] * ours["gflop_per_image"] / 1000
    )
    assert min(plain["peak_memory_bytes"], ours["peak_memory_bytes"]) > 100e6
    # Both have the phases of the warm-up; what the decoder learns from is computed by the plain
    # step alone.
    assert plain["phases_s"].keys() - ours["phases_s"].keys() == {"PAR", "segmentation"}
    assert min(*plain["phases_s"].values(), *ours["phases_s"].values()) > 0
    assert {name: term["filter"] for name, term in record["energy_term"].items()} == {
        "plain": "lattice",
        "ours": "exact",
    }


def test_the_step_refuses_images_that_local_crops_do_not_fit_into():
    result = run("step", "--size", "32")
    assert result.exit_code == 2
    assert "--size is 32, but local crops have 32 pixels" in result.output


def test_a_command_without_its_packages_keeps_no_other_from_working(monkeypatch):
    def without_playwright(name):
        if name == "benchmarks.report_scale":
            raise ModuleNotFoundError("No module named 'playwright'", name="playwright")
        return importlib.import_module(name)

    monkeypatch.setattr("benchmarks.__main__.import_module", without_playwright)
    assert "report-scale needs the package 'playwright'" in " ".join(run("--help").output.split())
    refused = run("report-scale", "--times", "1")
    assert refused.exit_code == 1
    assert "needs the package 'playwright', which is not installed here" in refused.output
    assert run("step", "--help").exit_code == 0
