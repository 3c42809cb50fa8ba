"""Similarity of patch tokens after every block: over-smoothing."""

from __future__ import annotations

from collections.abc import Iterable

from sweeps.core.design.paper import FIGURE_2
from sweeps.core.report.curves import Panel
from sweeps.core.report.section import Card, Section, Source
from toco.tracking import RunRecord


def _points(run: RunRecord) -> Iterable[tuple[float, float | None]]:
    return enumerate((run.last_evaluation or {}).get("patch_similarity") or (), start=1)


def _show(source: Source) -> Card | str:
    panels = (Panel("cosine similarity", _points, 1, ticks=True),)
    published = {f"paper, {name}": values for name, values in FIGURE_2.items()} if source.has_paper else {}
    draw = source.curves.plan(
        panels, "after block", "similarity", "Patch similarity after every block", published=published
    )
    if draw is None:
        return "no run folder of a finished trial has similarities"
    caption = (
        "Mean cosine similarity between all pairs of patch tokens after every block, on validation images; means over "
        "seeds. Near 1 all patches look alike to the classifier, and a CAM of that block cannot tell object from "
        "background."
    )
    return Card(caption, draw, notes=source.curves.notes)


SIMILARITY = Section("similarity", "Over-smoothing: similarity of patches by block", _show)
