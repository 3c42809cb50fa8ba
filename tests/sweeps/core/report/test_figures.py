"""What is drawn, read back from Matplotlib's own objects, and the SVG that comes of it."""

import dataclasses
import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from sweeps.core.design.designs import Block
from sweeps.core.design.paper import Paper, PaperRow
from sweeps.core.design.study import BASE_AGAIN, Metric
from sweeps.core.report import curves, drawing
from sweeps.core.report.report import make_report
from sweeps.core.report.section import Section
from sweeps.core.report.sections import SECTIONS, differences, interactions, means
from sweeps.core.report.sections.curves import SIMILARITY, THRESHOLDS, TRAINING
from sweeps.core.statistics.paired import noise_floor
from tests.sweeps.core.records import SEG, M, make_study
from tests.sweeps.core.report.run_folders import STEP, write_runs
from toco.train import records

BASE, AGAIN = (0.60, 0.62, 0.64), (0.61, 0.60, 0.66)
ROWS = {"#10": BASE, "#8": (0.50, 0.53, 0.53), "<#9>": (0.61, 0.60, 0.65), BASE_AGAIN: AGAIN}
PAPER = Paper("Table 5 (a)", "VOC", (PaperRow("#10", {M: 0.7}), PaperRow("#8", {M: 0.6})))
FLOOR = noise_floor(BASE, AGAIN)


@pytest.fixture
def study(tmp_path: Path):
    made = make_study(ROWS, path=tmp_path / "fake-01234567", paper=PAPER)
    write_runs(made)
    return made


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Every figure that becomes an SVG."""
    kept: list[Figure] = []
    for module in (curves, differences, means, interactions):
        monkeypatch.setattr(
            module,
            "svg",
            lambda figure, *names: (kept.append(figure), drawing.svg(figure, *names))[1],
        )
    return kept


def draw(study, section: Section) -> str | None:
    """The figure of a section; ``None`` where the section does not apply."""
    report = make_report(study, sections=(section,))
    assert len(report.cards.sections) + len(report.cards.absent) == 1
    return report.cards.sections[0][1].draw() if report.cards.sections else None


def band(axes) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of the band that is filled between curves, over its positions."""
    (found,) = [c for c in axes.collections if c.get_label() == "noise band (A/A)"]
    corners = np.unique(found.get_paths()[0].vertices, axis=0)
    xs = np.unique(corners[:, 0])
    return tuple(
        np.array([edge(corners[corners[:, 0] == x, 1]) for x in xs]) for edge in (np.min, np.max)
    )


def line(axes, label: str):
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def test_differences_lie_over_a_band_as_wide_as_the_noise_floor(study, drawn):
    assert draw(study, differences.DIFFERENCES)
    (axes,) = drawn[0].axes
    (patch,) = [patch for patch in axes.patches if patch.get_label() == "noise band (A/A)"]
    assert (patch.get_x(), patch.get_x() + patch.get_width()) == pytest.approx(
        (-100 * FLOOR, 100 * FLOOR)
    )
    assert [text.get_text() for text in axes.get_yticklabels()] == ["#8", "<#9>", BASE_AGAIN]
    points = [one for one in axes.lines if one.get_marker() == "o"]
    assert [float(p.get_xdata()[0]) for p in points] == pytest.approx(
        [-10.0, 0.0, 100 * (1.87 - 1.86) / 3], abs=1e-9
    )
    assert line(axes, "paper").get_xdata()[0] == pytest.approx(-10.0)


def test_without_an_a_a_row_there_is_no_band(tmp_path, drawn):
    study = make_study({"#10": BASE, "#8": (0.5, 0.5, 0.6)}, path=tmp_path / "fake-01234567")
    assert draw(study, differences.DIFFERENCES)
    assert [patch for patch in drawn[0].axes[0].patches if "noise" in str(patch.get_label())] == []


def test_only_significant_points_are_filled(tmp_path, drawn):
    rows = {
        "#10": (0.60, 0.62, 0.64, 0.61),
        "#8": (0.401, 0.421, 0.439, 0.410),
        "#9": (0.61, 0.60, 0.66, 0.60),
    }
    study = make_study(rows, path=tmp_path / "fake-01234567")
    draw(study, differences.DIFFERENCES)
    filled, empty = [one for one in drawn[0].axes[0].lines if one.get_marker() == "o"]
    assert filled.get_markerfacecolor() == filled.get_color()
    assert empty.get_markerfacecolor() == drawing.PAPER


def test_of_many_rows_the_largest_differences_are_drawn(tmp_path, drawn):
    rows = (
        {"base": BASE}
        | {f"row {n}": tuple(value - n / 100 for value in BASE) for n in range(1, 46)}
        | {BASE_AGAIN: AGAIN}
    )
    study = make_study(rows, path=tmp_path / "fake-01234567")
    draw(study, differences.DIFFERENCES)
    labels = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]
    assert labels == [f"row {n}" for n in range(6, 46)] + [BASE_AGAIN]


def test_means_have_the_band_around_the_base(study, drawn):
    assert draw(study, means.MEANS)
    ours, paper = drawn[0].axes
    (patch,) = ours.patches
    assert (patch.get_y(), patch.get_y() + patch.get_height()) == pytest.approx(
        (62 - 100 * FLOOR, 62 + 100 * FLOOR)
    )
    assert line(ours, "M").get_ydata().tolist() == pytest.approx([62, 52, 62])
    assert line(paper, "M").get_ydata()[:2].tolist() == pytest.approx([70, 60])


def test_curves_are_means_over_seeds_with_a_band_at_every_position(study, drawn):
    assert draw(study, THRESHOLDS)
    cam, aux_cam = drawn[0].axes
    assert line(cam, "#8").get_xdata() == pytest.approx([0, 0.25, 0.5, 0.75])
    assert line(cam, "#8").get_ydata() == pytest.approx([52, 39, 26, 13])
    low, high = band(cam)
    widths = np.array([1, 0.75, 0.5, 0.25]) * 100 * FLOOR
    assert low == pytest.approx(np.array([62, 46.5, 31, 15.5]) - widths)
    assert high == pytest.approx(np.array([62, 46.5, 31, 15.5]) + widths)
    assert line(aux_cam, "#8").get_xdata() == pytest.approx([0.25, 0.5, 0.75])  # undefined at 0


def test_a_row_whose_method_makes_other_cams_has_no_curve_of_these(study, drawn):
    row = next(row for row in study.rows if row.label == "#8")
    for trial in study.trials_of(row):
        path = trial.run_dir / f"evaluations/step_{STEP:08d}.json"
        content = records.read(path)
        del content["threshold_curve"]["aux_cam_miou"]
        records.write(path, content)
    assert draw(study, THRESHOLDS)
    cam, aux_cam = drawn[0].axes
    assert line(cam, "#8").get_ydata() == pytest.approx([52, 39, 26, 13])
    assert "#8" not in [shown.get_label() for shown in aux_cam.get_lines()]
    assert aux_cam.get_title(loc="left").endswith("auxiliary CAM mIoU (%)")


def test_similarity_stands_beside_figure_2_only_where_the_paper_does(study, drawn):
    assert draw(study, SIMILARITY)
    blocks = tuple(dataclasses.replace(block, paper=None) for block in study.blocks)
    alone = study.model_copy(update={"blocks": blocks})
    assert draw(alone, SIMILARITY)
    with_paper, without = drawn
    assert line(with_paper.axes[0], "#10").get_ydata() == pytest.approx([0.31, 0.62])
    assert line(with_paper.axes[1], "paper, ToCo").get_ydata()[-1] == 0.586
    assert len(without.axes) == 1


def test_training_shows_every_seed_and_their_mean(study, drawn):
    assert draw(study, TRAINING)
    metric, loss = drawn[0].axes
    assert line(metric, "#8").get_ydata() == pytest.approx([26, 52])
    seeds = [one.get_ydata()[-1] for one in metric.lines if one.get_alpha() == 0.35]
    assert seeds == pytest.approx(
        [100 * value for label in ("#10", "#8", "<#9>") for value in ROWS[label]]
    )
    assert line(loss, "#10").get_ydata() == pytest.approx([2.5, 1.25, 100 / 120, 0.625])


def test_interactions_draw_a_line_for_each_level_of_the_other_factor(tmp_path, drawn):
    factors = ("method.low", "method.high")
    cells = {"a": (1, 1, 0.1), "b": (1, 2, 0.2), "c": (2, 1, 0.3), "d": (2, 2, 0.6)}
    study = make_study(
        {label: (mean, mean + 0.01, mean + 0.02) for label, (_, _, mean) in cells.items()}
        | {BASE_AGAIN: (0.1, 0.12, 0.12)},
        changes={
            label: dict(zip(factors, levels[:2], strict=True)) for label, levels in cells.items()
        },
        factors=factors,
        path=tmp_path / "fake-01234567",
    )
    assert draw(study, interactions.INTERACTIONS)
    (axes,) = drawn[0].axes
    assert line(axes, "1").get_ydata() == pytest.approx([11, 31])
    assert line(axes, "2").get_ydata() == pytest.approx([21, 61])
    low, high = band(axes)
    floor = 100 * noise_floor((0.1, 0.11, 0.12), (0.1, 0.12, 0.12))
    assert low == pytest.approx([11 - floor, 31 - floor])
    assert high == pytest.approx([11 + floor, 31 + floor])


def test_a_block_with_many_rows_shows_the_base_and_the_best(tmp_path):
    rows = {"base": (0.1,)} | {f"row {number}": (0.2 + number / 100,) for number in range(20)}
    study = make_study(rows, path=tmp_path / "fake-01234567")
    (block,) = curves.read_curves(study).blocks
    assert [one.row.label for one in block.lines] == [
        "base",
        *(f"row {number}" for number in range(13, 20)),
    ]
    assert block.left_out == 13


def test_headings_of_blocks_stand_between_their_rows(tmp_path, drawn):
    blocks = [
        (Block("layer", (), ("method.aux_block",), (M,), None), ["#10", "#8"]),
        (Block("crop", (), ("method.crop",), (M, SEG), None), ["#10", "<#9>"]),
    ]
    study = make_study(ROWS, blocks=blocks, more={SEG: ROWS}, path=tmp_path / "fake-01234567")
    draw(study, differences.DIFFERENCES)
    labels = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]
    assert labels == ["layer", "#8", "crop", "<#9>", BASE_AGAIN]
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["M", "seg_miou"]


def test_colours_come_from_the_page_and_ids_are_unique(study):
    cards = make_report(study).cards
    svg = "".join(card.draw() for _, card in cards.sections if card.draw)
    assert svg.count("<svg") == 5
    assert re.findall(r"#0[1-5]0[0-9a-f]{3}\b", svg) == []
    assert {"var(--ink)", "var(--series-1)", "var(--muted)"} <= set(
        re.findall(r"var\(--[a-z0-9-]+\)", svg)
    )
    ids = re.findall(r'<clipPath id="(\w+)"', svg)
    assert len(ids) == len(set(ids)) > 0
    assert "<#9>" not in svg
    assert "&lt;#9&gt;" in svg


def test_nothing_to_draw_is_no_figure(tmp_path):
    states = {("#10", 0): "waiting", ("#8", 0): "failed"}
    study = make_study(
        {"#10": (0.6,), "#8": (0.5,)}, states=states, path=tmp_path / "fake-01234567"
    )
    cards = make_report(study).cards
    assert [section.name for section, _ in cards.sections] == ["results"]
    assert "Differences: no row and its base have finished trials of the same seed." in cards.absent
    # The results are there, and looks do not concern a fixed list of seeds.
    assert len(cards.absent) == len(SECTIONS) - 2


@pytest.mark.parametrize("metrics", [1, 2, 3])
def test_the_legend_of_the_differences_fits_on_the_figure(tmp_path, drawn, metrics):
    keys = [f"val/metric_{number}" for number in range(metrics - 1)]
    block = Block("Row", (), ("method.aux_block",), (M, *keys), PAPER)
    made = make_study(
        ROWS,
        path=tmp_path / "fake-01234567",
        blocks=[(block, ["#10", "#8", "<#9>"])],
        more=dict.fromkeys(keys, ROWS),
    )
    assert draw(made, differences.DIFFERENCES) is not None
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1 + 1


def test_the_rows_of_the_differences_keep_their_height_beside_a_long_legend(tmp_path, drawn):
    """Labels of 9.5 points need that much from row to row, however many lines the legend has."""
    made = make_study(ROWS, path=tmp_path / "fake-01234567", paper=PAPER)
    draw(made, differences.DIFFERENCES)
    (figure,) = drawn
    figure.draw_without_rendering()
    labels = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == 3
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(labels))


def test_the_means_name_the_blocks_that_are_not_drawn(tmp_path):
    rows = {f"row {number}": BASE for number in range(55)}
    small = [
        (
            Block(f"block {number}", (), ("method.aux_block",), (M,), None),
            [f"row {2 * number}", f"row {2 * number + 1}"],
        )
        for number in range(6)
    ]
    large = (Block("large", (), ("method.aux_block",), (M,), None), list(rows)[12:])
    made = make_study(rows, path=tmp_path / "fake-01234567", blocks=[large, *small])
    ((_, card),) = make_report(made, sections=(means.MEANS,)).cards.sections
    assert card.notes == (
        "Only the first 6 blocks are drawn, without block 5.",
        "Blocks of more than 40 rows are not drawn: large.",
    )


def test_the_axis_of_the_means_says_miou_only_of_miou():
    cam, f1 = Metric(M, "M"), Metric("val/label_f1", "F1")
    assert means._ylabel((cam,)) == "mIoU (%)"
    assert means._ylabel((cam, f1)) == "score (%)"


def test_labels_and_legend_of_the_means_do_not_cover_each_other(tmp_path, drawn):
    rows = {f"background threshold 0.{number}": BASE for number in range(1, 8)}
    block = Block("threshold of the background", (), ("method.aux_block",), (M,), None)
    made = make_study(rows, path=tmp_path / "fake-01234567", blocks=[(block, list(rows))])
    draw(made, means.MEANS)
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    labels = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert all(label.y0 >= legend.get_window_extent().y1 for label in labels)
    assert all(label.x1 <= figure.bbox.x1 for label in labels)
    assert figure.axes[0].get_legend() is None
    # Titles stand on the left.
    assert figure.axes[0]._left_title.get_window_extent().x1 <= figure.bbox.x1


def test_a_row_without_a_curve_is_not_in_the_legend(tmp_path, drawn):
    rows = {"#10": BASE, "#8": BASE}
    states = {("#8", number): "waiting" for number in range(3)}
    made = make_study(rows, states=states, path=tmp_path / "fake-01234567")
    write_runs(made)
    draw(made, THRESHOLDS)
    (figure,) = drawn
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["#10"]


def test_names_are_drawn_as_they_are_and_without_a_warning():
    names = ["$a_{", "_b", "猫", "$x$"]
    with warnings.catch_warnings(), rc_context(drawing.STYLE):
        warnings.simplefilter("error")
        figure, [[axes]] = drawing.grid(1, 1)
        drawing.label_rows(axes, names)
        axes.plot(range(4), range(4), label="$y_")
        axes.set(title=r"$\frac{", xlabel="$z")
        axes.legend()
        drawn = drawing.svg(figure, "names", "names")
    assert all(name in drawn for name in (*names, "$y_", r"$\frac{", "$z"))
