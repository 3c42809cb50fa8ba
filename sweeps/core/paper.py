"""The paper's numbers: Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023,
arXiv 2303.01267, table 5 (a) and figure 2.

One seed everywhere: the paper reports no spread. Inside the authors' own training, consecutive evaluations after 14 000
iterations move by up to 1.1 points (decoder) and 0.5 points (CAM).
"""  # noqa: D205 - the title of the paper does not fit on one line with it

from __future__ import annotations

from sweeps.core.study import Paper, PaperRow

SETTING = (
    "PASCAL VOC 2012 val, DeiT-B, 20 000 iterations of 4 images, one seed. CAMs: raw, ground-truth image labels, "
    "threshold 0.5, scales 1, 0.5 and 1.5 with flip, 448 px. Seg: one scale, 448 px, no CRF."
)


def _row(label: str, cam: float, aux_cam: float, seg: float, *, default: bool = False) -> PaperRow:
    """A row as printed, in percent, turned into fractions under our own keys."""
    percent = {"val/cam_miou": cam, "val/aux_cam_miou": aux_cam, "val/seg_miou": seg}
    return PaperRow(label, {key: round(value / 100, 4) for key, value in percent.items()}, default)


TABLE_5A = Paper(
    source="Ru et al., CVPR 2023, Table 5 (a): index of the auxiliary block, counted from 1",
    setting=SETTING,
    rows=(
        _row("#8", 63.5, 48.1, 60.5),
        _row("#9", 67.6, 55.1, 64.8),
        _row("#10", 70.5, 62.5, 68.1, default=True),
        _row("#11", 43.1, 45.2, 40.3),
    ),
)

FIGURE_2 = {
    "without PTC": (0.354, 0.370, 0.450, 0.520, 0.583, 0.622, 0.637, 0.641, 0.651, 0.750, 0.772, 0.837),
    "ToCo": (0.335, 0.327, 0.373, 0.398, 0.439, 0.479, 0.499, 0.509, 0.523, 0.626, 0.599, 0.586),
}
"""Mean patch similarity after blocks 1 to 12 of ViT-B on VOC train, read off the plot: +-0.005."""
