"""Published numbers of the ToCo paper: tables 4 and 5 and figure 2.

Source: Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023, arXiv
2303.01267. The paper trains one seed for each row and reports no spread. In the authors' own
training, consecutive evaluations after 14 000 iterations differ by up to 1.1 points (decoder) and
0.5 points (CAM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CAM_MIOU, AUX_CAM_MIOU, SEG_MIOU = "val/cam_miou", "val/aux_cam_miou", "val/seg_miou"

SETTING = (
    "PASCAL VOC 2012 val, DeiT-B, 20 000 iterations of 4 images, one seed. CAMs: raw, "
    "ground-truth image labels, threshold 0.5, scales 1, 0.5 and 1.5 with flip, 448 px. "
    "Seg: one scale, 448 px, no CRF."
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the paper about the rows of one table.

    Attributes:
        name: Short name.
        metric: Metric key.
        better: Label of the published row that the claim calls better.
        than: Labels of the published rows that the claim calls worse.
        by: Smallest published advantage of the better row, in percentage points.
        size: Whether the paper's effect is large or small relative to the noise of its training.
    """

    name: str
    metric: str
    better: str
    than: tuple[str, ...]
    by: float
    size: Literal["large", "small"]


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of a published table.

    Attributes:
        label: Label of the row, as printed.
        metrics: Published values as fractions, under the metric keys of this project.
        default: Whether the row is the paper's own choice.
    """

    label: str
    metrics: Mapping[str, float]
    default: bool = False


@dataclass(frozen=True, slots=True)
class Paper:
    """A published table with the setting in which it was measured.

    Attributes:
        source: Place where the table is printed.
        setting: Measurement of the table, as text.
        data: Entry of ``toco.data`` that a study must use for comparable numbers. With other data,
            or with another ``recipe``, a study can only confirm the direction of a claim.
        recipe: Entry of ``toco.recipes`` that a study must use for comparable numbers.
        num_images: Number of validation images that comparable numbers need.
        rows: Rows as printed, in order.
        claims: Claims that a study should confirm or contradict.
    """

    source: str
    setting: str
    rows: tuple[PaperRow, ...]
    claims: tuple[Claim, ...] = ()
    data: str = "voc"
    recipe: str = "voc_deit_b"
    num_images: int = 1449

    def __post_init__(self) -> None:
        metrics = {row.label: row.metrics for row in self.rows}
        for claim in self.claims:
            for label in (claim.better, *claim.than):
                if claim.metric not in metrics.get(label, {}):
                    raise ValueError(
                        f"{claim.name} needs {claim.metric} of {label!r}, "
                        f"which {self.source} lacks."
                    )


def _row(
    label: str, cam: float, aux_cam: float | None, seg: float | None, *, default: bool = False
) -> PaperRow:
    """Convert a row as printed, in percent, to fractions under this project's metric keys."""
    percent = {CAM_MIOU: cam, AUX_CAM_MIOU: aux_cam, SEG_MIOU: seg}
    return PaperRow(
        label,
        {key: round(value / 100, 4) for key, value in percent.items() if value is not None},
        default,
    )


TABLE_4 = Paper(
    source="Ru et al., CVPR 2023, Table 4: components, each row with one more than the row above",
    setting=SETTING,
    rows=(
        _row("cls", 27.8, None, None),
        _row("+ aux cls", 27.9, 53.8, None),
        _row("+ PTC", 62.5, 57.8, None),
        _row("+ CTC", 67.2, 60.7, None),
        _row("+ seg", 69.9, 61.2, 66.6),
        _row("+ reg", 70.5, 62.5, 68.1, default=True),
    ),
    claims=(
        Claim("PTC raises the CAM", CAM_MIOU, "+ PTC", ("+ aux cls",), by=34.6, size="large"),
        Claim("CTC raises the CAM", CAM_MIOU, "+ CTC", ("+ PTC",), by=4.7, size="large"),
        Claim(
            "the segmentation loss raises the CAM",
            CAM_MIOU,
            "+ seg",
            ("+ CTC",),
            by=2.7,
            size="small",
        ),
        Claim(
            "the regularizer raises the CAM", CAM_MIOU, "+ reg", ("+ seg",), by=0.6, size="small"
        ),
    ),
)

TABLE_5A = Paper(
    source="Ru et al., CVPR 2023, Table 5 (a): index of the auxiliary block, counted from 1",
    setting=SETTING,
    rows=(
        _row("#8", 63.5, 48.1, 60.5),
        _row("#9", 67.6, 55.1, 64.8),
        _row("#10", 70.5, 62.5, 68.1, default=True),
        _row("#11", 43.1, 45.2, 40.3),
    ),
    claims=(
        Claim("rises to block #10", CAM_MIOU, "#10", ("#8",), by=7.0, size="large"),
        Claim("collapses at block #11", CAM_MIOU, "#10", ("#11",), by=27.4, size="large"),
        Claim(
            "auxiliary CAM is best at block #10",
            AUX_CAM_MIOU,
            "#10",
            ("#8", "#9", "#11"),
            by=7.4,
            size="large",
        ),
    ),
)

TABLE_5B = Paper(
    source="Ru et al., CVPR 2023, Table 5 (b): side of the local crops",
    setting=SETTING,
    rows=(
        _row("64 px", 68.1, None, 65.5),
        _row("80 px", 69.3, None, 67.3),
        _row("96 px", 70.5, None, 68.1, default=True),
        _row("112 px", 69.4, None, 67.0),
    ),
    claims=(
        Claim(
            "crops of 96 px are best",
            SEG_MIOU,
            "96 px",
            ("64 px", "80 px", "112 px"),
            by=0.8,
            size="small",
        ),
    ),
)

TABLE_5C = Paper(
    source='Ru et al., CVPR 2023, Table 5 (c): "momentum" of the teacher, '
    "the weight of its old value",
    setting=SETTING,
    rows=(
        _row("0", 69.2, None, 66.9),
        _row("0.1", 69.0, None, 67.1),
        _row("0.9", 70.5, None, 68.1, default=True),
        _row("0.99", 68.7, None, 66.6),
    ),
    claims=(
        Claim(
            "a decay of 0.9 is best", SEG_MIOU, "0.9", ("0", "0.1", "0.99"), by=1.0, size="small"
        ),
    ),
)

FIGURE_2 = {
    "without PTC": (
        0.354,
        0.370,
        0.450,
        0.520,
        0.583,
        0.622,
        0.637,
        0.641,
        0.651,
        0.750,
        0.772,
        0.837,
    ),
    "ToCo": (0.335, 0.327, 0.373, 0.398, 0.439, 0.479, 0.499, 0.509, 0.523, 0.626, 0.599, 0.586),
}
"""Mean patch similarity after blocks 1 to 12 of ViT-B on VOC train.

The values are read off the plot, with an uncertainty of 0.005.
"""
