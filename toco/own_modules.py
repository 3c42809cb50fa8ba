"""Import modules of the user's own: methods, data sets, studies and others.

Python finds them like every module: in the folder of the script or, with ``python -m``, in the
current folder; then in the folders of ``PYTHONPATH``; then among installed packages. The source of
a module is inspected before the import. A name in a file, such as the config of another person's
run, can therefore import only modules that define an entry.
"""

from __future__ import annotations

import difflib
import importlib
import symtable
import sys
import traceback
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType

from toco.code_digest import is_installed, module_spec, source_file


class OwnModuleError(ValueError):
    """A module of the user's own cannot be imported, or does not define an entry."""


def import_own(name: str, contract: Mapping[str, str], kind: str) -> ModuleType:
    """Import the module ``name`` and check that it defines the names in ``contract``.

    Args:
        name: Full name of the module, with a dot.
        contract: Names that the module must define, each with an example of its definition.
        kind: Kind of entry in messages, such as ``methods``.

    Raises:
        OwnModuleError: The module is missing, its import fails, or it lacks a name.
    """
    module = sys.modules.get(name)
    if module is None:
        if (file := source_file(name) if _is_name(name) else None) is None:
            raise OwnModuleError(_not_found(name))
        _check_complete(name, file, _defined_names(file), contract, kind)
        module = _import_module(name, file)
    _check_complete(name, module.__file__, vars(module), contract, kind)
    return module


def refuse_within(folder: Path, name: str) -> None:
    """Check that the module ``name`` does not lie in ``folder``, which is not trusted.

    Raises:
        OwnModuleError: The module lies in ``folder``.
    """
    file = source_file(name) if "." in name and _is_name(name) else None
    if file is not None and file.resolve().is_relative_to(folder.resolve()):
        raise OwnModuleError(
            f"{name} is {file}, which lies in the folder that names it, and code that came with a "
            "run is not imported. If you trust it, move it out of there, and set PYTHONPATH to the "
            "folder that then holds its package."
        )


def search_folders() -> tuple[str, ...]:
    """List the folders from which the user's own modules are imported, absolute, in order.

    Folders of installed packages are left out.
    """
    folders = (Path(entry).absolute() for entry in sys.path)
    own_folders = (folder for folder in folders if folder.is_dir() and not is_installed(folder))
    return tuple(dict.fromkeys(map(str, own_folders)))


def add_search_folders(folders: Iterable[str]) -> None:
    """Also import from ``folders``, such as those of the driver in a worker."""
    sys.path += [folder for folder in folders if folder not in sys.path]


def own_place(error: BaseException, project_packages: Collection[str]) -> str | None:
    """Locate the user's own code in the traceback of an error.

    This is the code that raised the error, or that called the library that raised it.

    Args:
        error: The error.
        project_packages: Top-level packages of this project. If one of them was called later than
            the user's code, the error counts as this project's. ``__main__`` may be one: a script
            counts as the user's own if its file lies in the folder of no package.

    Returns:
        File and line as text; ``None`` where the error is not of the user's code.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        is_script = package == "__main__" and file.is_file()
        if is_script and not _is_within(file, project_packages):
            package = ""
        if package in project_packages:
            return None
        if file.is_file() and not is_installed(file):
            return f"{file}, line {line}"
    return None


def _is_within(file: Path, project_packages: Collection[str]) -> bool:
    """Whether a file lies in the folder of one of this project's packages."""
    root = Path(__file__).resolve().parents[1]
    return any(file.resolve().is_relative_to(root / package) for package in project_packages)


def place_in(error: BaseException, modules: Collection[str]) -> str | None:
    """Locate the innermost frame of an error in ``modules``; file and line as text."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__") in modules:
            return f"{frame.f_code.co_filename}, line {line}"
    return None


def _import_module(name: str, file: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise OwnModuleError(
            f"{name} cannot be imported. {_place(error, file)}: {_reason(error)}."
        ) from error


def _place(error: BaseException, file: Path) -> str:
    """Locate the user's own code in the error of an import; file and line as text."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    paths = [Path(frame.filename) for frame in frames]
    begin = paths.index(file) if file in paths else len(paths)
    own_frames = [
        frame
        for frame, path in zip(frames[begin:], paths[begin:], strict=True)
        if path == file or (path.is_file() and not is_installed(path))
    ]
    return f"{own_frames[-1].filename}, line {own_frames[-1].lineno}" if own_frames else str(file)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return 'it ends the program; put what is to run below if __name__ == "__main__"'
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {message}".removesuffix(".")


def _defined_names(file: Path) -> Collection[str]:
    """List the names that a module defines or imports, without running it."""
    try:
        table = symtable.symtable(file.read_text("utf-8"), str(file), "exec")
    except (SyntaxError, ValueError) as error:
        place, reason = _place(error, file), _reason(error)
        raise OwnModuleError(f"{place}: {reason}.") from error
    symbols = table.get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def _check_complete(
    name: str,
    file: object,
    defined_names: Collection[str],
    contract: Mapping[str, str],
    kind: str,
) -> None:
    if missing := [part for part in contract if part not in defined_names]:
        examples = "\n".join(contract.values())
        raise OwnModuleError(
            f"{name} ({file}) does not define {' and '.join(missing)}. A module of {kind} "
            f"has:\n{examples}"
        )


def _is_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _not_found(name: str) -> str:
    parent, _, last = name.rpartition(".")
    if last == "py":
        dotted = ".".join(Path(parent).parts)
        right = dotted if "." in dotted else f"my_package.{dotted}"
        path = f"{right.replace('.', '/')}.py"
        return f"{name!r} is a file; expected the name of a module, as {right} for {path}."
    if not _is_name(name):
        return (
            f"{name!r} is no name of a module: expected words with dots, as my_package.my_method."
        )
    top = name.partition(".")[0]
    if module_spec(top) is not None:
        return _not_in_package(name)
    folders = search_folders()
    near = did_you_mean(top, _names_in(map(Path, folders)))
    return (
        f"There is no module {name!r}: {', '.join(folders)} hold no {top}.{near} "
        f"Set the variable PYTHONPATH to the folder that holds {top}."
    )


def _not_in_package(name: str) -> str:
    """Explain why a module is missing whose top-level package exists."""
    top, *inner_names = name.split(".")
    spec = module_spec(top)
    places = () if spec is None else spec.submodule_search_locations or ()
    folders = list(map(Path, places))
    package = top
    for part in inner_names:
        available_names = _names_in(folders)
        subfolders = [folder / part for folder in folders if (folder / part).is_dir()]
        if not subfolders:
            where = ", ".join(map(str, folders)) or "a single file"
            return (
                f"{package} ({where}) has no module {part!r}; it has "
                f"{', '.join(available_names) or 'none'}.{did_you_mean(part, available_names)}"
            )
        folders, package = subfolders, f"{package}.{part}"
    where = ", ".join(map(str, folders))
    return f"{name!r} is a folder ({where}): expected a module, which is a file that ends in .py."


def _names_in(folders: Iterable[Path]) -> list[str]:
    """List modules and packages in ``folders``, also packages without ``__init__.py``."""
    items = [item for folder in folders for item in folder.iterdir()]
    code = (item for item in items if item.suffix == ".py" or any(item.glob("*.py")))
    return sorted({item.stem for item in code if item.stem.isidentifier()} - {"__init__"})


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return " Did you mean ...?" with the nearest of ``names``; empty where none is near.

    Args:
        name: The unknown name.
        names: The known names.
        cutoff: Least similarity, as :mod:`difflib` measures it.
    """
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""
