"""HTML pages of studies and searches: templates, safe markup, content security policy."""

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
"""Seconds after which the page of a running study reloads: the driver writes it no more often."""
_NO_SCRIPT = "script-src 'none'"
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; "
)


@cache
def templates() -> Environment:
    """Load the templates, with the functions that they call."""
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
    """Return the content security policy of a page.

    The page may load its own script, identified by its digest, and files that this script loads.
    Markup may load nothing.
    """
    if not script:
        return _POLICY + _NO_SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{_POLICY}script-src 'sha256-{digest}' 'strict-dynamic'"


def safe_svg(svg: str) -> Markup:
    """Mark a figure as safe markup: Matplotlib escapes the texts in it."""
    return Markup(svg)  # noqa: S704


def safe_json(value: object) -> Markup:
    """Write JSON for a script element: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))  # noqa: S704


def _breakable(heading: str) -> Markup:
    """Allow line breaks after every dot and underscore of a heading."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", heading))
