"""Typed, frozen configuration: change a field by its dotted path, compare two configs, digest one.

A config is a tree of frozen pydantic models. There is no other way to set anything: recipes build a tree in Python,
``--set a.b=value`` changes a leaf, and every name that does not exist is refused with the nearest one that does.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

RUN_ONLY = "run_only"
"""Key in a field's ``json_schema_extra`` that marks it as without effect on results, so that no digest contains it."""
PLACE = "place"
"""Key in the ``json_schema_extra`` of a field of text that may be a path, with the words that are none.

A digest contains the name of the file and not its folder, so that a moved file changes nothing. What the file holds is
recorded by a digest of its own.
"""


class Config(BaseModel):
    """Base of every config: frozen, strict about names, validated with its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


T = TypeVar("T", bound="Config")
_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)
_NESTED = (dict, list)


class Component(Config):
    """Config of an entry of a registry: ``name`` says which."""

    name: str


def replace(config: T, changes: dict[str, Any]) -> T:
    """A copy of ``config`` with the fields at dotted paths set and everything validated again.

    Text values are read as JSON where they are JSON ("3", "true", "[1, 2]", "null") and as plain text otherwise.
    Setting a component's ``name`` to another entry starts from that entry's defaults.

    Raises:
        ValueError: A path does not exist (the nearest is named), or a value does not fit its field.
    """
    names = {path: value for path, value in changes.items() if path.endswith(".name")}
    # Names first, on their own: they decide which other paths there are.
    for part in (names, {path: value for path, value in changes.items() if path not in names}):
        if part:
            config = _replace(config, part)
    return config


def parse_assignments(texts: Iterable[str]) -> dict[str, str]:
    """Items ``a.b=value`` as ``{path: text}``, for :func:`replace`.

    Raises:
        ValueError: An item has no equals sign, or a path is given twice.

    >>> parse_assignments(["method.temperature=0.3"])
    {'method.temperature': '0.3'}
    """
    changes: dict[str, str] = {}
    for item in texts:
        path, equals, text = item.partition("=")
        if not equals or not path:
            raise ValueError(f"--set expects a.b=value, got {item!r}.")
        if path in changes:
            raise ValueError(f"--set names {path} twice ({changes[path]!r} and {text!r}); give one of them.")
        changes[path] = text
    return changes


def diff(left: Config, right: Config, *, run_only: bool = True) -> dict[str, tuple[Any, Any]]:
    """Dotted paths whose values differ, with both values; a path missing on one side reads ``None`` there."""
    a, b = flatten(left, run_only=run_only), flatten(right, run_only=run_only)
    return {path: (a.get(path), b.get(path)) for path in sorted(a.keys() | b.keys()) if a.get(path) != b.get(path)}


def flatten(config: Config, *, run_only: bool = True) -> dict[str, Any]:
    """All leaves as ``{dotted path: JSON value}``; lists are leaves. Without the ``run_only`` ones if told so."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, node: Any) -> None:  # noqa: ANN401 - any JSON value
        if isinstance(node, dict) and node:
            for key, value in node.items():
                visit(f"{prefix}.{key}" if prefix else key, value)
        else:
            flat[prefix] = node

    dumped = config.model_dump(mode="json")
    if not run_only:
        _keep_what_counts(config, dumped)
    visit("", dumped)
    return flat


def digest(config: Config, without: Iterable[str] = ()) -> str:
    """SHA-256 (hex, 16 digits) of the fields that affect results: everything but those marked run-only.

    Of a field marked as a place, the folder does not count.

    Args:
        config: The config.
        without: Dotted paths of further fields to leave out.

    >>> class Example(Config):
    ...     rate: float = 0.1
    >>> digest(Example()) == digest(Example(rate=0.1)) != digest(Example(rate=0.2))
    True

    Raises:
        ValueError: A path of ``without`` does not exist.
    """
    # A study of thousands of trials digests every config each time it starts, so this has to take microseconds.
    dumped = config.model_dump(mode="json")
    _keep_what_counts(config, dumped)
    for path in without:
        *parents, leaf = path.split(".")
        node = dumped
        for part in parents:
            node = node.get(part, {})
        if leaf not in node:
            _refuse(dumped, path, path)
        del node[leaf]
    return hashlib.sha256(_CANONICAL.encode(dumped).encode()).hexdigest()[:16]


def sentences(error: ValidationError) -> str:
    """A validation error as sentences: path, what is wrong, what came."""
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"]) or "config"
        came = "" if isinstance(item["input"], dict | BaseModel) else f" (got {item['input']!r})"
        lines.append(f"{path}: {item['msg']}{came}.")
    return " ".join(lines)


def _replace(config: T, changes: dict[str, Any]) -> T:
    tree = config.model_dump(mode="json")
    for path, value in changes.items():
        _set(tree, path, _parse(value))
    try:
        return type(config).model_validate(tree)
    except ValidationError as error:
        raise ValueError(sentences(error)) from error


def _parse(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(value, str):
        return _ANY.dump_python(value, mode="json")
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _set(tree: dict[str, Any], path: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
    *parents, leaf = path.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        if not isinstance(node, dict) or part not in node:
            _refuse(tree, ".".join(parents[: depth + 1]), path)
        node = node[part]
    if not isinstance(node, dict) or leaf not in node:
        _refuse(tree, path, path)
    if parents and leaf == "name" and node["name"] != value:
        node.clear()
    node[leaf] = value


def _refuse(tree: dict[str, Any], missing: str, path: str) -> None:
    known: list[str] = []

    def visit(prefix: str, node: Any) -> None:  # noqa: ANN401 - any JSON value
        for key, value in node.items() if isinstance(node, dict) else ():
            known.append(f"{prefix}{key}")
            visit(f"{prefix}{key}.", value)

    visit("", tree)
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"The config has no field {missing!r}.{hint}")


def _keep_what_counts(value: Any, dumped: Any) -> None:  # noqa: ANN401 - any value of a field
    """Take run-only fields, and the folders of places, out of ``dumped``, which ``value`` was dumped to."""
    if isinstance(value, BaseModel):
        for name in _run_only_fields(type(value)):
            del dumped[name]
        for name, words in _places(type(value)):
            if isinstance(dumped[name], str) and dumped[name] not in words:
                dumped[name] = PurePath(dumped[name]).name
        pairs = [(getattr(value, name), part) for name, part in dumped.items() if type(part) in _NESTED]
    elif isinstance(value, dict):
        pairs = [(value[key], part) for key, part in zip(value, dumped.values(), strict=True) if type(part) in _NESTED]
    else:
        pairs = [(item, part) for item, part in zip(value, dumped, strict=True) if type(part) in _NESTED]
    for item, part in pairs:
        _keep_what_counts(item, part)


@cache
def _run_only_fields(model: type[BaseModel]) -> tuple[str, ...]:
    extras = {name: info.json_schema_extra for name, info in model.model_fields.items()}
    return tuple(name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(RUN_ONLY))


@cache
def _places(model: type[BaseModel]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Names of the fields that are marked as places, each with the words that are no paths."""
    extras = {name: info.json_schema_extra for name, info in model.model_fields.items()}
    return tuple(
        (name, tuple(map(str, words)))
        for name, extra in extras.items()
        if isinstance(extra, dict) and isinstance(words := extra.get(PLACE), list)
    )
