"""Typed, frozen configs: change fields by dotted paths, compare two configs, digest one.

A config is a tree of frozen pydantic models, and it alone holds settings. Recipes build a tree in
Python, and ``--set a.b=value`` changes a leaf. The error for an unknown name names the nearest
known one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from toco.own_modules import did_you_mean

RUN_ONLY = "run_only"
"""Key in ``json_schema_extra`` of a field without effect on results, which no digest contains."""
PLACE = "place"
"""Key in ``json_schema_extra`` of a text field that may be a path; lists words that are no paths.

A digest contains the name of the file and not its folder, so that moving a file changes no digest.
The content of the file has a digest of its own.
"""

MAX_SEED = 2**32
"""Seeds of runs are below this number, because a larger one is two words of a SeedSequence."""


class Config(BaseModel):
    """Base class of every config: frozen, without unknown fields, with validated defaults."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class UnknownFieldError(ValueError):
    """A config has no field at a path.

    Attributes:
        path: The path.
    """

    def __init__(self, path: str, hint: str) -> None:
        super().__init__(f"The config has no field {path!r}.{hint}")
        self.path = path


Positive = Annotated[float, Field(gt=0)]
T = TypeVar("T", bound="Config")
_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)
_NESTED = (dict, list)
_PYTHON_WORDS = {"none": "null", "true": "true", "false": "false"}
_MAX_CHARACTERS = 120
"""Most characters of a value in a message."""


class EntryConfig(Config):
    """Config of the registry's entry ``name``."""

    name: str


def replace(config: T, changes: dict[str, Any]) -> T:
    """Copy ``config`` with the fields at dotted paths changed, and validate the copy.

    The type of the field decides how a value that is text is parsed. A text field, such as a path,
    takes the text unchanged, so that ``root=2012`` names the folder 2012; if the field allows
    ``None``, ``null`` is ``None``. Other fields parse JSON ("3", "true", "[1, 2]", "null"). A new
    ``name`` of a component replaces its settings by that entry's defaults.

    Raises:
        UnknownFieldError: A path does not exist; the message names the nearest one.
        ValueError: A value does not fit its field, or ``config`` is no config.
    """
    if not isinstance(config, Config):  # a recipe of the user's own may return anything
        raise ValueError(
            f"expected a config, as the RunConfig that a recipe returns; got {config!r}."
        )
    names = {path: value for path, value in changes.items() if path.endswith(".name")}
    others = {path: value for path, value in changes.items() if path not in names}
    # Names first: they decide which other paths exist.
    if names:
        config = _replace_components(config, names)
    return _replace(config, others) if changes else config


def parse_assignments(texts: Iterable[str]) -> dict[str, str]:
    """Split items ``a.b=value`` into ``{path: text}``, for :func:`replace`.

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
            raise ValueError(
                f"--set names {path} twice ({changes[path]!r} and {text!r}); give one of them."
            )
        changes[path] = text
    return changes


def diff(
    left: Config | Mapping[str, Any], right: Config | Mapping[str, Any], *, run_only: bool = True
) -> dict[str, tuple[Any, Any]]:
    """Compare two configs: the dotted paths whose values differ, with both values.

    A field that one side lacks has the value ``None`` there. A component that one side lacks, or
    has as ``None``, is a single difference, and not one for each of its fields.

    Args:
        left: A config, or its JSON.
        right: Another config, or its JSON.
        run_only: Also compare run-only fields. Without it they are dropped from configs; in JSON
            they cannot be told apart and stay.

    >>> diff({"seed": 0, "ptc": None}, {"seed": 0, "ptc": {"weight": 0.2}})
    {'ptc': (None, {'weight': 0.2})}
    """
    differences: dict[str, tuple[Any, Any]] = {}

    def visit(prefix: str, left_value: Any, right_value: Any) -> None:  # noqa: ANN401 - JSON values
        if left_value == right_value:  # most parts of two configs: comparing them as one is fast
            return
        if not (isinstance(left_value, Mapping) and isinstance(right_value, Mapping)):
            differences[prefix] = (left_value, right_value)
            return
        for name in (*left_value, *(name for name in right_value if name not in left_value)):
            visit(
                f"{prefix}.{name}" if prefix else name, left_value.get(name), right_value.get(name)
            )

    visit("", _tree(left, run_only=run_only), _tree(right, run_only=run_only))
    return differences


def flatten(config: Config | Mapping[str, Any], *, run_only: bool = True) -> dict[str, Any]:
    """Flatten a config to ``{dotted path: JSON value}``; lists and empty mappings are leaves.

    Args:
        config: A config, or its JSON.
        run_only: As for :func:`diff`.

    >>> flatten({"seed": 0, "method": {"ptc": {"weight": 0.2}, "scales": [1, 2]}})
    {'seed': 0, 'method.ptc.weight': 0.2, 'method.scales': [1, 2]}
    """
    flat: dict[str, Any] = {}

    def visit(prefix: str, node: Any) -> None:  # noqa: ANN401 - any JSON value
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                visit(f"{prefix}.{key}" if prefix else key, value)
        elif prefix:
            flat[prefix] = node

    visit("", _tree(config, run_only=run_only))
    return flat


def _tree(config: Config | Mapping[str, Any], *, run_only: bool) -> Mapping[str, Any]:
    if not isinstance(config, Config):
        return config
    dumped = config.model_dump(mode="json")
    if not run_only:
        _drop_without_effect(config, dumped)
    return dumped


def digest(config: Config, without: Iterable[str] = ()) -> str:
    """Digest all fields but run-only ones: SHA-256, 16 hex digits.

    Of a path in a field marked ``PLACE`` only the file's name counts.

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
    # Every start of a study digests the configs of thousands of trials, so this must be fast.
    dumped = config.model_dump(mode="json")
    _drop_without_effect(config, dumped)
    for path in without:
        *parents, leaf = path.split(".")
        node = dumped
        for part in parents:
            node = node.get(part, {})
        if leaf not in node:
            _refuse(dumped, path, path)
        del node[leaf]
    return hashlib.sha256(_CANONICAL.encode(dumped).encode()).hexdigest()[:16]


def sentences(error: ValidationError, forms: Mapping[str, str] | None = None) -> str:
    """Format a validation error as sentences: path, fault and value of each.

    Args:
        error: The error.
        forms: The right notation of a value, by path.
    """
    lines = []
    for item in error.errors(include_url=False):
        path = _path(item["loc"]) or "config"
        value_text = (
            ""
            if isinstance(item["input"], dict | BaseModel)
            else f" (got {_short_repr(item['input'])})"
        )
        form = (forms or {}).get(path)
        advice = f"; write {path}={form}" if form else ""
        lines.append(f"{path}: {_fault_text(item, path)}{value_text}{advice}.")
    return " ".join(lines)


def _fault_text(item: ErrorDetails, path: str) -> str:
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"expected settings below it, as in {path}.NAME=VALUE"
    return (
        item["msg"].removeprefix("Value error, ").removesuffix(".").replace("valid tuple", "list")
    )


def _short_repr(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer beyond Python's limit of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 3]}..."


def _replace(config: T, changes: dict[str, Any]) -> T:
    try:
        return _validated_copy(config, changes)
    except ValidationError as error:
        forms = {
            path: form
            for path in changes
            if (form := _find_notation(config, changes, path, error)) is not None
        }
        raise ValueError(sentences(error, forms)) from error


def _replace_components(config: T, names: dict[str, Any]) -> T:
    """Replace components by name, without the check that they fit together.

    The changes that follow may make them fit, and their validation checks it.
    """
    try:
        return _validated_copy(config, names)
    except ValidationError as error:
        if any(item["loc"] for item in error.errors()):
            raise ValueError(sentences(error)) from error
    tree = _changed_tree(config, names)
    parts: dict[str, Any] = {}
    for name in {path.partition(".")[0] for path in names}:
        field = type(config).model_fields[name]
        annotation: Any = Annotated[field.annotation, *field.metadata]
        parts[name] = TypeAdapter(annotation).validate_python(tree[name])
    return config.model_copy(update=parts)


def _validated_copy(config: T, changes: Mapping[str, Any]) -> T:
    return type(config).model_validate(_changed_tree(config, changes))


def _changed_tree(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dump ``config`` to JSON, and set the fields at dotted paths."""
    tree = config.model_dump(mode="json")
    for path, value in changes.items():
        _set(tree, path, _parse(value, _field(config, path), path))
    return tree


def _field(config: Config, path: str) -> Any:  # noqa: ANN401 - an annotation
    """Return the type of the field at a path; ``None`` where there is no such field."""
    node: Any = config
    *parents, leaf = path.split(".")
    for part in parents:
        node = getattr(node, part, None)
    field = type(node).model_fields.get(leaf) if isinstance(node, BaseModel) else None
    return None if field is None else field.annotation


def _parse(value: Any, annotation: Any, path: str) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(value, str):
        return _ANY.dump_python(value, mode="json")
    members = _members(annotation)
    if members - {type(None)} and members <= {type(None), str}:
        return None if value == "null" and type(None) in members else value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError(
            f"{path}: expected a value, got brackets that are nested too deeply."
        ) from None
    except ValueError:  # no JSON, or an integer beyond Python's limit of digits
        return value


def _members(annotation: Any) -> set[type]:  # noqa: ANN401 - an annotation
    """Return the types that a field takes: ``str`` for a path, those of the words of a Literal."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*map(_members, get_args(annotation)))
    if origin is Literal:
        return {type(word) for word in get_args(annotation)}
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return {str}
    return {annotation} if isinstance(annotation, type) else {object}


def _find_notation(
    config: T, changes: Mapping[str, Any], path: str, error: ValidationError
) -> str | None:
    """Find the right notation of a value in Python's notation or of a list without brackets."""
    value = changes[path]
    if not isinstance(value, str) or not _has_fault_at(path, error):
        return None
    bare = value.strip().removeprefix("(").removesuffix(")").removesuffix(",")
    for form in (_PYTHON_WORDS.get(value.strip().lower()), f"[{bare}]"):
        if form is not None:
            try:
                _validated_copy(config, {**changes, path: json.loads(form)})
            except ValidationError as error_of_form:
                if _has_fault_at(path, error_of_form):
                    continue
            except (ValueError, RecursionError):
                continue
            return form
    return None


def _has_fault_at(path: str, error: ValidationError) -> bool:
    return any(_path(item["loc"]).startswith(path) for item in error.errors(include_url=False))


def _path(location: Iterable[int | str]) -> str:
    return ".".join(map(str, location))


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
    existing_paths: list[str] = []

    def visit(prefix: str, node: Any) -> None:  # noqa: ANN401 - any JSON value
        for key, value in node.items() if isinstance(node, dict) else ():
            existing_paths.append(f"{prefix}{key}")
            visit(f"{prefix}{key}.", value)

    visit("", tree)
    raise UnknownFieldError(missing, did_you_mean(path, existing_paths, cutoff=0.5))


def _drop_without_effect(value: Any, dumped: Any) -> None:  # noqa: ANN401 - any value of a field
    """Remove run-only fields, and the folders of ``PLACE`` fields, from the dump of ``value``."""
    if isinstance(value, BaseModel):
        for name in run_only_fields(type(value)):
            del dumped[name]
        for name, non_paths in _places(type(value)):
            if isinstance(dumped[name], str) and dumped[name] not in non_paths:
                dumped[name] = PurePath(dumped[name]).name
        pairs = [
            (getattr(value, name), part) for name, part in dumped.items() if type(part) in _NESTED
        ]
    elif isinstance(value, dict):
        pairs = [
            (value[key], part)
            for key, part in zip(value, dumped.values(), strict=True)
            if type(part) in _NESTED
        ]
    else:
        pairs = [
            (item, part) for item, part in zip(value, dumped, strict=True) if type(part) in _NESTED
        ]
    for item, part in pairs:
        _drop_without_effect(item, part)


@cache
def run_only_fields(model: type[BaseModel]) -> tuple[str, ...]:
    """List the fields of ``model`` that are marked run-only, without effect on results."""
    extras = {name: info.json_schema_extra for name, info in model.model_fields.items()}
    return tuple(
        name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(RUN_ONLY)
    )


@cache
def _places(model: type[BaseModel]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """List the fields that are marked ``PLACE``, each with the words that are no paths."""
    extras = {name: info.json_schema_extra for name, info in model.model_fields.items()}
    return tuple(
        (name, tuple(map(str, words)))
        for name, extra in extras.items()
        if isinstance(extra, dict) and isinstance(words := extra.get(PLACE), list)
    )
