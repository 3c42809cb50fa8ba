"""The probe: where the terms of a loss change, what a training adds up to, and one real probe."""

from itertools import combinations

import pytest

from sweeps.core.plan.measure import _same_evaluation, changes_of_terms
from sweeps.core.plan.probe import COSTS_MODEL, ProbeError, evaluations, kind, probe
from tests.sweeps.core.plan.costs import COST, NANO
from toco.config import replace

SHORT = {"optim.warmup_steps": 0}


def looked_at(first_steps, num_steps):
    """Terms of a method whose n-th term begins at the n-th of ``first_steps``, and the steps that
    were asked for.
    """
    asked = set()

    def terms(step):
        asked.add(step)
        return frozenset(str(number) for number, first in enumerate(first_steps) if step >= first)

    return changes_of_terms(terms, num_steps), asked


@pytest.mark.parametrize("first", [1, 40, 79, 80, 81, 158, 159])
def test_a_term_that_begins_late_is_found_to_the_step_in_a_short_training(first):
    assert looked_at([0, first], 160)[0] == [first]


def test_every_change_is_found():
    assert looked_at([0, 20, 80, 80, 120], 160)[0] == [20, 80, 120]
    assert looked_at([0], 160)[0] == []
    assert looked_at([0], 1)[0] == []


def test_a_long_training_is_halved_and_not_walked():
    (found,), asked = looked_at([0, 2001], 20_000)
    assert 2001 <= found <= 2001 + 200
    assert len(asked) < 12


def test_a_term_that_ends_is_a_change_too():
    assert changes_of_terms(lambda step: {"a"} if step < 50 else set(), 160) == [50]


def test_an_evaluation_is_timed_again_where_its_checkpoint_has_another_size():
    sgd = replace(NANO, {"optim.name": "sgd"})
    without = replace(sgd, {"optim.nesterov": False, "optim.momentum": 0})
    frozen = replace(NANO, {"optim.frozen_layers": NANO.optim.frozen_layers + 1})
    for left, right in combinations((NANO, sgd, without, frozen), 2):
        same_layers = left.optim.frozen_layers == right.optim.frozen_layers
        same_moments = left.optim.num_moments() == right.optim.num_moments()
        assert _same_evaluation(left, right) == (same_layers and same_moments), (left, right)
    assert _same_evaluation(NANO, replace(NANO, {"optim.lr": 1.0}))
    assert _same_evaluation(sgd, replace(sgd, {"optim.momentum": 0.5}))


def test_a_training_is_its_phases_and_its_evaluations():
    # 80 steps of 0.5 s, 80 of 1 s, evaluations after 80 and 160.
    assert COST.training_s(NANO) == 40 + 80 + 2 * 3
    # From a checkpoint after 80 the cheap steps and one evaluation are behind it.
    assert COST.training_s(NANO, 80) == 80 + 3
    assert COST.training_s(NANO, 159) == 1 + 3
    assert COST.training_s(NANO, 160) == 0


def test_a_longer_training_goes_on_as_the_probed_one_ends_and_a_shorter_one_ends_before():
    assert COST.training_s(replace(NANO, {"num_steps": 200})) == 40 + 120 + 3 * 3
    assert COST.training_s(replace(NANO, {"num_steps": 60})) == 30 + 3


@pytest.mark.parametrize(("num_steps", "every", "steps", "expected"), [
    (160, 80, 0, 0), (160, 80, 79, 0), (160, 80, 80, 1), (160, 80, 160, 2),
    (100, 80, 99, 1), (100, 80, 100, 2), (30, 80, 29, 0), (30, 80, 30, 1),
])  # fmt: skip
def test_the_last_step_is_always_evaluated(num_steps, every, steps, expected):
    config = replace(NANO, {"num_steps": num_steps, "evaluate_every": every})
    assert evaluations(config, steps) == expected


def test_trainings_that_differ_in_the_seed_or_in_what_changes_no_result_are_of_one_kind():
    same = {
        kind(replace(NANO, changes))
        for changes in ({}, {"seed": 3}, {"num_workers": 2}, {"device": "cpu"})
    }
    assert len(same) == 1
    assert kind(replace(NANO, {"method.aux_block": 8})) not in same


def test_costs_survive_json():
    assert COSTS_MODEL.validate_json(COSTS_MODEL.dump_json((COST,))) == (COST,)


def test_what_is_wrong_with_a_config_is_said():
    with pytest.raises(ProbeError, match=r"failed: ValueError.*no CUDA|failed: ValueError.*device"):
        probe([replace(NANO, {"device": "nonsense"})])


def test_a_probe_that_takes_too_long_is_ended():
    with pytest.raises(ProbeError, match="took longer than"):
        probe([NANO], limit_s=0.01)


@pytest.mark.slow
def test_a_real_probe_finds_the_phases_and_the_sizes():
    small = replace(
        NANO,
        {"data.num_train": 32, "data.num_val": 8, "num_steps": 20, "evaluate_every": 10} | SHORT,
    )
    small = replace(
        small,
        {
            "method.ptc.start_step": 0,
            "method.ctc.start_step": 0,
            "method.segmentation.start_step": 13,
            "method.energy.start_step": 13,
            "batch_size": 2,
        },
    )
    other = replace(small, {"method.segmentation.weight": 0, "method.energy.weight": 0})
    costs = probe([small, replace(small, {"seed": 5}), other], budget_s=1000)
    assert [cost.config for cost in costs] == [small.resolved(), other.resolved()]
    first, second = costs
    assert [(phase.start, phase.stop) for phase in first.phases] == [(0, 13), (13, 20)]
    assert [(phase.start, phase.stop) for phase in second.phases] == [(0, 20)]
    for cost in costs:
        assert all(phase.step_s > 0 for phase in cost.phases)
        assert cost.device.startswith("CPU")
        assert cost.setup_s > 0
        assert cost.evaluation_s > 0
        # Both checkpoints that are kept, and beside them pictures and evaluations.
        assert 2 * cost.checkpoint_bytes < cost.run_bytes < 3 * cost.checkpoint_bytes
        assert cost.peak_memory_bytes > cost.checkpoint_bytes


@pytest.mark.slow
def test_with_no_time_left_only_the_first_is_probed():
    small = replace(
        NANO, {"data.num_train": 32, "data.num_val": 8, "num_steps": 12, "batch_size": 2} | SHORT
    )
    costs = probe([small, replace(small, {"method.temperature": 0.3})], budget_s=0)
    assert [cost.config for cost in costs] == [small.resolved()]
