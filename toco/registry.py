"""The folder is the registry: a public module in a package is an entry, named as the file is. Folders are none.

An entry of ``toco.backbones``, ``toco.data`` and ``toco.methods`` defines ``Config`` (a frozen model with a ``name``)
and what its package's contract asks for; see CONTRIBUTING.md.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, SerializeAsAny


def available(package: str) -> tuple[str, ...]:
    """Names of the public modules in ``package``, sorted. Folders, and modules with an underscore first, are none.

    >>> "toco" in available("toco.methods")
    True
    """
    path = importlib.import_module(package).__path__
    modules = pkgutil.iter_modules(path)
    return tuple(sorted(m.name for m in modules if not (m.ispkg or m.name.startswith("_"))))


def load(package: str, name: str) -> ModuleType:
    """Import the entry ``name`` of ``package``.

    Raises:
        ValueError: There is no such entry; the message names the nearest one.
    """
    entry = sys.modules.get(f"{package}.{name}")
    if entry is not None and not (name.startswith("_") or hasattr(entry, "__path__")):
        return entry  # without listing the folder: every validation of a config comes here
    entries = available(package)
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        kind = package.rpartition(".")[2]
        raise ValueError(f"{name!r} is not one of {kind}: {', '.join(entries)}.{hint}")
    return importlib.import_module(f"{package}.{name}")


def _resolve(package: str, value: object) -> object:
    if not isinstance(value, dict):
        return value
    if "name" not in value:
        raise ValueError(f"expected a name, one of: {', '.join(available(package))}")
    return load(package, value["name"]).Config.model_validate(value)


def choice(package: str, base: type[BaseModel]) -> Any:  # noqa: ANN401 - an annotated type, which has no type of its own
    """Type of a config field that holds the ``Config`` of whichever entry of ``package`` its ``name`` names."""
    return Annotated[SerializeAsAny[base], BeforeValidator(lambda value: _resolve(package, value))]  # type: ignore[valid-type,misc]
