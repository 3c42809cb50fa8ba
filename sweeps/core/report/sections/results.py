"""The table itself: a line for each row, which opens to show its seeds, its intervals and its config."""

from __future__ import annotations

from sweeps.core.report.section import Card, Section, Source


def _show(source: Source) -> Card | str:
    return Card()


RESULTS = Section("results", "Results", _show, "results.html.j2")
