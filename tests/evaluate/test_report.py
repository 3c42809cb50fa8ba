import json
from dataclasses import replace

import pytest

from toco.evaluate.config import EvaluateConfig
from toco.evaluate.evaluator import evaluate
from toco.evaluate.report import Evaluation, ThresholdCurve

EVALUATION = Evaluation(
    step=150,
    protocol="in words",
    metrics={"val/cam_miou": 0.5},
    class_names=("background", "cat", "dog"),
    per_class={"seg_iou": (0.75, 0.25, None), "cam_iou": (1.0, 0.1234, None)},
    threshold_curve=ThresholdCurve(
        thresholds=(0.0, 0.5), miou={"cam": (0.25, 0.5), "aux_cam": (None, 0.125)}
    ),
    patch_similarity=(0.5, 0.75),
)


def test_the_format_of_the_file():
    assert json.loads(EVALUATION.to_json()) == {
        "format_version": 1,
        "step": 150,
        "protocol": "in words",
        "metrics": {"val/cam_miou": 0.5},
        "class_names": ["background", "cat", "dog"],
        "per_class": {"seg_iou": [0.75, 0.25, None], "cam_iou": [1.0, 0.1234, None]},
        "threshold_curve": {
            "thresholds": [0.0, 0.5],
            "cam_miou": [0.25, 0.5],
            "aux_cam_miou": [None, 0.125],
        },
        "patch_similarity": [0.5, 0.75],
    }


def test_reading_gives_back_what_was_written(method, random_dataset):
    assert Evaluation.from_json(EVALUATION.to_json()) == EVALUATION
    config = EvaluateConfig(size_px=16)
    real = evaluate(method, random_dataset([(16, 16), (9, 20)]), config, "cpu", step=7)
    assert real.step == 7
    assert len(real.pictures) == 2
    assert Evaluation.from_json(real.to_json()) == real


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 2}', "format version 2; this program reads 1"),
        ("{}", "not an evaluation"),
        ("[1]", "not an evaluation"),
        ('{"format_version": 1, "step": 3}', "'protocol'"),
        ("{", "Expecting"),
    ],
)
def test_another_file_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Evaluation.from_json(text)


def test_the_table_is_in_percent_with_means_over_the_present_classes():
    assert EVALUATION.table() == "\n".join(
        [
            "class         segmentation IoU    CAM IoU",
            "----------  ------------------  ---------",
            "background                75.0      100.0",
            "cat                       25.0       12.3",
            "dog                          -          -",
            "----------  ------------------  ---------",
            "mean                      50.0       56.2",
        ]
    )


def test_a_number_that_json_cannot_hold_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        replace(EVALUATION, metrics={"val/cam_miou": float("nan")}).to_json()


def test_names_from_outside_are_printed_with_their_control_characters_escaped():
    table = replace(EVALUATION, class_names=("background", "\x1b[31mred", "two\nlines")).table()
    assert "\\x1b[31mred" in table
    assert "two\\nlines" in table
    assert "\x1b" not in table
