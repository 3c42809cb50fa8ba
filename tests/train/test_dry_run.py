"""What cannot run is refused before anything is made, and what runs is not."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

import sweeps.__main__
import toco.__main__
from sweeps.core.design.study import TRAIN
from sweeps.core.plan.sizes import check_sizes
from toco.backbones._vit import ViT
from toco.config import replace
from toco.recipes import shapes_nano
from toco.registry import available
from toco.train import dry_run
from toco.train.dry_run import check_can_run

BASE = replace(
    shapes_nano.recipe(),
    {
        "backbone.depth": 3,
        "backbone.weights": None,
        "method.aux_block": 1,
        "optim.frozen_layers": 0,
        "optim.layer_decay": 1.0,
    },
)
REFUSED = {
    "a crop as large as the view": (
        {"method.local_crop_size_px": 64},
        "4 different crops of 64 px do not fit",
    ),
    "a crop below a patch": (
        {"method.local_crop_size_px": 4},
        "4x4 px, smaller than one patch of 8 px",
    ),
    "more crops than places": (
        {"method.num_local_crops": 5000},
        "5000 different crops of 32 px do not fit",
    ),
    "crops beyond any memory": (
        {"method.num_local_crops": 1000, "batch_size": 100_000},
        "more than a terabyte",
    ),
    "refinement of nothing": (
        {"method.par.scale": 0.01},
        r"empty at scale 0.01 of the refinement \(PAR\)",
    ),
    "energy of nothing": ({"method.dense_energy.scale": 0.01}, "empty at scale 0.01"),
    "a CAM scale of nothing": ({"method.cam_scales": [0.001]}, "empty at CAM scale 0.001"),
    "a CAM scale below a patch": ({"method.cam_scales": [0.1]}, "6x6 px, smaller than one patch"),
    "a CAM scale of nothing at a step that clusters regions": (
        {"method.name": "rca", "method.aggregation.every": 359, "method.cam_scales": [0.001]}
        | {"method.segmentation.weight": 0.1},
        "A training step .* empty at CAM scale 0.001",
    ),
    "a CAM scale beyond any memory": (
        {"method.cam_scales": [1000]},
        "method.cam_scales asks for images of 64000 px",
    ),
    "no such block": (
        {"method.aux_block": 3},
        "aux_block is 3, but this backbone has blocks 0 to 2",
    ),
    "a view below a patch": (
        {"views.crop_size_px": 4, "method.local_crop_size_px": 2},
        "smaller than one patch",
    ),
    "an evaluation below a patch": (
        {"evaluate.size_px": 16, "evaluate.cam_scales": [0.25]},
        "An evaluation .* smaller than one patch",
    ),
    "an evaluation beyond any memory": (
        {"evaluate.size_px": 10**6},
        "evaluate.size_px asks for images of 1000000 px",
    ),
    "an inference below a patch": (
        {"inference.size_px": 16, "inference.scales": [0.25]},
        "The inference .* smaller than one patch",
    ),
    "no image is large enough": (
        {"inference.scales": [1e-4]},
        "at scale 0.0001 an image needs 80001 px",
    ),
    "a width beyond any memory": ({"method.decoder_width": 10**11}, "The network cannot be built"),
    "a lattice of the energy": (
        {"method.dense_energy.filter_name": "lattice", "method.dense_energy.sigma_rgb": 1e-4},
        "The filter of method.dense_energy .* too many to number",
    ),
    "a lattice of the CRF": (
        {"inference.crf.filter_name": "lattice", "inference.crf.position_sigma": 1e-12},
        "The CRF .* too many to number",
    ),
}
RUNS = {
    "crops that fill the view, without weight": {
        "method.local_crop_size_px": 64,
        "method.ctc.weight": 0,
    },
    "as many crops as places": {"method.num_local_crops": 1024},
    "one crop a pixel smaller": {"method.local_crop_size_px": 63, "method.num_local_crops": 4},
    "refinement without a term": {
        "method.par.scale": 0.01,
        "method.segmentation.weight": 0,
        "method.energy.weight": 0,
    }
    | {"evaluate.num_pictures": 0},
    "images of their own size": {"evaluate.size_px": None, "inference.scales": [0.01, 2.0]},
    "tiles": {"inference.tile_px": 32, "inference.tile_overlap_px": 16},
    "half precision": {"precision": "bfloat16"},
    "another backbone": {"backbone.name": "swin", "method.aux_block": 9},
    "stages of convolutions": {"backbone.name": "vgg16", "method.aux_block": 3},
    "regions of stages of convolutions": {
        "backbone.name": "vgg16",
        "method.name": "rca",
        "method.aggregation.every": 359,
    },
    "regions of tokens": {
        "method.region_contrast.weight": 0.1,
        "method.region_contrast.embedding": "points",
        "method.aggregation.kind": "softmax",
        "method.aggregation.every": 359,
    },
    "residual blocks": {"backbone.name": "resnet38", "method.name": "cam"},
    "small sigmas of an exact filter": {
        "inference.crf.filter_name": "exact",
        "inference.crf.position_sigma": 1e-12,
    },
    "the largest seed": {"seed": 2**32 - 1},
    "no further scale": {"method.cam_scales": [], "evaluate.cam_scales": []},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_with_the_settings(name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as refused:
        check_can_run(replace(BASE, changes), BASE)
    assert any(path in str(refused.value) for path in changes)


@pytest.mark.parametrize("name", RUNS)
def test_what_runs_is_not_refused(name):
    check_can_run(replace(BASE, RUNS[name]))


def test_the_config_of_the_tests_runs(tiny_config):
    check_can_run(tiny_config)


def test_a_training_with_sgd_is_checked_as_any_other():
    sgd = replace(BASE, {"optim.name": "sgd"})
    check_can_run(sgd, BASE)
    with pytest.raises(ValueError, match=r"(?s)be frozen.*names 4 layers.*frozen_layers=5"):
        check_can_run(replace(sgd, {"optim.frozen_layers": 5}), BASE)


def test_layer_decay_of_a_backbone_without_layers_is_refused(monkeypatch):
    config = replace(BASE, {"optim.layer_decay": 0.5})
    check_can_run(config, BASE)
    monkeypatch.setattr(ViT, "layers", lambda _: [])
    check_can_run(BASE, BASE)
    with pytest.raises(ValueError, match=r"(?s)learning rates .*names no layers.*layer_decay=0\.5"):
        check_can_run(config, BASE)


def test_more_frozen_layers_than_the_backbone_has_is_refused():
    check_can_run(replace(BASE, {"optim.frozen_layers": 4}))
    config = replace(BASE, {"optim.frozen_layers": 5})
    with pytest.raises(ValueError, match=r"(?s)be frozen.*names 4 layers.*frozen_layers=5"):
        check_can_run(config, BASE)


def test_a_method_that_looks_at_values_is_not_refused(monkeypatch):
    def looks(*_):
        raise RuntimeError("Tensor.tolist() cannot be called on meta tensors")

    monkeypatch.setattr(dry_run, "_train", looks)
    check_can_run(BASE)


def test_the_line_of_an_own_method_is_named(tmp_path, monkeypatch):
    file = tmp_path / "own_package" / "shifted.py"
    file.parent.mkdir()
    file.write_text(
        "import torch\nfrom toco.methods import toco\n\nclass Config(toco.Config):\n    name: str "
        "= __name__\n\n"
        "def build(*arguments):\n    method = toco.build(*arguments)\n    "
        "method.classifier.forward = wrong\n"
        "    return method\n\ndef wrong(features):\n    return torch.ones(2, 3) @ torch.ones(4, "
        "5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = BASE.method.model_dump(exclude={"name"})
    config = replace(
        BASE,
        {"method.name": "own_package.shifted"} | {f"method.{k}": v for k, v in settings.items()},
    )
    with pytest.raises(
        ValueError, match=rf"A training step cannot be computed: .*\({file}, line 13\)\."
    ):
        check_can_run(config, BASE)


@pytest.mark.parametrize("seed", [-1, 2**32, 202611291411])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ValueError, match=r"^seed: "):
        replace(shapes_nano.recipe(), {"seed": seed})


@pytest.mark.slow
def test_config_train_and_studies_refuse_alike_and_make_nothing(tmp_path):
    changes = ["--set", "method.local_crop_size_px=64"]
    run, storage = tmp_path / "run", tmp_path / "results"
    toco_main, sweeps_main = toco.__main__.main, sweeps.__main__.main
    of_study = ["layer_ablation", "--storage", str(storage), *changes]
    of_search = ["search", "--storage", str(storage), *changes]
    for command, words in (
        (toco_main, ["config", "shapes_nano", *changes]),
        (toco_main, ["train", "shapes_nano", "--run-dir", str(run), *changes]),
        (sweeps_main, ["plan", *of_study]),
        (sweeps_main, ["run", *of_study]),
        (sweeps_main, ["plan", *of_search]),
        (sweeps_main, ["run", *of_search]),
    ):
        refused = CliRunner().invoke(command, words)
        assert refused.exit_code == 1, words
        assert "crops of 64 px do not fit into an image of 64 x 64 px" in refused.output
        assert "method.local_crop_size_px=64" in refused.output
    assert not run.exists()
    assert not storage.exists()


@pytest.mark.slow
def test_every_cell_of_a_study_runs():
    plan = sweeps.__main__.studies()["table5"].resolve()
    check_sizes((trial.config for trial in plan.trials), plan.study.recipe, plan.study.train)


def test_configs_of_the_same_sizes_are_checked_once(monkeypatch):
    checked = []
    monkeypatch.setattr(dry_run, "check_can_run", lambda config, recipe: checked.append(config))
    same = [replace(BASE, {"seed": seed, "optim.lr": 1e-4 * (seed + 1)}) for seed in range(3)]
    same += [replace(BASE, {"shuffle": False})]
    same += [
        replace(BASE, {"method.ptc.weight": weight, "method.temperature": weight})
        for weight in (0.1, 0.2)
    ]
    others = [{"method.ptc.weight": 0}, {"method.par.scale": 0.25}, {"method.num_local_crops": 3}]
    others += [
        {"evaluate.cam_scales": [1.0, 0.5]},
        {"inference.scales": [2.0]},
        {"views.crop_size_px": 56},
        {"optim.layer_decay": 0.5},
        {"optim.frozen_layers": 2},
    ]
    check_sizes([*same, *(replace(BASE, changes) for changes in others)], "shapes_nano", TRAIN)
    assert len(checked) == 1 + len(others)
    check_sizes(same, "shapes_nano", "fake_training:train")
    assert len(checked) == 1 + len(others)


@pytest.mark.slow
def test_every_recipe_runs_and_a_large_network_takes_little_memory():
    """In a process of its own, imports of torch and timm included.

    On Linux, ``ru_maxrss`` keeps what the process that started it had, this one with all it has
    imported.
    """
    code = (
        "import pathlib, resource; from toco.registry import available, load;"
        "from toco.train.dry_run import check_can_run;"
        "recipes = [load('toco.recipes', name).recipe() for name in available('toco.recipes')];"
        "[check_can_run(recipe) for recipe in recipes]; status = pathlib.Path('/proc/self/status');"
        "lines = status.read_text().splitlines() if status.exists() else [];"
        "peaks = [line.split()[1] for line in lines if line.startswith('VmHWM')];"
        "peak_bytes = int(peaks[0]) * 1024 if peaks else "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(len(recipes), peak_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, peak_bytes = map(int, done.stdout.split())
    assert number == len(available("toco.recipes"))
    assert peak_bytes < 2e9
