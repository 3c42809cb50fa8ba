"""The settings of the site: ``make docs`` builds it from README.md, docs/ and the docstrings.

Sphinx reads the repository's root, so that every relative link works on GitHub and in the site.
"""

from __future__ import annotations

import inspect
import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from pydantic import BaseModel
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "toco"
release = version_of("toco")
html_title = f"toco {release}"
html_theme = "furo"
html_copy_source = False
toc_object_entries = False  # headings are the table of contents
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"),
    *("cluster/README.md", "examples/*/README.md", "benchmarks/results/README.md"),
]
highlight_language = "none"  # folder trees and lists of layers have no language
myst_heading_anchors = 4
# Fields are listed by list_fields; as attributes they would be described twice.
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"

PAGES = (
    (
        "Use",
        ("data", "training", "studies", "reviewer", "claims", "cluster", "slurm", "use", "faq"),
    ),
    ("Change", ("backbones", "methods", "recipes")),
    ("Compare", ("side_by_side", "parity", "benchmark", "photographs", "performance")),
    ("Reference", ("api_runs", "api_configs", "api_methods", "api_functions", "api_studies")),
)
"""The pages of docs/ in the order of the site's menu."""
PROJECT = (
    *("CONTRIBUTING", "CHANGELOG", "benchmarks/results/README"),
    *("examples/own_method/README", "examples/own_loss/README"),
)


def add_menu_and_headers(app: Sphinx, name: str, source: list[str]) -> None:
    """Add to two pages what only the site needs: the menu, the headers of recipes and studies."""
    if name == root_doc:
        groups = [(title, tuple(f"docs/{page}" for page in pages)) for title, pages in PAGES]
        for title, pages in (*groups, ("Project", (*PROJECT, "cluster/README"))):
            lines = "\n".join(pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n"
    if name == "docs/recipes":
        for title, folder in (("The recipes", "toco/recipes"), ("The studies", "sweeps")):
            source[0] += f"\n## {title}\n"
            for path in sorted((ROOT / folder).glob("[a-z]*.py")):
                module = f"{folder.replace('/', '.')}.{path.stem}"
                source[0] += (
                    f"\n### {path.stem}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"
                )


def mark_commands(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Make indented commands in the header of a module a block of code."""
    if what == "module":
        for number in reversed(range(1, len(lines))):
            before = lines[number - 1]
            if lines[number].startswith("    python ") and not before.strip():
                lines[number:number] = [".. code-block:: console", ""]


def list_fields(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Add types and defaults to the fields of a config, and the fields that its base describes."""
    if what != "class" or not isinstance(obj, type) or not issubclass(obj, BaseModel):
        return
    types: dict[str, str] = {}
    for base in reversed(obj.__mro__):
        types |= {field: str(value) for field, value in inspect.get_annotations(base).items()}
    for field, info in obj.model_fields.items():
        default = info.get_default(call_default_factory=True)
        text = type(default).__name__ + "()" if isinstance(default, BaseModel) else repr(default)
        if isinstance(default, Path):
            text = repr(str(default))
        form = f"``{types[field]}``" if info.is_required() else f"``{types[field]} = {text}``"
        head = f":ivar {field}:"
        place = next((i for i, line in enumerate(lines) if line.startswith(head)), None)
        if place is None:
            lines.append(f"{head} {form}")
        else:
            lines[place] = f"{head} {form}. {lines[place].removeprefix(head).lstrip()}"
    lines.append("")


def hide_fields(
    app: Sphinx, what: str, name: str, obj: object, *others: object
) -> tuple[str, None] | None:
    """Leave the arguments of a config out of its heading: they are its fields."""
    is_config = what == "class" and isinstance(obj, type) and issubclass(obj, BaseModel)
    return ("()", None) if is_config else None


def write_index(app: Sphinx, error: Exception | None) -> None:
    """Let a server or a browser that opens the folder find the first page."""
    if error is None:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_menu_and_headers)
    app.connect("autodoc-process-docstring", mark_commands)
    app.connect("autodoc-process-docstring", list_fields)
    app.connect("autodoc-process-signature", hide_fields)
    app.connect("build-finished", write_index)
