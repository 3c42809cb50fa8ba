"""The table for programs: a line for each row and metric, fractions with six digits, empty where there is no number.

Nothing in it depends on when, where or by whom the study was run: the same results give the same bytes.
``rebuild_table`` makes the same lines from the raw values without anything of this project.
"""

from __future__ import annotations

import csv
import io

from sweeps.core.report.numbers import format_for_program
from sweeps.core.report.table import StudyTable


def table_csv(table: StudyTable) -> str:
    """``table.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [(column.key, column.value) for column in table.columns if column.value is not None]
    writer.writerow([key for key, _ in columns])
    for measurement in table.measurements:
        writer.writerow([format_for_program(value(measurement)) for _, value in columns])
    return text.getvalue()
