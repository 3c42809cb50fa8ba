"""``python -m sweeps``: every verb of a small study, what it prints, and its exit status."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import sweeps
import sweeps.__main__ as command_line
from sweeps.__main__ import VERBS, main
from sweeps.core.commands import status
from sweeps.core.commands.command import study_command
from sweeps.core.design.designs import Declared, OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.study import Metric, Study
from sweeps.core.run import start
from sweeps.core.store.ledger import Ledger
from toco.registry import load
from toco.train import records

sys.path.insert(0, str(Path(__file__).parent))
from fake_backend import FakeBackend
from fake_store import FakeStore

FAKES = str(Path(__file__).with_name("core"))
M = "val/cam_miou"
PAPER = Paper(
    source="A paper, Table 1",
    setting="somewhere else",
    rows=(PaperRow("#8", {M: 0.5}), PaperRow("#10", {M: 0.7})),
    claims=(Claim("better at #10", M, "#10", ("#8",), by=20.0, size="large"),),
)
STUDY = Study(
    name="fake",
    title="A small study",
    recipe="shapes_nano",
    design=OneFactor(
        (Factor("method.aux_block", (7, 9), 9, ("#8", "#10"), "block"),),
        {"method.aux_block": Declared((M,), PAPER)},
    ),
    seeds=(0, 1, 2, 3, 4),
    metrics=(Metric(M, "M"),),
    changes={
        "data.num_train": 1,
        "data.num_val": 1,
        "num_steps": 20,
        "evaluate_every": 20,
        "optim.warmup_steps": 0,
    },
    repeat_base=False,
    train="fake_training:train",
)


class Place:
    """``python -m sweeps VERB STUDY --storage ...`` in this process, with trainings that take no
    time.

    ``values`` has the metric of the two blocks, ``fail`` the seed of a training that fails; after
    ``interrupt_after`` trainings somebody presses Ctrl-C.
    """

    def __init__(self, storage):
        self.storage, self.values, self.fail = storage, {7: 0.5, 9: 0.6}, None
        self.trained, self.interrupt_after = 0, None

    def __call__(self, verb, *arguments, study="fake"):
        return CliRunner().invoke(main, [verb, study, "--storage", str(self.storage), *arguments])

    def train(self, spec, folder):
        if self.trained == self.interrupt_after:
            raise KeyboardInterrupt
        self.trained += 1
        seed, block = spec.config["seed"], spec.config["method"]["aux_block"]
        if seed == self.fail:
            raise ValueError("image7.png cannot be decoded.")
        write_run(folder, spec, self.values[block] + 0.001 * (seed * block % 3))


def write_run(folder, spec, value):
    """What a training leaves that has found ``value``."""
    (folder / "checkpoints" / "step_00000020").mkdir(parents=True)
    head = {"digest": "0" * 16, "recipe": spec.recipe, "config": spec.config}
    result = {"status": "finished", "step": 20, "digest": "0" * 16, "metrics": {M: value}}
    files = {
        "config.json": head,
        "provenance.json": {"commit": None, "started": "2026-01-01T00:00:00+00:00"},
        "result.json": result,
        "checkpoints/step_00000020/state.json": {"step": 20},
    }
    for name, content in files.items():
        records.write(folder / name, content)
    rows = [records.make_row(20, "val", 0.0, {M: value})]
    (folder / "metrics.jsonl").write_text(records.rows_text(rows))


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = Place(tmp_path / "results")
    study = {"fake": STUDY, "blind": dataclasses.replace(STUDY, name="blind", seeds=(0, 1))}

    def found(package, name):
        if (package, name) in {("sweeps", "fake"), ("sweeps", "blind")}:
            main = study_command(
                study[name], "A study for tests.", connect=FakeBackend(place.train).connect
            )
            return SimpleNamespace(STUDY=study[name], main=main)
        return load(package, name)

    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setattr(command_line, "load", found)
    monkeypatch.setattr(start, "Tracker", FakeStore)
    monkeypatch.setattr(status, "Tracker", FakeStore)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return place


def test_the_list_has_every_file_with_what_it_is():
    found = subprocess.run(
        [sys.executable, "-m", "sweeps", "list"], capture_output=True, text=True, check=True
    )
    lines = found.stdout.splitlines()
    names = [line for line in lines if not line.startswith(" ")]
    files = {path.stem for path in Path(sweeps.__file__).parent.glob("*.py")} - {
        "__init__",
        "__main__",
    }
    assert set(names) == files
    assert len(names) == len(files)
    after = lines.index("layer_ablation")
    assert lines[after + 1 : after + 3] == [
        "  Table 5 (a): the block of the auxiliary classifier",
        "  one factor at a time, 4 rows, looks after 3, 5, 7, 10 seeds: method.aux_block",
    ]
    search = lines[lines.index("search") + 2]
    assert search.startswith("  search, 8 trials, seed 100: method.ptc.weight, ")


def test_the_help_has_every_verb():
    text = CliRunner().invoke(main, ["--help"]).output
    assert VERBS.keys() == main.commands.keys() - {"list", "compare"}
    for verb in VERBS:
        assert f"  {verb} " in text
        module = load("sweeps", "layer_ablation")
        assert verb in module.main.commands
    # What follows the study's name is the study's own.
    own = CliRunner().invoke(main, ["run", "layer_ablation", "--help"])
    assert own.exit_code == 0
    assert "--layers" in own.output
    assert own.output.startswith("Usage: python sweeps/layer_ablation.py run")


def test_a_plan_runs_nothing(place):
    found = place("plan")
    assert found.exit_code == 0, found.output
    assert (
        "one factor at a time: 2 configurations x 5 seeds = 10 trials, 0 of them ended"
        in found.output
    )
    assert "10 trainings to run, 2 at once." in found.output
    assert "1 declared comparison" in found.output
    assert place.trained == 0
    assert not list(place.storage.rglob("*.json"))


def test_what_a_study_that_cannot_answer_is_told(place):
    planned = place("plan", study="blind")
    assert planned.exit_code == 1
    assert "It would be refused." in planned.output
    refused = place("run", study="blind")
    assert refused.exit_code == 1
    assert "--accept-underpowered" in refused.output
    assert place.trained == 0
    accepted = place("run", "--accept-underpowered", study="blind")
    assert accepted.exit_code == 0, accepted.output
    assert place.trained == 4


def test_a_study_whose_claim_holds_from_plan_to_sync(place):
    ran = place("run")
    assert ran.exit_code == 0, ran.output
    assert place.trained == 10
    assert "1 direction confirmed" in ran.output
    # Again: nothing is trained, and the status is the same.
    again = place("run")
    assert (again.exit_code, place.trained) == (0, 10)
    assert "nothing was run" in again.output
    assert "Nothing is left to run." in place("plan").output
    stands = place("status")
    assert stands.exit_code == 0
    assert stands.output == "A small study: 10 of 10 trials have ended.\n"
    reported = place("report", "--bundle", str(place.storage / "bundle.zip"))
    assert reported.exit_code == 0, reported.output
    assert (place.storage / "bundle.zip").is_file()
    # The same table from both, word for word.
    text = reported.output.partition("\n\nReport:")[0]
    assert "#10" in text
    assert text in ran.output
    compared = place("diff")
    assert compared.exit_code == 1
    assert compared.output.startswith("Error: ")
    synced = place("sync")
    assert synced.exit_code == 0, synced.output
    assert (
        "MLflow has 10 trials of fake.\nMLflow: http://127.0.0.1:5000/#/experiments/1/runs?"
        in synced.output
    )


def test_a_contradicted_claim_is_3(place):
    place.values = {7: 0.6, 9: 0.5}
    for verb in ("run", "run", "report"):
        found = place(verb)
        assert found.exit_code == 3, found.output
        assert "1 contradicted" in found.output
    assert place.trained == 10


def test_a_cell_without_a_result_is_4(place):
    place.fail = 3
    ran = place("run")
    assert ran.exit_code == 4, ran.output
    assert "failed once: ValueError: image7.png cannot be decoded." in ran.output
    assert place("report").exit_code == 4
    stands = place("status")
    assert stands.exit_code == 0
    assert "8 of 10 trials have ended." in stands.output
    assert "Missing: 2 failed." in stands.output
    # The same command tries the failed ones again, and no others.
    place.fail = None
    place.trained = 0
    assert place("run").exit_code == 0
    assert place.trained == 2
    assert len(list(Ledger(place.storage).history("shapes_nano"))) == 10


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run", "no_such"], 2, "no_such"),
        (["run", "tabel5"], 2, "Did you mean 'table5'"),
        (["run"], 2, "Missing argument 'STUDY'"),
        (["frobnicate", "table5"], 2, "No such command 'frobnicate'"),
        (["diff", "search"], 2, "search has no diff; it has run, plan, status, report, sync."),
        (["run", "fake", "--seeds", "a"], 2, "expected integers with commas between them"),
        (["run", "fake", "--trials", "3"], 2, "No such option"),
        (["run", "fake", "--set", "num_steps"], 2, "a.b=value"),
        (["status", "fake", "--concurrent", "3"], 2, "No such option"),
        (["run", "fake", "--set", "num_stepz=3"], 1, "Did you mean 'num_steps'"),
        (["plan", "fake", "--recipe", "shapes_nan"], 1, "Did you mean 'shapes_nano'"),
        (
            ["plan", "fake", "--storage", "s3://bucket/results"],
            1,
            "needs a folder, on a local disk or mounted",
        ),
        (["plan", "search", "--trials", "0"], 2, "not in the range"),
        (["plan", "search", "--seeds", "1"], 2, "No such option"),
        (
            ["plan", "search", "--set", "method.temperature=0.3"],
            1,
            "is searched, so it cannot be set",
        ),
    ],
)
def test_what_cannot_run_is_a_sentence_and_another_status(
    place, tmp_path, monkeypatch, arguments, status, message
):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == status, found.output
    assert message in found.output
    assert "Traceback" not in found.output
    assert isinstance(found.exception, SystemExit)
    assert list(tmp_path.iterdir()) == []


def test_the_verbs_of_the_search(place):
    tiny = ["--set", "data.num_train=1", "--set", "data.num_val=1"]
    stands = place("status", *tiny, study="search")
    assert stands.exit_code == 0, stands.output
    assert "none begun, of 8 trials." in stands.output
    assert "No driver runs it now." in stands.output
    reported = place("report", *tiny, study="search")
    assert reported.exit_code == 0, reported.output
    assert "0 of 8 trials: none begun." in reported.output


def test_a_study_that_is_stopped_is_130_and_goes_on(place):
    place.interrupt_after = 4
    stopped = place("run")
    assert stopped.exit_code == 130, stopped.output
    assert stopped.output.endswith("Stopped. The same command goes on from here.\n")
    assert "4 of 10 trials have ended." in place("status").output
    place.interrupt_after = None
    assert place("run").exit_code == 0
    assert place.trained == 10


def test_a_study_that_mlflow_lacks_says_what_fills_it(place, monkeypatch):
    words = ["--concurrent", "1", "--set", "optim.lr=0.0001", "--seeds", "0,1,2,3,4"]
    with monkeypatch.context() as lost:
        lost.setattr(FakeStore, "ensure_parent", lambda *_, **__: None)
        lost.setattr(sys, "argv", ["/somewhere/sweeps/__main__.py"])
        ran = place("run", *words, "--tracking-uri", "http://me:se@cret@host:5000")
    (line,) = [line for line in ran.output.splitlines() if "does not have everything" in line]
    begin, _, command = line.partition(" set: ")
    assert begin == (
        "MLflow at http://host:5000 does not have everything; the run folders do. To fill it, with "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )
    program, options = shlex.split(command)[:5], shlex.split(command)[5:]
    assert program == ["python", "-m", "sweeps", "sync", "fake"]
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        "--storage": str(place.storage),
        "--tracking-uri": "http://host:5000",
        "--set": "optim.lr=0.0001",
        "--seeds": "0,1,2,3,4",
    }
    assert "cret" not in ran.output
    synced = CliRunner().invoke(main, ["sync", "fake", *options])
    assert "MLflow has 10 trials of fake." in synced.output
