"""What is answered without torch, whose import takes seconds: help, lists, and questions about
studies.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import layer_ablation
from tests.sweeps.core.commands.test_diff import record

ROOT = Path(__file__).parents[2]
TINY = {"data.num_train": "1", "data.num_val": "1"}
HELP = """
import sys

from click.testing import CliRunner

from sweeps.__main__ import VERBS, main

asked = [[verb, *study, "-h"] for study in ((), ("table5",)) for verb in VERBS]
for words in [["-h"], ["list"], ["compare", "-h"], *asked, ["report", "search", "-h"]]:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (words, result.output)
    assert {"torch", "ray", "mlflow", "matplotlib"}.isdisjoint(sys.modules), words
"""
ASK = """
import sys

from {package}.__main__ import main

try:
    main({words!r}, standalone_mode=False)
except SystemExit as error:
    assert error.code in (0, 4), error.code
assert "torch" not in sys.modules
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_help_and_the_list_of_studies_need_no_torch():
    run(HELP)


def test_the_list_of_what_there_is_needs_no_torch():
    assert "cam              The CAM baseline" in run(ASK.format(package="toco", words=["list"]))


def test_a_comparison_needs_no_torch(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("row,seed,miou\na,0,0.5\na,1,0.6\nb,0,0.7\nb,1,0.9\n")
    words = ["compare", str(table), "--output", str(tmp_path / "out")]
    run(ASK.format(package="sweeps", words=words))


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Where a small ``layer_ablation`` is finished, and another one lacks a trial."""
    storage = tmp_path_factory.mktemp("results")
    study = layer_ablation.for_recipe(
        dataclasses.replace(layer_ablation.STUDY, changes=TINY, seeds=(0, 1))
    )
    record(storage, study, 0.5)
    record(storage / "unfinished", study, 0.5)
    min((storage / "unfinished" / "ledger").rglob("*.json")).unlink()
    return storage


@pytest.mark.parametrize("name", ["", "unfinished"])
@pytest.mark.parametrize("words", [["status"], ["report"], ["report", "--stdout"], ["diff"]])
def test_a_question_about_a_study_needs_no_torch(storage, words, name):
    (folder,) = (storage / name).glob("layer_ablation-*")
    verb, *rest = words
    rest += ["--with", str(folder)] if verb == "diff" else []
    rest += [word for change in TINY.items() for word in ("--set", "=".join(change))]
    asked = [verb, "layer_ablation", "--seeds", "0,1", "--storage", str(storage / name), *rest]
    run(ASK.format(package="sweeps", words=asked))


def test_the_status_of_a_sequential_study_needs_no_torch(tmp_path):
    """The boundaries of its looks are computed with numpy and scipy."""
    words = [word for change in TINY.items() for word in ("--set", "=".join(change))]
    asked = ["status", "layer_ablation", "--storage", str(tmp_path), *words]
    said = run(ASK.format(package="sweeps", words=asked))
    assert "is best at block #10: open; it needs p <= 0.0015 in each t test with 3 seeds" in said
