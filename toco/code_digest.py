"""Which code a result depends on: a digest for every module that can be imported on the way from some roots.

Nothing is imported: source files are found and parsed. A digest is over the syntax tree without docstrings, so that
comments, formatting and the version of Python do not change it.

What a program imports by a name that it computes is not seen, but for the registries: where code loads an entry of one
(``load("toco.methods", name)``), every entry counts, unless the caller says that its roots hold the chosen ones.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

_WITHOUT_MEANING = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of the syntax tree that follow from the others, or that nothing reads."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_STANDARD_LIBRARY = frozenset(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def code_digests(roots: Iterable[str], without: Iterable[str] = (), chosen: Iterable[str] = ()) -> dict[str, str]:
    """Digest by module (hex, 16 digits) of all that ``roots`` import, directly or not, inside functions too.

    Of a root outside of this package the modules count that lie in its top-level package, or beside this package in
    the same folder. Installed packages are left out: their versions stand for them.

    Args:
        roots: Modules to begin with.
        without: Modules and packages that are neither entered nor listed.
        chosen: Registries whose chosen entries are among ``roots``, so that their other entries do not count.

    Raises:
        ValueError: A root has no source file, or a file is no Python.
    """
    roots, without = tuple(roots), tuple(without)
    packages = {_top(root) for root in roots}
    folders = {folder for package in packages - {_top(__name__)} for folder in import_folders(package)}
    chosen = {*chosen, *(root.rpartition(".")[0] for root in roots)}
    digests: dict[str, str] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in digests or any(_within(name, left_out) for left_out in without):
            continue
        if _top(name) not in packages and not (folders and folders & import_folders(_top(name))):
            continue
        module = _module(name)
        if module is not None:
            digests[name] = module.digest
            todo += module.imports
            todo += (entry for registry in module.registries if registry not in chosen for entry in _entries(registry))
        elif name in roots:
            raise ValueError(
                f"There is no source file of the module {name}: expected one below the folders that Python imports "
                "from (PYTHONPATH)."
            )
        # Python runs the packages on the way before the module itself.
        parent = name.rpartition(".")[0]
        if parent:
            todo.append(parent)
    return dict(sorted(digests.items()))


def syntax_digest(source: bytes | str) -> str:
    """SHA-256 (hex, 16 digits) of what ``source`` means to Python: equal on every version that can parse it.

    Raises:
        SyntaxError: It is no Python.

    >>> syntax_digest("x = 'a'  # one") == syntax_digest('x = ("a")') != syntax_digest("x = 'b'")
    True
    """
    return _digest(ast.parse(source))


@dataclass(frozen=True, slots=True)
class _Module:
    """What a file says.

    Attributes:
        imports: What it may import: names that may be attributes and no modules.
        registries: Packages that it loads entries of by a computed name.
    """

    digest: str
    imports: tuple[str, ...]
    registries: tuple[str, ...]


def source_file(name: str) -> Path | None:
    """The file of a module; ``None`` where there is none, as for attributes and for folders without ``__init__.py``."""
    top, *rest = name.split(".")
    spec = module_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *rest)
        for candidate in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if candidate.is_file():
                return candidate
    return None


def import_folders(top: str) -> frozenset[Path]:
    """Folders that hold the top-level package or module ``top``, unless it is an installed one."""
    spec = module_spec(top)
    if spec is None:
        return frozenset()
    origin = [spec.origin] if spec.origin and spec.origin.endswith(".py") else []
    places = [Path(place) for place in spec.submodule_search_locations or origin]
    return frozenset(place.parent for place in places if not is_installed(place))


def is_installed(path: Path) -> bool:
    """Whether a file or folder of code belongs to Python itself or to an installed package."""
    return not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(folder) for folder in _STANDARD_LIBRARY)


def module_spec(top: str) -> ModuleSpec | None:
    """How Python would import the top-level package or module ``top``; ``None`` where it cannot."""
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # of a module that the program itself has made
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
    live = list(_live(tree))
    loaded = list(_loaded(live, name))
    imports = dict.fromkeys([*_imports(live, package), *(f"{registry}.{entry}" for registry, entry in loaded if entry)])
    registries = dict.fromkeys(registry for registry, entry in loaded if entry is None)
    return _Module(_digest(tree), tuple(imports), tuple(registries))


def _entries(registry: str) -> list[str]:
    """The public modules of a package, which are the entries of a registry, see ``toco.registry``."""
    path = source_file(registry)
    if path is None or path.name != "__init__.py":
        return []
    names = [file.stem for file in path.parent.glob("*.py")]
    return [f"{registry}.{name}" for name in names if not name.startswith("_")]


def _live(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but those below ``if TYPE_CHECKING``, which is never run."""
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
                origin = ".".join([*parts[: len(parts) - node.level + 1], *([origin] if origin else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")


def _loaded(nodes: Iterable[ast.AST], name: str) -> Iterator[tuple[str, str | None]]:
    """Registries that the module ``name`` loads from, each with the entry, or ``None`` where a variable names it."""
    for node in nodes:
        if not (isinstance(node, ast.Call) and node.args and _name(node.func) == "load"):
            continue
        registry, *rest = node.args
        entry = _text(rest[0]) if rest else None
        if (text := _text(registry)) is not None:
            yield text, entry
        elif _name(registry) == "__name__":
            yield name, entry


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _name(node: ast.expr) -> str | None:
    """The last name of ``a`` or ``b.a``."""
    name: str | None = getattr(node, "id", getattr(node, "attr", None))
    return name


def _digest(tree: ast.Module) -> str:
    text: list[str] = []
    _write(tree, text)
    return hashlib.sha256("".join(text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _write(node: ast.AST, text: list[str]) -> None:
    """Append ``node`` as text. What is empty is left out, so that fields which later versions add do not show."""
    text.append(f"{type(node).__name__}(")
    if isinstance(node, ast.Constant):
        # By itself: None is a value here, and True == 1 == 1.0.
        text.append(f"{type(node.value).__name__}:{node.value!r}")
    else:
        for name in node._fields:
            value = getattr(node, name, None)
            if name in _WITHOUT_MEANING or value is None or value == []:
                continue
            text.append(f"{name}=")
            if isinstance(value, ast.AST):
                _write(value, text)
            elif isinstance(value, list):
                _write_list(node, name, value, text)
            else:
                text.append(repr(value))
            text.append(",")
    text.append(")")


def _write_list(node: ast.AST, name: str, items: list[ast.AST | str | None], text: list[str]) -> None:
    if name == "body" and _begins_with_docstring(node):
        items = items[1:]
    elif isinstance(node, ast.JoinedStr):
        items = list(_merged(node.values))
    text.append("[")
    for item in items:
        if isinstance(item, ast.AST):
            _write(item, text)
        else:
            text.append(repr(item))
        text.append(",")
    text.append("]")


def _begins_with_docstring(node: ast.AST) -> bool:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    first = node.body[0]
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _merged(values: list[ast.expr]) -> Iterator[ast.expr]:
    """The parts of an f-string with neighbouring texts as one: versions of Python cut them differently."""
    pending = ""
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            pending += value.value
            continue
        if pending:
            yield ast.Constant(pending)
        pending = ""
        yield value
    if pending:
        yield ast.Constant(pending)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
