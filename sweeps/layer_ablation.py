"""Table 5 (a) of the paper: the block that the auxiliary classifier reads.

    python -m sweeps run layer_ablation
    python -m sweeps run layer_ablation --layers 2,5,8,11
    python -m sweeps run layer_ablation --recipe voc_deit_b --data VOC2012 --gpus-per-trial 1

Default: the embedded benchmark. 4 blocks and the A/A row; three claims of the paper are tested
after 3, 5, 7 and 10 seeds. These are 15 to 43 trainings of half a minute on one core, about 5
minutes on two cores for the first 15. Trainings of table5 in the same storage are used.

Expected on the embedded benchmark, after 27 trainings (mIoU in percent, mean of 5, 5, 7 and 7 seeds
whose standard deviation is 0.6 to 3.3): CAM 40.1, 48.1, 48.4, 42.8 and auxiliary CAM 34.4, 48.0,
51.8, 41.5 for blocks #8 to #11. All three claims are shown: #10 is 8.3 points of CAM above #8 and
5.5 above #11, and its auxiliary CAM is the best by 4.1 points.

With ``voc_deit_b``, the paper's own setting: 3.7 hours on two A100 for each training, according to
the authors' log. The seeds are 0, 1, 2 unless ``--sequential`` is given. Expected there (mIoU of
the CAM on VOC val): 63.5, 67.6, 70.5, 43.1 for blocks #8 to #11.

``--layers`` sets other blocks. Blocks are counted from 0 in ``--layers`` and in files. Reports
count them from 1 (as #n), like the paper.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from sweeps.core.commands.command import integers, study_command
from sweeps.core.design.designs import Declared, OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU, TABLE_5A
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study
from toco.backbones import Dimensions
from toco.registry import load

if TYPE_CHECKING:
    from toco.train.run_config import RunConfig

AUX_BLOCK = "method.aux_block"
# Blocks of ViT-B, the blocks that the paper compares, and the one that it uses, counted from 0.
PAPER_DEPTH = 12
PAPER_BLOCKS = (7, 8, 9, 10)
PAPER_DEFAULT = 9


def label(block: int) -> str:
    """Format a 0-based block as the paper prints it.

    >>> label(9)
    '#10'
    """
    return f"#{block + 1}"


def aux_block(
    depth: int,
    layers: tuple[int, ...] | None = None,
    title: str = "block of the auxiliary classifier",
) -> tuple[Factor, Declared]:
    """Make the factor of the auxiliary classifier's block, with its declarations.

    By default the blocks have the same distances from the last block as the paper's blocks, because
    over-smoothing grows towards the last block. A row corresponds to the published row at the same
    distance. The base is the block at the distance of the paper's default, or else the first block.

    Args:
        depth: Number of blocks of the backbone.
        layers: 0-based blocks; ``None`` for the default.
        title: Title of the factor.

    Raises:
        ValueError: The backbone lacks one of the blocks.
    """
    shift = PAPER_DEPTH - depth
    blocks = layers if layers is not None else tuple(block - shift for block in PAPER_BLOCKS)
    outside = [block for block in blocks if not 0 <= block < depth]
    if outside:
        raise ValueError(
            f"The backbone has blocks 0 to {depth - 1}, "
            "so the auxiliary classifier cannot read block "
            f"{', '.join(map(str, outside))}. Give others with --layers of layer_ablation."
        )
    base = PAPER_DEFAULT - shift if PAPER_DEFAULT - shift in blocks else None
    factor = Factor(AUX_BLOCK, blocks, base, tuple(map(label, blocks)), title)
    published_labels = {
        label(block): label(block + shift) for block in blocks if block + shift in PAPER_BLOCKS
    }
    return factor, Declared((CAM_MIOU, AUX_CAM_MIOU), TABLE_5A, published_labels)


def design(depth: int, layers: tuple[int, ...] | None = None) -> OneFactor:
    """Make the design: the block of the auxiliary classifier is the only factor."""
    factor, declared = aux_block(depth, layers)
    return OneFactor((factor,), {AUX_BLOCK: declared})


def dimensions(config: RunConfig) -> Dimensions:
    """Return the dimensions of the backbone: number of blocks and size of a patch.

    They come from the backbone's settings, or else from a network on the meta device, which has no
    memory for weights.
    """
    from_settings: Dimensions | None = config.backbone.dimensions()
    if from_settings is not None:
        return from_settings
    import torch  # only here, because the import takes seconds

    module = load("toco.backbones", config.backbone.name)
    with torch.device("meta"):
        backbone = module.build(config.backbone.model_copy(update={"weights": None}))
    return Dimensions(backbone.depth, backbone.patch_size_px)


STUDY = Study(
    name="layer_ablation",
    title="Table 5 (a): the block of the auxiliary classifier",
    recipe="shapes_nano",
    design=design(PAPER_DEPTH),
    seeds=Sequential(),
    metrics=(Metric(CAM_MIOU, "M"), Metric(AUX_CAM_MIOU, "M_m"), Metric(SEG_MIOU, "seg")),
    purpose="direction",
)


def for_recipe(study: Study, layers: tuple[int, ...] | None = None) -> Study:
    """Adapt the study to its recipe's backbone.

    Args:
        study: The study.
        layers: 0-based blocks; ``None`` for the blocks that match the paper's.
    """
    return dataclasses.replace(study, design=design(dimensions(study.base()).depth, layers))


main = study_command(
    STUDY,
    __doc__,
    adapt=for_recipe,
    options=[
        click.option(
            "--layers",
            callback=integers,
            help="0-based blocks: 7,8,9,10.  [default: the paper's, from the end]",
        )
    ],
)

if __name__ == "__main__":
    main()
