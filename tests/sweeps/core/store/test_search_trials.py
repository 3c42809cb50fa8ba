"""The journal of a search: proposals, rungs and ends survive their driver; front and importance of
made-up numbers.
"""

import dataclasses
import errno
import resource

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from sweeps.core.design.search_space import Objective, SearchStudy
from sweeps.core.store.search_record import RECORD, importance, read_search_record, search_file
from sweeps.core.store.search_trials import Journal, SearchTrials, read_study
from tests.sweeps.core.damages import DAMAGES, damage
from tests.sweeps.core.entries import make_entry

STUDY = SearchStudy(
    name="s",
    title="S",
    recipe="shapes_nano",
    space={f"method.{name}.weight": FloatDistribution(0.0, 20.0) for name in ("ptc", "ctc")},
    num_trials=6,
    num_random=2,
    objectives=(
        Objective("val/cam_miou", "M"),
        Objective("val/seg_miou", "seg"),
        Objective("step_time_s", "cost", higher_is_better=False),
    ),
    changes={
        "num_steps": 160,
        "evaluate_every": 20,
        "method.segmentation.start_step": 80,
        "method.energy.start_step": 80,
    },
)
PLAN = STUDY.resolve()


def write(path, inputs):
    RECORD.write(path, lambda _, start_id: search_file(PLAN, "trials.jsonl", inputs, start_id))


def held():
    """The lease of the search is held."""


def metrics(value):
    return {"val/cam_miou": value, "val/seg_miou": value, "val/other": 1.0}


def entry(cam, seg, cost, status="finished", **fields):
    return make_entry(
        status=status,
        metrics={"val/cam_miou": cam, "val/seg_miou": seg},
        step_time_s=cost,
        **fields,
    )


def states(trials):
    return [trial.state for trial in trials._trials()]


def run(journal, values, again):
    """Run a search whose objectives are ``values(params)``; with ``again`` every step is another
    process's.
    """
    trials = SearchTrials(journal, PLAN, held)
    while True:
        trials = SearchTrials(journal, PLAN, held) if again else trials
        asked = trials.ask()
        if asked is None:
            return [trial.params for trial in trials._trials()]
        trials = SearchTrials(journal, PLAN, held) if again else trials
        trials.finish(asked.number, entry(*values(asked.params)))


def test_the_proposals_are_those_of_an_uninterrupted_search(tmp_path):
    def values(params):
        ptc, ctc = params["method.ptc.weight"], params["method.ctc.weight"]
        return ptc / 20, ctc / 20, ptc + ctc

    whole = run(tmp_path / "whole.jsonl", values, again=False)
    assert run(tmp_path / "lost.jsonl", values, again=True) == whole
    # The first has the recipe's own values, and none is proposed twice.
    assert whole[0] == {"method.ptc.weight": 20.0, "method.ctc.weight": 0.1}
    assert len({tuple(params.values()) for params in whole}) == len(whole) == 6


def test_what_was_not_told_is_unfinished(tmp_path):
    journal = tmp_path / "trials.jsonl"
    trials = SearchTrials(journal, PLAN, held)
    first, second = trials.ask(), trials.ask()
    trials.finish(first.number, entry(0.5, 0.4, 1.0))
    # Once more changes nothing.
    trials.finish(first.number, entry(0.9, 0.9, 9.0))
    (left,) = SearchTrials(journal, PLAN, held).unfinished()
    assert (left.number, left.params) == (second.number, second.params)
    assert read_study(journal)[0].trials[0].values == [0.5, 0.4, 1.0]


def test_rungs_are_judged_once_and_the_stopped_are_censored(tmp_path):
    journal = tmp_path / "trials.jsonl"
    trials = SearchTrials(journal, PLAN, held)
    numbers = [trials.ask().number for _ in range(4)]
    # No rung: no question.
    assert trials.reached(numbers[0], 80, metrics(0.0))
    assert [
        trials.reached(n, 100, metrics(v))
        for n, v in zip(numbers[:3], (0.5, 0.4, 0.6), strict=True)
    ] == [
        True,
        False,
        True,
    ]
    again = SearchTrials(journal, PLAN, held)
    # It went on from a checkpoint before the rung; in the meantime it would not be among the best
    # any more.
    assert again.reached(numbers[0], 100, metrics(0.1))
    assert not again.reached(numbers[3], 100, metrics(0.45))
    assert not again.reached(numbers[1], 120, metrics(0.9))
    assert states(again) == [
        TrialState.RUNNING,
        TrialState.PRUNED,
        TrialState.RUNNING,
        TrialState.PRUNED,
    ]
    stopped = again._trials()[numbers[1]]
    assert stopped.values is None
    assert stopped.user_attrs["rungs"] == {
        "reached": {"100": {"val/cam_miou": 0.4, "val/seg_miou": 0.4}},
        "stopped_at": 100,
    }


def test_a_driver_lost_between_judging_and_telling(tmp_path, monkeypatch):
    journal = tmp_path / "trials.jsonl"
    trials = SearchTrials(journal, PLAN, held)
    good, bad = trials.ask().number, trials.ask().number
    assert trials.reached(good, 100, metrics(0.6))
    monkeypatch.setattr(trials._study, "tell", lambda *_, **__: pytest.fail("never told"))
    with pytest.raises(BaseException, match="never told"):
        trials.reached(bad, 100, metrics(0.5))
    again = SearchTrials(journal, PLAN, held)
    assert [trial.number for trial in again.unfinished()] == [good]
    assert states(again) == [TrialState.RUNNING, TrialState.PRUNED]


def test_a_torn_line_is_cut_off(tmp_path):
    journal = tmp_path / "trials.jsonl"
    number = SearchTrials(journal, PLAN, held).ask().number
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":6,"worker')
    SearchTrials(journal, PLAN, held).finish(number, entry(0.5, 0.4, 1.0))
    assert journal.read_bytes().startswith(whole + b'{"line')
    assert [trial.state for trial in read_study(journal)[0].trials] == [TrialState.COMPLETE]


@pytest.mark.parametrize("asked", [0, 3])
def test_a_driver_lost_while_it_asked(tmp_path, asked):
    """Every prefix of what asking writes: the same values are asked for, and no trial is lost or
    doubled.
    """
    journal, cut = tmp_path / "trials.jsonl", tmp_path / "cut.jsonl"
    trials = SearchTrials(journal, PLAN, held)
    for _ in range(asked):
        trials.finish(trials.ask().number, entry(0.5, 0.4, 1.0))
    before = len(journal.read_bytes().splitlines())
    whole = trials.ask().params
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) >= before + len(PLAN.study.space)
    for number in range(before, len(lines)):
        cut.write_bytes(b"".join(lines[:number]))
        again = SearchTrials(cut, PLAN, held)
        assert again.unfinished() == []
        assert again.ask().params == whole
        # What waits, or is half asked for, is no trial.
        assert len(again.planned()) == len(set(again.planned())) == STUDY.num_trials
        assert len(again.unfinished()) == 1
        assert len(again.ended()) == asked


def test_planned_are_the_numbers_that_trials_get(tmp_path):
    trials = SearchTrials(tmp_path / "trials.jsonl", PLAN, held)
    # One that its driver did not ask for to its end keeps its number.
    trials._study.ask()
    trials = SearchTrials(tmp_path / "trials.jsonl", PLAN, held)
    assert trials.unfinished() == []
    planned = trials.planned()
    numbers = []
    while (asked := trials.ask()) is not None:
        numbers.append(asked.number)
    assert numbers == planned


def test_proposals_learn_from_what_diverged(tmp_path):
    study = dataclasses.replace(STUDY, num_trials=40, num_random=4)
    trials = SearchTrials(tmp_path / "trials.jsonl", study.resolve(), held)
    diverged = []
    while (asked := trials.ask()) is not None:
        # The larger, the better, until it diverges.
        weight = asked.params["method.ptc.weight"]
        diverged.append(weight > 10)
        found = entry(
            0.5 + weight / 100, 0.4 - weight / 200, 1.0, "diverged" if weight > 10 else "finished"
        )
        trials.finish(asked.number, found)
    # Six of thirty; where Optuna passes over them, as it does over failed trials, it is 29.
    assert any(diverged)
    assert sum(diverged[10:]) <= 10


def test_diverged_and_undefined_results_are_failures_with_a_reason(tmp_path):
    trials = SearchTrials(tmp_path / "trials.jsonl", PLAN, held)
    numbers = [trials.ask().number for _ in range(2)]
    trials.finish(numbers[0], entry(0.5, 0.4, 1.0, "diverged", message="ptc is nan"))
    trials.finish(numbers[1], entry(0.5, float("nan"), 1.0))
    # Not failed: proposals learn from trials that Optuna calls pruned, and pass over failed ones.
    assert states(trials) == [TrialState.PRUNED, TrialState.PRUNED]
    assert [trial.user_attrs["message"] for trial in trials._trials()] == [
        "ptc is nan",
        "Its result has no finite val/seg_miou.",
    ]


def test_more_trials_go_on_with_the_same_search(tmp_path):
    journal = tmp_path / "trials.jsonl"
    trials = SearchTrials(journal, PLAN, held)
    while (asked := trials.ask()) is not None:
        trials.finish(asked.number, entry(0.5, 0.4, 1.0))
    assert trials.is_full
    more = SearchTrials(journal, dataclasses.replace(STUDY, num_trials=8).resolve(), held)
    assert (more.planned(), more.ended()) == (list(range(8)), list(range(6)))
    assert [more.ask().number, more.ask().number, more.ask()] == [6, 7, None]


def test_the_front_of_numbers_by_hand(tmp_path):
    trials = SearchTrials(tmp_path / "trials.jsonl", PLAN, held)
    # Trial 2 is worse than 0 in everything, 3 equal to 0 but dearer; 4 equals 1; 5 is stopped.
    values = [(0.6, 0.5, 2.0), (0.5, 0.6, 2.0), (0.5, 0.4, 3.0), (0.6, 0.5, 2.5), (0.5, 0.6, 2.0)]
    for value in values:
        trials.finish(trials.ask().number, entry(*value))
    trials.stop(trials.ask().number, 100)
    write(tmp_path, {})
    record = read_search_record(tmp_path)
    # The best of the first objective comes first.
    assert [trial.number for trial in record.front] == [0, 1, 4]
    assert [trial.state_text for trial in record.trials] == ["finished"] * 5 + [
        "stopped at rung 100"
    ]
    assert record.trials[5].results == {}


def test_importance_finds_the_setting_that_matters(tmp_path):
    many = dataclasses.replace(STUDY, num_trials=40, num_random=40)
    trials = SearchTrials(tmp_path / "trials.jsonl", many.resolve(), held)
    while (asked := trials.ask()) is not None:
        ptc, ctc = asked.params["method.ptc.weight"], asked.params["method.ctc.weight"]
        trials.finish(asked.number, entry(ptc / 20, ctc**2 / 400, 1.0))
    found = importance(trials._study, STUDY.objectives)
    assert found["val/cam_miou"]["method.ptc.weight"] > 0.9
    assert found["val/seg_miou"]["method.ctc.weight"] > 0.9
    assert sum(found["val/cam_miou"].values()) == pytest.approx(1)
    # All trials cost the same: nothing explains it.
    assert "step_time_s" not in found


def test_too_few_trials_say_nothing_of_importance(tmp_path):
    trials = SearchTrials(tmp_path / "trials.jsonl", PLAN, held)
    for cam in (0.1, 0.2, 0.3):
        trials.finish(trials.ask().number, entry(cam, cam, cam))
    assert importance(trials._study, STUDY.objectives) == {}


def values_of(params):
    ptc, ctc = params["method.ptc.weight"], params["method.ctc.weight"]
    return ptc / 20, ctc / 20, ptc + ctc


@pytest.mark.parametrize("name", DAMAGES)
def test_a_journal_ends_before_its_damaged_line_and_the_search_asks_again_for_the_same(
    tmp_path, name, caplog
):
    journal = tmp_path / "trials.jsonl"
    proposals = run(journal, values_of, again=False)
    lines = journal.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    damaged = DAMAGES[name](lines[middle]).replace(b"\n", b"") + b"\n"
    journal.write_bytes(b"".join([*lines[:middle], damaged, *lines[middle + 1 :]]))
    as_damaged = journal.read_bytes()
    study, fault = read_study(journal)
    assert fault.startswith(f"{journal} is damaged in line {middle + 1}: ")
    assert 0 < len(study.trials) < len(proposals)
    assert journal.read_bytes() == as_damaged
    # As a driver that goes on does it: what was asked for and not told ends first.
    trials = SearchTrials(journal, PLAN, held)
    for trial in trials.unfinished():
        trials.finish(trial.number, entry(*values_of(trial.params)))
    asked_again = run(journal, values_of, again=False)
    assert [
        params for params in asked_again if params.keys() == PLAN.study.space.keys()
    ] == proposals
    kept = tmp_path / "history" / "trials.jsonl.damaged-1"
    assert kept.read_bytes() == as_damaged
    assert f"The journal is kept as {kept}" in caplog.text
    assert read_study(journal)[1] is None


def test_a_lost_line_of_a_journal_is_seen(tmp_path):
    journal = tmp_path / "trials.jsonl"
    run(journal, values_of, again=False)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    assert read_study(journal)[1].startswith(f"{journal} is damaged in line 6: ")


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    journal = tmp_path / "trials.jsonl"
    trials = SearchTrials(journal, PLAN, held)
    whole = journal.read_bytes()

    def no_space(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sweeps.core.store.search_trials.os.fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            trials.ask()
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_search_is_kept_aside_and_written_again(tmp_path, name, caplog):
    inputs = {"train": "aa", "val": "bb", "weights": None}
    write(tmp_path, inputs)
    file = tmp_path / "search.json"
    whole = read_search_record(tmp_path)
    damage(file, name)
    damaged = file.read_bytes()
    with pytest.raises(ValueError, match=r"search\.json .*Run the search's command again"):
        read_search_record(tmp_path)
    write(tmp_path, inputs)
    (kept,) = (tmp_path / "history").iterdir()
    assert kept.read_bytes() == damaged
    assert f"kept as {kept}" in caplog.text
    # Damage may have taken the start with it.
    assert read_search_record(tmp_path).model_copy(update={"start_id": whole.start_id}) == whole


@pytest.mark.parametrize("size", [20, 20_000])
def test_a_disk_that_is_full_at_a_line_leaves_whole_lines(tmp_path, size):
    journal = Journal(tmp_path / "trials.jsonl")
    journal.append_logs([{"first": 1}])
    whole = (tmp_path / "trials.jsonl").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
    try:
        with pytest.raises(OSError, match=r"trials\.jsonl"):
            journal.append_logs([{"second": "x" * size}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "trials.jsonl").read_bytes() == whole
    journal.append_logs([{"second": 2}])
    assert Journal(tmp_path / "trials.jsonl").read_logs(0) == [{"first": 1}, {"second": 2}]
