"""Exit status of a study or a search."""

from __future__ import annotations

from typing import Literal

ExitCode = Literal[0, 3, 4]
CLEAN: Literal[0] = 0
CONTRADICTED: Literal[3] = 3
INCOMPLETE: Literal[4] = 4
"""No claim of the paper is contradicted; one is; trials have no result."""

STOPPED = 130
"""Ctrl-C or SIGTERM stopped the program."""
