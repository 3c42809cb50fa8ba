import base64
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sweeps.core.design.study import BASE_AGAIN
from sweeps.core.report.markup import templates
from sweeps.core.report.sections import gallery as gallery_module
from sweeps.core.report.sections.gallery import GALLERY, MAX_WIDTH_PX, data_uri, image_iou
from tests.sweeps.core.records import make_study
from tests.sweeps.core.report.run_folders import (
    SIZE,
    STEP,
    gallery,
    write_confusions,
    write_picture,
    write_runs,
)

# Image "a": class 0 is 2 of 2 + 1 pixels right, class 1 is 1 of 2; image "b": class 0 alone, all of
# it right.
CONFUSIONS = np.array([[[2, 0], [1, 1]], [[4, 0], [0, 0]]])


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


@pytest.fixture
def study(tmp_path: Path):
    """The second row's first trial failed, so that seed 1 is the place with most pictures."""
    values = {"#10": (0.6, 0.6), "#8": (0.5, 0.5), BASE_AGAIN: (0.6, 0.6)}
    made = make_study(values, path=tmp_path / "fake-01234567", states={("#8", 0): "failed"})
    write_runs(made)
    return made


def test_iou_of_an_image_is_over_the_classes_that_it_shows():
    assert image_iou(CONFUSIONS).tolist() == pytest.approx([(2 / 3 + 1 / 2) / 2, 1.0])
    assert np.isnan(image_iou(np.zeros((1, 2, 2), int))).all()


def test_images_down_rows_across(study):
    (matrix,) = gallery(study)
    columns = [(column.label, column.seed, column.step) for column in matrix.block.columns]
    assert columns == [("#10", 1, STEP), ("#8", 1, STEP)]
    assert matrix.block.left_out == 0
    assert [line.name for line in matrix.lines] == ["a", "b"]
    assert list(matrix.maps) == ["cam", "aux_cam", "pseudo_label", "prediction"]


def test_a_map_is_cut_out_of_its_picture(study):
    line = gallery(study)[0].lines[
        0
    ]  # "a" was written second: its green is 40, and its blue the seed
    for name, red in (("cam", 10), ("prediction", 40)):
        picture = decoded(line.maps[name][0].uri)
        assert picture.size == (SIZE, SIZE)
        assert np.abs(np.asarray(picture, int) - (red, 40, 1)).max() <= 6  # WebP is not exact
    image, mask = (np.asarray(decoded(uri), int) for uri in line.shared)
    assert np.abs(image - (0, 40, 1)).max() <= 6
    assert np.abs(mask - (50, 40, 1)).max() <= 6


def test_the_iou_under_a_map_is_of_that_image_and_row(study):
    trial = study.trials_by_cell[0][1]
    write_confusions(trial, ["a", "b"], CONFUSIONS)
    first, second = gallery(study)[0].lines
    assert first.maps["cam"][0].iou == pytest.approx(7 / 12)
    assert second.maps["cam"][0].iou == pytest.approx(1.0)
    assert first.maps["prediction"][0].iou == pytest.approx(1.0)
    assert first.maps["pseudo_label"][0].iou is None
    assert first.maps["cam"][1].iou is None  # the other row has no matrices


def test_an_image_whose_name_is_no_file_name(tmp_path: Path):
    study = make_study({"#10": (0.6,)}, path=tmp_path / "fake-01234567")
    write_runs(study, images=["x_1"])
    write_confusions(study.trials_by_cell[0][0], ["x/1"], CONFUSIONS[:1])
    assert gallery(study)[0].lines[0].maps["cam"][0].iou == pytest.approx(7 / 12)


def test_maps_that_a_rows_method_does_not_make_stay_empty(study):
    for path in study.trials_by_cell[1][1].run_dir.glob("pictures/*/*.png"):
        write_picture(
            path, lambda _: (1, 2, 3), names=("image", "cam", "walked_cam", "pseudo_label", "mask")
        )
    (matrix,) = gallery(study)
    assert matrix.maps == {
        "cam": "CAM",
        "aux_cam": "auxiliary CAM",
        "walked_cam": "walked CAM",
        "pseudo_label": "pseudo label",
        "prediction": "prediction",
    }
    line = matrix.lines[0]
    made = {
        name: tuple(shown.uri is not None for shown in columns)
        for name, columns in line.maps.items()
    }
    assert made["cam"] == made["pseudo_label"] == (True, True)
    assert made["aux_cam"] == made["prediction"] == (True, False)
    assert made["walked_cam"] == (False, True)
    assert not any(shown.is_damaged for columns in line.maps.values() for shown in columns)
    page = (
        templates()
        .get_template("gallery.html.j2")
        .render(part=SimpleNamespace(section=GALLERY, content=[matrix]))
    )
    assert (
        '.matrix:has(input[value="walked_cam"]:checked) .map.walked_cam { display: block; }' in page
    )


@pytest.mark.parametrize("names", [("image", "cam", '"]{}', "mask"), ()])
def test_a_picture_whose_panels_have_no_names_of_maps_is_damaged(study, names):
    path = next(study.trials_by_cell[1][1].run_dir.glob("pictures/*/a.png"))
    write_picture(path, lambda _: (1, 2, 3), names=names)
    faults = []
    assert gallery(study, faults)[0].lines[0].maps["cam"][1].is_damaged
    assert "its picture is left out" in faults[0]


def test_rows_beyond_the_last_column_are_counted(study, monkeypatch):
    monkeypatch.setattr(gallery_module, "MAX_COLUMNS", 1)
    (matrix,) = gallery(study)
    assert [column.label for column in matrix.block.columns] == ["#10"]
    assert matrix.block.left_out == 1


def test_only_images_that_all_rows_have(study):
    for path in study.trials_by_cell[1][1].run_dir.glob("pictures/*/a.png"):
        path.unlink()
    assert [line.name for line in gallery(study)[0].lines] == ["b"]


def test_no_pictures_no_gallery(tmp_path: Path):
    assert gallery(make_study({"#10": (0.6,)}, path=tmp_path / "fake-01234567")) == []


def test_a_wide_picture_is_scaled_down():
    assert decoded(data_uri(Image.new("RGB", (4 * MAX_WIDTH_PX, 100)))).size == (MAX_WIDTH_PX, 25)
