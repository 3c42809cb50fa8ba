"""The layer ablation's command line: it refuses mistakes before Ray
starts, and its options arrive.
"""

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sweeps.core.plan import launch_options as options
from sweeps.core.plan.probe import Cost, Phase
from sweeps.core.run.driver import Driver
from sweeps.layer_ablation import main

VOC = ["--recipe", "voc_deit_b", "--data", "."]


@pytest.fixture
def started(monkeypatch):
    """What would have been run."""
    drivers = []

    def run(driver, connect):
        drivers.append((driver._situation, driver._launch))
        return 0

    monkeypatch.setattr(Driver, "run", run)
    monkeypatch.setattr("sweeps.core.plan.plan_text.probe", lambda *_, **__: ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return drivers


@pytest.fixture
def voc(tmp_path):
    """Makes a VOC folder of an image for each split, with a dog of ``width`` pixels."""

    def make(width=2):
        root = tmp_path / f"voc{width}"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)
        mask = np.zeros((8, 8), np.uint8)
        mask[:, :width] = 12
        for split, name in (("train_aug", "a"), ("val", "b")):
            Image.new("RGB", (8, 8)).save(root / "JPEGImages" / f"{name}.png")
            Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{name}\n")
        return root

    return make


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "method.aux_blok=3"], "Did you mean 'method.aux_block'"),
        (["--set", "method.aux_block=3"], "varies in this study"),
        (["--set", "num_steps"], "expects a.b=value"),
        (["--set", "num_steps=2", "--set", "num_steps=3"], "twice"),
        (["--set", "num_steps=many"], "num_steps"),
        (["--seeds", "0,1,0"], "occurs twice"),
        (["--seeds", "a"], "expected integers"),
        (["--seeds", "-1"], "Seeds are from 0"),
        (["--layers", "7,12"], "blocks 0 to 11"),
        (["--layers", "7,7"], "occurs twice"),
        (["--recipe", "voc_deit_c"], "Did you mean 'voc_deit_b'"),
        (["--tracking-uri", "./mlruns"], "tracking URI"),
        (["--address", "http://127.0.0.1:8265"], "ray job submit"),
        (["--concurrent", "0"], "--concurrent"),
        (["--data", "no/such/folder"], "does not exist"),
        (["--data", "."], "there is no such list of names"),
    ],
)
def test_a_mistake_is_refused_before_ray_starts_and_leaves_nothing(
    started, tmp_path, arguments, message
):
    result = CliRunner().invoke(main, [*VOC, "--storage", str(tmp_path / "results"), *arguments])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert started == []
    assert not (tmp_path / "results").exists()


def test_a_storage_that_cannot_be_is_a_sentence(started, voc):
    result = CliRunner().invoke(
        main, ["--recipe", "voc_deit_b", "--data", str(voc()), "--storage", "/dev/null/x"]
    )
    assert result.exit_code == 1
    assert ": Not a directory." in result.output
    assert started == []


def test_other_data_are_other_trainings_and_the_same_data_elsewhere_are_the_same(
    started, tmp_path, voc
):
    def keys(data):
        command = ["--recipe", "voc_deit_b", "--layers", "9", "--data", str(data)]
        command += ["--storage", str(tmp_path / "results")]
        assert CliRunner().invoke(main, command).exit_code == 0
        return started.pop()[0].keys

    first, other = voc(width=2), voc(width=5)
    before = keys(first)
    assert not set(before) & set(keys(other))
    assert keys(first.rename(tmp_path / "moved")) == before


def test_a_plan_of_the_papers_recipe_shows_three_seeds_and_what_looks_would_take(
    tmp_path, voc, monkeypatch
):
    def probe(configs, *, num_threads):
        # An hour a training, its start included, on two GPUs.
        phases = [(Phase(0, config.num_steps, 3594 / config.num_steps),) for config in configs]
        return tuple(
            Cost(config, "NVIDIA A100", phase, 0.0, 6.0, 10**9, 10**9, 10**9)
            for config, phase in zip(configs, phases, strict=True)
        )

    monkeypatch.setattr("sweeps.core.plan.plan_text.probe", probe)
    # The network is built to check the sizes, which takes seconds.
    monkeypatch.setattr("sweeps.core.plan.survey.check_sizes", lambda *_: None)
    command = ["plan", "--recipe", "voc_deit_b", "--data", str(voc()), "--concurrent", "1"]
    command += ["--gpus-per-trial", "2", "--storage", str(tmp_path / "results")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    # Four blocks and the A/A row, three seeds each: 15 hours on two GPUs.
    assert any(line.startswith("15 trainings to run, 1 at once: about 15.0 h") for line in lines)
    assert any(line.startswith("30.0 GPU hours") for line in lines)
    place = next(n for n, line in enumerate(lines) if line.startswith("With --sequential instead"))
    rows = [line.split("  ") for line in lines[place + 2 : place + 7]]
    cells = [[text.strip() for text in row if text.strip()] for row in rows]
    assert [row[0] for row in cells] == ["0 sd", "1 sd", "2 sd", "3 sd", "any, at most"]
    # All rows with ten seeds, and the A/A row with three.
    assert cells[-1][1:4] == ["43", "86.0", "43.0 h"]
    assert all(float(row[3]) == pytest.approx(2 * int(row[2]), abs=1.1) for row in cells[:-1])
    # With a budget the study is sequential itself.
    result = CliRunner().invoke(main, [*command, "--budget-hours", "60"])
    assert result.exit_code == 0, result.output
    assert "15 trainings to run for the present look" in result.output
    assert "If every open claim stays open up to the last look: 43 trainings" in result.output
    # 15 and 23 trainings up to the first looks, at two hours each.
    assert "The budget of 60 hours reaches look 2 of 4" in result.output
    result = CliRunner().invoke(main, [*command, "--budget-hours", "29"])
    assert result.exit_code == 1
    assert "the budget is 29 hours. Give a larger --budget-hours." in result.output
    result = CliRunner().invoke(main, [*command, "--budget-hours", "60", "--seeds", "0,1"])
    assert result.exit_code == 2
    assert "--seeds is a fixed list" in result.output


def test_the_options_arrive(started, tmp_path, voc):
    options = ["--seeds", "4,2", "--layers", "3,11", "--set", "num_steps=3000", "--concurrent", "5"]
    options += [
        "--cpus-per-trial",
        "0.5",
        "--gpus-per-trial",
        "0.25",
        "--max-failures",
        "-1",
        "--address",
        "h:1",
    ]
    options += [
        "--storage",
        str(tmp_path / "results"),
        "--tracking-uri",
        f"sqlite:///{tmp_path / 'm.db'}",
    ]
    result = CliRunner().invoke(main, ["--recipe", "voc_deit_b", "--data", str(voc()), *options])
    assert result.exit_code == 0, result.output
    ((situation, launched),) = started
    plan = situation.plan
    trained = [(trial.config.method.aux_block, trial.seed) for trial in plan.trials]
    # The last two are the base again, with other seeds.
    assert trained == [(3, 4), (3, 2), (11, 4), (11, 2), (3, 7), (3, 5)]
    assert {trial.config.num_steps for trial in plan.trials} == {3000}
    assert all(trial.config.data.root.is_absolute() for trial in plan.trials)
    values = dataclasses.asdict(launched)
    assert [
        values[name] for name in ("concurrent", "cpus_per_trial", "gpus_per_trial", "max_failures")
    ] == [
        5,
        0.5,
        0.25,
        -1,
    ]
    assert launched.address == "h:1"


def test_a_method_without_an_auxiliary_block_is_refused_in_a_sentence(tmp_path):
    result = CliRunner().invoke(
        main, ["plan", "--storage", str(tmp_path), "--set", "method.name=cam"]
    )
    assert result.exit_code == 1
    assert result.output == (
        "Error: layer_ablation varies method.aux_block, which the method 'cam' does not have. To "
        "study it, name "
        "another method with --set method.name=NAME; for settings that the method 'cam' has, take "
        "another study "
        "(python -m sweeps list).\n"
    )


def test_in_a_ray_job_results_cannot_lie_in_the_job_s_own_folder(started, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(main, [*VOC, "--storage", "results"])
    assert "thrown away" in result.output
    assert started == []
    assert options.default_storage() == tmp_path / "toco-results"
