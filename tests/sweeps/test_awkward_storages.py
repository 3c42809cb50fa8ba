"""A storage may have any name, and be moved with its data: its studies go on as if nothing had
happened.
"""

import shutil
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from sweeps.__main__ import main
from toco.config import replace

sys.path.insert(0, str(Path(__file__).parent))
from tiny_study import StudyPlace

pytestmark = pytest.mark.slow
NAMES = (
    '-rf two words; $HOME it\'s "so" `called` & so on\\n',
    "a=1&b#c@d:e,f=",
    "[a-b]*{c,d}**[!x]",
    unicodedata.normalize("NFD", "Müller é 数据集"),
    "first\nsecond\x1b[31m\r",
    "x" * 255,
)
VERBS = (["report"], ["status"], ["plan"], ["diff"], ["sync"], ["run", "--accept-underpowered"])


@pytest.fixture
def place(tiny_config, data_root, tmp_path, monkeypatch):
    """A study whose data lies in the test's own folder."""
    shutil.copytree(data_root, tmp_path / "data")
    changes = {
        "num_steps": 2,
        "data.root": tmp_path / "data",
        "evaluate.num_pictures": 1,
        "optim.warmup_steps": 0,
    }
    place = StudyPlace(replace(tiny_config, changes), tmp_path / "recorded")
    place.install(monkeypatch)
    return place


def call(verb, storage, *words, code=0):
    done = CliRunner().invoke(main, [verb, "tiny", "--storage", str(storage), *map(str, words)])
    assert done.exit_code == code, f"{verb}: {done.output[-1500:]}{done.exception!r}"
    return done.output


def only(storage, pattern):
    (path,) = storage.glob(pattern)
    return path


def bytes_below(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_all_verbs_in_a_storage_of_any_name(place, tmp_path, monkeypatch):
    plain, storage = tmp_path / "plain", tmp_path.joinpath(*NAMES)
    call("run", plain, "--accept-underpowered")
    call("run", storage, "--accept-underpowered")
    table = only(plain, "tiny-*/table.csv").read_bytes()
    assert only(storage, "tiny-*/table.csv").read_bytes() == table
    history = only(storage, "tiny-*") / "history"
    history.mkdir()
    shutil.copy(history.parent / "study.json", history / "0000.json")
    for verb, *words in VERBS:
        call(verb, storage, *words)
    bundle = storage / "bundle [1].zip"
    call("report", storage, "--bundle", bundle)
    with zipfile.ZipFile(bundle) as archive:
        assert archive.read("tiny/table.csv") == table
    call("diff", storage, "--with", only(plain, "tiny-*"))
    # The same storage by a relative path, with a slash at the end, and through a link.
    monkeypatch.chdir(storage.parent)
    (tmp_path / "link").symlink_to(storage, target_is_directory=True)
    for way in (
        f"./{storage.name}/",
        f"../{storage.parent.name}/{storage.name}",
        tmp_path / "link",
    ):
        assert "4 of 4 trials have ended" in call("status", way)


@pytest.mark.parametrize("name", ["what?", "half%20full"])
def test_a_storage_that_mlflow_could_not_lie_in_is_refused_before_anything_is_made(
    place, tmp_path, name
):
    said = call("run", tmp_path / name, "--accept-underpowered", code=1)
    assert "its path contains" in said
    assert not (tmp_path / name).exists()
    # Where MLflow is elsewhere, any name will do.
    call("status", tmp_path / name)


def test_a_storage_that_was_moved_with_its_data(place, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    call("run", old, "--accept-underpowered")
    table = only(old, "tiny-*/table.csv").read_bytes()
    old.rename(new)
    (tmp_path / "data").rename(tmp_path / "moved data")
    place.trained.clear()
    moved = ["--data", tmp_path / "moved data"]
    for verb, *words in (*VERBS[:3], *VERBS[4:]):
        call(verb, new, *words, *moved)
    assert only(new, "tiny-*/table.csv").read_bytes() == table
    assert place.trained == []
    assert not old.exists()
    # Run folders record what they read, and nothing else says where anything lies.
    for path, content in bytes_below(new).items():
        if path.parts[0] != "runs":
            assert str(new).encode() not in content, path
