"""``make``: what a person sets is a word, however it is spelt; nothing in it is run.

The lock file and the floors.
"""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
AWKWARD = [
    "VOC 2012",
    "o'brien",
    "x; touch made",
    "$HOME",
    "$(shell touch made)",
    "`touch made`",
    'a"b',
    "é, ü",
    "$$x",
    "#a",
]

MAKE = shutil.which("make") or "make"


def make(target, tmp_path, **variables):
    """The commands that ``make`` would run, as lines; it runs in a copy of the folder."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    words = [f"{name}={value}" for name, value in variables.items()]
    # `make test` hands its own flags and variables to what it runs.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = [MAKE, "-n", target, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert not (tmp_path / "made").exists()
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ").strip().splitlines()


@pytest.mark.parametrize("value", AWKWARD)
def test_a_variable_is_one_word_and_nothing_in_it_is_run(tmp_path, value):
    names = ("RECIPE", "DATA", "WEIGHTS", "GPUS", "STORE")
    lines = make(
        "reproduce-table5", tmp_path, RESULTS=value, **{name: f"{name} {value}" for name in names}
    )
    options = dict(itertools.pairwise(shlex.split(lines[-1])))
    assert options["--storage"] == value
    assert options["--recipe"] == f"RECIPE {value}"
    assert options["--data"] == f"DATA {value}"
    assert options["--weights"] == f"WEIGHTS {value}"
    assert options["--concurrent"] == f"GPUS {value}"
    assert options["--tracking-uri"] == f"STORE {value}"


@pytest.mark.parametrize("value", AWKWARD)
def test_the_store_is_in_the_folder_of_the_results(tmp_path, value):
    words = shlex.split(make("reproduce-table5", tmp_path, RESULTS=value)[-1])
    assert words[words.index("--tracking-uri") + 1] == f"sqlite:///{tmp_path}/{value}/mlflow.db"
    words = shlex.split(make("reproduce-table5", tmp_path, RESULTS=f"/{value}")[-1])
    assert words[words.index("--tracking-uri") + 1] == f"sqlite:////{value}/mlflow.db"


@pytest.mark.parametrize("value", AWKWARD)
def test_an_interpreter_is_one_word(tmp_path, value):
    lines = make("setup", tmp_path, PYTHON=value)
    assert shlex.split(lines[1]) == [value, "-m", "venv", ".venv"]


def test_a_line_break_is_refused(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(
        [MAKE, "-n", "help", "DATA=a\ntouch made"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "DATA has a line break" in done.stderr
    assert not (tmp_path / "made").exists()


def pinned():
    """Name and version of everything in ``constraints.txt``."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(line.split("==")[0]): line.split("==")[1]
        for line in lines
        if "==" in line
    }


def test_the_lock_file_holds_what_is_pinned_each_with_hashes():
    text = (ROOT / "requirements.lock").read_text()
    found = re.findall(
        r"^([\w.-]+)==(\S+)((?: ; [^\\\n]+)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$",
        text,
        re.MULTILINE,
    )
    locked = {canonicalize_name(name): version for name, version, _, _ in found}
    wanted = pinned()
    del wanted["torch"], wanted["torchvision"]
    assert locked == wanted, "run `make lock`"
    assert len(found) == len(locked)
    # Nothing else is in it: no line of another form, and no place to fetch from.
    assert sum(1 + block.count("--hash") for *_, block in found) == sum(
        1 for line in text.splitlines() if not line.startswith("#")
    )


FIXED = {"jinja2": "3.1.6", "tqdm": "4.66.3", "starlette": "0.49.1", "mlflow": "3.11.1"}
"""Releases with the newest known fix of a fault that others can make use of."""


def test_no_floor_is_below_a_known_fix_or_above_what_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = pinned()
    for text in (
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert pins[name] in requirement.specifier, text
        if name in FIXED:
            assert f">={FIXED[name]}" in text
