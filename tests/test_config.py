from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from toco.config import PLACE, RUN_ONLY, Config, diff, digest, flatten, replace


class Inner(Config):
    rate: float = Field(default=0.1, gt=0)
    sizes: tuple[int, ...] = (1, 2)
    folder: str = Field(default="here", json_schema_extra={RUN_ONLY: True})


class Outer(Config):
    inner: Inner = Inner()
    name: str = "a"
    limit: int | None = None


def test_a_leaf_is_set_by_its_path_and_text_is_read_by_its_type():
    changed = replace(
        Outer(), {"inner.rate": "0.5", "inner.sizes": "[3]", "limit": "7", "name": "b"}
    )
    assert changed == Outer(inner=Inner(rate=0.5, sizes=(3,)), limit=7, name="b")
    assert replace(changed, {"limit": "null"}).limit is None


def test_an_unknown_path_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"no field 'inner.rat'. Did you mean 'inner.rate'\?"):
        replace(Outer(), {"inner.rat": 1})
    with pytest.raises(ValueError, match="no field 'iner'"):
        replace(Outer(), {"iner.rate": 1})


def test_a_bad_value_is_refused_with_path_and_value():
    with pytest.raises(ValueError, match=r"inner.rate: .*greater than 0 \(got -1\)"):
        replace(Outer(), {"inner.rate": -1})
    with pytest.raises(ValueError, match=r"inner.rate: .*\(got 'fast'\)"):
        replace(Outer(), {"inner.rate": "fast"})


def test_values_are_frozen_and_not_a_number_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "b"
    with pytest.raises(ValueError, match="finite"):
        replace(Outer(), {"inner.rate": "NaN"})


def test_the_digest_sees_results_only():
    assert digest(Outer()) == digest(replace(Outer(), {"inner.folder": "elsewhere"}))
    assert digest(Outer()) != digest(replace(Outer(), {"inner.rate": 0.2}))
    assert digest(Outer()) != digest(replace(Outer(), {"inner.sizes": [2, 1]}))


def test_the_digest_is_the_same_everywhere():
    assert digest(Outer()) == "deee4f35f742559f"


class Holder(Config):
    parts: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    "holder",
    [
        lambda inner: Holder(parts=(Inner(), inner)),
        lambda inner: Holder(named={"first": inner}),
        lambda inner: Holder(named={"b": Inner(), "a": inner}),
    ],
)
def test_the_digest_leaves_out_run_only_fields_however_deep(holder):
    here, there, other = Inner(folder="here"), Inner(folder="there"), Inner(rate=0.2)
    assert digest(holder(here)) == digest(holder(there)) != digest(holder(other))


class Placed(Config):
    weights: str | None = Field(default="hub", json_schema_extra={PLACE: ["hub", "bundled"]})


def test_the_digest_of_a_place_has_its_name_and_not_its_folder():
    here, there, other = (
        Placed(weights=path) for path in ("/a/vit.pth", "b/vit.pth", "/a/swin.pth")
    )
    assert digest(here) == digest(there) != digest(other)
    assert (
        len({digest(Placed(weights=word)) for word in ("hub", "bundled", None, "/a/hub.pth")}) == 4
    )
    assert flatten(here)["weights"] == "/a/vit.pth"


def test_the_digest_can_leave_out_further_fields():
    left, right = Outer(), Outer(inner=Inner(rate=0.2, sizes=(3,)), limit=7)
    paths = ["inner.rate", "inner.sizes", "limit"]
    assert digest(left, without=paths) == digest(right, without=paths) != digest(left)
    assert digest(left, without=paths[:2]) != digest(right, without=paths[:2])
    assert digest(left, without=["inner"]) != digest(right, without=["inner"])
    with pytest.raises(ValueError, match=r"no field 'inner.rat'. Did you mean 'inner.rate'"):
        digest(left, without=["inner.rat"])


def test_diff_and_flatten_name_leaves_by_path():
    assert flatten(Outer())["inner.sizes"] == [1, 2]
    assert diff(Outer(), replace(Outer(), {"inner.rate": 0.2})) == {"inner.rate": (0.1, 0.2)}


def test_diff_names_a_part_that_one_side_lacks_once():
    part = {"weight": 0.2, "start": 3}
    assert diff({"seed": 0, "ptc": None}, {"seed": 0, "ptc": part}) == {"ptc": (None, part)}
    assert diff({"ptc": part}, {}) == {"ptc": (part, None)}
    assert diff({"ptc": part}, {"ptc": {}}) == {"ptc.weight": (0.2, None), "ptc.start": (3, None)}
    assert diff({"ptc": {}}, {"ptc": None}) == {"ptc": ({}, None)}


def test_another_component_starts_from_its_own_defaults_and_can_be_set_at_once():
    from toco.recipes import voc_deit_b

    changed = replace(
        voc_deit_b.recipe(), {"backbone.weights": "null", "backbone.name": "vit_nano", "seed": 3}
    )
    assert changed.backbone.name == "vit_nano"
    assert changed.backbone.weights is None
    assert changed.backbone.width == 64
    assert changed.seed == 3


class Typed(Config):
    words: str = "a"
    words_or_none: str | None = None
    folder: Path = Path("a")
    rule: Literal["sum", "max"] | Path = "sum"
    marked: Annotated[str | None, Field(min_length=1)] = None
    scales: tuple[float, ...] = (1.0,)
    pair: tuple[float, float] | None = None
    group: int | None = 2
    flip: bool = True


@pytest.mark.parametrize(
    "text", ["2012", "1.0", "true", "12345678", "[1]", '"quoted"', "1e5", "a=b", " 2012 "]
)
@pytest.mark.parametrize("field", ["words", "words_or_none", "folder", "rule", "marked"])
def test_a_field_of_text_takes_the_text_as_it_was_typed(field, text):
    assert str(getattr(replace(Typed(), {field: text}), field)) == text


def test_null_is_none_where_none_is_allowed_and_a_word_elsewhere():
    changed = replace(
        Typed(words_or_none="b"), {"words_or_none": "null", "words": "null", "folder": "null"}
    )
    assert changed == Typed(words_or_none=None, words="null", folder=Path("null"))


@pytest.mark.parametrize(
    ("field", "text", "form"),
    [
        ("scales", "1.0,0.5", "[1.0,0.5]"),
        ("scales", "(1.0, 0.5)", "[1.0, 0.5]"),
        ("scales", "(1.0,)", "[1.0]"),
        ("scales", "1.0", "[1.0]"),
        ("pair", "None", "null"),
        ("pair", "0.5,2", "[0.5,2]"),
        ("group", "None", "null"),
        ("inner.sizes", "3,4", "[3,4]"),
    ],
)
def test_the_error_of_a_value_of_wrong_form_shows_the_right_form(field, text, form):
    config = Outer() if "." in field else Typed()
    with pytest.raises(ValueError, match=r"write ") as refused:
        replace(config, {field: text})
    assert str(refused.value).endswith(f"; write {field}={form}.")
    replace(config, {field: form})


@pytest.mark.parametrize(
    ("field", "text"), [("group", "1,5"), ("pair", "1,2,3"), ("scales", "a,b"), ("flip", "None")]
)
def test_no_form_is_shown_that_would_be_refused_too(field, text):
    with pytest.raises(ValueError, match=field) as refused:
        replace(Typed(), {field: text})
    assert "write" not in str(refused.value)


def test_python_spellings_of_true_and_false_are_taken():
    assert replace(Typed(), {"flip": "False"}).flip is False


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000], ids=["lists", "objects", "digits"]
)
def test_a_value_of_any_depth_or_length_is_refused_in_a_short_sentence(text):
    with pytest.raises(ValueError, match="group") as refused:
        replace(Typed(), {"group": text})
    assert len(str(refused.value)) < 300


def test_a_value_for_a_group_of_settings_is_refused():
    with pytest.raises(
        ValueError, match=r"inner: expected settings below it, as in inner\.NAME=VALUE"
    ):
        replace(Outer(), {"inner": "5"})
