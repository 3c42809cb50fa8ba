"""Slurm's commands, played by small programs that note their arguments."""

import pytest

from sweeps.core.slurm import queue
from sweeps.core.slurm.queue import SlurmError, explained


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Make programs: ``slurm(squeue=("output", "errors", status))``; return what they noted."""
    noted = tmp_path / "noted"
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(**programs):
        for name, (output, errors, status) in programs.items():
            path = tmp_path / name
            path.write_text(
                f'#!/bin/bash\n(echo {name} "$@"; /bin/cat) >> {noted} < /dev/stdin\n'
                f"printf '%b' '{output}'\nprintf '%b' '{errors}' >&2\nexit {status}\n"
            )
            path.chmod(0o755)
        return lambda: noted.read_text()

    return make


def test_a_script_is_submitted_by_its_text(slurm):
    noted = slurm(sbatch=("41;cluster2\\n", "", 0))
    assert queue.submit("#!/bin/bash\ntrue\n") == "41"
    assert noted() == "sbatch --parsable\n#!/bin/bash\ntrue\n"


def test_the_number_of_the_job_follows_what_a_site_prints(slurm):
    slurm(sbatch=("Welcome to cluster 7!\\n41\\n", "", 0))
    assert queue.submit("") == "41"
    slurm(sbatch=("Thank you.\\n", "", 0))
    with pytest.raises(SlurmError, match=r"expected a line like 41, got 'Thank you.\\n'"):
        queue.submit("")


def test_a_refusal_says_what_slurm_said(slurm):
    slurm(sbatch=("", "sbatch: error: Batch job submission failed:\\nInvalid account\\n", 1))
    message = (
        "Slurm did not submit the study: sbatch: error: Batch job submission failed: Invalid "
        "account"
    )
    with pytest.raises(SlurmError) as raised:
        queue.submit("")
    assert str(raised.value) == message


def test_a_machine_without_slurm_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SlurmError, match="sbatch was not found, so this machine cannot submit"):
        queue.submit("")


def test_a_controller_that_does_not_answer_is_named(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "_LIMIT_S", 0.2)
    program = tmp_path / "squeue"
    slurm()
    program.write_text("#!/bin/bash\nexec /bin/sleep 5\n")
    program.chmod(0o755)
    with pytest.raises(SlurmError, match=r"no answer to squeue in 0.2 s"):
        queue.tasks_of(["41"])


def test_tasks_are_counted_by_job_state_and_reason(slurm):
    states = ("41|PD|Resources", "41|R|None", "41|PD|Resources", "41|PD|BeginTime", "41|R|None")
    others = ("52|R|None", "410|PD|Priority")
    noted = slurm(squeue=("\\n".join((*states, *others)) + "\\n", "", 0))
    # 17 has left the queue.
    found = queue.tasks_of(["17", "41", "52"])
    assert list(found) == ["41", "52"]
    assert [(each.number, each.state, each.reason) for each in found["41"]] == [
        (1, "pending", "BeginTime"),
        (2, "pending", "Resources"),
        (2, "running", ""),
    ]
    assert [each.text for each in found["41"]] == [
        "1 pending: Slurm starts a task again only some minutes after a requeue (BeginTime)",
        "2 pending: no node is free that has what a task asks for (Resources)",
        "2 running",
    ]
    assert [each.text for each in found["52"]] == ["1 running"]
    assert noted() == "squeue --me --noheader --array --format=%F|%t|%r\n"


def test_jobs_are_cancelled_together(slurm):
    noted = slurm(scancel=("", "", 0))
    queue.cancel(["41", "52"])
    assert noted() == "scancel 41 52\n"


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("QOSMaxJobsPerUserLimit", "a limit of its QOS is reached"),
        ("AssocGrpGRES", "a limit of its account is reached"),
        ("ReqNodeNotAvail, UnavailableNodes:n3", "the nodes that it asks for are down, drained or"),
        ("SomethingNew", "Slurm gives a reason that is not known here"),
    ],
)
def test_reasons_are_explained(reason, text):
    assert explained(reason).startswith(text)
