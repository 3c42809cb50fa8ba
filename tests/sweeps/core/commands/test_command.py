"""How a study or a search ends that cannot go on."""

import errno
import signal

import pytest

from sweeps.core.commands import command
from sweeps.core.run.failures import HeadLostError
from toco.room import NoRoomError


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_was_stopped_says_that_it_goes_on(capsys, monkeypatch, number):
    monkeypatch.setattr("toco.interrupts._received", number)
    assert command._run_to_the_end(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().out == "Stopped. The same command goes on from here.\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NoRoomError("/results has no room: 0 B are free. Make room there."), "/results has no room: 0 B are free."),
        (OSError(errno.ENOSPC, "No space left on device", "/results/study.json"), "/results/study.json: No space left"),
    ],
)
def test_a_full_disk_is_a_sentence_and_trials_without_a_result(capsys, error, sentence):
    assert command._run_to_the_end(raising(error)) == 4
    assert capsys.readouterr().err.startswith(f"Error: {sentence}")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file"), HeadLostError("lost"), ValueError()]
)
def test_other_errors_are_left_to_the_command_line(error):
    with pytest.raises(type(error)):
        command._run_to_the_end(raising(error))


def test_a_study_that_ends_has_its_own_status():
    assert command._run_to_the_end(lambda: 3) == 3
