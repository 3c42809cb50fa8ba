"""The table for programs: a line for each row and metric, fractions with six digits, empty where there is no number.

Nothing in it depends on when, where or by whom the study was run: the same results give the same bytes.
``rebuild_table`` makes the same lines from the raw values without anything of this project.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from sweeps.core.findings.analysis import Analysis, Figures
from sweeps.core.store.study_record import StudyRecord
from toco.passwords import public_text

HEADINGS = (
    *("block", "row", "role", "versus", "changes", "metric", "declared", "planned"),
    *("n", "mean", "sd", "low", "high", "mark"),
    *("pairs", "difference", "difference_low", "difference_high", "p", "p_holm", "effect_size"),
    *("images_low", "images_high", "paper", "differs_in"),
)


def table_csv(study: StudyRecord, analysis: Analysis) -> str:
    """``table.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADINGS, lineterminator="\n")
    writer.writeheader()
    for row, numbers in zip(study.rows, analysis.rows, strict=True):
        paper_row = study.published(row)
        for metric in study.metrics:
            figures = numbers.figures[metric.key]
            writer.writerow(
                {
                    "block": study.blocks[row.block].title,
                    "row": row.label,
                    "role": row.role,
                    "versus": "" if row.versus is None else study.rows[row.versus].label,
                    "changes": changes_text(study.changes_of(row)),
                    "metric": metric.key,
                    "declared": "yes" if figures.declared else "no",
                    "planned": numbers.planned,
                    "paper": number_text(paper_row.metrics.get(metric.key) if paper_row else None),
                    "differs_in": "; ".join(numbers.daggers),
                    **_numbers(figures),
                }
            )
    return text.getvalue()


def changes_text(changes: Mapping[str, Any]) -> str:
    """Values by path in a line, without passwords in addresses.

    >>> changes_text({"method.aux_block": 9, "method.name": "toco"})
    'method.aux_block=9; method.name="toco"'
    """
    return public_text("; ".join(f"{path}={json.dumps(value)}" for path, value in changes.items()))


def number_text(value: float | None) -> str:
    """Six digits after the point: more than any result has, fewer than rounding reaches.

    >>> number_text(-1e-9), number_text(None)
    ('0.000000', '')
    """
    if value is None:
        return ""
    text = f"{value:.6f}"
    return text.lstrip("-") if float(text) == 0 else text


def _numbers(figures: Figures) -> dict[str, str | int]:
    summary, paired, images = figures.summary, figures.paired, figures.images
    return {
        "n": summary.n if summary else 0,
        "mean": number_text(summary.mean if summary else None),
        "sd": number_text(summary.sd if summary else None),
        "low": number_text(summary.low if summary else None),
        "high": number_text(summary.high if summary else None),
        "mark": "bold" if figures.bold else "underlined" if figures.underlined else "",
        "pairs": paired.n if paired else 0,
        "difference": number_text(paired.difference if paired else None),
        "difference_low": number_text(paired.low if paired else None),
        "difference_high": number_text(paired.high if paired else None),
        "p": number_text(paired.p if paired else None),
        "p_holm": number_text(figures.p_holm),
        "effect_size": number_text(paired.effect_size if paired else None),
        "images_low": number_text(images.low if images else None),
        "images_high": number_text(images.high if images else None),
    }
