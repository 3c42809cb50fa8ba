"""The forecast: added up by hand from costs and from finished trainings, and held against what
happened.
"""

import dataclasses
import itertools
from datetime import datetime

import pytest
from pydantic import TypeAdapter

from sweeps.core.plan.estimates import START_S, Work
from sweeps.core.plan.forecast import (
    describe,
    forecast,
    makespan,
    scorecard,
    training_seconds,
    with_looks,
)
from sweeps.core.plan.probe import Phase
from sweeps.core.store.forecast_record import Forecast, Range
from tests.sweeps.core.entries import amend_entry, make_entry
from tests.sweeps.core.plan.costs import COST, NANO
from toco.config import replace

OTHER = replace(NANO, {"method.local_crop_size_px": 16})
TRAINING_S = 40 + 80 + 2 * 3
CHEAP = dataclasses.replace(COST, config=OTHER, phases=(Phase(0, 160, 0.25),))


def seeded(config, seed):
    return config.model_copy(update={"seed": seed})


def entry(config=NANO, wall_time_s=100.0, **changes):
    values = {
        "status": "finished",
        "step": config.num_steps,
        "config": config.resolved().model_dump(mode="json"),
        "wall_time_s": wall_time_s,
        "peak_memory_bytes": 10**9,
        "resources": {"cpus": 1.0, "gpus": 0.0, "world_size": 1},
        "provenance": {"device": "CPU x86_64"},
        "origin": {"derived_from": None, "forked_at": None},
    }
    return make_entry(**{**values, **changes})


def brute_force(times_s, concurrent):
    """Second by second, for whole seconds."""
    waiting, running, now = list(times_s), [], 0
    while waiting or running:
        while waiting and len(running) < concurrent:
            running.append(waiting.pop(0))
        now += 1
        running = [time_s - 1 for time_s in running if time_s > 1]
    return now


def test_the_makespan_is_that_of_a_clock():
    for times_s in itertools.product((1, 2, 5), repeat=5):
        for concurrent in (1, 2, 3, 7):
            assert makespan(times_s, concurrent) == brute_force(times_s, concurrent)


def test_one_training_alone_is_its_phases_its_evaluations_and_its_start():
    result = forecast([Work(NANO)], concurrent=1, costs=[COST])
    assert result.training_s == TRAINING_S
    assert result.wall_s == Range(
        5 + 0.9 * TRAINING_S, 5 + TRAINING_S, pytest.approx(5 + 1.1 * TRAINING_S)
    )
    assert result.cpu_hours == pytest.approx((5 + TRAINING_S) / 3600)
    assert result.gpu_hours == 0
    assert (result.disk_bytes, result.memory_bytes, result.money) == (2 * 10**7, 10**9, None)


def test_what_lies_behind_a_checkpoint_is_not_predicted_again():
    # The last 80 steps are the dear ones: 80 s and one evaluation.
    result = forecast([Work(NANO, "train", 80)], concurrent=1, costs=[COST])
    assert result.training_s == pytest.approx(83)
    assert (result.trainings, result.resumed) == (1, 1)
    # Without a probe nobody knows which steps are dear.
    past = forecast([Work(NANO, "train", 80)], concurrent=1, history=[entry()])
    assert past.training_s == pytest.approx(50)


def test_beside_others_a_probed_training_may_take_longer_but_not_shorter():
    alone = forecast([Work(NANO)] * 4, concurrent=1, costs=[COST]).wall_s
    beside = forecast([Work(NANO)] * 4, concurrent=2, costs=[COST]).wall_s
    assert beside.low == pytest.approx(alone.low / 2)
    assert beside.high > 1.5 * alone.high / 2
    assert beside.low < beside.likely < beside.high


def test_trials_that_share_a_gpu_may_wait_for_each_other():
    cost = dataclasses.replace(COST, device="NVIDIA A100")
    shared = forecast([Work(NANO)] * 4, concurrent=4, gpus=0.25, costs=[cost], price_per_hour=2.0)
    own = forecast([Work(NANO)] * 4, concurrent=4, gpus=1.0, costs=[cost], price_per_hour=2.0)
    assert own.wall_s.high == pytest.approx(5 + 1.1 * TRAINING_S)
    assert shared.wall_s.high == pytest.approx(5 + 4 * 1.1 * TRAINING_S)
    assert own.gpu_hours == pytest.approx(4 * (5 + TRAINING_S) / 3600)
    assert own.money == pytest.approx(2 * own.gpu_hours)
    # A quarter of a GPU for up to four times as long: likely for twice as long.
    assert shared.gpu_hours == pytest.approx(4 * 0.25 * (5 + 2 * TRAINING_S) / 3600)


def test_a_price_is_of_a_gpu_or_of_a_core_where_there_is_no_gpu():
    on_cores = forecast([Work(NANO)] * 4, concurrent=2, cpus=3.0, costs=[COST], price_per_hour=0.5)
    assert on_cores.money == pytest.approx(0.5 * on_cores.cpu_hours)
    assert on_cores.money > 0
    cost = dataclasses.replace(COST, device="NVIDIA A100")
    # Cores beside a GPU are in its price.
    shared = forecast(
        [Work(NANO)] * 4, concurrent=4, cpus=3.0, gpus=0.25, costs=[cost], price_per_hour=2.0
    )
    assert shared.money == pytest.approx(2 * shared.gpu_hours)


def test_a_probe_on_a_cpu_says_nothing_of_a_gpu():
    result = forecast([Work(NANO)], concurrent=1, gpus=1, costs=[COST])
    assert (result.wall_s, result.gpu_hours, result.disk_bytes) == (None, None, None)
    assert "CPU x86_64, where the trials will not run" in result.basis
    assert result.trainings == 1
    assert "1 training to run" in describe(result, datetime(2026, 1, 1))[0]


def test_each_training_costs_what_its_nearest_probed_one_does():
    costs = [COST, CHEAP]
    assert forecast([Work(seeded(OTHER, 7))], concurrent=1, costs=costs).training_s == 40 + 6
    near = replace(OTHER, {"method.temperature": 0.3})
    result = forecast([Work(near)], concurrent=1, costs=costs)
    assert result.training_s == 40 + 6
    # But it was not probed, so it may also cost what the dear one does.
    assert result.wall_s.high == pytest.approx(5 + 1.1 * TRAINING_S)


def test_finished_trainings_of_the_same_settings_know_better_than_a_probe():
    history = [entry(seeded(NANO, seed), wall) for seed, wall in enumerate((100.0, 110.0, 150.0))]
    result = forecast([Work(seeded(NANO, 9))], concurrent=2, costs=[COST], history=history)
    assert result.training_s == 110
    # Quantiles of three values by hand: 100 + 0.2 * 10 and 110 + 0.8 * 40; the lower one is within
    # 10 % of the median.
    assert (result.wall_s.low, result.wall_s.high) == pytest.approx((5 + 99, 5 + 142))
    assert "1 from finished trainings of the same settings" in result.basis


@pytest.mark.parametrize("changes", [
    {"status": "diverged"},
    {"step": 80},
    {"origin": {"derived_from": "abc", "forked_at": None}},
    {"origin": {"derived_from": None, "forked_at": 80}},
    {"resources": {"cpus": 4.0, "gpus": 0.0, "world_size": 1}},
    {"provenance": {"device": "CPU arm64"}},
    {"config": {"of": "an older version"}},
    {"wall_time_s": None},
])  # fmt: skip
def test_trainings_that_were_cut_or_ran_elsewhere_predict_nothing(changes):
    result = forecast(
        [Work(NANO)], concurrent=1, costs=[COST], history=[amend_entry(entry(), **changes)]
    )
    assert result.training_s == TRAINING_S


def test_without_a_probe_three_similar_trainings_are_enough_and_two_are_not():
    history = [entry(seeded(OTHER, seed), 60.0) for seed in range(3)]
    assert forecast([Work(NANO)], concurrent=1, history=history[:2]).wall_s is None
    result = forecast([Work(NANO)], concurrent=1, history=history)
    assert result.wall_s.likely == START_S + 60
    shorter = replace(NANO, {"num_steps": 80})
    assert forecast([Work(shorter)], concurrent=1, history=history).wall_s is None
    all_trained = replace(NANO, {"optim.frozen_layers": 0})
    assert forecast([Work(all_trained)], concurrent=1, history=history).wall_s is None


def test_cells_that_are_only_evaluated_cost_an_evaluation_or_nothing():
    works = [Work(NANO), Work(NANO, "evaluate"), Work(NANO, "rescore")]
    result = forecast(works, concurrent=1, costs=[COST])
    assert (result.trainings, result.evaluations) == (1, 2)
    assert result.wall_s.likely == (5 + TRAINING_S) + (5 + 3)
    assert result.disk_bytes == COST.run_bytes
    # Without a probe: at most half of a training with two evaluations.
    past = forecast([Work(NANO, "evaluate")], concurrent=1, history=[entry()])
    assert dataclasses.astuple(past.wall_s) == pytest.approx(
        (START_S, START_S + 27.5, START_S + 55)
    )


def test_nothing_left_costs_nothing():
    result = forecast([], concurrent=2, costs=[COST])
    assert (result.wall_s, result.cpu_hours, result.training_s) == (Range(0, 0, 0), 0, None)
    assert describe(result, datetime(2026, 1, 1)) == ("Nothing is left to run.",)


def test_the_sentences_say_when_it_will_be_done():
    text = " ".join(
        describe(
            forecast([Work(NANO)] * 30, concurrent=1, costs=[COST]), datetime(2026, 1, 31, 23, 30)
        )
    )
    # 30 x (5 + 126) s is 65.5 minutes.
    assert (
        "30 trainings to run, 1 at once: about 66 min (59 min to 72 min), done about 2026-02-01 "
        "00:35" in text
    )
    assert "1.1 CPU hours, 600 MB of disk, 1.0 GB of memory for the trials at once." in text
    assert "30 from a probe" in text


def test_the_scorecard_holds_the_forecast_against_what_happened():
    works = [Work(seeded(NANO, seed)) for seed in range(2)]
    made = forecast(works, concurrent=1, costs=[COST])
    stored = TypeAdapter(Forecast)
    predicted = stored.validate_json(stored.dump_json(made), strict=True)
    assert predicted == made
    entries = [entry(NANO, 126.0), entry(seeded(NANO, 1), 151.2, peak_memory_bytes=2 * 10**9)]
    wall, training, memory = scorecard(predicted, entries, 2 * (5 + TRAINING_S) * 1.5)
    assert wall == "Predicted 4 min (4 min to 5 min), took 7 min: 50 % longer, outside the range."
    assert training == "A training: predicted 2 min, took 2 min on average over 2: 10 % longer."
    assert memory == "Memory of a trial: predicted 1.0 GB, took at most 2.0 GB."


def test_the_scorecard_of_an_interrupted_study_says_what_is_known():
    works = [Work(NANO), Work(seeded(NANO, 1), "train", 80)]
    predicted = forecast(works, concurrent=1, costs=[COST])
    assert scorecard(predicted, [entry()], None) == (
        "Trainings: predicted 2, ended 1.",
        "Memory of a trial: predicted 1.0 GB, took at most 1.0 GB.",
    )


def sequential_forecast():
    """Three trainings at the present look, then two and one, two at once: 131 s each alone."""
    looks = [
        forecast([Work(seeded(NANO, seed)) for seed in range(number)], concurrent=1, costs=[COST])
        for number in (3, 2, 1)
    ]
    return with_looks(looks[0], looks[1:])


def test_a_study_with_looks_says_what_the_present_look_and_all_looks_take():
    predicted = sequential_forecast()
    each_s = 5 + TRAINING_S
    assert predicted.trainings == 3
    assert predicted.wall_s.likely == 3 * each_s
    assert predicted.most.trainings == 6
    assert predicted.most.wall_s == 6 * each_s
    assert predicted.most.cpu_hours == pytest.approx(6 * each_s / 3600)
    stored = TypeAdapter(Forecast)
    assert stored.validate_json(stored.dump_json(predicted), strict=True) == predicted
    text = describe(predicted, datetime(2026, 1, 1))
    assert text[0].startswith("3 trainings to run for the present look, 1 at once: about 7 min")
    assert (
        "If every open claim stays open up to the last look: 6 trainings, 0.2 CPU hours, about "
        "13 min, done about 2026-01-01 00:13." in text
    )
    # Nothing follows the last look, and unknown times leave the counts.
    alone = with_looks(forecast([Work(NANO)], concurrent=1, costs=[COST]), [])
    assert not any("open claim" in line for line in describe(alone, datetime(2026, 1, 1)))
    unknown = with_looks(
        forecast([Work(NANO)], concurrent=1), [forecast([Work(NANO)], concurrent=1)]
    )
    assert (unknown.most.trainings, unknown.most.wall_s) == (2, None)
    assert any(
        "last look: 2 trainings." in line for line in describe(unknown, datetime(2026, 1, 1))
    )


def test_the_scorecard_compares_all_looks_that_ran():
    predicted = sequential_forecast()
    entries = [entry(seeded(NANO, seed), float(TRAINING_S)) for seed in range(5)]
    # Five trainings, one after the other, in two looks: as predicted, and so is each of them.
    wall, training, number, _ = scorecard(predicted, entries, 5 * (5 + TRAINING_S), [3, 2])
    assert wall == (
        "Predicted for the 2 looks that ran 11 min (10 min to 12 min), took 11 min: as predicted, "
        "inside the range."
    )
    assert training.endswith("on average over 5: as predicted.")
    assert number == (
        "Trainings: predicted 3 for the look at the start and at most 6 for all looks, ended 5."
    )
    # Two at once: 3 and 2 trainings are 2 rounds and 1 round.
    two = dataclasses.replace(predicted, concurrent=2)
    wall, *_ = scorecard(two, entries, 1.5 * two.wall_s.likely, [3, 2])
    assert "as predicted" in wall
    # The look at the start was over before: what ran is unknown to its forecast.
    assert not scorecard(predicted, entries, 1.0, [])[0].startswith("Predicted")


def test_whole_trainings_take_their_time_and_their_start():
    resources = {"concurrent": 1, "cpus": 1.0, "gpus": 0.0}
    times_s = training_seconds([NANO, OTHER], **resources, costs=[COST, CHEAP], history=())
    assert times_s == (5 + TRAINING_S, 5 + 40 + 2 * 3)
    assert training_seconds([NANO, OTHER], **resources, costs=(), history=[entry()]) is None
    assert training_seconds([NANO], **resources, costs=(), history=[entry()]) == (START_S + 100,)
