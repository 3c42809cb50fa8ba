"""What is answered without torch, whose import takes seconds: help, the list of studies, records of studies."""

import subprocess
import sys

PROGRAM = """
import sys

from click.testing import CliRunner

from sweeps.__main__ import VERBS, main

asked = [["-h"], ["list"], *([verb, "-h"] for verb in VERBS), *([verb, "table5", "-h"] for verb in VERBS)]
for words in [*asked, ["report", "search", "-h"]]:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (words, result.output)
    assert {"torch", "ray", "mlflow", "matplotlib"}.isdisjoint(sys.modules), words

import sweeps.core.store.search_record
import sweeps.core.store.study_record

assert "torch" not in sys.modules
"""


def test_help_the_list_of_studies_and_records_need_no_torch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
