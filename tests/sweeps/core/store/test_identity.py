import json
import re

import pytest

from sweeps.core.store import identity
from sweeps.core.store.identity import identify, why
from toco import code_digest
from toco.config import replace
from toco.recipes.shapes_nano import recipe
from toco.train.run_config import RunConfig

TRAIN = "toco.train.loop:train"
INPUTS = {"train": "a" * 64, "val": "b" * 64, "weights": "c" * 64}


@pytest.fixture(autouse=True)
def _forget():
    identity._code.cache_clear()
    identity._versions.cache_clear()
    yield
    identity._code.cache_clear()
    identity._versions.cache_clear()


def keys(changes=None, function=TRAIN, **inputs):
    found = identify(replace(recipe(), changes or {}), function, INPUTS | inputs)
    return found.key, found.training_key


def test_the_code_of_a_module_of_the_users_own_is_part_of_the_key(tmp_path, monkeypatch):
    for name in ("method.py", "helper.py", "unrelated.py"):
        (tmp_path / "own_identity").mkdir(exist_ok=True)
        (tmp_path / "own_identity" / name).write_text("x = 1\n")
    method = tmp_path / "own_identity" / "method.py"
    method.write_text(
        "import own_identity.helper\nfrom toco.methods import toco\n\n"
        "class Config(toco.Config):\n    name: str = __name__\n\nbuild = toco.build\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {"method.name": "own_identity.method", "method.local_crop_size_px": 32}

    def parts():
        identity._code.cache_clear()
        code_digest._module.cache_clear()
        return identify(replace(recipe(), changes), TRAIN, INPUTS).parts

    before = parts()
    own = [name for name in before["code"] if not name.startswith("toco")]
    assert own == ["own_identity.helper", "own_identity.method"]
    # It is built on ToCo, so ToCo's code counts, and that of other methods does not.
    assert "toco.methods.toco" in before["code"]
    method.write_text(method.read_text() + "# a comment\n")
    (tmp_path / "own_identity" / "unrelated.py").write_text("x = 2\n")
    assert parts() == before
    (tmp_path / "own_identity" / "helper.py").write_text("x = 2\n")
    assert why(parts(), before) == ["code changed: own_identity.helper"]


def test_keys_are_short_and_repeatable():
    key, training_key = keys()
    assert re.fullmatch(r"[0-9a-f]{20}", key)
    assert re.fullmatch(r"[0-9a-f]{20}", training_key)
    assert (key, training_key) == keys()
    assert (
        keys()[0]
        == identify(RunConfig.model_validate_json(recipe().model_dump_json()), TRAIN, INPUTS).key
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cpu"},
        {"num_workers": 1},
        {"log_every": 3},
        {"keep_checkpoints": 9},
        {"evaluate.batch_size": 7},
        {"evaluate.num_pictures": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_no_result_changes_no_key(changes):
    assert keys(changes) == keys()


def test_the_folder_of_the_weights_changes_no_key():
    """What the file holds is in the inputs; whether there is one, and its name, count."""
    moved = [{"backbone.weights": f"{folder}deit.pth"} for folder in ("", "/data/", "../")]
    assert len({keys(changes) for changes in moved}) == 1
    others = [{"backbone.weights": value} for value in (None, "bundled", "/data/other.pth")]
    assert len({keys(changes) for changes in (moved[0], *others)}) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate.background_threshold": 0.4},
        {"evaluate.cam_flip": False},
        {"evaluate.average_last": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_of_the_evaluation_share_a_training(changes):
    (key, training_key), (base, base_training) = keys(changes), keys()
    assert key != base
    assert training_key == base_training


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"method.ptc.weight": 1.0},
        {"data.num_train": 500},
        {"num_steps": 170},
        {"precision": "bfloat16"},
        {"evaluate_every": 40},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_of_the_training_change_both_keys(changes):
    (key, training_key), (base, base_training) = keys(changes), keys()
    assert key != base
    assert training_key != base_training


def test_keys_know_what_was_read():
    base = keys()
    assert keys(train="x")[1] != base[1]
    assert keys(weights=None)[1] != base[1]
    other_val = keys(val="x")
    assert other_val[0] != base[0]
    assert other_val[1] == base[1]


def test_keys_know_the_function_that_trains():
    one, other = keys(), keys(function="toco.train.loop:other")
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_versions_count_to_the_second_place(monkeypatch):
    def with_torch(version):
        identity._versions.cache_clear()
        monkeypatch.setattr(
            identity.metadata, "version", lambda name: version if name == "torch" else "1.0.20"
        )
        return keys()

    base = with_torch("2.13.0+cpu")
    assert with_torch("2.13.1") == base
    assert with_torch("2.14.0")[1] != base[1]
    assert with_torch("2.14.0")[0] != base[0]


@pytest.mark.parametrize(
    ("module", "trained_again"),
    [("toco.losses.ptc", True), ("toco.filters.lattice", True), ("toco.evaluate.evaluator", False),
     ("toco.metrics.segmentation", False)],
)  # fmt: skip
def test_changed_code_changes_the_keys_of_what_uses_it(monkeypatch, module, trained_again):
    key, training_key = keys()
    real = identity.code_digests

    def edited(*arguments):
        found = real(*arguments)
        return found | ({module: "0" * 16} if module in found else {})

    monkeypatch.setattr(identity, "code_digests", edited)
    identity._code.cache_clear()
    assert keys()[0] != key
    assert (keys()[1] != training_key) == trained_again


def test_code_that_is_not_used_does_not_count():
    parts = identify(recipe(), TRAIN, INPUTS).parts
    assert not {
        name
        for name in parts["code"]
        if name.startswith(("toco.tracking", "toco.recipes", "sweeps"))
    }
    assert "toco.train.pretrain" not in parts["code"]
    assert "toco.methods.toco" in parts["code"]


def test_a_study_with_its_own_training_needs_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_training.py").write_text("def train(config, run_dir): ...\n")
    found = identify(recipe(), "own_training:train", INPUTS)
    assert "own_training" in found.parts["code"]
    assert "toco.methods.toco" in found.parts["code"]
    assert found.key != keys()[0]


def test_the_parts_are_plain_values():
    found = identify(recipe(), TRAIN, INPUTS)
    assert json.loads(json.dumps(found.parts)) == found.parts
    assert found.parts["data"] == {"train": "a" * 64, "val": "b" * 64}
    assert found.parts["weights"] == "c" * 64
    assert found.parts["seed"] == 0


def test_why_names_what_differs():
    base = identify(recipe(), TRAIN, INPUTS).parts
    assert why(base, base) == []
    code = {**base["code"], "toco.losses.ptc": "0", "toco.losses.ctc": "0", "toco.gone": "0"}
    del code["toco.types"]
    assert why(base, base | {"code": code}) == [
        "code changed: toco.losses.ctc, toco.losses.ptc",
        "code added: toco.types",
        "code no longer used: toco.gone",
    ]
    assert why(base, base | {"data": {"train": "x", "val": "x"}}) == [
        "other training data",
        "other validation data",
    ]
    assert why(base, base | {"weights": None}) == ["other pretrained weights"]
    torch = base["versions"]["torch"]
    assert why(base, base | {"versions": {**base["versions"], "torch": "1.0"}}) == [
        f"torch {torch} instead of 1.0"
    ]
    assert why(base, base | {"train": "own:train"}) == [f"trained by {TRAIN} instead of own:train"]
    seeded = identify(replace(recipe(), {"seed": 4}), TRAIN, INPUTS).parts
    assert why(seeded, base) == ["seed 4 instead of 0"]
    trained = identify(replace(recipe(), {"num_steps": 170}), TRAIN, INPUTS).parts
    assert why(trained, base) == ["other config"]
    evaluated = identify(replace(recipe(), {"evaluate.cam_flip": False}), TRAIN, INPUTS).parts
    assert why(evaluated, base) == ["other settings of the evaluation"]
