"""How a study or a search ends that cannot go on."""

import errno
import signal
import sys
from types import SimpleNamespace

import pytest

from sweeps.core.commands import command, same_command
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
        (
            NoRoomError("/results has no room: 0 B are free. Make room there."),
            "/results has no room: 0 B are free.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/results/study.json"),
            "/results/study.json: No space left",
        ),
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


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/a/sweeps/__main__.py", "run", "table5"], ["python", "-m", "sweeps", "sync", "pooling"]),
        (
            ["/a/sweeps/__main__.py", "run", "own.study"],
            ["python", "-m", "sweeps", "sync", "own.study"],
        ),
        (["my_study.py", "run"], ["python", "my_study.py", "sync"]),
        (["/a/own/study.py", "run"], ["python", "-m", "own.study", "sync"]),
    ],
)
def test_sync_is_called_as_the_program_was(monkeypatch, argv, words):
    monkeypatch.setattr(sys, "argv", argv)
    main = SimpleNamespace(__spec__=SimpleNamespace(name="own.study", origin="/a/own/study.py"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert same_command._first_words("pooling", "sync") == words
