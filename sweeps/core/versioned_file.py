"""The file that makes a folder a study's or a search's: JSON with the version of its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_versioned(file: Path, kind: str, version: int) -> dict[str, Any]:
    """Its content.

    Args:
        file: As in ``study.json``.
        kind: What the folder is, as in ``study``.
        version: Of the format that is read.

    Raises:
        ValueError: There is no such file, or it is of another version.
    """
    if not file.is_file():
        raise ValueError(f"{file.parent} is not a {kind}'s folder: it has no {file.name}.")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if (found := content.get("format_version")) != version:
        raise ValueError(f"{file} has format version {found}; this program reads {version}. Give another --storage.")
    return content
