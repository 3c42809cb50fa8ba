"""Exit status of a study or a search."""

from __future__ import annotations

from typing import Literal

ExitCode = Literal[0, 3, 4]
CLEAN: Literal[0] = 0
CONTRADICTED: Literal[3] = 3
INCOMPLETE: Literal[4] = 4
"""Of the claims of the paper none is contradicted (0), one is (3); or trials have no result (4)."""

STOPPED = 130
"""Ctrl-C or SIGTERM stopped the program."""
