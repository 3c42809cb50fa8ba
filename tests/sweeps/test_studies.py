"""The shipped studies: what they train and what stands beside what, by hand."""

import dataclasses

import pytest
from click.testing import CliRunner

from sweeps import cam_thresholds, components, layer_ablation, loss_weights, table5, temperature
from sweeps.core.design.paper import AUX_CAM_MIOU, CAM_MIOU, SEG_MIOU
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import BASE_AGAIN
from toco.config import replace
from toco.registry import load


def varied(plan, path):
    """The values at a dotted path in the config of every cell, in order."""

    def value(config):
        for part in path.split("."):
            config = getattr(config, part)
        return config

    first = {trial.cell: trial.config for trial in reversed(plan.trials)}
    return [value(first[cell]) for cell in range(len(plan.cells))]


def in_block(plan, index):
    """Label, label of the row it is compared with, published row."""
    return [
        (row.label, None if row.versus is None else plan.rows[row.versus].label, row.paper_row)
        for row in plan.rows
        if row.block == index and row.role != "a/a"
    ]


def test_table_5_trains_ten_cells_and_its_default_once():
    plan = table5.STUDY.resolve()
    blocks, crops, decays = [7, 8, 9, 10], [16, 24, 32, 40], [0.0, 0.1, 0.9, 0.99]
    assert varied(plan, "method.aux_block") == [*blocks, *[9] * 6, 9]
    assert varied(plan, "method.local_crop_size_px") == [*[32] * 4, 16, 24, 40, *[32] * 3, 32]
    assert varied(plan, "method.ema_decay") == [*[0.9] * 7, 0.0, 0.1, 0.99, 0.9]
    assert len(plan.cells) == 10 + 1
    assert [(row.cell, row.role) for row in plan.rows if row.role != "row"] == [
        *[(blocks.index(9), "base")] * 3,
        (10, "a/a"),
    ]
    assert [len([row for row in plan.rows if row.block == block]) for block in range(3)] == [
        5,
        len(crops),
        len(decays),
    ]
    assert [trial.seed for trial in plan.trials] == [*range(10)] * 10 + [10, 11, 12]


def test_with_a_list_of_seeds_table_5_tests_twelve_comparisons():
    plan = dataclasses.replace(table5.STUDY, seeds=(0, 1, 2)).resolve()
    named = [(plan.rows[row].label, key) for row, key in plan.tests.places]
    assert named == [
        *((label, key) for label in ("#8", "#9", "#11") for key in (CAM_MIOU, AUX_CAM_MIOU)),
        *((label, SEG_MIOU) for label in ("16 px", "24 px", "40 px", "0", "0.1", "0.99")),
    ]


def test_with_looks_table_5_tests_the_five_claims_of_the_paper():
    plan = table5.STUDY.resolve()
    claims = [
        (claim.name, [(plan.rows[c.row].label, c.direction) for c in claim.comparisons])
        for claim in plan.tests.claims
    ]
    assert claims == [
        ("rises to block #10", [("#8", -1)]),
        ("collapses at block #11", [("#11", -1)]),
        ("auxiliary CAM is best at block #10", [("#8", -1), ("#9", -1), ("#11", -1)]),
        ("crops of 96 px are best", [("16 px", -1), ("24 px", -1), ("40 px", -1)]),
        ("a decay of 0.9 is best", [("0", -1), ("0.1", -1), ("0.99", -1)]),
    ]


def test_a_row_of_table_5_on_the_embedded_benchmark_stands_beside_its_counterpart():
    plan = table5.STUDY.resolve()
    assert in_block(plan, 0) == [
        ("#8", "#10", "#8"),
        ("#9", "#10", "#9"),
        ("#10", None, "#10"),
        ("#11", "#10", "#11"),
    ]
    assert in_block(plan, 1) == [
        ("16 px", "32 px", "64 px"),
        ("24 px", "32 px", "80 px"),
        ("32 px", None, "96 px"),
        ("40 px", "32 px", "112 px"),
    ]
    assert in_block(plan, 2) == [
        ("0", "0.9", "0"),
        ("0.1", "0.9", "0.1"),
        ("0.9", None, "0.9"),
        ("0.99", "0.9", "0.99"),
    ]


def test_with_the_papers_recipe_table_5_is_the_papers():
    plan = table5.for_recipe(dataclasses.replace(table5.STUDY, recipe="voc_deit_b")).resolve()
    assert [label == paper for block in range(3) for label, _, paper in in_block(plan, block)] == [
        True
    ] * 12
    assert sorted(set(varied(plan, "method.local_crop_size_px"))) == [64, 80, 96, 112]
    recipe = load("toco.recipes", "voc_deit_b").recipe()
    bases = [row.cell for row in plan.rows if row.role == "base"]
    assert len(set(bases)) == 1
    # The paper's default row is the recipe itself.
    assert next(trial.config for trial in plan.trials if trial.cell == bases[0]) == recipe


def test_the_layer_ablation_shares_its_trainings_with_table_5():
    trials = {trial.digest for trial in table5.STUDY.resolve().trials}
    assert {trial.digest for trial in layer_ablation.STUDY.resolve().trials} < trials


def rows(depth, layers=None):
    factor, declared = layer_ablation.aux_block(depth, layers)
    (block,) = layer_ablation.design(depth, layers).blocks()
    assert declared.paper is block.paper
    versus = {None if row.versus is None else block.rows[row.versus].label for row in block.rows}
    return list(factor.values), [(row.label, row.paper_row) for row in block.rows], versus - {None}


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, [7, 8, 9, 10]), (6, [1, 2, 3, 4]), (24, [19, 20, 21, 22])]
)
def test_a_row_stands_beside_the_papers_at_the_same_distance_from_the_last_block(depth, blocks):
    values, labels, versus = rows(depth)
    assert values == blocks
    assert labels == [
        (f"#{block + 1}", paper)
        for block, paper in zip(blocks, ("#8", "#9", "#10", "#11"), strict=True)
    ]
    assert versus == {f"#{blocks[2] + 1}"}


def test_a_block_that_the_paper_did_not_try_has_no_published_row():
    assert rows(12, (2, 9, 11)) == (
        [2, 9, 11],
        [("#3", None), ("#10", "#10"), ("#12", None)],
        {"#10"},
    )
    # The same label, but at another distance from the end.
    assert rows(24, (7, 9)) == ([7, 9], [("#8", None), ("#10", None)], {"#8"})


def test_a_backbone_too_shallow_for_the_papers_rows_needs_layers():
    with pytest.raises(
        ValueError, match=r"blocks 0 to 3.* cannot read block -1\. Give others with --layers"
    ):
        layer_ablation.design(4)
    assert rows(4, (0, 3))[0] == [0, 3]


def test_the_backbone_is_known_without_weights():
    recipe = load("toco.recipes", "voc_deit_b").recipe()
    assert layer_ablation.dimensions(recipe) == (12, 16)
    unusual = replace(recipe, {"backbone.model": "vit_large_patch16_224", "backbone.weights": None})
    assert layer_ablation.dimensions(unusual) == (24, 16)


def test_a_shallower_backbone_of_the_recipe_is_seen():
    shallow = dataclasses.replace(
        layer_ablation.STUDY, changes={"backbone.depth": 6, "backbone.weights": None}
    )
    assert varied(layer_ablation.for_recipe(shallow).resolve(), "method.aux_block") == [
        1,
        2,
        3,
        4,
        3,
    ]


def test_crops_follow_the_patches_of_the_backbone():
    coarse = dataclasses.replace(
        table5.STUDY, changes={"backbone.patch_size_px": 4, "backbone.weights": None}
    )
    plan = table5.for_recipe(coarse).resolve()
    assert sorted(set(varied(plan, "method.local_crop_size_px"))) == [24, 28, 32, 36]


def test_components_are_added_one_at_a_time_up_to_the_recipe():
    plan = components.STUDY.resolve()
    method = load("toco.recipes", "shapes_nano").recipe().method
    terms = ("ptc", "ctc", "segmentation", "energy")
    all_on = (method.aux_weight, *(getattr(method, term).weight for term in terms))
    weights = [
        tuple(weight * (number < on) for number, weight in enumerate(all_on)) for on in range(6)
    ]
    paths = ("method.aux_weight", *(f"method.{term}.weight" for term in terms))
    cells = list(zip(*(varied(plan, path) for path in paths), strict=True))
    assert cells == [*weights, weights[0]]
    assert in_block(plan, 0) == [
        ("cls", None, "cls"),
        ("+ aux cls", "cls", "+ aux cls"),
        ("+ PTC", "+ aux cls", "+ PTC"),
        ("+ CTC", "+ PTC", "+ CTC"),
        ("+ seg", "+ CTC", "+ seg"),
        ("+ reg", "+ seg", "+ reg"),
    ]
    everything = next(trial for trial in plan.trials if trial.label == "+ reg")
    assert everything.config == load("toco.recipes", "shapes_nano").recipe()


def test_brief_components_are_three_rows_of_the_six_and_share_their_trainings():
    brief = components.for_recipe(components.STUDY, brief=True).resolve()
    assert in_block(brief, 0) == [
        ("cls", None, "cls"),
        ("+ aux cls, PTC", "cls", "+ PTC"),
        ("+ CTC, seg, reg", "+ aux cls, PTC", "+ reg"),
    ]
    whole = {(trial.label, trial.seed): trial.digest for trial in components.STUDY.resolve().trials}
    label_in_whole = {"+ aux cls, PTC": "+ PTC", "+ CTC, seg, reg": "+ reg"}
    assert [trial.digest for trial in brief.trials] == [
        whole[label_in_whole.get(trial.label, trial.label), trial.seed] for trial in brief.trials
    ]


def test_brief_is_an_option_of_the_command(tmp_path):
    words = ["status", "--storage", str(tmp_path)]
    brief, whole = (
        CliRunner().invoke(components.main, [*words, *options]) for options in (["--brief"], [])
    )
    assert "Table 4 in three rows" in brief.output
    assert "+ CTC, seg, reg: 0 of 3, at most 10" in brief.output
    assert "+ CTC: 0 of 3, at most 10" in whole.output


@pytest.mark.parametrize(
    ("recipe", "lows", "highs"),
    [
        ("shapes_nano", (0.3, 0.4, 0.5), (0.55, 0.65, 0.75)),
        ("voc_deit_b", (0.15, 0.25, 0.35), (0.6, 0.7, 0.8)),
    ],
)
def test_thresholds_of_training_are_a_grid_and_that_of_the_evaluation_costs_no_training(
    recipe, lows, highs
):
    study = dataclasses.replace(cam_thresholds.STUDY, recipe=recipe, seeds=(0, 1, 2))
    plan = cam_thresholds.for_recipe(study).resolve()
    trained = [
        config.model_dump(exclude={"evaluate"}, mode="json")
        for config in (t.config for t in plan.trials)
    ]
    assert len(plan.trials) == (9 + 4 + 1) * 3
    assert len({str(config) for config in trained}) == (9 + 1) * 3
    grid = list(
        zip(
            varied(plan, "method.low_threshold"), varied(plan, "method.high_threshold"), strict=True
        )
    )
    assert grid == [
        *((low, high) for low in lows for high in highs),
        *[(lows[1], highs[1])] * 5,
    ]
    assert varied(plan, "evaluate.background_threshold") == [*[0.5] * 9, 0.3, 0.4, 0.6, 0.7, 0.5]
    bases = [row.cell for row in plan.rows if row.role == "base"]
    assert bases == [4, 4]


@pytest.mark.parametrize(
    ("recipe", "ptc", "ctc"), [("shapes_nano", 20.0, 0.1), ("voc_deit_b", 0.2, 0.5)]
)
def test_loss_weights_are_half_once_and_twice_those_of_the_recipe(recipe, ptc, ctc):
    plan = loss_weights.for_recipe(dataclasses.replace(loss_weights.STUDY, recipe=recipe)).resolve()
    grid = list(
        zip(varied(plan, "method.ptc.weight"), varied(plan, "method.ctc.weight"), strict=True)
    )
    factors = (0.5, 1.0, 2.0)
    assert grid[:-1] == [(a * ptc, b * ctc) for a in factors for b in factors]
    assert grid[-1] == grid[4] == (ptc, ctc)
    assert plan.cells[-1].label == BASE_AGAIN


def test_temperatures_are_compared_with_the_papers():
    plan = temperature.STUDY.resolve()
    assert varied(plan, "method.temperature") == [0.1, 0.25, 0.5, 1.0, 2.0, 0.5]
    assert {versus for _, versus, _ in in_block(plan, 0)} == {"tau 0.5", None}


def test_every_study_adds_seeds_until_its_claims_are_decided():
    studies = [
        module.STUDY
        for module in (
            cam_thresholds,
            components,
            layer_ablation,
            loss_weights,
            table5,
            temperature,
        )
    ]
    assert {(study.purpose, study.seeds, study.repeat_base) for study in studies} == {
        ("direction", Sequential(), True)
    }
