"""The table of results, and the claims of the paper."""

from __future__ import annotations

from sweeps.core.report.section import Card, Section, Source


def _show_claims(source: Source) -> Card | str:
    return Card() if source.table.claims else "the study tests no claim of a paper"


RESULTS = Section("results", "Results", lambda _: Card(), "results.html.j2")
CLAIMS = Section(
    "claims", "The paper's claims, and what this study shows", _show_claims, "claims.html.j2"
)
