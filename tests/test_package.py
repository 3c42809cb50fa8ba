"""What an installation without the source tree holds."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("toco", "sweeps")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


def litter():
    return {path for pattern in ("build", "dist", "*.egg-info") for path in ROOT.glob(pattern)}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(tmp_path):
    """Built from a copy, because setuptools writes beside the sources."""
    before, tree = litter(), tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    sources = {
        path.relative_to(tree).as_posix()
        for name in PACKAGES
        for path in (tree / name).rglob("*.*")
    }

    built = subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path], cwd=tree, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert files == sources
    assert {
        "toco/__main__.py",
        "toco/py.typed",
        "toco/backbones/vit_nano.safetensors",
        "toco/backbones/vit_nano.json",
        "sweeps/py.typed",
        "sweeps/core/report/report.html.j2",
        "sweeps/core/report/style.html.j2",
    } <= files
    assert litter() == before
