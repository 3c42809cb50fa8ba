"""What the pages of studies and of searches have in common: templates, markup that is safe, what a page may load."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sweeps.core.report.columns import difference_text, mean_text, remark_text
from sweeps.core.report.numbers import format_p

REFRESH_S = 30
"""Seconds after which the page of what runs is loaded again."""
_NO_SCRIPT = "script-src 'none'"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "


@cache
def templates() -> Environment:
    """The templates, with the functions that they call."""
    environment = Environment(
        loader=PackageLoader("sweeps.core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "mean_text": mean_text,
        "difference_text": difference_text,
        "remark_text": remark_text,
        "format_p": format_p,
    }
    environment.filters["breakable"] = _breakable
    return environment


def policy(script: str = "") -> str:
    """What a page may load: its own script, known by its digest, and what that script loads; nothing by markup."""
    if not script:
        return _POLICY + _NO_SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{_POLICY}script-src 'sha256-{digest}' 'strict-dynamic'"


def safe_svg(svg: str) -> Markup:
    """A figure as markup: Matplotlib escapes the texts in it."""
    return Markup(svg)  # noqa: S704


def safe_json(value: object) -> Markup:
    """JSON that can stand in a script element: nothing in it ends one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))  # noqa: S704


def _breakable(heading: str) -> Markup:
    """A heading that may be broken after every dot and underscore."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", heading))
