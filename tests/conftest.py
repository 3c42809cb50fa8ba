from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Cases = dict[str, dict[str, Any]]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Mapping[str, Any]]:
    """Recorded inputs and outputs of the official functions, by file stem. A missing file is an error, not a skip."""
    loaded: dict[str, Mapping[str, Any]] = {}

    def load(name: str) -> Mapping[str, Any]:
        if name not in loaded:
            with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
                loaded[name] = dict(arrays)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def golden_cases(golden: Callable[[str], Mapping[str, Any]]) -> Callable[[str], Cases]:
    """Recorded arrays by case and name; numbers as tensors, text as it is."""

    def load(file: str) -> Cases:
        cases: Cases = defaultdict(dict)
        for key, array in golden(file).items():
            case, _, name = key.partition("__")
            cases[case][name] = array if array.dtype.kind == "U" else torch.from_numpy(array.copy())
        return cases

    return load
