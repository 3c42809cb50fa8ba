"""What changed between two states of a study: matched cells, paired differences, causes."""

import json
import sys
from pathlib import Path

import pytest

# Where the study's fake training lies, whose code is part of a trial's identity.
sys.path.insert(0, str(Path(__file__).parents[1]))

from sweeps.core.commands.diff import diff_text, print_diff
from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.survey import survey
from sweeps.core.store.ledger import Ledger
from sweeps.core.store.study_folder import StudyFolder
from tests.sweeps.core.records import M, make_study
from toco.files import read_record, write_record

SIMILARITY = "val/patch_similarity_last"
BEFORE = {"#10": (0.60, 0.62, 0.64), "#8": (0.50, 0.51, 0.55)}


def lines(text):
    """The table's rows as cells, by the cell's label and the metric's title."""
    rows = [line.split("  ") for line in text.splitlines()[4:]]
    found = [[part.strip() for part in row if part.strip()] for row in rows if len(row) > 3]
    return {(row[0], row[1]): row[2:] for row in found}


def test_changes_are_paired_by_seed_with_the_sign_of_after_minus_before():
    """+0.01, +0.02, +0.03: mean 0.02, sd 0.01, and t(0.975, 2) = 4.3027."""
    after = {"#10": (0.61, 0.64, 0.67), "#8": BEFORE["#8"]}
    half = 100 * 4.3027 * 0.01 / 3**0.5
    found = lines(diff_text(make_study(BEFORE), make_study(after)))
    assert found["#10", "M"] == ["+2.00", f"{2 - half:.2f} to {2 + half:+.2f}", "3"]
    assert found["#8", "M"] == ["0.00", "-", "3"]


def test_a_missing_seed_is_left_out_on_both_sides():
    before = make_study(BEFORE, states={("#10", 0): "failed"})
    after = make_study(
        {"#10": (0.70, 0.63, 0.99), "#8": BEFORE["#8"]}, states={("#10", 2): "waiting"}
    )
    assert lines(diff_text(before, after))["#10", "M"] == ["+1.00", "-", "1"]


def test_what_is_no_percentage_is_not_printed_as_one():
    similarity = {"#10": (0.90, 0.91, 0.92), "#8": (0.80, 0.80, 0.80)}
    lower = {label: [value - 0.1 for value in values] for label, values in similarity.items()}
    before, after = (
        make_study(BEFORE, more={SIMILARITY: similarity}),
        make_study(BEFORE, more={SIMILARITY: lower}),
    )
    assert lines(diff_text(before, after))["#10", "patch_similarity_last"][0] == "-0.1000"


def test_cells_that_came_went_or_broke_are_named():
    # By what they change, not by what they are called.
    blocks = {
        label: {"method.aux_block": number}
        for label, number in (("#10", 9), ("#8", 7), ("ten", 9), ("#9", 8))
    }
    before = make_study(BEFORE, changes=blocks)
    after = make_study(
        {"ten": BEFORE["#10"], "#9": BEFORE["#8"]}, changes=blocks, states={("ten", 1): "diverged"}
    )
    text = diff_text(before, after)
    assert lines(text)["ten", "M"] == ["0.00", "-", "2"]
    assert text.splitlines()[-3:] == [
        "ten is newly broken: 1 of its trials have no result.",
        "#9 is new.",
        "#8 is gone.",
    ]
    assert "newly broken" not in diff_text(after, after)


def test_the_causes_are_told():
    amend = {label: {"identity": {"code": {"toco.losses.ptc": "9" * 16}}} for label in BEFORE}
    text = diff_text(make_study(BEFORE), make_study(BEFORE, amend=amend))
    assert text.splitlines()[-1] == "code changed: toco.losses.ptc"
    assert "code" not in diff_text(make_study(BEFORE), make_study(BEFORE))


STUDY = Study(
    name="fake",
    title="Fake trainings",
    recipe="shapes_nano",
    design=OneFactor((Factor("method.aux_block", (7, 9), labels=("#8", "#10")),)),
    seeds=(0, 1),
    metrics=(Metric(M, "M"),),
    changes={"data.num_train": 1, "data.num_val": 1},
    purpose="direction",
    repeat_base=False,
    train="fake_training:train",
)


def record(storage, study, value):
    """Entries of all trials with this value; the study's folder."""
    situation = survey(study, storage)
    template = make_study({"#8": (value, value)}).trials[0].entry
    ledger = Ledger(storage)
    for trial, identity in zip(situation.plan.trials, situation.identities, strict=True):
        entry = {
            "key": identity.key,
            "training_key": identity.training_key,
            "identity": identity.parts,
            "config": trial.config.model_dump(mode="json"),
            "run": f"runs/{identity.key}",
        }
        ledger.write(template.model_copy(update=entry))
    folder = StudyFolder(storage / situation.plan.folder_name)
    folder.write_study(situation.plan, situation.keys, situation.inputs, None)
    return folder


def test_without_an_earlier_state_there_is_nothing_to_compare_with(tmp_path):
    record(tmp_path, STUDY, 0.5)
    with pytest.raises(ValueError, match="has no earlier state"):
        print_diff(STUDY, Launch(tmp_path), None)


def test_another_studys_folder_is_compared_with(tmp_path, capsys):
    record(tmp_path / "here", STUDY, 0.6)
    other = record(tmp_path / "there", STUDY, 0.5)
    assert print_diff(STUDY, Launch(tmp_path / "here"), other.path) == 0
    found = lines(capsys.readouterr().out)
    assert {cell: row[0] for (cell, _), row in found.items()} == {"#8": "+10.00", "#10": "+10.00"}


def test_the_state_before_the_last_change_is_compared_with(tmp_path, capsys):
    folder = record(tmp_path, STUDY, 0.5)
    before = json.dumps(read_record(folder.path / "study.json"))
    # The same study under keys of earlier code, with the results of then.
    situation = survey(STUDY, tmp_path)
    ledger = Ledger(tmp_path)
    for key in situation.keys:
        entry = ledger.entry(key)
        earlier = {"key": key[::-1], "metrics": {M: 0.4}, "run": f"runs/{key[::-1]}"}
        ledger.write(entry.model_copy(update=earlier))
        before = before.replace(key, key[::-1])
    write_record(folder.path / "study.json", json.loads(before), indent=1)
    assert print_diff(STUDY, Launch(tmp_path), None) == 0
    found = lines(capsys.readouterr().out)
    assert {cell: row[0] for (cell, _), row in found.items()} == {"#8": "+10.00", "#10": "+10.00"}
    assert folder.history() == []
    # A run keeps that state, which the same question then finds.
    folder.write_study(situation.plan, situation.keys, situation.inputs, None)
    assert len(folder.history()) == 1
    assert print_diff(STUDY, Launch(tmp_path), None) == 0
    assert lines(capsys.readouterr().out) == found
