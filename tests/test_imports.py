"""What may be imported from where, and what an import costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("matplotlib", "pandas", "scipy", "sklearn", "timm", "torchvision")
"""What a training needs late or never. Each takes from half a second to two to import."""
CONFIGS = """
from toco.registry import available, load
for package in ("recipes", "methods", "backbones", "data"):
    for name in available(f"toco.{package}"):
        load(f"toco.{package}", name)
"""


@pytest.mark.parametrize(
    ("code", "heavy"), [(CONFIGS, {*HEAVY, "torch"}), ("import toco.train.loop", {*HEAVY})]
)
def test_a_config_is_made_without_what_only_a_training_needs(code, heavy):
    code += f"\nimport sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def imported_names(source: Path) -> Iterator[str]:
    """Dotted paths of what a module imports from this project."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relative to its own folder."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owner_of(path: str) -> Path | None:
    """The folder in which the private part of a dotted path may be imported; ``None`` where all of
    it is public.
    """
    folder = Path()
    for part in path.split("."):
        if part.startswith("_") and not part.endswith("__"):
            return folder
        if (ROOT / folder / part).is_dir():
            folder /= part
    return None


def test_what_is_private_is_imported_within_its_own_folder_alone():
    assert owner_of("toco.data._dataset.Dataset") == Path("toco/data")
    assert owner_of("toco.data.voc._names") == Path("toco/data")
    assert owner_of("toco.data.voc.Config") is None
    strangers = [
        f"{source.relative_to(ROOT)} imports {path}"
        for package in ("toco", "sweeps")
        for source in (ROOT / package).rglob("*.py")
        for path in imported_names(source)
        if path.partition(".")[0] in ("toco", "sweeps")
        and (owner := owner_of(path)) is not None
        and ROOT / owner not in source.parents
    ]
    assert strangers == []


def test_a_study_runs_as_a_script_beside_which_nothing_hides_the_standard_library():
    # The folder of a script comes first where modules are looked for.
    standard = sys.stdlib_module_names & {path.stem for path in (ROOT / "sweeps").iterdir()}
    assert standard == set()
    shown = subprocess.run(
        [sys.executable, "sweeps/layer_ablation.py", "-h"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.startswith("Usage: ")
