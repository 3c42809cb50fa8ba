"""A recorded file that no test reads would look like a check and be none."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent
FILES = sorted(path.name for path in GOLDEN.iterdir() if path.suffix in (".npz", ".json"))


@pytest.fixture(scope="module")
def sources():
    tests = GOLDEN.parent.rglob("test_*.py")
    return "\n".join(path.read_text() for path in tests if path != Path(__file__))


@pytest.mark.parametrize("name", FILES)
def test_every_recorded_file_is_read_by_a_test(sources, name):
    stem, _, suffix = name.rpartition(".")
    calls = (f'golden("{stem}")', f'golden_cases("{stem}")') if suffix == "npz" else (f'"{name}"',)
    assert any(call in sources for call in calls)


def test_there_are_recorded_files():
    assert FILES
