"""A statistic is a function of numbers and one column: every form of the report prints it without
another change.
"""

import csv
import io
import json
import re
from collections.abc import Mapping

from sweeps.core.design.study import BASE_AGAIN
from sweeps.core.report.bundle import bundle_files
from sweeps.core.report.columns import COLUMNS, Measurement
from sweeps.core.report.numbers import format_difference
from sweeps.core.report.page import page
from sweeps.core.report.rebuild_table import COMPUTED, read_values, rebuilt
from sweeps.core.report.report import make_report
from sweeps.core.report.table import table_csv
from sweeps.core.report.text_grid import Column
from tests.sweeps.core.records import make_study

VALUES = {"#10": (0.60, 0.62, 0.64), "#8": (0.50, 0.51, 0.55), BASE_AGAIN: (0.61, 0.62, 0.60)}


def range_of_differences(row: Mapping[int, float], base: Mapping[int, float]) -> float | None:
    """What a module of ``sweeps.core.statistics`` would hold."""
    differences = [row[seed] - base[seed] for seed in row.keys() & base.keys()]
    return max(differences) - min(differences) if differences else None


def value(measurement: Measurement) -> float | None:
    return range_of_differences(measurement.values, measurement.base_values)


def text(measurement: Measurement) -> str:
    number = value(measurement)
    return "-" if number is None else format_difference(number, percent=measurement.metric.percent)


RANGE = Column(
    "range",
    value,
    "Δ-range",
    text,
    ("differences",),
    note="The largest minus the smallest difference.",
)


def test_a_new_statistic_is_in_every_form():
    """#8 - #10 is -0.10, -0.11, -0.09: the range is two points."""
    study = make_study(VALUES)
    report = make_report(study, columns=(*COLUMNS, RANGE))
    html = page(report.source, report.cards, "now").html
    for form in (report.terminal, report.markdown, report.latex, html):
        flat = re.sub(r"\s+", " ", form).replace(r"$\Delta$", "Δ")
        assert "Δ-range" in flat
        assert "+2.00" in flat
        assert RANGE.note in flat
    lines = list(csv.DictReader(io.StringIO(table_csv(report.source.table))))
    assert [line["range"] for line in lines] == ["", "0.020000", "0.050000"]
    # What opens under a row of the page.
    data, details = (
        json.loads(
            re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html)[1]
        )
        for name in ("page", "details")
    )
    assert (
        dict(zip(data["differenceHeadings"], details["1"]["differences"][0], strict=True))[
            "Δ-range"
        ]
        == "+2.00"
    )
    # The reviewer's archive, whose script copies what it does not compute.
    archive = bundle_files(report)
    assert "Δ-range" in archive["table.md"]
    remade = rebuilt(json.loads(archive["table.json"]), read_values(archive["values.csv"]))
    assert remade == archive["table.csv"] == table_csv(report.source.table)


def test_columns_have_names_of_their_own_and_the_script_computes_what_it_says():
    keys = [column.key for column in COLUMNS]
    assert len(set(keys)) == len(keys)
    assert set(COMPUTED) <= {column.key for column in COLUMNS if column.value is not None}
    for column in COLUMNS:
        assert bool(column.text) == bool(column.places)
