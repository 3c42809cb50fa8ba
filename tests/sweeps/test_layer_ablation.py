"""The layer ablation's rows, and that its command line refuses mistakes before Ray starts."""

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sweeps import layer_ablation
from sweeps.core import launch
from sweeps.layer_ablation import STUDY, backbone_depth, main, with_blocks
from toco.registry import load

VOC = ["--recipe", "voc_deit_b", "--data", "."]


def test_in_a_backbone_of_twelve_blocks_the_rows_are_the_papers():
    study = with_blocks(STUDY, None, depth=12)
    assert study == STUDY
    assert [cell.label for cell in study.cells()] == ["#8", "#9", "#10", "#11"]
    assert all(cell.paper_row == cell.label for cell in study.cells())


@pytest.mark.parametrize(("depth", "blocks"), [(6, [1, 2, 3, 4]), (8, [3, 4, 5, 6]), (24, [19, 20, 21, 22])])
def test_in_another_backbone_a_row_stands_beside_the_papers_at_the_same_distance_from_the_end(depth, blocks):
    cells = with_blocks(STUDY, None, depth).cells()
    assert [cell.values["method.aux_block"] for cell in cells] == blocks
    assert [cell.label for cell in cells] == [f"#{block + 1}" for block in blocks]
    assert [cell.paper_row for cell in cells] == ["#8", "#9", "#10", "#11"]


def test_a_block_that_the_paper_did_not_try_has_no_published_row():
    cells = with_blocks(STUDY, (2, 9, 11), depth=12).cells()
    assert [cell.paper_row for cell in cells] == [None, "#10", None]


def test_a_backbone_too_shallow_for_the_papers_rows_needs_layers():
    with pytest.raises(ValueError, match="Give others with --layers"):
        with_blocks(STUDY, None, depth=4)
    assert len(with_blocks(STUDY, (0, 3), depth=4).cells()) == 2


def test_the_depth_is_known_without_weights():
    assert backbone_depth(load("toco.recipes", "voc_deit_b").recipe()) == 12


@pytest.fixture
def started(monkeypatch):
    """What would have been run."""
    plans = []

    def run(plan, folder, launched, address, watch, mirror):
        plans.append((plan, launched, address))
        mirror.start()
        return False

    monkeypatch.setattr(launch, "_run", run)
    monkeypatch.setattr(layer_ablation, "backbone_depth", lambda config: 12)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return plans


@pytest.fixture
def voc(tmp_path):
    """Makes a VOC folder of one image, with a dog of ``width`` pixels."""

    def make(width=2):
        root = tmp_path / f"voc{width}"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "JPEGImages" / "a.png")
        mask = np.zeros((8, 8), np.uint8)
        mask[:, :width] = 12
        Image.fromarray(mask).save(root / "SegmentationClass" / "a.png")
        for split in ("train_aug", "val"):
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("a\n")
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
        (["--seeds", "-1"], "seed"),
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
def test_a_mistake_is_refused_before_ray_starts_and_leaves_nothing(started, tmp_path, arguments, message):
    result = CliRunner().invoke(main, [*VOC, "--storage", str(tmp_path / "results"), *arguments])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert started == []
    assert not (tmp_path / "results").exists()


def test_a_storage_that_cannot_be_is_a_sentence(started, voc):
    result = CliRunner().invoke(main, ["--recipe", "voc_deit_b", "--data", str(voc()), "--storage", "/dev/null/x"])
    assert result.exit_code == 1
    assert "Error: [Errno 20] Not a directory" in result.output
    assert started == []


def test_a_study_does_not_go_on_with_other_data(started, tmp_path, voc):
    def run(data):
        command = ["--recipe", "voc_deit_b", "--storage", str(tmp_path / "results"), "--data", str(data)]
        return CliRunner().invoke(main, command).output

    first, other = voc(width=2), voc(width=5)
    run(first)
    assert len(started) == 1
    assert "holds results of other data or other weights" in run(other)
    assert len(started) == 1
    # The same data elsewhere is the same data.
    run(first.rename(tmp_path / "moved"))
    assert len(started) == 2


def test_the_options_arrive(started, tmp_path, voc):
    options = ["--seeds", "4,2", "--layers", "3,11", "--set", "num_steps=3000", "--concurrent", "5"]
    options += ["--cpus-per-trial", "0.5", "--gpus-per-trial", "0.25", "--max-failures", "-1", "--address", "h:1"]
    options += ["--storage", str(tmp_path / "results"), "--tracking-uri", f"sqlite:///{tmp_path / 'm.db'}"]
    result = CliRunner().invoke(main, ["--recipe", "voc_deit_b", "--data", str(voc()), *options])
    # Nothing was run, so nothing is finished.
    assert result.exit_code == 1
    ((plan, launched, address),) = started
    assert [(trial.config.method.aux_block, trial.seed) for trial in plan.trials] == [(3, 4), (3, 2), (11, 4), (11, 2)]
    assert {trial.config.num_steps for trial in plan.trials} == {3000}
    assert all(trial.config.data.root.is_absolute() for trial in plan.trials)
    values = dataclasses.asdict(launched)
    assert [values[name] for name in ("concurrent", "cpus_per_trial", "gpus_per_trial", "max_failures")] == [
        5,
        0.5,
        0.25,
        -1,
    ]
    assert address == "h:1"


def test_in_a_ray_job_results_cannot_lie_in_the_job_s_own_folder(started, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(main, [*VOC, "--storage", "results"])
    assert "thrown away" in result.output
    assert started == []
    assert launch.default_storage() == tmp_path / "toco-results"
