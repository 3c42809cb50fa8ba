"""A split of which no pixel is known: labels are scored, pixels are not, and the protocol says so."""

import numpy as np

from toco.evaluate import EvaluateConfig, evaluate
from toco.evaluate.evaluator import rescore


def test_only_labels_are_scored(method, random_dataset):
    dataset = random_dataset([(20, 30), (16, 16)])
    labels = [dataset.class_labels(0), np.array([1.0, 0.0], np.float32)]
    known = evaluate(method, dataset, EvaluateConfig(size_px=None), "cpu")
    dataset.masks = [np.full_like(mask, 255) for mask in dataset.masks]
    dataset.class_labels = labels.__getitem__
    config = EvaluateConfig(size_px=None)
    evaluation = evaluate(method, dataset, config, "cpu")
    assert evaluation.metrics.keys() <= {"val/label_f1", "val/label_map", "val/patch_similarity_last"}
    assert {"val/label_f1", "val/patch_similarity_last"} <= evaluation.metrics.keys()
    assert evaluation.per_class["seg_iou"] == (None, None, None)
    assert set(evaluation.threshold_curve.cam_miou) == {None}
    assert len(evaluation.pictures) == 2
    assert "no scores of pixels" in evaluation.protocol
    assert "no scores of pixels" not in known.protocol
    again = rescore(evaluation, evaluation.confusions, config.model_copy(update={"background_threshold": 0.4}))
    assert again.metrics == evaluation.metrics
    assert "no scores of pixels" in again.protocol
