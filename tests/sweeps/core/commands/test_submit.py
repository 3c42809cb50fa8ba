"""The verb submit on a study of fake trainings, with a Slurm of small programs."""

import json
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from sweeps.core.commands.command import study_command
from sweeps.core.plan.survey import survey
from sweeps.core.slurm.submissions import Submissions
from tests.sweeps.core.commands.test_diff import STUDY, record

sys.path.insert(0, str(Path(__file__).parents[1]))
import fake_study
from fake_search import STUDY as SEARCH


class Slurm:
    def __init__(self, folder, monkeypatch):
        self.folder, self.noted = folder / "bin", folder / "noted"
        self.folder.mkdir()
        monkeypatch.setenv("PATH", str(self.folder))  # a Slurm of this machine has no part
        self.answer("sbatch", "41")
        self.answer("squeue", "")
        self.answer("scancel", "")

    def answer(self, program, text, status=0):
        path = self.folder / program
        path.write_text(
            f'#!/bin/bash\necho {program} "$@" >> {self.noted}\n'
            f"/bin/cat > {self.noted}.{program} < /dev/stdin\necho '{text}'\nexit {status}\n"
        )
        path.chmod(0o755)

    def calls(self):
        return self.noted.read_text().splitlines() if self.noted.exists() else []

    def script(self):
        return Path(f"{self.noted}.sbatch").read_text()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["my_study.py"])
    return Slurm(tmp_path, monkeypatch)


def run(*arguments):
    result = CliRunner().invoke(fake_study.main, [*arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_study_is_submitted_with_its_options(slurm, tmp_path):
    options = ["--array", "2", "--time", "1:00:00", "--partition", "low", "--sbatch", "mem=8G"]
    more = ["--seeds", "0,1", "--set", "log_every=7", "--max-failures", "5"]
    status, output = run("submit", "--slurm", *options, *more)
    assert status == 0, output
    assert slurm.calls() == ["sbatch --parsable"]
    folder = survey(fake_study.STUDY, tmp_path / "results").path.parent
    (study,) = folder.glob("fake-*")
    script = slurm.script().splitlines()
    assert [line.removeprefix("#SBATCH --") for line in script if "#SBATCH --" in line] == [
        "ntasks=1",
        "requeue",
        "open-mode=append",
        "signal=B:USR1@120",
        "job-name=toco-fake",
        "array=1-2",
        "cpus-per-task=1",
        f"chdir={tmp_path}",
        f"output={study}/slurm/%A_%a.log",
        "time=1:00:00",
        "partition=low",
        "mem=8G",
    ]
    (command,) = [line for line in script if line.startswith("set -- ")]
    words = shlex.split(command)[2:]
    assert words[:3] == [sys.executable, "my_study.py", "run"]
    pairs = dict(pairwise(words))
    assert pairs["--set"] == "log_every=7"
    assert pairs["--seeds"] == "0,1"
    assert pairs["--max-failures"] == "5"
    assert pairs["--storage"] == str(tmp_path / "results")
    assert pairs["--concurrent"] == "1"
    assert words[-2:] == ["--leave", "--no-probe"]
    assert "--array" not in words
    (record,) = Submissions(study).all()
    assert (record.job, record.tasks, list(record.command)) == ("41", 2, words)
    assert (study / "slurm" / "41.sbatch").read_text() == slurm.script()
    assert "Submitted job 41: 2 drivers of fake." in output
    assert f"{study}/slurm/41_TASK.log" in output
    # The words can be typed as they are shown.
    (watch,) = [line for line in output.splitlines() if "watch:" in line]
    assert shlex.split(watch)[2:5] == ["my_study.py", "status", "--set"]


def test_an_array_has_no_more_tasks_than_trials(slurm):
    status, output = run("submit", "--slurm", "--array", "9")
    assert status == 0
    assert "--array 9 is more than the trials that are left can use: 4 drivers are" in output
    assert "#SBATCH --array=1-4" in slurm.script()
    run("submit", "--slurm", "--array", "9", "--concurrent", "3")
    assert "#SBATCH --array=1-2" in slurm.script()
    assert "#SBATCH --cpus-per-task=3" in slurm.script()


def test_gpus_go_to_the_trials(slurm):
    run("submit", "--slurm", "--gres", "gpu:2", "--cpus-per-trial", "4")
    script = slurm.script()
    assert "#SBATCH --gres=gpu:2" in script
    assert "#SBATCH --cpus-per-task=8" in script
    assert "--concurrent 2 --cpus-per-trial 4 --gpus-per-trial 1 --leave" in script


def test_print_writes_nothing(slurm, tmp_path):
    before = set(tmp_path.rglob("*"))
    status, output = run("submit", "--slurm", "--print", "--array", "2")
    assert status == 0
    assert output.startswith("#!/bin/bash\n")
    assert "#SBATCH --array=1-2\n" in output
    assert slurm.calls() == []
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --slurm"),
        (["--slurm", "--gpus-per-trial", "1"], "without --gres it has none"),
        (
            ["--slurm", "--tracking-uri", "http://me:secret@host:5000"],
            "has a password, and every user can read the command of a job",
        ),
        (["--slurm", "--set", "optim.warmup_steps=900"], "warmup"),
        (["--slurm", "--sbatch", "--mem=8G"], "the long name of an option of sbatch, as in mem="),
        (["--slurm", "--sbatch", "array=9"], "array has an option of its own: give --array."),
        (["--slurm", "--sbatch", "mem=1", "--sbatch", "mem=2"], "mem is given twice"),
        (["--slurm", "--print", "--cancel"], "give one of them"),
        (["--slurm", "--array", "0"], "--array"),
    ],
)
def test_what_a_driver_would_refuse_is_refused_before(slurm, arguments, message):
    status, output = run("submit", *arguments)
    assert status != 0
    assert message in output
    assert "secret" not in output
    assert slurm.calls() == []


def test_a_refusal_of_slurm_leaves_no_record(slurm, tmp_path):
    slurm.answer("sbatch", "", status=1)
    status, output = run("submit", "--slurm")
    assert status == 1
    assert "Slurm did not submit the study: exit status 1" in output
    assert not [*tmp_path.rglob("slurm/*.json")]


def test_cancel_ends_what_is_queued_of_this_study_alone(slurm):
    assert run("submit", "--slurm", "--cancel")[1].startswith("No submission of fake in")
    run("submit", "--slurm")
    slurm.answer("sbatch", "52")
    run("submit", "--slurm")
    slurm.answer("squeue", "41|R|None\n52|PD|Priority\n77|R|None")
    status, output = run("submit", "--slurm", "--cancel")
    assert (status, output.startswith("Cancelled 41, 52.")) == (0, True)
    assert slurm.calls()[-1] == "scancel 41 52"


def test_cancel_leaves_what_has_ended_alone(slurm):
    run("submit", "--slurm")
    slurm.answer("sbatch", "52")
    run("submit", "--slurm")
    slurm.answer("squeue", "52|PD|Priority")
    assert run("submit", "--slurm", "--cancel")[1].startswith("Cancelled 52.")
    assert slurm.calls()[-1] == "scancel 52"


def test_a_refused_cancellation_is_a_sentence(slurm):
    run("submit", "--slurm")
    slurm.answer("squeue", "41|R|None")
    slurm.answer("scancel", "", status=1)
    status, output = run("submit", "--slurm", "--cancel")
    assert status == 1
    assert "Slurm did not cancel the jobs: exit status 1" in output
    assert "Cancelled" not in output


def test_nothing_is_submitted_of_a_whole_study(tmp_path, monkeypatch):
    command = study_command(STUDY, "Fake.")
    record(tmp_path / "results", STUDY, 0.5)
    slurm = Slurm(tmp_path, monkeypatch)
    words = ["submit", "--slurm", "--storage", str(tmp_path / "results")]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0
    assert result.output == "All 4 trials have ended; nothing is submitted.\n"
    assert slurm.calls() == []
    assert not [*tmp_path.rglob("slurm")]


def test_a_search_is_not_submitted():
    assert "submit" not in study_command(SEARCH, "Fake.").commands


def test_a_storage_with_a_space_reaches_slurm_and_the_driver(slurm, tmp_path):
    status, output = run("submit", "--slurm", "--storage", "my disk")
    assert status == 0, output
    script = slurm.script()
    (study,) = (tmp_path / "my disk").glob("fake-*")
    assert f"#SBATCH --output='{study}/slurm/%A_%a.log'\n" in script
    (command,) = [line for line in script.splitlines() if line.startswith("set -- ")]
    assert dict(pairwise(shlex.split(command)))["--storage"] == str(tmp_path / "my disk")


def test_flags_and_a_template_of_the_user(slurm, tmp_path):
    template = tmp_path / "mine.sbatch"
    template.write_text('#!/bin/bash\n#SBATCH --mem=1G\nmodule load python\n"$@"\n')
    options = ["--template", str(template), "--sbatch", "exclusive", "--sbatch", "mem=9G"]
    assert run("submit", "--slurm", *options)[0] == 0
    lines = slurm.script().splitlines()
    assert "#SBATCH --exclusive" in lines
    assert [line for line in lines if "--mem" in line] == ["#SBATCH --mem=9G"]
    assert lines[-2:] == ["module load python", '"$@"']


def test_the_status_says_why_nothing_runs(slurm):
    assert "No driver runs: run the study, or submit it." in run("status")[1]
    run("submit", "--slurm")
    slurm.answer("squeue", "41|PD|Resources")
    output = run("status")[1]
    assert "Slurm job 41, tasks: 1 pending: no node is free that has" in output
    assert "No driver runs" not in output
    slurm.answer("squeue", "")
    output = run("status")[1]
    assert "No driver runs, and no submission of this study is in Slurm's queue: submit" in output
    # On a machine without Slurm the rest of the status is shown nevertheless.
    (slurm.folder / "squeue").unlink()
    output = run("status")[1]
    assert "0 of 4 trials have ended" in output
    assert "squeue was not found" in output


def test_a_watch_shows_changes_and_ends_with_the_study(slurm, monkeypatch):
    import sweeps.core.commands.status as module

    states = iter([True, True, True, False])
    texts = iter(["one", "one", "two", "two"])
    monkeypatch.setattr(module, "_study_status", lambda situation: [next(texts)])
    monkeypatch.setattr(module, "_is_missing", lambda situation: next(states))
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    assert run("status", "--watch", "7") == (0, "one\ntwo\n")
    assert slept == [7.0, 7.0, 7.0]


def test_a_watch_shows_what_ends_while_it_looks(slurm, monkeypatch):
    import sweeps.core.commands.status as module

    ended = []

    def missing(situation):
        is_missing = not ended
        ended.append("the last trial ends here")
        return is_missing

    text = {False: "3 of 4", True: "4 of 4"}
    monkeypatch.setattr(module, "_study_status", lambda situation: [text[len(ended) > 1]])
    monkeypatch.setattr(module, "_is_missing", missing)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    assert run("status", "--watch") == (0, "3 of 4\n4 of 4\n")


def test_the_record_is_json_with_a_seal(slurm, tmp_path):
    run("submit", "--slurm")
    (path,) = tmp_path.rglob("slurm/41.json")
    assert json.loads(path.read_text())["job"] == "41"
