"""The sbatch file of a study, and the template under bash with a driver that only notes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sweeps.core.slurm.script import TEMPLATE, Resources, num_gpus, script_text

ROOT = Path(__file__).parents[4]


def test_options_replace_those_of_the_template_and_the_command_follows_them():
    text = script_text(
        TEMPLATE,
        {"array": "1-3", "signal": "B:USR1@300", "exclusive": ""},
        ["python", "-m", "sweeps", "run", "table5", "--set", "name=a b"],
    )
    lines = text.splitlines()
    template = TEMPLATE.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert options == [
        "#SBATCH --job-name=toco",
        "#SBATCH --ntasks=1",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --array=1-3",
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --exclusive",
    ]
    assert "set -- python -m sweeps run table5 --set 'name=a b'" in lines
    # Nothing else of the template is changed: users edit it.
    added = {*options, "# The command of a driver.", lines[lines.index("set -u") - 2]}
    assert [line for line in lines if line not in added and line] == [
        line for line in template if not line.startswith("#SBATCH") and line
    ]


def test_values_with_spaces_are_quoted_as_sbatch_reads_them():
    text = script_text(TEMPLATE, {"chdir": "/my disk/a#1", "array": "1-8"}, ["true"])
    assert "#SBATCH --chdir='/my disk/a#1'\n#SBATCH --array=1-8\n" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("#!/bin/bash\necho\n", "no line that begins with #SBATCH")],
)
def test_a_template_without_a_place_for_options_is_refused(tmp_path, content, message):
    template = tmp_path / "template"
    if content is not None:
        template.write_text(content)
    with pytest.raises(ValueError, match=message):
        script_text(template, {}, ["true"])


def test_a_line_break_in_an_option_is_refused():
    with pytest.raises(ValueError, match="--time has a line break"):
        script_text(TEMPLATE, {"time": "1\n#SBATCH --uid=0"}, ["true"])


@pytest.mark.parametrize(
    ("gres", "number"),
    [
        (None, 0),
        ("gpu", 1),
        ("gpu:2", 2),
        ("gpu:a100", 1),
        ("gpu:a100:4", 4),
        ("nvme:1,gpu:a100:2(S:0-1)", 2),
        ("nvme:3", 0),
    ],
)
def test_gpus_are_counted(gres, number):
    assert num_gpus(gres) == number


def test_a_gpu_without_a_number_is_refused():
    with pytest.raises(ValueError, match="gpu:a100:x has no number of GPUs"):
        num_gpus("gpu:a100:x")


@pytest.mark.parametrize(
    ("options", "resources", "cpus"),
    [
        ((None, None, 1.0, None), (1, 1.0, 0.0), 1),
        ((None, 3, 1.5, None), (3, 1.5, 0.0), 5),
        (("gpu:1", None, 4.0, None), (1, 4.0, 1.0), 4),
        (("gpu:4", None, 4.0, None), (4, 4.0, 1.0), 16),
        (("gpu:4", None, 1.0, 2.0), (2, 1.0, 2.0), 2),
        (("gpu:1", None, 1.0, 0.5), (2, 1.0, 0.5), 2),
    ],
)
def test_a_task_runs_as_many_trials_as_its_gpus_hold(options, resources, cpus):
    made = Resources.of_options(*options)
    assert (made.concurrent, made.cpus_per_trial, made.gpus_per_trial) == resources
    assert made.cpus_per_task == cpus


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, 1, 1.0, 1.0), "need 1 GPUs in each task, but without --gres it has none"),
        (("gpu:2", 3, 1.0, 1.0), "need 3 GPUs in each task, but --gres gpu:2 gives it 2"),
    ],
)
def test_trials_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Resources.of_options(*options)


# The template under bash.

DRIVER = """
import signal, sys, time
def note(number, _):
    print("driver got", signal.Signals(number).name, flush=True)
    time.sleep(0.3)
    sys.exit(130)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, note)
print("driver runs", flush=True)
time.sleep(60)
"""


class Task:
    """A task of an array whose driver is a small program; ``scontrol`` notes its arguments."""

    def __init__(self, folder, driver, scontrol_status=0, begins_with="", seconds=100):
        self.noted, self.log = folder / "noted", folder / "log"
        program = folder / "bin" / "scontrol"
        program.parent.mkdir()
        program.write_text(f'#!/bin/bash\necho "$@" >> {self.noted}\nexit {scontrol_status}\n')
        program.chmod(0o755)
        environment = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "18",
            "SLURM_ARRAY_JOB_ID": "17",
            "SLURM_ARRAY_TASK_ID": "3",
        }
        # bash reads this file before the script.
        environment["BASH_ENV"] = str(folder / "begins_with")
        Path(environment["BASH_ENV"]).write_text(f"SECONDS={seconds}\n{begins_with}")
        script = folder / "task.sbatch"
        script.write_text(script_text(TEMPLATE, {}, driver))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["/bin/bash", str(script)], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_for(self, text):
        deadline = time.monotonic() + 30
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def end(self):
        return self.process.wait(30), self.log.read_text()

    def requeued(self):
        return self.noted.read_text().splitlines() if self.noted.exists() else []


def python(code):
    return ["python3", "-c", code]


def test_usr1_reaches_the_driver_and_requeues_the_task(tmp_path):
    task = Task(tmp_path, python(DRIVER))
    task.wait_for("driver runs")
    task.process.send_signal(signal.SIGUSR1)
    status, log = task.end()
    assert (status, log) == (130, "driver runs\ndriver got SIGUSR1\n")
    assert task.requeued() == ["requeue 17_3"]


def test_a_site_that_does_not_requeue_gets_a_sentence(tmp_path):
    task = Task(tmp_path, python(DRIVER), scontrol_status=1)
    task.wait_for("driver runs")
    task.process.send_signal(signal.SIGUSR1)
    status, log = task.end()
    assert status == 130
    assert "Slurm does not requeue task 17_3. If squeue does not show it any more, submit" in log


def test_a_signal_in_the_first_seconds_does_not_requeue(tmp_path):
    """The time limit leaves no time for work: the task would start again and again."""
    task = Task(tmp_path, python(DRIVER), seconds=0)
    task.wait_for("driver runs")
    task.process.send_signal(signal.SIGUSR1)
    status, log = task.end()
    assert status == 130
    assert "before a driver can do any work, so Slurm does not start it again. Give a" in log
    assert task.requeued() == []


def test_sigterm_reaches_the_driver_and_does_not_requeue(tmp_path):
    """It may be scancel, after which the task must not come back."""
    task = Task(tmp_path, python(DRIVER))
    task.wait_for("driver runs")
    task.process.send_signal(signal.SIGTERM)
    status, log = task.end()
    assert status == 130
    assert "driver got SIGTERM\nTask 17_3 was ended by Slurm. If squeue does not show it" in log
    assert task.requeued() == []


def test_a_signal_that_comes_again_requeues_once(tmp_path):
    task = Task(tmp_path, python(DRIVER))
    task.wait_for("driver runs")
    for _ in range(3):
        task.process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
    assert task.end()[0] == 130
    assert task.requeued() == ["requeue 17_3"]


@pytest.mark.parametrize("status", [0, 1, 3, 4])
def test_a_driver_that_ends_by_itself_is_not_requeued(tmp_path, status):
    task = Task(tmp_path, python(f"raise SystemExit({status})"))
    assert task.end() == (status, "")
    assert task.requeued() == []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_before_the_driver_listens_ends_the_task(tmp_path, number):
    task = Task(tmp_path, python("print('driver runs', flush=True); import time; time.sleep(60)"))
    task.wait_for("driver runs")
    task.process.send_signal(number)
    assert task.end()[0] == 128 + number
    assert task.requeued() == []


BEFORE_THE_NUMBER_IS_KNOWN = """
signal_once() {
    case $BASH_COMMAND in
    'driver=$!')
        trap - DEBUG
        until grep -q "driver runs" LOG; do sleep 0.02; done
        kill -s NAME $$
        ;;
    esac
}
trap signal_once DEBUG
"""


@pytest.mark.parametrize(("name", "requeued"), [("USR1", ["requeue 17_3"]), ("TERM", [])])
def test_a_signal_between_the_start_of_the_driver_and_the_next_line_is_passed_on(
    tmp_path, name, requeued
):
    begins_with = BEFORE_THE_NUMBER_IS_KNOWN.replace("LOG", str(tmp_path / "log"))
    task = Task(tmp_path, python(DRIVER), begins_with=begins_with.replace("NAME", name))
    status, log = task.end()
    assert status == 130
    assert log.startswith(f"driver runs\ndriver got SIG{name}\n")
    assert task.requeued() == requeued


def test_every_script_is_valid_for_bash():
    for path in (ROOT / "cluster" / "slurm").glob("*.sbatch"):
        subprocess.run(["/bin/bash", "-n", str(path)], check=True)
