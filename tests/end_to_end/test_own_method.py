"""examples/own_method outside of this repository: a run, its use from elsewhere, and a study under
Ray.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.num_train": "16",
    "data.num_val": "4",
    "num_steps": "2",
    "evaluate_every": "2",
    "optim.warmup_steps": "1",
    "evaluate.num_pictures": "1",
}
OWN_DATA = """
from toco.data import shapes

class Config(shapes.Config):
    name: str = __name__

class Mirrored(shapes.ShapesFolder):
    def image(self, index):
        return super().image(index)[:, ::-1]

    def mask(self, index):
        return super().mask(index)[:, ::-1]

def open_split(config, split):
    return Mirrored(shapes.generated_folder(config), split, config)
"""
OWN_STUDY = """
import dataclasses
from own_method.study import STUDY as WHOLE
from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor

STUDY = dataclasses.replace(
    WHOLE,
    design=OneFactor((Factor("method.pooled_fraction", (0.0, 1.0), 0.0),)),
    seeds=(0,),
    repeat_base=False,
    changes={changes!r},
)
main = study_command(STUDY, __doc__)
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of somebody's own, with a copy of the example, a data set and a script."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(ROOT / "examples/own_method", folder / "own_method")
    (folder / "own_method" / "data.py").write_text(OWN_DATA)
    (folder / "my_study.py").write_text(
        OWN_STUDY.replace("{changes!r}", repr(SMALL | {"evaluate.num_pictures": "0"}))
    )
    return folder


def run(folder, *words, search=()):
    """``python WORDS`` in ``folder``; toco is found as if it were installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *search)))}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_run_of_own_modules_is_trained_here_and_used_elsewhere(work, tmp_path):
    changes = [word for path, value in SMALL.items() for word in ("--set", f"{path}={value}")]
    changes = ["--set", "data.name=own_method.data", "--set", "num_workers=1", *changes]
    train = (
        "-m",
        "toco",
        "train",
        "own_method.recipe",
        "--run-dir",
        work / "run",
        "--no-progress",
        *changes,
    )
    trained = run(work, *train)
    assert trained.returncode == 0, trained.stderr
    config = json.loads((work / "run/config.json").read_text())
    assert config["recipe"] == "own_method.recipe"
    assert config["config"]["method"]["name"] == "own_method.method"
    own_code = json.loads((work / "run/provenance.json").read_text())["own_code"]
    assert own_code.keys() == {"own_method.data", "own_method.method"}
    again = run(work, *train, "--resume")
    assert again.returncode == 0, again.stderr
    (work / "own_method/nothing.py").write_text("def recipe():\n    pass\n")
    nothing = run(work, "-m", "toco", "config", "own_method.nothing")
    assert (
        nothing.stderr
        == "Error: expected a config, as the RunConfig that a recipe returns; got None.\n"
    )
    evaluate = ("-m", "toco", "evaluate", work / "run", "--no-progress")
    refused = run(tmp_path, *evaluate)
    assert refused.returncode == 1
    assert "run/config.json names a module that cannot be used." in refused.stderr
    assert f"There is no module 'own_method.data': {tmp_path}, " in refused.stderr
    evaluated = run(tmp_path, *evaluate, search=[work])
    assert evaluated.returncode == 0, evaluated.stderr
    assert "mean" in evaluated.stdout


@pytest.mark.slow
def test_a_study_in_a_script_of_ones_own_runs_under_ray(work, tmp_path):
    storage = ("--storage", tmp_path / "results")
    # One worker for both trainings: its start takes longer than they do.
    ran = run(tmp_path, work / "my_study.py", "run", "--concurrent", "1", *storage)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    entries = [
        json.loads(path.read_text()) for path in (tmp_path / "results/ledger").glob("??/*.json")
    ]
    assert len(entries) == 2
    assert all("own_method.method" in entry["identity"]["code"] for entry in entries)
    method = work / "own_method/method.py"
    method.write_text(method.read_text().replace("topk(count", "topk(count + 0"))
    planned = run(work, "my_study.py", "plan", *storage)
    assert "2 trainings to run" in planned.stdout
    assert "code changed: own_method.method" in planned.stdout
