"""A split of which no pixel is known: labels are scored, pixels are not,
and the protocol says so.
"""

import numpy as np

from toco.evaluate import EvaluateConfig
from toco.evaluate.evaluator import evaluate, rescore


def test_only_labels_are_scored(method, random_dataset):
    dataset = random_dataset([(20, 30), (16, 16)])
    labels = [dataset.class_labels(0), np.array([1.0, 0.0], np.float32)]
    known = evaluate(method, dataset, EvaluateConfig(size_px=None), "cpu")
    dataset.masks = [np.full_like(mask, 255) for mask in dataset.masks]
    dataset.class_labels = labels.__getitem__
    config = EvaluateConfig(size_px=None)
    evaluation = evaluate(method, dataset, config, "cpu")
    assert evaluation.metrics.keys() <= {
        "val/label_f1",
        "val/label_map",
        "val/patch_similarity_last",
    }
    assert {"val/label_f1", "val/patch_similarity_last"} <= evaluation.metrics.keys()
    assert evaluation.per_class["seg_iou"] == (None, None, None)
    assert set(evaluation.threshold_curve.miou["cam"]) == {None}
    assert len(evaluation.pictures) == 2
    assert "no scores of pixels" in evaluation.protocol
    assert "no scores of pixels" not in known.protocol
    again = rescore(
        evaluation, evaluation.confusions, config.model_copy(update={"background_threshold": 0.4})
    )
    assert again.metrics == evaluation.metrics
    assert "no scores of pixels" in again.protocol


def test_it_is_said_for_how_many_classes_there_is_ground_truth(method, random_dataset):
    dataset = random_dataset([(20, 30), (16, 16)])
    config = EvaluateConfig(size_px=None)
    dataset.masks = [np.where(mask == 255, 255, 1).astype(np.uint8) for mask in dataset.masks]
    one = evaluate(method, dataset, config, "cpu")
    assert one.coverage() == "The masks of the split show 1 of 2 foreground classes."
    dataset.masks = [np.where(mask == 255, 255, 0).astype(np.uint8) for mask in dataset.masks]
    none = evaluate(method, dataset, config, "cpu")
    assert none.coverage() == (
        "The masks of the split show 0 of 2 foreground classes: scores of pixels are those of the "
        "background alone."
    )
    assert none.metrics["val/seg_miou"] == none.per_class["seg_iou"][0]
    for evaluation in (one, none):
        assert evaluation.protocol.endswith(f" {evaluation.coverage()}")
    again = rescore(none, none.confusions, config.model_copy(update={"background_threshold": 0.4}))
    assert again.coverage() == none.coverage()
    assert again.protocol.endswith(none.coverage())
