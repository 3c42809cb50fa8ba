"""Asking does not write: the storage is byte for byte as it was."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

# Where the fake training lies, whose code is part of a trial's identity.
sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_search import STUDY as SEARCH

from sweeps.core.commands.command import study_command
from sweeps.core.plan.survey import survey
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.search_trials import SearchTrials
from tests.sweeps.core.commands.test_diff import STUDY, record
from tests.sweeps.core.records import make_study


def contents(storage):
    """Every file with its bytes and the time of its last change, and every folder."""
    paths = storage.rglob("*")
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in paths
    }


def ask(command, storage, *words):
    before = contents(storage)
    result = CliRunner().invoke(command, [*words, "--storage", str(storage)])
    assert result.exit_code in (0, 4), (result.output, result.exception)
    assert contents(storage) == before, words
    return result.output


@pytest.mark.parametrize("words", [["status"], ["plan"], ["report", "--stdout"], ["diff"]])
def test_asking_about_a_study_writes_nothing(tmp_path, words):
    folder = record(tmp_path, STUDY, 0.5)
    # The state of earlier code and data, which a run would keep in the history.
    situation = survey(STUDY, tmp_path)
    keys = [key[::-1] for key in situation.keys]
    folder.write_study(situation.plan, keys, situation.inputs, None)
    (tmp_path / "leases" / "holders").mkdir(parents=True)
    said = ask(study_command(STUDY, "Fake."), tmp_path, *words)
    assert {"status": "4 of 4 trials", "plan": "Fake trainings", "report": "50.0", "diff": "since"}[
        words[0]
    ] in said


@pytest.mark.filterwarnings("ignore:None of the trials")
@pytest.mark.parametrize("words", [["status"], ["plan"], ["report", "--stdout"]])
def test_asking_about_a_study_that_never_ran_makes_no_folder(tmp_path, words):
    storage = tmp_path / "results"
    CliRunner().invoke(study_command(STUDY, "Fake."), [*words, "--storage", str(storage)])
    assert not storage.exists()


@pytest.mark.parametrize("words", [["status"], ["plan"], ["report", "--stdout"]])
def test_asking_about_a_search_writes_nothing(tmp_path, words):
    situation = survey(SEARCH, tmp_path)
    situation.write()
    trials = SearchTrials(situation.journal, situation.plan, lambda: None)
    template = make_study({"#8": (0.5,)}).trials[0].entry
    for value in (0.5, 0.6):
        trial = trials.ask()
        task = situation.task(trial.number, trial.params)
        config, identity = task.config, task.identity
        trials.set_key(trial.number, identity.key)
        entry = {
            "key": identity.key,
            "training_key": identity.training_key,
            "identity": identity.parts,
            "config": config.model_dump(mode="json"),
            "metrics": {"val/cam_miou": value, "val/seg_miou": value},
            "run": f"runs/{identity.key}",
        }
        Ledger(tmp_path).write(template.model_copy(update=entry))
        trials.finish(trial.number, Ledger(tmp_path).entry(identity.key))
    trials.ask()
    said = ask(study_command(SEARCH, "Fake."), tmp_path, *words)
    assert {"status": "2 finished", "plan": "2 of them ended", "report": "60.0"}[words[0]] in said


def test_printing_and_a_bundle_exclude_each_other(tmp_path):
    record(tmp_path, STUDY, 0.5)
    words = ["report", "--stdout", "--bundle", str(tmp_path / "a.zip"), "--storage", str(tmp_path)]
    result = CliRunner().invoke(study_command(STUDY, "Fake."), words)
    assert result.exit_code == 1
    assert "writes nothing" in result.output
    assert not (tmp_path / "a.zip").exists()
