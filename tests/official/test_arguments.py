"""Official command lines as recipes with settings."""

import itertools
import shlex

import pytest
from click.testing import CliRunner

from toco.__main__ import main
from toco.config import parse_assignments, replace
from toco.official.arguments import translate
from toco.recipes import coco_deit_b, coco_vit_b, voc_deit_b, voc_vit_b

LAUNCH = (
    "CUDA_VISIBLE_DEVICES=0,1 python -m torch.distributed.launch --nproc_per_node={} "
    "--master_port=29501 "
)
VOC = LAUNCH.format(2) + "scripts/dist_train_voc_seg_neg.py --work_dir out "
COCO = LAUNCH.format(4) + "scripts/dist_train_coco_seg_neg.py --work_dir out "
DEIT, VIT = "--backbone deit_base_patch16_224 ", "--backbone vit_base_patch16_224 "
# All values that the authors' logs print.
LOGGED = (
    "--betas 0.9 0.999 --crop_size 448 --high_thre {} --low_thre 0.25 --bkg_thre {} --cam_scales "
    "1.0 0.5 1.5 "
    "--lr 6e-05 --local_crop_size 96 --power 0.9 --scales 0.5 2 --seed 0 --spg 2 --temp 0.5 "
    "--warmup_iters 1500 "
    "--w_reg 0.05 --warmup_lr 1e-06 --wt_decay 0.01 --max_iters {} --eval_iters {} --train_set {} "
    "--val_set {} "
)
VOC_LOG = LOGGED.format(0.7, 0.5, 20000, 2000, "train_aug", "val") + (
    "--aux_layer -3 --momentum 0.9 --w_ctc 0.5 --w_ptc 0.2 --w_seg 0.1 "
)
COCO_LOG = LOGGED.format(0.65, 0.45, 80000, 4000, "train", "val_part")
START = {"method.ptc.start_step": 12_001, "method.ctc.start_step": 12_001}


def of(line):
    return translate(shlex.split(line))


@pytest.mark.parametrize(
    ("line", "recipe", "settings"),
    [
        (VOC + DEIT, "voc_deit_b", {}),
        (VOC + DEIT + VOC_LOG, "voc_deit_b", {}),
        (VOC + VIT + VOC_LOG, "voc_vit_b", {}),
        (COCO + VIT, "coco_vit_b", {}),
        (COCO + VIT + COCO_LOG, "coco_vit_b", {}),
        (COCO + DEIT + COCO_LOG, "coco_deit_b", START),
    ],
)
def test_the_authors_commands_are_the_recipes(line, recipe, settings):
    translation = of(line)
    assert (translation.recipe, translation.settings, translation.run_dir) == (
        recipe,
        settings,
        "out",
    )


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ("--temp 0.3", {"method.temperature": 0.3}),
        ("--temp=0.3 --temp 0.4", {"method.temperature": 0.4}),
        ("--momentum 0.99", {"method.ema_decay": 0.99}),
        ("--aux_layer -5", {"method.aux_block": 7}),
        ("--aux_layer 8", {"method.aux_block": 8}),
        ("--w_ptc 0 --w_ctc 1", {"method.ptc.weight": 0.0, "method.ctc.weight": 1.0}),
        ("--w_seg .2 --w_reg .1", {"method.segmentation.weight": 0.2, "method.energy.weight": 0.1}),
        (
            "--bkg_thre .4 --high_thre .8",
            {"evaluate.background_threshold": 0.4, "method.high_threshold": 0.8},
        ),
        ("--low_thre .2", {"method.low_threshold": 0.2}),
        (
            "--warmup_lr 1e-4 --warmup_iters 100",
            {"optim.warmup_ratio": 1e-4, "optim.warmup_steps": 100},
        ),
        (
            "--cam_scales '(1.0, 0.5)'",
            {"method.cam_scales": [1.0, 0.5], "evaluate.cam_scales": [1.0, 0.5]},
        ),
        ("--scales 0.8 1.2", {"views.rescale": [0.8, 1.2]}),
        ("--local_crop 64", {"method.local_crop_size_px": 64}),
        ("--spg 4", {"batch_size": 8, "method.loss_group_size": 4}),
        ("--max_iters 10000 --seed 7", {"num_steps": 10_000, "seed": 7}),
        ("--train_set train --data_folder VOC", {"data.train_list": "train", "data.root": "VOC"}),
        (
            "--lr 1e-4 --wt_decay 0 --power 1",
            {"optim.lr": 1e-4, "optim.weight_decay": 0.0, "optim.power": 1.0},
        ),
    ],
)
def test_what_differs_from_the_recipe_is_set(flags, settings):
    assert of(VOC + DEIT + flags).settings == settings


def test_the_number_of_processes_makes_the_batch():
    launched = "torchrun --nnodes=2 --nproc-per-node 4 scripts/dist_train_voc_seg_neg.py " + DEIT
    assert of(launched).settings == {"batch_size": 16}
    assert of(
        "python -m torch.distributed.launch scripts/dist_train_voc_seg_neg.py " + DEIT
    ).settings == {"batch_size": 2}
    assert of("scripts/dist_train_coco_seg_neg.py " + VIT).settings == {}


def test_the_printed_command_makes_the_same_config():
    line = VOC + DEIT + "--temp 0.3 --cam_scales 1 0.5 --data_folder 'my data'"
    done = CliRunner().invoke(main, ["from-official-args", "--", *shlex.split(line)])
    assert done.exit_code == 0, done.output
    words = shlex.split(done.output.splitlines()[0])
    assert words[:5] == ["python", "-m", "toco", "train", "voc_deit_b"]
    assert words[-2:] == ["--run-dir", "out"]
    assigned = parse_assignments(
        word for before, word in itertools.pairwise(words) if before == "--set"
    )
    printed = replace(voc_deit_b.recipe(), assigned)
    assert printed == replace(voc_deit_b.recipe(), dict(of(line).settings))
    assert (printed.method.temperature, str(printed.data.root)) == (0.3, "my data")


@pytest.mark.parametrize(
    ("line", "note"),
    [
        (VOC + DEIT + "--pooling gap", "--pooling had no effect"),
        (VOC + DEIT + "--save_ckpt --backend nccl", "--save_ckpt has no counterpart"),
        (VOC + DEIT + "--crop_size 320", "stay at evaluate.size_px=448"),
        (VOC, "names no --backbone"),
        ("scripts/dist_train_voc_seg_neg.py", "names no number of GPUs, so 2 are assumed"),
        (
            COCO + VIT + "--temp 0.5",
            "--temp had no effect: dist_train_coco_seg_neg.py always uses 1.0",
        ),
        (
            COCO + VIT + "--aux_layer -4",
            "--aux_layer had no effect: dist_train_coco_seg_neg.py always uses 9",
        ),
        (COCO + DEIT, "adds PTC and CTC after step 12000"),
        (COCO + DEIT, "torchrun --standalone --nproc-per-node 4"),
    ],
)
def test_what_is_not_said_by_a_setting_is_said_by_a_note(line, note):
    assert note in "\n".join(of(line).notes)


def test_ignored_flags_set_nothing():
    assert of(COCO + VIT + "--temp 0.3 --aux_layer -5 --pooling gap").settings == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (VOC + "--tmp 1", "no flag --tmp. Did you mean --temp"),
        (VOC + "--lr fast", "--lr is 'fast'"),
        (VOC + "--aux_layer 12", "12 blocks"),
        (VOC + "--backbone resnet50", "'resnet50', but there are recipes for"),
        (VOC + "--low_thre 0.9", "low_threshold is 0.9"),
        ("python tools/infer_seg_voc.py --model_path x", "python -m toco test"),
        ("scripts/dist_train_voc_seg_neg.py 3", "Expected a flag"),
        ("torchrun --nproc_per_node=gpu scripts/dist_train_voc_seg_neg.py", "--nproc is 'gpu'"),
    ],
)
def test_what_cannot_be_is_said(line, message):
    with pytest.raises(ValueError, match=message):
        of(line)


def test_phases_of_the_official_coco_script():
    """``n_iter`` counts from 0 and a phase holds up to and with its last iteration."""
    for config in (
        coco_vit_b.recipe(),
        replace(coco_deit_b.recipe(), dict(of(COCO + DEIT).settings)),
    ):
        method = config.method
        terms = {
            "ptc": method.ptc,
            "ctc": method.ctc,
            "segmentation": method.segmentation,
            "energy": method.energy,
        }
        weights = {
            step: {name: term.at(step) for name, term in terms.items()}
            for step in (8000, 8001, 12_000, 12_001)
        }
        decoder = {"segmentation": 0.1, "energy": 0.05}
        assert weights == {
            8000: {"ptc": 0, "ctc": 0, "segmentation": 0, "energy": 0},
            8001: {"ptc": 0, "ctc": 0, **decoder},
            12_000: {"ptc": 0, "ctc": 0, **decoder},
            12_001: {"ptc": 0.2, "ctc": 0.5, **decoder},
        }
        assert (
            method.aux_pseudo_labels_until_step == 12_001
        )  # the first one that learns from the final CAM


def test_backbones_of_a_data_set_share_everything_else():
    for deit, vit in ((voc_deit_b, voc_vit_b), (coco_deit_b, coco_vit_b)):
        same = deit.recipe().model_copy(update={"backbone": vit.recipe().backbone})
        if deit is coco_deit_b:
            same = replace(same, START)
        assert same == vit.recipe()


def test_lists_named_by_a_number_stay_names():
    translation = of(VOC + DEIT + "--train_set 2012 --val_set true")
    assert translation.settings == {"data.train_list": "2012", "data.val_list": "true"}
    assert "--set data.train_list=2012 --set data.val_list=true" in translation.command()
    config = replace(
        voc_deit_b.recipe(), parse_assignments(["data.train_list=2012", "data.val_list=true"])
    )
    assert (config.data.train_list, config.data.val_list) == ("2012", "true")
