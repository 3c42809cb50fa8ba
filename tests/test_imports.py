import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "pandas", "scipy", "sklearn", "timm", "torchvision")
"""Each takes from half a second to two; together longer than torch, which configs cannot do without."""


@pytest.mark.parametrize("module", ["toco.recipes.shapes_nano", "toco.recipes.voc_deit_b", "toco.train.loop"])
def test_a_config_is_made_without_what_only_a_training_needs(module):
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}} & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
