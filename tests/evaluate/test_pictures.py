import dataclasses
import json
import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from toco.evaluate.pictures import (
    PANELS,
    draw_panel,
    draw_similarity_curve,
    draw_threshold_curve,
    save_figure,
    save_panels,
    voc_palette,
)
from toco.evaluate.report import Picture, ThresholdCurve

NAMES = ("background", "cat", "dog")


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    label = np.array([[0, 1, 255], [0, 2, 2]])
    return Picture(
        name="2007/a b",
        class_labels=np.array([0, 1], np.float32),
        image=rng.integers(0, 256, (2, 3, 3), dtype=np.uint8),
        cams={
            "cam": np.array([[0, 0.25, 0.5], [0.6, 0.8, 1]], np.float32),
            "aux_cam": np.zeros((2, 3), np.float32),
        },
        pseudo_label=label,
        prediction=np.array([[0, 0, 0], [0, 2, 2]]),
        mask=np.array([[0, 0, 0], [2, 2, 2]], np.uint8),
    )


def test_the_palette_is_that_of_voc():
    # The first colours of the development kit's table, and the cream of void.
    assert voc_palette()[:6].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
    ]
    assert voc_palette()[20].tolist() == [0, 64, 128]
    assert voc_palette()[255].tolist() == [224, 224, 192]
    assert len(np.unique(voc_palette(), axis=0)) == 256


def test_a_panel_shows_the_six_maps_in_order_with_a_legend_of_what_is_there(picture):
    figure = draw_panel(picture, NAMES, background_threshold=0.5)
    image, cam, aux_cam, pseudo_label, prediction, mask = figure.axes[:6]
    titles = [axes.get_title() for axes in figure.axes[:6]]
    assert titles == [
        "image",
        "CAM (line at 0.5)",
        "auxiliary CAM (line at 0.5)",
        "pseudo label",
        "prediction",
        "ground truth",
    ]
    assert np.array_equal(image.images[0].get_array(), picture.image)
    assert np.array_equal(cam.images[1].get_array(), picture.cams["cam"])
    assert np.array_equal(aux_cam.images[1].get_array(), picture.cams["aux_cam"])
    assert np.array_equal(pseudo_label.images[0].get_array(), voc_palette()[picture.pseudo_label])
    assert np.array_equal(prediction.images[0].get_array(), voc_palette()[picture.prediction])
    assert np.array_equal(mask.images[0].get_array(), voc_palette()[picture.mask])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *NAMES,
        "void / uncertain",
    ]
    assert figure.get_suptitle() == "2007/a b: dog"


def test_a_method_without_a_further_cam_and_without_a_decoder_has_four_panels(picture):
    plain = dataclasses.replace(picture, cams={"cam": picture.cams["cam"]}, prediction=None)
    figure = draw_panel(plain, NAMES, background_threshold=0.5)
    titles = [axes.get_title() for axes in figure.axes if axes.get_gid()]
    assert titles == ["image", "CAM (line at 0.5)", "pseudo label", "ground truth"]


def test_cams_of_every_picture_share_one_scale(picture):
    figure = draw_panel(picture, NAMES, background_threshold=0.5)
    assert [axes.images[1].get_clim() for axes in figure.axes[1:3]] == [(0, 1), (0, 1)]


def test_panels_are_written_under_safe_names(picture, tmp_path):
    (path,) = save_panels([picture], NAMES, 0.5, tmp_path / "pictures")
    assert path == tmp_path / "pictures" / "2007_a_b.png"
    with Image.open(path) as image:
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_the_similarity_curve_counts_blocks_from_one():
    figure = draw_similarity_curve({"classification": [0.2, 0.4, 0.8], "PTC": [0.2, None, 0.5]})
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["classification", "PTC"]
    assert lines[0].get_xdata().tolist() == [1, 2, 3]
    np.testing.assert_array_equal(lines[1].get_ydata(), [0.2, np.nan, 0.5])


def test_the_threshold_curve_marks_the_best_thresholds():
    curve = ThresholdCurve((0.0, 0.25, 0.5), {"cam": (0.1, 0.456, 0.3), "aux_cam": (0.4, 0.2, 0.1)})
    figure = draw_threshold_curve(curve, background_threshold=0.5)
    lines = figure.axes[0].get_lines()
    assert lines[0].get_ydata().tolist() == pytest.approx([10, 45.6, 30])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "CAM: best 45.6 at 0.25",
        "auxiliary CAM: best 40.0 at 0.00",
        "fixed threshold 0.5",
    ]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in lines[1:4:2]] == [
        ([0.25], pytest.approx([45.6])),
        ([0.0], pytest.approx([40.0])),
    ]


def test_curves_without_a_defined_value_can_be_drawn():
    figure = draw_threshold_curve(
        ThresholdCurve((0.0,), {"cam": (None,), "aux_cam": (None,)}), background_threshold=0.5
    )
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["CAM", "auxiliary CAM", "fixed threshold 0.5"]


def test_a_picture_says_where_its_panels_are(picture, tmp_path):
    (path,) = save_panels([picture], NAMES, 0.5, tmp_path)
    with Image.open(path) as opened:
        boxes, image = json.loads(opened.text[PANELS]), opened.convert("RGB")
    assert list(boxes) == ["image", "cam", "aux_cam", "pseudo_label", "prediction", "mask"]
    for name, shown in (("image", picture.image), ("mask", voc_palette()[picture.mask])):
        # One pixel in the middle of each of the 2 x 3 cells.
        left, top, right, bottom = boxes[name]
        cut = np.asarray(image.crop((left, top, right, bottom)))
        height, width = cut.shape[:2]
        rows, columns = [height // 4, 3 * height // 4], [width // 6, width // 2, 5 * width // 6]
        assert np.array_equal(cut[np.ix_(rows, columns)], shown)


ODD_NAMES = ["$", "$a_b$ 5", r"$\frac{1$", "_hidden", "猫と犬", "\x1b[31mred", "a\nb", "\udcff"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_drawn_as_they_are(picture, tmp_path, name):
    odd = dataclasses.replace(picture, name=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (path,) = save_panels([odd], ("background", name, name), 0.5, tmp_path)
        assert save_figure(
            lambda: draw_similarity_curve({name: [0.2, 0.4]}), tmp_path / "curve.png"
        )
    with Image.open(path) as opened:
        assert opened.width > 1000
    figure = draw_panel(odd, ("background", name, name), 0.5)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["background", shown[1], shown[1], "void / uncertain"]
    assert figure.get_suptitle() == f"{shown[1]}: {shown[1]}"
    assert shown[1].isprintable()
    assert shown[1] == name or not name.isprintable()
    assert (
        draw_similarity_curve({name: [0.2]}).axes[0].get_legend().get_texts()[0].get_text()
        == shown[1]
    )


def test_pictures_of_similar_names_do_not_overwrite_each_other(picture, tmp_path):
    names = ["a b", "a_b", "猫", "犬", "x" * 250, "x" * 251]
    paths = save_panels(
        [dataclasses.replace(picture, name=name) for name in names], NAMES, 0.5, tmp_path
    )
    assert len(set(paths)) == len(list(tmp_path.iterdir())) == 6
    assert paths == save_panels(
        [dataclasses.replace(picture, name=name) for name in names], NAMES, 0.5, tmp_path
    )


def test_a_picture_that_cannot_be_drawn_or_written_is_a_warning_with_its_file(
    picture, tmp_path, caplog
):
    (tmp_path / "taken.png").mkdir()
    beyond = dataclasses.replace(picture, name="beyond", prediction=np.full((2, 3), 7))
    pictures = [
        beyond,
        dataclasses.replace(picture, name="taken"),
        dataclasses.replace(picture, name="good"),
    ]
    with caplog.at_level(logging.WARNING):
        paths = save_panels(pictures, NAMES, 0.5, tmp_path)
    assert paths == [tmp_path / "good.png"]
    left_out = [record.getMessage() for record in caplog.records]
    assert [
        f"The picture {tmp_path / name} is left out" in text
        for name, text in zip(("beyond.png", "taken.png"), left_out, strict=True)
    ] == [True, True]
    assert not list(tmp_path.glob(".*.partial"))
