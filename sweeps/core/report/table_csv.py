"""The table for programs: a line for each row and metric, fractions with six digits, empty where there is no number.

Nothing in it depends on when, where or by whom the study was run: the same results give the same bytes.
``rebuild_table`` makes the same lines from the raw values without anything of this project.
"""

from __future__ import annotations

from sweeps.core.report.column import columns_csv
from sweeps.core.report.numbers import format_for_program
from sweeps.core.report.table import StudyTable


def table_csv(table: StudyTable) -> str:
    """``table.csv``."""
    return columns_csv(table.columns, table.measurements, format_for_program)
