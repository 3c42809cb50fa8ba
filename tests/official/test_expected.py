"""The authors' numbers, against the sums that the logs and the paper print, and how they are put
beside ours.
"""

import dataclasses
import re

import pytest

from toco.config import replace
from toco.data.coco_format.classes import COCO_CLASSES
from toco.data.files.layout import VOC_CLASSES
from toco.evaluate import Evaluation, ThresholdCurve
from toco.official.expected import compare_with_log, compare_with_table2, expected
from toco.registry import available, load

# The last line of each log: CAM, auxiliary CAM, segmentation.
LOGGED = {
    "voc_deit_b": (70.487, 62.472, 68.097),
    "voc_vit_b": (72.334, 68.352, 69.215),
    "coco_deit_b": (41.934, 30.930, 40.568),
    "coco_vit_b": (43.384, 41.161, 42.409),
}
SCORES = ("cam_iou", "aux_cam_iou", "seg_iou")


@pytest.mark.parametrize("recipe", LOGGED)
def test_means_over_classes_are_those_of_the_logs(recipe):
    theirs = expected(recipe)
    for score, logged in zip(SCORES, LOGGED[recipe], strict=True):
        assert 100 * theirs.miou(score) == pytest.approx(logged, abs=1e-3)


def test_classes_are_those_of_the_data_sets():
    for recipe in LOGGED:
        classes = VOC_CLASSES if recipe.startswith("voc") else COCO_CLASSES
        assert expected(recipe).class_names == ("background", *classes)


def test_some_values():
    voc, coco = expected("voc_deit_b"), expected("coco_vit_b")
    assert voc.per_class["aux_cam_iou"][3] == pytest.approx(0.69576)  # bird
    assert voc.table2 == {"val": (69.8, 1449), "test": (70.5, 1456)}
    assert (coco.num_images, coco.table2) == (5000, {"val": (42.3, 40_137)})


def test_recipes_without_a_log_have_none():
    assert {name for name in available("toco.recipes") if expected(name)} == set(LOGGED)
    assert expected(None) is None


@pytest.mark.parametrize("recipe", LOGGED)
def test_a_recipes_header_has_its_numbers(recipe):
    header = " ".join(load("toco.recipes", recipe).__doc__.split())  # lines wrap anywhere
    cam, aux_cam, seg = (f"{value:.1f}" for value in LOGGED[recipe])
    assert f"CAM {cam}, auxiliary CAM {aux_cam}, segmentation {seg} mIoU" in header
    assert all(f"{number.miou}" in header for number in expected(recipe).table2.values())


def evaluation(recipe, worse=0.0):
    theirs = expected(recipe)
    per_class = {
        score: tuple(value - worse for value in values)
        for score, values in theirs.per_class.items()
    }
    curve = ThresholdCurve((), {})
    return Evaluation(
        20_000,
        "",
        {},
        theirs.class_names,
        {**per_class, "cam_recall": per_class["cam_iou"]},
        curve,
        (),
    )


@pytest.fixture
def config():
    return load("toco.recipes", "voc_deit_b").recipe().resolved()


def test_ours_stand_beside_theirs(config):
    text = compare_with_log(
        evaluation("voc_deit_b", worse=0.01), "voc_deit_b", config, 1449, 20_000
    )
    lines = text.splitlines()
    bird = next(line for line in lines if line.startswith("bird")).split()
    assert bird == ["bird", "61.0", "62.0", "-1.0", "68.6", "69.6", "-1.0", "65.5", "66.5", "-1.0"]
    assert lines[-2].split() == [
        "mean",
        "69.5",
        "70.5",
        "-1.0",
        "61.5",
        "62.5",
        "-1.0",
        "67.1",
        "68.1",
        "-1.0",
    ]
    assert (
        lines[-1]
        == "The numbers are comparable: the same images, protocol and settings (one seed each)."
    )


def test_a_class_without_pixels_has_no_difference(config):
    ours = evaluation("voc_deit_b")
    seg = (None, *ours.per_class["seg_iou"][1:])
    ours = dataclasses.replace(ours, per_class={**ours.per_class, "seg_iou": seg})
    text = compare_with_log(ours, "voc_deit_b", config, 1449, 20_000)
    assert next(line for line in text.splitlines() if line.startswith("background")).split()[
        -3:
    ] == ["-", "89.3", "-"]


@pytest.mark.parametrize(
    ("changes", "num_images", "step", "reason"),
    [
        ({}, 461, 20_000, "461 images were evaluated instead of 1449"),
        ({"evaluate.max_images": 100}, 1449, 20_000, "100 images were evaluated instead of 1449"),
        ({"evaluate.size_px": 224}, 1449, 20_000, r"not that of the log \(evaluate.size_px\)"),
        (
            {"evaluate.background_threshold": 0.4},
            1449,
            20_000,
            r"\(evaluate.background_threshold\)",
        ),
        ({}, 1449, 2000, "the checkpoint is of step 2000 and not 20000"),
        (
            {"method.temperature": 0.3},
            1449,
            20_000,
            r"trained with other settings \(method.temperature\)",
        ),
        ({"data.train_list": "train"}, 1449, 20_000, r"other settings \(data.train_list\)"),
    ],
)
def test_what_makes_them_not_comparable_is_said(config, changes, num_images, step, reason):
    text = compare_with_log(
        evaluation("voc_deit_b"), "voc_deit_b", replace(config, changes), num_images, step
    )
    (sentence,) = text.splitlines()[-1:]
    assert sentence.startswith("The numbers are not comparable: ")
    assert re.search(reason, sentence)


def test_the_machine_and_the_place_of_the_data_do_not_matter(config):
    moved = {
        "data.root": "elsewhere",
        "seed": 3,
        "backbone.weights": "deit.pth",
        "device": "cpu",
        "method.dense_energy.filter_name": "exact",
        "evaluate.curve_step": 0.1,
        "evaluate.batch_size": 1,
    }
    text = compare_with_log(
        evaluation("voc_deit_b"), "voc_deit_b", replace(config, moved), 1449, 20_000
    )
    assert "are comparable" in text.splitlines()[-1]


def test_other_classes_and_recipes_have_nothing_beside_them(config):
    ours = evaluation("voc_deit_b")
    assert compare_with_log(ours, "shapes_nano", config, 1449, 20_000) is None
    assert compare_with_log(ours, None, config, 1449, 20_000) is None
    assert compare_with_log(ours, "coco_deit_b", config, 1449, 20_000) is None


def test_one_number_of_table_2(config):
    sentence = compare_with_table2(
        0.687, "voc_deit_b", "val", config, config.inference, 1449, 20_000
    )
    assert sentence.startswith(
        "Table 2 of the paper has 69.8 mIoU for voc_deit_b on val; this is 68.7 (-1.1)."
    )
    assert sentence.endswith(
        "are comparable: the same images, protocol and settings (one seed each)."
    )
    plain = config.inference.model_copy(update={"crf": None, "flip": False})
    changed = compare_with_table2(0.687, "voc_deit_b", "test", config, plain, 1449, 20_000)
    assert "1449 images were evaluated instead of 1456" in changed
    assert "the images were segmented in another way (flip, crf)." in changed
    assert (
        compare_with_table2(0.4, "coco_vit_b", "test", config, config.inference, 1, 20_000) is None
    )
    assert (
        compare_with_table2(0.4, "shapes_nano", "val", config, config.inference, 1, 20_000) is None
    )


def test_another_training_is_not_that_of_table_2(config):
    trained = replace(config, {"method.temperature": 0.3, "seed": 2, "evaluate.size_px": 224})
    text = compare_with_table2(0.5, "voc_deit_b", "val", trained, config.inference, 1449, 500)
    assert text.endswith(
        "not comparable: the checkpoint is of step 500 and not 20000; it was trained with other "
        "settings "
        "(method.temperature)."
    )


def test_table_2_of_coco_is_of_all_its_validation_images_and_the_log_of_some():
    config = replace(
        load("toco.recipes", "coco_vit_b").recipe().resolved(), {"data.val_list": None}
    )
    text = compare_with_table2(0.423, "coco_vit_b", "val", config, config.inference, 40_137, 80_000)
    assert "are comparable" in text
    text = compare_with_log(evaluation("coco_vit_b"), "coco_vit_b", config, 40_137, 80_000)
    assert (
        "40137 images were evaluated instead of 5000; the protocol is not that of the log "
        "(data.val_list)." in text
    )
