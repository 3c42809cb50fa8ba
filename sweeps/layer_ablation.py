"""Table 5 (a) of the paper: which block the auxiliary classifier reads.

    python sweeps/layer_ablation.py
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python sweeps/layer_ablation.py

By default the embedded benchmark: 4 blocks x 3 seeds = 12 trainings of at most a minute, two at once on 2 CPU cores.
With ``--recipe voc_deit_b --data VOC2012 --gpus-per-trial 1`` the paper's own setting: 3.7 hours on two A100 for each
training, as the authors' log says. Expected there (mIoU of the CAM on VOC val): 63.5, 67.6, 70.5, 43.1 for blocks #8 to
#11. Blocks are counted from 0 in ``--layers`` and in files, from 1 (as #n) in print, as the paper counts them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import click
import torch

from sweeps.core.command import integers, study_options
from sweeps.core.paper import TABLE_5A
from sweeps.core.study import Factor, Metric, Study
from toco.registry import load
from toco.train.run_config import RunConfig

AUX_BLOCK = "method.aux_block"
PAPER_DEPTH = 12
PAPER_BLOCKS = (7, 8, 9, 10)


def label(block: int) -> str:
    """A 0-based block as the paper prints it.

    >>> label(9)
    '#10'
    """
    return f"#{block + 1}"


STUDY = Study(
    name="layer_ablation",
    title="Table 5 (a): the block of the auxiliary classifier",
    recipe="shapes_nano",
    factors=(Factor(AUX_BLOCK, PAPER_BLOCKS, tuple(map(label, PAPER_BLOCKS))),),
    seeds=(0, 1, 2),
    metrics=(Metric("val/cam_miou", "M"), Metric("val/aux_cam_miou", "M_m"), Metric("val/seg_miou", "seg")),
    paper=TABLE_5A,
    paper_rows={label(block): label(block) for block in PAPER_BLOCKS},
)


def with_blocks(study: Study, layers: tuple[int, ...] | None, depth: int) -> Study:
    """``study`` with these 0-based blocks as rows, by default those that lie as far from the last as the paper's.

    A row stands beside the paper's row at the same distance from the last block: over-smoothing grows towards it.

    Raises:
        ValueError: The backbone of ``depth`` blocks does not have one of them.
    """
    shift = PAPER_DEPTH - depth
    blocks = layers if layers is not None else tuple(block - shift for block in PAPER_BLOCKS)
    outside = [block for block in blocks if not 0 <= block < depth]
    if outside:
        raise ValueError(
            f"The backbone has blocks 0 to {depth - 1}, so the auxiliary classifier cannot read block "
            f"{', '.join(map(str, outside))}. Give others with --layers."
        )
    beside = {label(block): label(block + shift) for block in blocks if block + shift in PAPER_BLOCKS}
    factor = Factor(AUX_BLOCK, blocks, tuple(map(label, blocks)))
    return dataclasses.replace(study, factors=(factor,), paper_rows=beside)


def backbone_depth(config: RunConfig) -> int:
    """Blocks of the backbone, without its weights."""
    module = load("toco.backbones", config.backbone.name)
    with torch.device("meta"):
        depth: int = module.build(config.backbone.model_copy(update={"weights": None})).depth
    return depth


@click.command(help=__doc__)
@click.option("--layers", callback=integers, help="0-based blocks: 7,8,9,10.  [default: the paper's, from the end]")
@study_options
def main(recipe: str, seeds: tuple[int, ...], changes: dict[str, Any], layers: tuple[int, ...] | None) -> Study:
    """The study that the command line asks for."""
    study = dataclasses.replace(STUDY, recipe=recipe, seeds=seeds, changes=changes)
    return with_blocks(study, layers, backbone_depth(study.base()))


if __name__ == "__main__":
    main()
