"""Digest the code on which a result depends, module by module.

Source files are found and parsed; nothing is imported. A digest covers the syntax tree without
docstrings, so that comments, formatting and the version of Python do not change it.

Imports by a computed name are not found, with one exception. Where code loads an entry of a
registry (``load("toco.methods", name)``), all entries count, unless the caller states that its
roots contain the chosen entries.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import itertools
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_WITHOUT_MEANING = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of the syntax tree that follow from other fields, or that Python ignores."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_STANDARD_LIBRARY = frozenset(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def code_digests(
    roots: Iterable[str], without: Iterable[str] = (), chosen: Iterable[str] = ()
) -> dict[str, str]:
    """Digest every module that ``roots`` import, directly or not, also inside functions.

    Modules count if they lie in the top-level package of a root. For a root outside of this
    package, modules beside its top-level package in the same folder count, too. Installed packages
    are left out; records hold their versions.

    Args:
        roots: Modules to begin with.
        without: Modules and packages to leave out, together with their imports.
        chosen: Registries whose chosen entries are among ``roots``, so that their other entries do
            not count.

    Returns:
        Digests (hex, 16 digits) by module.

    Raises:
        ValueError: A root has no source file, or a file is no Python.
    """
    roots, without = tuple(roots), tuple(without)
    packages = {_top_level(root) for root in roots}
    folders = {
        folder
        for package in packages - {_top_level(__name__)}
        for folder in import_folders(package)
    }
    chosen = {*chosen, *(root.rpartition(".")[0] for root in roots)}
    digests: dict[str, str] = {}
    pending = list(roots)
    while pending:
        name = pending.pop()
        if name in digests or any(_is_in_package(name, excluded) for excluded in without):
            continue
        if _top_level(name) not in packages and not (
            folders and folders & import_folders(_top_level(name))
        ):
            continue
        module = _module(name)
        if module is not None:
            digests[name] = module.digest
            pending += module.imports
            for registry in module.registries - chosen:
                pending += (f"{registry}.{entry}" for entry in public_modules(registry))
        elif name in roots:
            raise ValueError(
                f"There is no source file of the module {name}: expected one below the folders "
                "that Python imports from (PYTHONPATH)."
            )
        # Python runs the packages that contain a module before the module.
        parent = name.rpartition(".")[0]
        if parent:
            pending.append(parent)
    return dict(sorted(digests.items()))


def syntax_digest(source: bytes | str) -> str:
    """Digest a syntax tree (SHA-256, 16 hex digits), the same in every Python.

    Raises:
        SyntaxError: ``source`` is no Python.

    >>> syntax_digest("x = 'a'  # one") == syntax_digest('x = ("a")') != syntax_digest("x = 'b'")
    True
    """
    return _digest(ast.parse(source))


@dataclass(frozen=True, slots=True)
class _Module:
    """A parsed module.

    Attributes:
        digest: Digest of its syntax tree.
        imports: Names that it may import; some may be attributes and no modules.
        registries: Packages whose entries it loads by a computed name.
    """

    digest: str
    imports: tuple[str, ...]
    registries: frozenset[str]


def source_file(name: str) -> Path | None:
    """Find the file of a module; ``None`` for attributes and folders without ``__init__.py``."""
    top, *inner_names = name.split(".")
    spec = module_spec(top)
    if spec is None:
        return None
    if not inner_names:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *inner_names)
        for candidate in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if candidate.is_file():
                return candidate
    return None


def public_modules(package: str) -> list[str]:
    """List the modules of a package, sorted, without subfolders and names with an underscore."""
    path = source_file(package)
    if path is None or path.name != "__init__.py":
        return []
    return sorted(file.stem for file in path.parent.glob("*.py") if not file.name.startswith("_"))


def import_folders(top: str) -> frozenset[Path]:
    """Find the folders that contain the top-level module ``top``, unless it is installed."""
    spec = module_spec(top)
    if spec is None:
        return frozenset()
    origin = [spec.origin] if spec.origin and spec.origin.endswith(".py") else []
    places = [Path(place) for place in spec.submodule_search_locations or origin]
    return frozenset(place.parent for place in places if not is_installed(place))


def is_installed(path: Path) -> bool:
    """Whether a file or folder of code belongs to Python or to an installed package."""
    return not _INSTALLED.isdisjoint(path.parts) or any(
        path.is_relative_to(folder) for folder in _STANDARD_LIBRARY
    )


def module_spec(top: str) -> ModuleSpec | None:
    """Find the import spec of the top-level module ``top``; ``None`` where there is none."""
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # a module object that the program itself made, without a spec
        return None


@cache
def _module(name: str) -> _Module | None:
    path = source_file(name)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be parsed as Python: {error}") from error
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    nodes = list(_runtime_nodes(tree))
    loads = list(_registry_loads(nodes, name))
    imports = dict.fromkeys(
        [*_imports(nodes, package), *(f"{registry}.{entry}" for registry, entry in loads if entry)]
    )
    registries = frozenset(registry for registry, entry in loads if entry is None)
    return _Module(_digest(tree), tuple(imports), registries)


def _runtime_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield all nodes but those below ``if TYPE_CHECKING``, which never runs."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        yield node
        nodes += ast.iter_child_nodes(node)


def _imports(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = package.split(".")
                origin = ".".join(
                    [*parts[: len(parts) - node.level + 1], *([origin] if origin else [])]
                )
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")


def _registry_loads(nodes: Iterable[ast.AST], name: str) -> Iterator[tuple[str, str | None]]:
    """Yield the registries from which ``name`` loads, with the entry; ``None`` for a variable."""
    for node in nodes:
        if not (isinstance(node, ast.Call) and node.args and _name(node.func) == "load"):
            continue
        registry, *other_arguments = node.args
        entry = _text(other_arguments[0]) if other_arguments else None
        if (text := _text(registry)) is not None:
            yield text, entry
        elif _name(registry) == "__name__":
            yield name, entry


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _name(node: ast.expr) -> str | None:
    """Return the last name, ``a``, of ``a`` or ``b.a``."""
    name: str | None = getattr(node, "id", getattr(node, "attr", None))
    return name


def _digest(tree: ast.Module) -> str:
    return hashlib.sha256(_node_text(tree).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _node_text(value: object) -> str:
    """Format a node, or the value of a node's field, as text.

    Empty fields are left out, so that new fields of later Python versions change nothing.
    """
    if isinstance(value, list):
        return "[" + "".join([f"{_node_text(item)}," for item in value]) + "]"
    if not isinstance(value, ast.AST):
        return repr(value)
    if isinstance(value, ast.Constant):
        # With its type: None is a value here and no empty field, and True == 1 == 1.0.
        content = f"{type(value.value).__name__}:{value.value!r}"
    else:
        content = ""
        for name in value._fields:
            field = getattr(value, name, None)
            if name not in _WITHOUT_MEANING and field is not None and field != []:
                content += f"{name}={_node_text(_canonical_field(value, name, field))},"
    return f"{type(value).__name__}({content})"


def _canonical_field(node: ast.AST, name: str, field: Any) -> Any:  # noqa: ANN401 - any field
    """Return a node's field without docstring and with merged texts of f-strings.

    Python versions split the texts of an f-string differently.
    """
    if (
        name == "body"
        and isinstance(node, _DOCUMENTED)
        and ast.get_docstring(node, clean=False) is not None
    ):
        return field[1:]
    if not isinstance(node, ast.JoinedStr):
        return field
    merged: list[ast.expr] = []
    for is_text, group in itertools.groupby(field, key=lambda part: _text(part) is not None):
        parts = list(group)
        merged += [ast.Constant("".join(part.value for part in parts))] if is_text else parts
    return [part for part in merged if _text(part) != ""]


def _top_level(name: str) -> str:
    return name.partition(".")[0]


def _is_in_package(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
