"""The study as a value: what it enumerates, what is compared with what, how it names things, what
it refuses.
"""

import dataclasses
import json

import pytest

from sweeps.core.design.designs import Block, Declared, Grid, Ladder, OneFactor, Row
from sweeps.core.design.factors import Component, Factor
from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.study import BASE_AGAIN, Metric, Study
from sweeps.core.store.study_folder import study_file
from toco.config import digest, replace
from toco.registry import load

CAM, SEG = "val/cam_miou", "val/seg_miou"
BLOCKS = Factor("method.aux_block", (7, 9), 9, ("#8", "#10"), "block")
STEPS = Factor("num_steps", (30, 40))
PAPER = Paper(
    "A paper",
    "its setting",
    (PaperRow("#8", {CAM: 0.635}), PaperRow("#10", {CAM: 0.705}, default=True)),
    (Claim("rises", CAM, "#10", ("#8",), 7.0, "large"),),
)


def make(**changes):
    values = {
        "name": "example",
        "title": "An example",
        "recipe": "voc_deit_b",
        "design": OneFactor((BLOCKS, STEPS), {BLOCKS.path: Declared((CAM, SEG), PAPER)}),
        "seeds": (0, 5),
        "metrics": (Metric(CAM, "M"), Metric(SEG, "seg")),
        "changes": {"optim.warmup_steps": "2"},
    }
    return Study(**{**values, **changes})


def test_a_cell_that_stands_in_two_blocks_is_trained_once():
    plan = make(repeat_base=False).resolve()
    assert [(cell.label, dict(cell.changes)) for cell in plan.cells] == [
        ("block: #8", {"method.aux_block": 7, "num_steps": 30}),
        ("block: #10", {"method.aux_block": 9, "num_steps": 30}),
        ("num_steps: num_steps 40", {"method.aux_block": 9, "num_steps": 40}),
    ]
    assert [
        (row.block, row.label, row.cell, row.versus, row.role, row.paper_row) for row in plan.rows
    ] == [
        (0, "#8", 0, 1, "row", "#8"),
        (0, "#10", 1, None, "base", "#10"),
        (1, "num_steps 30", 1, None, "base", None),
        (1, "num_steps 40", 2, 2, "row", None),
    ]


def test_methods_are_rows_of_a_table_and_a_change_switches_the_method_of_all():
    methods = make(
        design=OneFactor((Factor("method.name", ("toco", "cam")),)), repeat_base=False
    ).resolve()
    assert [trial.config.method.name for trial in methods.trials] == ["toco", "toco", "cam", "cam"]
    recipe = load("toco.recipes", "voc_deit_b").recipe()
    baseline = replace(recipe, {"method.name": "cam", "optim.warmup_steps": 2, "seed": 5})
    assert methods.trials[3].config == baseline
    changes = {"optim.warmup_steps": "2", "method.name": "cam", "num_steps": "40"}
    switched = make(
        design=OneFactor((Factor("optim.lr", (6e-5, 1e-4)),)), changes=changes, repeat_base=False
    ).resolve()
    assert {trial.config.method for trial in switched.trials} == {baseline.method}


def test_a_cell_is_one_whatever_fields_the_designs_say_that_the_recipe_has_anyway():
    # The ladder's last row sets nothing, the recipe's weight is 0.2.
    ladder = Ladder("cls", (Component("PTC", {"method.ptc.weight": 0.0}),))
    grid = Grid((Factor("method.ptc.weight", (0.0, 0.2)),))
    assert {t.digest for t in make(design=ladder).resolve().trials} == {
        t.digest for t in make(design=grid).resolve().trials
    }


def test_a_trial_is_a_cell_with_a_seed_and_its_config_says_both():
    plan = make().resolve()
    assert [(trial.cell, trial.replicate, trial.seed) for trial in plan.trials] == [
        *((cell, replicate, seed) for cell in range(3) for replicate, seed in enumerate((0, 5))),
        (3, 0, 6),
        (3, 1, 11),
    ]
    base = load("toco.recipes", "voc_deit_b").recipe()
    for trial in plan.trials:
        changes = dict(plan.cells[trial.cell].changes)
        assert trial.config == replace(
            base, {"optim.warmup_steps": 2, **changes, "seed": trial.seed}
        )
        assert trial.digest == digest(trial.config)
    assert len({trial.name for trial in plan.trials}) == 8
    assert plan.trials[1].name == "block: #8, seed 5"


def test_the_a_a_row_is_the_first_base_again_with_other_seeds_and_no_declared_comparison():
    plan = make().resolve()
    row = plan.rows[-1]
    assert (row.label, row.role, row.block, row.versus) == (BASE_AGAIN, "a/a", 0, 1)
    again, base = plan.cells[row.cell], plan.cells[plan.rows[row.versus].cell]
    assert again.changes == base.changes
    assert not set(again.seeds) & set(base.seeds)
    assert all(plan.rows[number].role == "row" for number, _ in plan.tests.places)
    # The n-th trial of both is paired and differs in nothing but its seed.
    pairs = [
        [trial.config for trial in plan.trials if trial.cell == cell]
        for cell in (row.cell, plan.rows[1].cell)
    ]
    assert [replace(a, {"seed": b.seed}) for a, b in zip(*pairs, strict=True)] == pairs[1]


@pytest.mark.parametrize("seeds", [(0,), (3, 1, 2), (7, 100)])
def test_a_a_seeds_are_never_those_of_the_study(seeds):
    plan = make(seeds=seeds).resolve()
    assert not set(plan.cells[-1].seeds) & set(seeds)
    assert len(set(plan.cells[-1].seeds)) == len(seeds)


def test_comparisons_are_those_that_a_block_declares_else_of_the_first_metric():
    assert make().resolve().tests.places == ((0, CAM), (0, SEG), (3, CAM))


def test_the_digest_is_of_what_is_trained_and_nothing_else():
    plan = make().resolve()
    same = [{"title": "Another title"}, {"metrics": (Metric(SEG, "seg"), Metric(CAM, "M"))}]
    same += [{"changes": {"optim.warmup_steps": "2", "device": "cpu", "data.root": "/elsewhere"}}]
    same += [{"purpose": "direction"}, {"significance": 0.01}]
    assert {make(**change).resolve().digest for change in same} == {plan.digest}
    others = [
        {"seeds": (0, 6)},
        {"seeds": (0,)},
        {"design": OneFactor((BLOCKS,))},
        {"repeat_base": False},
    ]
    others += [{"changes": {"optim.warmup_steps": "3"}}, {"train": "somewhere:train"}]
    digests = [make(**change).resolve().digest for change in others]
    assert len({plan.digest, *digests}) == 1 + len(others)
    assert plan.folder_name == f"example-{plan.digest[:8]}"


def test_what_the_recipe_has_at_a_path_is_known_with_the_changes():
    study = make(changes={"method.ptc.weight": "0.25"})
    assert (study.value("method.ptc.weight"), study.value("method.ctc.weight")) == (0.25, 0.5)
    with pytest.raises(
        ValueError, match=r"example varies method\.ptc\.wait, which the method 'toco' does not"
    ):
        study.value("method.ptc.wait")


def test_a_value_of_the_evaluation_is_a_cell_of_its_own_that_trains_nothing_else():
    factor = Factor("evaluate.background_threshold", (0.5, 0.4))
    plan = make(design=OneFactor((factor,)), repeat_base=False).resolve()
    assert len(plan.cells) == 2
    assert len({trial.digest for trial in plan.trials}) == 4
    assert (
        len({replace(trial.config, {factor.path: 0.5}).model_dump_json() for trial in plan.trials})
        == 2
    )


def test_the_file_says_which_row_is_compared_with_which_and_stands_beside_which():
    plan = make().resolve()
    content = json.loads(
        study_file(plan, [str(number) for number in range(len(plan.trials))], [], "0").text()
    )
    assert [
        (row["label"], row["cell"], row["versus"], row["role"], row["paper_row"])
        for row in content["rows"]
    ] == [
        ("#8", 0, 1, "row", "#8"),
        ("#10", 1, None, "base", "#10"),
        ("num_steps 30", 1, None, "base", None),
        ("num_steps 40", 2, 2, "row", None),
        (BASE_AGAIN, 3, 1, "a/a", None),
    ]
    assert content["cells"][0] == {
        "label": "block: #8",
        "changes": {"method.aux_block": 7, "num_steps": 30},
        "seeds": [0, 5],
        "keys": ["0", "1"],
    }
    assert content["cells"][3]["seeds"] == [6, 11]
    first, second = content["blocks"]
    assert (first["title"], first["factors"], first["metrics"]) == (
        "block",
        ["method.aux_block"],
        [CAM, SEG],
    )
    assert (second["metrics"], second["paper"]) == ([CAM], None)
    assert first["paper"]["rows"][1] == {"label": "#10", "metrics": {CAM: 0.705}, "default": True}
    assert first["paper"]["claims"] == [
        {
            "name": "rises",
            "metric": CAM,
            "better": "#10",
            "than": ["#8"],
            "by": 7.0,
            "size": "large",
        }
    ]
    assert (content["data"], content["design"], content["seeds"]) == (
        "voc",
        "one factor at a time",
        [0, 5],
    )


class Twins:
    """A design whose blocks have one title, as no shipped design makes them."""

    name = "twins"

    def blocks(self):
        return (
            Block("a", (Row("x", {}, None),), ()),
            Block("a", (Row("y", {"num_steps": 1}, None),), ()),
        )

    def notes(self):
        return ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0, 1, 0)}, "0 occurs twice in the seeds"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (0, -1)}, "Seeds are from 0 to 4294967295"),
        ({"seeds": (0, 2**32)}, "Seeds are from 0 to 4294967295"),
        ({"seeds": (2**31, 2**32 - 1)}, "those of the A/A row up to"),
        ({"metrics": ()}, "at least one metric"),
        (
            {"metrics": (Metric(CAM, "M"), Metric(CAM, "N"), Metric(SEG, "seg"))},
            "'val/cam_miou' occurs twice",
        ),
        ({"metrics": (Metric(CAM, "M"),)}, "block: val/seg_miou is compared but is not a column"),
        (
            {
                "metrics": (Metric(SEG, "seg"),),
                "design": OneFactor((BLOCKS,), {BLOCKS.path: Declared(paper=PAPER)}),
            },
            "block: val/cam_miou is compared but is not a column",
        ),
        ({"changes": {"num_steps": 50}}, "num_steps varies in this study"),
        ({"changes": {"seed": 3}}, "seed varies in this study"),
        ({"design": Twins()}, "'a' occurs twice in the titles of the blocks"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"changes": {"method.aux_blok": 3}}, "Did you mean 'method.aux_block'"),
        (
            {"design": Grid((Factor("method.aux_blok", (3,)),))},
            "varies method.aux_blok, which the method 'toco' does not have. Did you mean "
            "'method.aux_block'",
        ),
        ({"recipe": "voc_deit_c"}, "Did you mean 'voc_deit_b'"),
        ({"design": Grid((Factor("num_steps", (30, -1)),))}, "num_steps: num_steps -1: num_steps"),
        (
            {"design": Grid((Factor("num_workers", (0, 1)),))},
            "'num_workers' has no effect on results",
        ),
        (
            {"design": Grid((Factor("method.low_threshold", (0.2, 0.9)),))},
            "low_threshold 0.9: .* above high_threshold",
        ),
    ],
)
def test_resolving_refuses_what_no_training_could_be_started_with(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change).resolve()


def test_a_study_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().name = "other"
