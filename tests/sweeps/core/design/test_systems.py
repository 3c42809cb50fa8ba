"""Systems: recipes as rows, under one protocol."""

import pytest

from sweeps import methods
from sweeps.core.design.systems import METHOD, THRESHOLD, System, Systems, changes_between
from toco.config import digest, replace
from toco.registry import load


def recipe(name):
    return load("toco.recipes", name).recipe()


RECIPES = ("shapes_cam", "shapes_rca", "shapes_nano", "shapes_toco_rca")


@pytest.mark.parametrize("base", RECIPES)
@pytest.mark.parametrize("other", RECIPES)
def test_the_changes_of_a_row_make_its_recipe_from_the_base(base, other):
    tuned = System("row", other, {"method.low_threshold": 0.2, THRESHOLD: 0.61}).config()
    changes = changes_between(recipe(base), tuned, other)
    assert digest(replace(recipe(base), dict(changes))) == digest(tuned)
    has_other_method = recipe(base).method.name != tuned.method.name
    assert (METHOD in changes) == has_other_method
    assert changes[THRESHOLD] == 0.61


def test_a_row_changes_only_what_differs():
    base = recipe("shapes_nano")
    assert changes_between(base, base, "shapes_nano") == {}
    other = replace(base, {"method.ptc.weight": 3.0})
    assert changes_between(base, other, "other") == {"method.ptc.weight": 3.0}


def test_a_recipe_with_another_protocol_is_refused():
    longer = replace(recipe("shapes_nano"), {"num_steps": 400})
    with pytest.raises(ValueError, match=r"my_recipe is no system .*num_steps is 400 instead of"):
        changes_between(recipe("shapes_cam"), longer, "my_recipe")
    with pytest.raises(ValueError, match=r"voc_deit_b is no system of this table: "):
        Systems((System("CAM", "shapes_cam"), System("x", "voc_deit_b", versus="CAM"))).blocks()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("method.decoder_width", 8),
        ("method.par.iterations", 3),
        ("method.cam_scales", "[1.0, 0.5]"),
        ("method.segmentation.start_step", 0),
    ],
)
def test_a_setting_that_all_rows_share_is_enforced(path, value):
    other = replace(recipe("shapes_nano"), {path: value})
    alike = ("decoder_width", "par", "cam_scales", "segmentation.start_step")
    with pytest.raises(ValueError, match=rf"mine is no system .*: {path}.* is .* instead of"):
        changes_between(recipe("shapes_cam"), other, "mine", alike)
    assert path in changes_between(recipe("shapes_cam"), other, "mine")


def test_the_shipped_rows_share_decoder_and_labels():
    table = methods.STUDY.design
    assert {"decoder_width", "par", "segmentation.start_step"} <= set(table.alike)
    assert [row.label for row in table.blocks()[0].rows] == list(methods.RECIPES)


def test_rows_that_were_not_tuned_are_named():
    tuned = System("CAM", "shapes_cam", {THRESHOLD: 0.6})
    notes = Systems((tuned, System("Mine", "shapes_rca", versus="CAM"))).notes()
    assert "Not tuned, with the values of the recipe: Mine." in notes
    assert not any("Not tuned" in note for note in Systems((tuned,)).notes())


def test_each_row_is_compared_with_the_one_it_names():
    systems = Systems(
        (
            System("CAM", "shapes_cam"),
            System("ToCo", "shapes_nano", versus="CAM"),
            System("ToCo + RCA", "shapes_toco_rca", versus="ToCo"),
        )
    )
    (block,) = systems.blocks()
    assert [(row.label, row.versus) for row in block.rows] == [
        ("CAM", None),
        ("ToCo", 0),
        ("ToCo + RCA", 1),
    ]


@pytest.mark.parametrize("versus", [None, "later", "itself"])
def test_a_row_names_a_row_above_it(versus):
    with pytest.raises(ValueError, match=r"expected the label of a row above it: first"):
        Systems(
            (
                System("first", "shapes_cam"),
                System("itself", "shapes_nano", versus=versus),
                System("later", "shapes_rca", versus="first"),
            )
        )
