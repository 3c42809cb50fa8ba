"""The study as a value: what it enumerates, how it names things, what it refuses."""

import dataclasses
import json

import pytest

from sweeps.core.study import Factor, Metric, Paper, PaperRow, Study
from toco.config import digest, replace
from toco.registry import load

BLOCKS = Factor("method.aux_block", (7, 9), ("#8", "#10"))
STEPS = Factor("num_steps", (30, 40))
METRICS = (Metric("val/cam_miou", "M"),)


def make(**changes):
    values = {
        "name": "example",
        "title": "An example",
        "recipe": "voc_deit_b",
        "factors": (BLOCKS, STEPS),
        "seeds": (0, 5),
        "metrics": METRICS,
        "changes": {"optim.warmup_steps": "2"},
    }
    return Study(**{**values, **changes})


def test_cells_are_all_combinations_with_the_last_factor_fastest():
    assert [(cell.label, dict(cell.values)) for cell in make().cells()] == [
        ("#8, num_steps 30", {"method.aux_block": 7, "num_steps": 30}),
        ("#8, num_steps 40", {"method.aux_block": 7, "num_steps": 40}),
        ("#10, num_steps 30", {"method.aux_block": 9, "num_steps": 30}),
        ("#10, num_steps 40", {"method.aux_block": 9, "num_steps": 40}),
    ]


def test_a_trial_is_a_cell_with_a_seed_and_its_config_says_both():
    plan = make().resolve()
    assert [(trial.cell, trial.seed) for trial in plan.trials] == [(cell, seed) for cell in range(4) for seed in (0, 5)]
    base = load("toco.recipes", "voc_deit_b").recipe()
    for trial in plan.trials:
        values = dict(plan.cells[trial.cell].values)
        assert trial.config == replace(base, {"optim.warmup_steps": 2, **values, "seed": trial.seed})
        assert trial.digest == digest(trial.config)


def test_names_say_what_varies_and_are_unique():
    names = [trial.name for trial in make().resolve().trials]
    assert len(set(names)) == 8
    assert names[5].startswith("aux_block_9-num_steps_30-seed_5-")
    # Folder names on every system, and nothing that a URI would have to escape.
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.") for name in names)


def test_the_digest_is_of_what_is_trained_and_nothing_else():
    plan = make().resolve()
    same = [{"title": "Another title"}, {"metrics": (Metric("val/seg_miou", "seg"),)}]
    same += [{"changes": {"optim.warmup_steps": "2", "device": "cpu", "data.root": "/elsewhere"}}]
    assert {make(**change).resolve().digest for change in same} == {plan.digest}
    others = [{"seeds": (0, 6)}, {"seeds": (0,)}, {"factors": (BLOCKS,)}, {"changes": {"optim.warmup_steps": "3"}}]
    others += [{"train": "somewhere:train"}]
    assert plan.digest not in {make(**change).resolve().digest for change in others}
    assert plan.folder_name == f"example-{plan.digest[:8]}"


def test_the_number_of_trials_needs_no_config():
    study = make(recipe="there is none")
    assert study.num_trials == 8


def test_a_study_without_factors_is_one_row():
    plan = make(factors=()).resolve()
    assert [cell.label for cell in plan.cells] == ["voc_deit_b"]
    assert [trial.seed for trial in plan.trials] == [0, 5]


def test_the_file_says_which_trial_belongs_to_which_row_and_published_row():
    paper = Paper("A paper", "its setting", (PaperRow("#10", {"val/cam_miou": 0.705}, default=True),))
    study = make(factors=(BLOCKS,), paper=paper, paper_rows={"#10": "#10"})
    content = json.loads(json.dumps(study.resolve().to_json()))
    assert content["cells"] == [
        {"label": "#8", "values": {"method.aux_block": 7}, "paper_row": None},
        {"label": "#10", "values": {"method.aux_block": 9}, "paper_row": "#10"},
    ]
    assert [(trial["cell"], trial["label"], trial["seed"]) for trial in content["trials"]] == [
        (0, "#8", 0),
        (0, "#8", 5),
        (1, "#10", 0),
        (1, "#10", 5),
    ]
    assert content["paper"]["rows"] == [{"label": "#10", "metrics": {"val/cam_miou": 0.705}, "default": True}]
    assert content["data"] == "voc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0, 1, 0)}, "0 occurs twice in the seeds"),
        ({"seeds": ()}, "at least one seed"),
        ({"metrics": ()}, "at least one metric"),
        ({"metrics": METRICS, "factors": (BLOCKS, BLOCKS)}, "'method.aux_block' occurs twice in the paths"),
        ({"changes": {"num_steps": 50}}, "num_steps varies in this study"),
        ({"changes": {"seed": 3}}, "seed varies in this study"),
        ({"paper_rows": {"#8": "#99"}}, "no published row '#99'"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("seed", (0, 1)), "Study.seeds"),
        (("method.aux_block", ()), "no values"),
        (("method.aux_block", (7, 8, 7)), "7 occurs twice"),
        (("method.aux_block", (7, 8), ("#8",)), "2 values but 1 labels"),
    ],
)
def test_a_factor_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Factor(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"changes": {"method.aux_blok": 3}}, "Did you mean 'method.aux_block'"),
        ({"factors": (Factor("method.aux_blok", (3,)),)}, "Did you mean 'method.aux_block'"),
        ({"recipe": "voc_deit_c"}, "Did you mean 'voc_deit_b'"),
        ({"factors": (Factor("num_steps", (-1,)),)}, "num_steps"),
        ({"factors": (Factor("num_workers", (0, 1)),)}, "no effect on results"),
    ],
)
def test_resolving_refuses_what_no_training_could_be_started_with(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change).resolve()


def test_a_study_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().name = "other"
