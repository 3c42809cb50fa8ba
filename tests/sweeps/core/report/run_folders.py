"""Run folders of made-up trials, with curves, pictures and confusion matrices whose values a test
can compute.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sweeps.core.report.report import make_report
from sweeps.core.report.sections.gallery import GALLERY, Matrix
from sweeps.core.store.study_record import StudyRecord, TrialRecord
from toco.evaluate.confusions import Confusions
from toco.evaluate.pictures import PANELS
from toco.train import records

SIZE = 20
NAMES = ("image", "cam", "aux_cam", "pseudo_label", "prediction", "mask")
STEP = 160


def write_runs(study: StudyRecord, images: Sequence[str] = ("b", "a")) -> None:
    """A run folder for every finished trial: its curves are its first metric times a position."""
    for trial in study.trials:
        if trial.counts:
            write_run(trial, trial.value(study.metrics[0].key) or 0.0)
            for number, image in enumerate(images):
                path = trial.run_dir / f"pictures/step_{STEP:08d}/{image}.png"
                write_picture(
                    path, lambda name, n=number, s=trial.seed: (10 * NAMES.index(name), 40 * n, s)
                )


def write_run(trial: TrialRecord, value: float) -> None:
    """Its metrics reach ``value`` at the last step; its threshold curve is ``value * (1 -
    threshold)``.
    """
    records.write(
        trial.run_dir / "config.json", {"digest": trial.key, "config": trial.entry.config}
    )
    records.write(trial.run_dir / "provenance.json", trial.entry.provenance)
    rows = [
        {
            "step": step,
            "kind": "train",
            "time_s": step / 4,
            "values": {"train/loss_total": 100.0 / step},
        }
        for step in (40, 80, 120, STEP)
    ]
    rows += [
        {
            "step": step,
            "kind": "val",
            "time_s": step / 4,
            "values": {"val/cam_miou": value * step / STEP},
        }
        for step in (80, STEP)
    ]
    (trial.run_dir / "metrics.jsonl").write_text(records.rows_text(rows))
    grid = [0.0, 0.25, 0.5, 0.75]
    curve = {
        "thresholds": grid,
        "cam_miou": [value * (1 - x) for x in grid],
        "aux_cam_miou": [None, *(value * x for x in grid[1:])],
    }
    evaluation = {"step": STEP, "threshold_curve": curve, "patch_similarity": [0.5 * value, value]}
    records.write(trial.run_dir / f"evaluations/step_{STEP:08d}.json", evaluation)


def write_picture(
    path: Path,
    colour: Callable[[str], tuple[int, int, int]],
    names: Sequence[str] = NAMES,
) -> None:
    """Panels of one colour each beside each other, on white; white alone without panels."""
    strip = np.full((SIZE + 8, max(len(names), 1) * (SIZE + 2), 3), 255, np.uint8)
    boxes = {}
    for place, name in enumerate(names):
        left = place * (SIZE + 2)
        strip[4 : 4 + SIZE, left : left + SIZE] = colour(name)
        boxes[name] = [left, 4, left + SIZE, 4 + SIZE]
    text = PngInfo()
    if boxes:
        text.add_text(PANELS, json.dumps(boxes))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip).save(path, pnginfo=text)


def write_confusions(trial: TrialRecord, names: Sequence[str], cam: np.ndarray) -> None:
    """``evaluations/step_*.npz`` with ``cam`` as the matrices of both CAMs, and a perfect
    segmentation.
    """
    num_classes = cam.shape[-1]
    perfect = np.tile(np.eye(num_classes, dtype=np.int32), (len(names), 1, 1))
    empty = np.zeros((num_classes, num_classes - 1, 2), np.int64)
    found = Confusions(
        names=tuple(names),
        class_names=tuple(f"class {number}" for number in range(num_classes)),
        matrices={"seg": perfect, "cam": cam.astype(np.int32), "aux_cam": cam.astype(np.int32)},
        thresholds=np.array([0.5]),
        histograms={"cam": empty, "aux_cam": empty},
    )
    path = trial.run_dir / f"evaluations/step_{STEP:08d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **found.arrays())


def gallery(study: StudyRecord, faults: list[str] | None = None) -> list[Matrix]:
    """The pictures that the gallery shows of a study; ``faults`` gets the sentences about damaged
    files.
    """
    report = make_report(study, sections=(GALLERY,))
    matrices = [matrix for _, card in report.cards.sections for matrix in card.content()]
    if faults is not None:
        faults += report.source.faults
    return matrices
