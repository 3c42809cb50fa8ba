"""Registries: the modules of a folder are its entries.

Every public module in a package is an entry, with the name of its file; subfolders are no entries.
A package with ``ENTRY`` also takes modules of the user's own, whose names have a dot, such as
``my_package.my_method``. ``ENTRY`` lists the names that an entry must define, each with an example
of its definition. See CONTRIBUTING.md and ``toco.own_modules``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, SerializeAsAny

from toco.code_digest import public_modules
from toco.own_modules import OwnModuleError, did_you_mean, import_own, refuse_within

UNTRUSTED = "untrusted"
"""Key in the context of a validation: a folder from which no module is imported."""


def available(package: str) -> tuple[str, ...]:
    """List the entries of ``package``: its public modules, sorted, without subfolders.

    >>> "toco" in available("toco.methods")
    True
    """
    return tuple(public_modules(package))


def module_name(package: str, name: str) -> str:
    """Return the module's full name for the entry ``name`` of ``package``.

    >>> module_name("toco.methods", "toco"), module_name("toco.methods", "my_package.my_method")
    ('toco.methods.toco', 'my_package.my_method')
    """
    return name if "." in name else f"{package}.{name}"


def load(package: str, name: str) -> ModuleType:
    """Import the entry ``name`` of ``package``.

    Raises:
        ValueError: There is no such entry; the message names the nearest one.
        OwnModuleError: ``name`` has a dot, and its module is missing, fails or is no entry.
    """
    if "." in name:
        return _load_own(package, name)
    entry = sys.modules.get(f"{package}.{name}")
    if entry is not None and not (name.startswith("_") or hasattr(entry, "__path__")):
        return entry  # without listing the folder: every validation of a config calls this
    entries = available(package)
    if name not in entries:
        kind = package.rpartition(".")[2]
        hint = did_you_mean(name, entries)
        if not hint and hasattr(importlib.import_module(package), "ENTRY"):
            hint = " A module of your own has a dot in its name, as in my_package.my_module."
        raise ValueError(f"{name!r} is not one of {kind}: {', '.join(entries)}.{hint}")
    return importlib.import_module(f"{package}.{name}")


def choice(package: str, base: type[BaseModel]) -> Any:  # noqa: ANN401 - an annotated type
    """Make the type of a config field that holds the ``Config`` of an entry of ``package``.

    The field's ``name`` selects the entry, and ``base`` is the base class of the configs.
    """

    def resolve(value: object, info: Any) -> object:  # noqa: ANN401 - pydantic's ValidationInfo
        return _resolve(package, base, value, (info.context or {}).get(UNTRUSTED))

    any_entry = SerializeAsAny[base]  # type: ignore[valid-type]
    return Annotated[any_entry, BeforeValidator(resolve)]


def _load_own(package: str, name: str) -> ModuleType:
    kind = package.rpartition(".")[2]
    contract = getattr(importlib.import_module(package), "ENTRY", None)
    if contract is None:
        raise ValueError(f"{name!r} is not one of {kind}: {', '.join(available(package))}.")
    if name.startswith(f"{package}."):
        short_name = name.removeprefix(f"{package}.")
        raise ValueError(f"{name!r} is one of {kind}: write {short_name!r}.")
    return import_own(name, contract, kind)


def _resolve(package: str, base: type[BaseModel], value: object, untrusted: Path | None) -> object:
    if isinstance(value, base):
        config = _config(package, base, str(getattr(value, "name", "")))
        if type(value) is not config:
            # A run folder would store the name, and reading it would use another class.
            raise OwnModuleError(
                f"{_full_name(type(value))} has the name of {_full_name(config)}. "
                "In the class, write name: str = __name__."
            )
        return value
    if not isinstance(value, dict):
        return value
    name = value.get("name")
    if not isinstance(name, str):
        raise ValueError(f"expected a name, one of: {', '.join(available(package))}")
    if untrusted is not None:
        refuse_within(untrusted, name)
    return _config(package, base, name).model_validate(value)


def _config(package: str, base: type[BaseModel], name: str) -> type[BaseModel]:
    """Load the ``Config`` of an entry."""
    module = load(package, name)
    config: type[BaseModel] = module.Config
    if "." not in name:
        return config
    example = importlib.import_module(package).ENTRY["Config"]
    if not (isinstance(config, type) and issubclass(config, base)):
        raise OwnModuleError(
            f"Config of {name} ({module.__file__}) is no {base.__name__}. Write:\n{example}"
        )
    field = config.model_fields["name"]
    if field.default != name:
        raise OwnModuleError(
            f"Config of {name} ({module.__file__}) has the name {field.default!r} instead of that "
            f"of its module. Write:\n{example}"
        )
    return config


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
