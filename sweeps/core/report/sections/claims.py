"""What the paper claims, and what the study says of it."""

from __future__ import annotations

from sweeps.core.report.section import Card, Section, Source


def _show(source: Source) -> Card | str:
    if not source.table.claims:
        return "the study stands beside no claim of a paper"
    return Card()


CLAIMS = Section("claims", "What the paper says, and what this says of it", _show, "claims.html.j2")
