"""Every module of toco.commands is a verb of ``python -m toco``."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from toco.__main__ import main
from toco.registry import available, load

VERBS = available("toco.commands")


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_found_by_its_name_and_explains_itself(name):
    assert isinstance(load("toco.commands", name).command, click.Command)
    shown = CliRunner().invoke(main, [name.replace("_", "-"), "--help"])
    assert shown.exit_code == 0
    assert load("toco.commands", name).command.help.split()[0] in shown.output


def test_the_help_lists_all_verbs_without_importing_what_they_need():
    code = (
        "import sys; sys.argv = ['toco', '--help'];"
        "from toco.__main__ import main; main(standalone_mode=False);"
        "print('loaded:', *sorted({'torch', 'numpy', 'mlflow', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, loaded = done.stdout.split("loaded:")
    listed = {
        line.split()[0]
        for line in text[text.index("Commands:") :].splitlines()[1:]
        if line.startswith("  ")
    }
    assert {name.replace("_", "-") for name in VERBS} <= listed
    assert loaded.split() == []


def test_an_expected_error_is_a_sentence_and_an_unknown_verb_is_refused(tmp_path):
    failed = CliRunner().invoke(main, ["evaluate", str(tmp_path)])
    assert failed.exit_code == 1
    assert failed.output == f"Error: {tmp_path} holds no run: expected a config.json in it.\n"
    assert CliRunner().invoke(main, ["evaluat"]).exit_code == 2
