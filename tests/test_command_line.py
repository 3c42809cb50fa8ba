"""What all command lines do alike: errors, signals, closed pipes, help, characters that a terminal
would obey.
"""

import errno
import importlib
import os
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import benchmarks.__main__
import sweeps.__main__
import toco.__main__
from toco.command_line import Commands, errors_as_sentences, sentence_of
from toco.config import Config
from toco.own_modules import own_place

ROOT = Path(__file__).parents[1]
RED = "\x1b[31mred\x9b\u202e"
ESCAPED = r"\x1b[31mred\x9b\u202e"


class Example(Config):
    rate: float = 0.1


def raised_by(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("Nothing was raised.")


def run(code, **options):
    """A program that imports ``run`` and runs ``code``; its exit status, output and complaints."""
    # A shell's background jobs ignore Ctrl-C, and the processes that they start inherit that.
    obey = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"import click, signal, sys\n{obey}\nfrom toco.command_line import run\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, **options
    )
    return done.returncode, done.stdout, done.stderr


def ray_nodes():
    spec = util.spec_from_file_location("ray_nodes", ROOT / "cluster/ray_nodes.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], toco.__main__.main),
        (["train"], toco.__main__.main),
        (["data", "check-set"], toco.__main__.main),
        ([], sweeps.__main__.main),
        (["plan"], sweeps.__main__.main),
        (["plan", "table5"], sweeps.__main__.main),
        ([], importlib.import_module("sweeps.table5").main),
        (["plan"], importlib.import_module("sweeps.search").main),
        ([], benchmarks.__main__.main),
        (["table"], benchmarks.__main__.main),
        (["local"], ray_nodes()),
    ],
)
def test_help_has_a_short_and_a_long_option(words, command, option):
    shown = CliRunner().invoke(command, [*words, option])
    assert shown.exit_code == 0
    assert shown.output.startswith("Usage: ")


def test_expected_errors_become_sentences():
    def validate():
        Example(rate="fast")

    assert sentence_of(raised_by(validate)).startswith("rate: Input should be a valid number")
    assert sentence_of(raised_by(lambda: Example.model_fields["rate"].missing)) is None
    assert sentence_of(OSError(errno.ENOENT, "No such file or directory", "a\x1bb")) == (
        r"a\x1bb: No such file or directory."
    )
    assert sentence_of(OSError(errno.ENOSPC, "No space left on device")) == (
        "No space left on device. Make room, then give the same command again."
    )
    assert "not enough memory" in sentence_of(MemoryError("1.8 TiB"))
    assert sentence_of(KeyError("trial")) is None
    assert sentence_of(RecursionError()) is None


def test_an_error_of_a_library_says_whose_it_is():
    import json

    error = raised_by(lambda: json.loads("{"))
    assert sentence_of(error).startswith("json refused its input: Expecting property name")


def test_a_broken_pipe_and_the_end_of_a_command_come_through():
    for error in (BrokenPipeError(), click.exceptions.Exit(3), click.UsageError("no")):
        with pytest.raises(type(error)), errors_as_sentences():
            raise error


def test_a_group_prints_a_sentence_and_no_traceback():
    @click.group(cls=Commands)
    def main():
        """Commands."""

    @main.command()
    def read():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "list.txt")

    failed = CliRunner().invoke(main, ["read"])
    assert (failed.exit_code, failed.output) == (1, "Error: list.txt: No such file or directory.\n")


def test_what_is_printed_has_its_unprintable_characters_escaped():
    code = f"""
import logging, warnings
@click.command()
def main():
    print({RED!r} + "\\ttab")
    logging.getLogger("x").warning({RED!r})
    warnings.warn({RED!r})
    raise click.ClickException({RED!r} + chr(0xDCFF))
run(main)
"""
    status, output, complaints = run(code)
    assert status == 1
    assert output == f"{ESCAPED}\ttab\n"
    assert complaints.splitlines()[0] == ESCAPED
    assert ESCAPED in complaints.splitlines()[1]
    assert complaints.splitlines()[-1] == rf"Error: {ESCAPED}\udcff"
    assert "\x1b" not in complaints


def test_a_fault_of_the_program_says_so_before_its_traceback():
    status, output, complaints = run("run(click.Command('main', callback=lambda: {}['trial']))")
    assert (status, output) == (1, "")
    assert complaints.startswith(
        "Error: KeyError: 'trial'. This is a fault of this program, not of its use."
    )
    assert "Traceback (most recent call last)" in complaints


def test_the_traceback_of_an_expected_error_is_shown_when_asked_for(monkeypatch):
    code = (
        "def fail():\n    raise ValueError('too small.')\nrun(click.Command('main', callback=fail))"
    )
    assert run(code) == (1, "", "Error: too small.\n")
    for off in ("", "0"):
        monkeypatch.setenv("TOCO_TRACEBACK", off)
        assert run(code) == (1, "", "Error: too small.\n")
    monkeypatch.setenv("TOCO_TRACEBACK", "1")
    status, _, complaints = run(code)
    assert status == 1
    assert complaints.startswith("Traceback")
    assert complaints.endswith("Error: too small.\n")


def test_a_closed_pipe_ends_a_command_without_a_word():
    process = subprocess.Popen(
        [sys.executable, "-m", "toco", "--help"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE


def test_a_pipe_to_another_process_that_broke_is_an_error():
    code = (
        "def fail():\n    raise BrokenPipeError(32, 'Broken pipe')\n"
        "run(click.Command('main', callback=fail))"
    )
    assert run(code) == (1, "", "Error: Broken pipe.\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line_after_its_last_wishes(number, status):
    code = f"""
def work():
    try:
        signal.raise_signal({number.value})
    finally:
        print("tidied up")
run(click.Command("main", callback=work))
"""
    assert run(code) == (status, "tidied up\n", "Stopped.\n")


def test_a_second_signal_ends_a_command_at_once_and_one_that_comes_twice_is_one():
    code = """
import time
def work():
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            print("tidied up", flush=True)
            time.sleep(1.1)
            signal.raise_signal(signal.SIGTERM)
            print("never reached")
run(click.Command("main", callback=work))
"""
    assert run(code) == (143, "tidied up\n", "")


def test_a_signal_that_a_library_lost_is_known():
    code = """
from toco import interrupts
def work():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    interrupts.reinstall_handlers()
    print(interrupts.was_received())
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        print(interrupts.was_received())
run(click.Command("main", callback=work))
"""
    assert run(code) == (0, "False\nTrue\n", "")


def test_a_signal_waits_for_the_end_of_an_import(tmp_path):
    """Of one that takes every exception for a fault of its own, as compiled libraries do."""
    (tmp_path / "slow.py").write_text(
        "import signal, time\ntry:\n    signal.raise_signal(signal.SIGINT)\n    time.sleep(0.2)\n"
        "except BaseException as error:\n    raise ImportError('broken') from error\n"
        "print('imported')\n"
    )
    code = f"""
def work():
    sys.path.insert(0, {str(tmp_path)!r})
    import slow
    import time
    time.sleep(30)
run(click.Command("main", callback=work))
"""
    assert run(code) == (130, "imported\n", "Stopped.\n")


def test_a_training_that_is_stopped_before_its_first_step_says_that_nothing_was_made(
    tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("toco.train.loop.train", stop)
    stopped = CliRunner().invoke(
        toco.__main__.main, ["train", "shapes_nano", "--run-dir", str(tmp_path / "run")]
    )
    assert stopped.exit_code == 130
    assert stopped.output == "Stopped before the first step; nothing was made.\n"
    assert not (tmp_path / "run").exists()


def test_an_error_of_a_users_own_module_names_its_file_and_not_this_program(tmp_path):
    module = tmp_path / "own_errors.py"
    module.write_text(
        "def refuse():\n    raise ValueError('gamma is 3.')\n\ndef fail():\n    return "
        "{}['gamma']\n\n"
        "def misuse():\n    import json\n    json.loads(3)\n"
    )
    code = (
        f"sys.path.insert(0, {str(tmp_path)!r})\nimport own_errors\n"
        "run(click.Command('main', callback=own_errors.%s))"
    )
    refused = f"Error: own_errors refused its input: gamma is 3. See {module}, line 2.\n"
    assert run(code % "refuse") == (1, "", refused)
    status, _, complaints = run(code % "fail")
    assert status == 1
    assert complaints.startswith(
        f"Error: KeyError: 'gamma'. It comes from {module}, line 5, which is no part of this "
        f"program.\n"
    )
    # What a library raises is the fault of whoever called it.
    assert f"It comes from {module}, line 9," in run(code % "misuse")[2]


def test_a_script_of_this_project_is_no_code_of_the_user():
    script = ROOT / "sweeps" / "table5.py"
    namespace = {"__name__": "__main__"}
    exec(compile("def fail():\n    return {}['gamma']\n", script, "exec"), namespace)  # noqa: S102
    with pytest.raises(KeyError) as caught:
        namespace["fail"]()
    assert own_place(caught.value, {"sweeps", "__main__"}) is None


def test_a_users_own_script_is_told_apart_from_this_program(tmp_path):
    script = tmp_path / "own_study.py"
    script.write_text(
        "import click\nfrom toco.command_line import run\n\n\ndef fail():\n"
        "    return {}['gamma']\n\n\nrun(click.Command('main', callback=fail))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"Error: KeyError: 'gamma'. It comes from {script}, line 6, which is no part of this "
        "program.\n"
    )
