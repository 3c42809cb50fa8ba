"""The paper's numbers against what its authors' own logs and text say of them."""

from sweeps.core.paper import FIGURE_2, TABLE_5A


def test_the_default_row_is_the_authors_log():
    (default,) = (row for row in TABLE_5A.rows if row.default)
    # Last evaluation of the published DeiT-B log: 70.487, 62.472, 68.097.
    logged = {"val/cam_miou": 0.70487, "val/aux_cam_miou": 0.62472, "val/seg_miou": 0.68097}
    assert default.metrics == {key: round(value, 3) for key, value in logged.items()}


def test_the_default_row_has_the_best_cam():
    assert max(TABLE_5A.rows, key=lambda row: row.metrics["val/cam_miou"]).default


def test_table_5a_as_printed():
    rows = [(row.label, [round(100 * value, 1) for value in row.metrics.values()]) for row in TABLE_5A.rows]
    assert rows == [
        ("#8", [63.5, 48.1, 60.5]),
        ("#9", [67.6, 55.1, 64.8]),
        ("#10", [70.5, 62.5, 68.1]),
        ("#11", [43.1, 45.2, 40.3]),
    ]


def test_figure_2_has_the_twelve_blocks_and_ptc_lowers_the_last():
    assert [len(values) for values in FIGURE_2.values()] == [12, 12]
    assert FIGURE_2["ToCo"][-1] < FIGURE_2["without PTC"][-1]
