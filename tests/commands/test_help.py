"""What the overview of the verbs says of each."""

import re

import pytest
from click.testing import CliRunner

from toco.__main__ import main


@pytest.mark.parametrize("words", [[], ["data"]], ids=["verbs", "data"])
def test_an_overview_has_a_whole_sentence_of_each_verb_on_80_columns(words):
    shown = CliRunner().invoke(main, [*words, "--help"], terminal_width=80)
    listed = shown.output[shown.output.index("Commands:\n") :].splitlines()[1:]
    assert len(listed) >= 5
    for line in listed:
        assert re.fullmatch(r"  [a-z-]+ +[A-Z].*[^.]\.", line), line
