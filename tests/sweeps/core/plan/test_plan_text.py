"""What a plan says: from the ledger where it knows, from a probe where it does not, and from
neither where it must.
"""

import dataclasses
import re
import statistics
from pathlib import Path

import pytest

from sweeps.core.design.designs import OneFactor
from sweeps.core.design.factors import Factor
from sweeps.core.design.seeds import Sequential
from sweeps.core.design.study import Metric, Study
from sweeps.core.plan import plan_text as planning
from sweeps.core.plan.launch_options import Launch
from sweeps.core.plan.plan_text import PROBED, ledger_noise, look_ahead, power_of
from sweeps.core.plan.probe import Cost, Phase, ProbeError
from sweeps.core.plan.survey import survey
from sweeps.core.store.ledger_entry import LedgerEntry
from toco.train import records

M = "val/cam_miou"
STUDY = Study(
    name="planned",
    title="A planned study",
    recipe="shapes_nano",
    design=OneFactor((Factor("method.aux_block", (7, 8, 9, 10), 9),)),
    seeds=(0, 1, 2),
    metrics=(Metric(M, "M"),),
    changes={
        "data.num_train": 1,
        "data.num_val": 1,
        "num_steps": 10,
        "evaluate_every": 5,
        "optim.warmup_steps": 0,
    },
    purpose="direction",
    repeat_base=False,
)


def cost(config):
    """Ten steps of 1 s and two evaluations of 2 s after a start of 6 s: 20 s a training."""
    return Cost(
        config.resolved(), "CPU x86_64", (Phase(0, 10, 1.0),), 2.0, 6.0, 10**9, 10**6, 10**7
    )


def enter(situation, values, **fields):
    """Put trials into the ledger: ``values`` by block and seed."""
    for trial, identity in zip(situation.plan.trials, situation.identities, strict=True):
        config = trial.config.resolved()
        value = values.get((config.method.aux_block, config.seed))
        if value is None:
            continue
        entry = {
            "key": identity.key,
            "training_key": identity.training_key,
            "status": "finished",
            "step": config.num_steps,
            "attempts": 0,
            "message": None,
            "identity": dict(identity.parts),
            "config": config.model_dump(mode="json"),
            "metrics": {M: value},
            "wall_time_s": 14.0,
            "step_time_s": 1.0,
            "peak_memory_bytes": 10**9,
            "provenance": {"device": "CPU x86_64", "started": "2026-01-01T00:00:00+00:00"},
            "resources": {"cpus": 1.0, "gpus": 0.0, "world_size": 1},
            "origin": {
                "study": "planned",
                "recipe": "shapes_nano",
                "search": False,
                "derived_from": None,
            },
            "run": f"runs/{identity.key}",
        }
        assert situation.ledger.write(LedgerEntry.model_validate(entry | fields))


@pytest.fixture
def probed(monkeypatch):
    """What was probed; the probe finds ``cost``."""
    asked = []

    def probe(configs, *, num_threads):
        asked.append(([config.method.aux_block for config in configs], num_threads))
        return tuple(map(cost, configs))

    monkeypatch.setattr(planning, "probe", probe)
    return asked


def plan(situation, launch):
    return look_ahead(situation, launch).forecast


def test_without_history_the_first_cells_are_probed_once_each(tmp_path, probed):
    situation = survey(STUDY, tmp_path)
    predicted = plan(situation, Launch(tmp_path, concurrent=1, cpus_per_trial=2.0))
    ((blocks, threads),) = probed
    assert (len(blocks), len(set(blocks)), threads) == (PROBED, PROBED, 2)
    # Twelve trainings of 20 s, one after the other, on two cores.
    assert (predicted.trainings, predicted.wall_s.likely, predicted.training_s) == (
        12,
        12 * 20.0,
        14.0,
    )
    assert predicted.cpu_hours == pytest.approx(12 * 20 * 2 / 3600)


def test_what_the_ledger_knows_is_not_probed(tmp_path, probed):
    situation = survey(STUDY, tmp_path)
    enter(situation, {(block, seed): 0.5 for block in (7, 8, 9, 10) for seed in (0, 1)})
    predicted = plan(situation, Launch(tmp_path, concurrent=1))
    assert probed == []
    assert (predicted.trainings, predicted.training_s) == (4, 14.0)
    assert predicted.basis == "Times of trainings: 4 from finished trainings of the same settings."


def test_another_training_than_ours_cannot_be_probed(tmp_path, probed, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    study = dataclasses.replace(STUDY, train="fake_training:train")
    predicted = plan(survey(study, tmp_path), Launch(tmp_path))
    assert (probed, predicted.wall_s, predicted.trainings) == ([], None, 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": "10.0.0.1:6379"}, "The time is unknown: the trainings run on a cluster"),
        ({"probe": False}, ""),
    ],
)
def test_this_machine_is_not_timed_for_others_or_unasked(tmp_path, probed, capsys, options, said):
    predicted = plan(survey(STUDY, tmp_path), Launch(tmp_path, **options))
    assert (probed, predicted.wall_s, predicted.trainings) == ([], None, 12)
    assert capsys.readouterr().err.startswith(said)
    # What the ledger knows is predicted there, too.
    situation = survey(STUDY, tmp_path)
    enter(situation, {(block, seed): 0.5 for block in (7, 8, 9, 10) for seed in (0, 1)})
    assert plan(situation, Launch(tmp_path, **options)).wall_s is not None


def test_a_probe_that_fails_leaves_a_plan_without_times(tmp_path, monkeypatch, capsys):
    def probe(configs, *, num_threads):
        raise ProbeError("the weights are not there.")

    monkeypatch.setattr(planning, "probe", probe)
    predicted = plan(survey(STUDY, tmp_path), Launch(tmp_path))
    assert (predicted.wall_s, predicted.trainings) == (None, 12)
    assert "Nothing can be predicted: the weights are not there." in capsys.readouterr().err


def test_the_noise_is_that_of_the_ledger(tmp_path):
    situation = survey(STUDY, tmp_path)
    assert all(
        metric.sd is None
        for metric in power_of(
            situation, Launch(tmp_path), ledger_noise(situation)
        ).power.metrics.values()
    )
    base, row = (0.50, 0.52, 0.51), (0.61, 0.60, 0.63)
    enter(
        situation,
        {(9, seed): base[seed] for seed in range(3)} | {(7, seed): row[seed] for seed in range(3)},
    )
    check = power_of(situation, Launch(tmp_path), ledger_noise(situation))
    sd = statistics.stdev(ours - theirs for ours, theirs in zip(row, base, strict=True))
    (metric,) = check.power.metrics.values()
    assert metric.sd == pytest.approx(sd)
    assert metric.detectable == pytest.approx(check.power.detectable_sd * sd)
    assert (check.power.comparisons, check.power.n, check.underpowered, check.refusal) == (
        3,
        3,
        True,
        None,
    )
    strict = survey(dataclasses.replace(STUDY, purpose="effect"), tmp_path)
    assert power_of(strict, Launch(tmp_path), ledger_noise(strict)).refusal is not None
    assert (
        power_of(strict, Launch(tmp_path, accept_underpowered=True), ledger_noise(strict)).refusal
        is None
    )


def text_of(situation, launch):
    return look_ahead(situation, launch).text


def test_the_text_says_what_is_there_what_goes_on_and_why_it_runs_again(tmp_path, probed):
    launch = Launch(tmp_path)
    situation = survey(STUDY, tmp_path)
    enter(situation, {(9, seed): 0.5 for seed in range(3)})
    # One has a checkpoint; the ledger has the settings of another with other data.
    begun = next(key for key in situation.keys if situation.ledger.entry(key) is None)
    state = situation.ledger.run_dir(begun) / "checkpoints" / "step_00000005" / "state.json"
    records.write(state, {"step": 5})
    trial = situation.plan.trials[-1]
    identity = dataclasses.replace(situation.identities[-1], key="0" * 20, training_key="1" * 20)
    parts = {**identity.parts, "data": {**identity.parts["data"], "train": "other"}}
    one = dataclasses.replace(
        situation,
        plan=dataclasses.replace(situation.plan, trials=(trial,)),
        identities=(dataclasses.replace(identity, parts=parts),),
    )
    enter(one, {(trial.config.method.aux_block, trial.config.seed): 0.5})
    lines = text_of(situation, launch).splitlines()
    assert lines[0] == "A planned study"
    assert (
        lines[1]
        == f"one factor at a time: 4 configurations x 3 seeds = 12 trials, 3 of them ended, in "
        f"{situation.path}"
    )
    assert "1 go on from a checkpoint." in lines
    (why,) = (
        line
        for line in lines
        if line.startswith("1 of them although the ledger has their settings")
    )
    assert "data" in why
    assert any(line.startswith("9 trainings to run, 2 at once") for line in lines)
    assert any("3 seeds and 3 declared comparisons" in line for line in lines)


def test_a_finished_study_has_nothing_to_say_of_the_future(tmp_path, probed):
    situation = survey(STUDY, tmp_path)
    enter(situation, {(block, seed): 0.5 for block in (7, 8, 9, 10) for seed in range(3)})
    lines = text_of(situation, Launch(tmp_path)).splitlines()
    assert "12 trials, 12 of them ended" in lines[1]
    assert "Nothing is left to run." in lines
    assert probed == []


def simulated(situation, launch):
    """The lines of the table: label, share shown, trainings, hours, and so on."""
    lines = look_ahead(situation, launch, simulate=True).text.splitlines()
    head = next(place for place, line in enumerate(lines) if "by simulation" in line)
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[head + 1 :] if line[:2] == "  "]
    return lines, rows


def test_a_plan_with_looks_says_what_the_study_is_expected_to_take(tmp_path, probed):
    study = dataclasses.replace(STUDY, seeds=Sequential(looks=(2, 4, 6)))
    situation = survey(study, tmp_path)
    launch = Launch(tmp_path, concurrent=1)
    outlook = look_ahead(situation, launch)
    assert (outlook.num_trials, outlook.num_left, outlook.forecast.trainings) == (8, 8, 8)
    # The driver gets no simulation, but the cost of the present look and the largest one.
    assert "by simulation" not in outlook.text
    assert "looks after 2, 4, 6 seeds: 8 trials up to the present look, 0 of them" in outlook.text
    assert outlook.forecast.most.trainings == 24
    assert outlook.forecast.most.wall_s == 24 * 20.0
    lines, (head, *rows) = simulated(situation, launch)
    assert head == [
        "every claimed effect",
        "claims shown",
        "trainings",
        "CPU hours",
        "takes",
        "done about",
    ]
    assert [row[0] for row in rows] == ["0 sd", "1 sd", "2 sd", "3 sd", "any, at most"]
    assert rows[-1][1:4] == ["24", "0.1", "8 min"]
    for row in rows[:-1]:
        # One after the other, at 20 s each.
        assert 8 <= int(row[2]) <= 24
        assert float(row[3]) == pytest.approx(int(row[2]) * 20 / 3600, abs=0.06)
    # Once trials have ended, the date of the end is no longer that of the whole study, and the
    # ledger knows the noise.
    noisy = {(block, seed): 0.5 + 0.01 * (block * seed % 3) for block in (7, 9) for seed in (0, 1)}
    enter(situation, noisy)
    lines, (head, *rows) = simulated(situation, launch)
    assert "done about" not in head
    sd = power_of(situation, launch, ledger_noise(situation)).power.metrics[M].sd
    assert rows[4][0] == f"0.5 points ({0.005 / sd:.2f} sd)"
    assert any("8 trials up to the present look, 4 of them ended" in line for line in lines)


def test_a_plan_of_a_fixed_list_also_says_what_looks_would_take(tmp_path, probed):
    situation = survey(STUDY, tmp_path)
    lines, (_, *rows) = simulated(situation, Launch(tmp_path, concurrent=1, gpus_per_trial=0.5))
    assert any(line.startswith("12 trainings to run, 1 at once") for line in lines)
    assert any(line.startswith("With --sequential, at most 10 seeds: a claim") for line in lines)
    assert any(line.startswith("With --sequential instead, the whole study") for line in lines)
    # Four configurations with ten seeds; the probe of a CPU says nothing of a GPU.
    assert rows[-1][1:4] == ["40", "?", "?"]


def test_a_budget_says_which_look_it_reaches(tmp_path, probed):
    study = dataclasses.replace(STUDY, seeds=Sequential(looks=(2, 4, 6)))
    situation = survey(study, tmp_path)
    # 8, 16 and 24 trainings of 20 s on one core.
    for hours, text in (
        (0.0890, "reaches look 2 of 3 if every claim stays open"),
        (0.1334, "reaches the last look."),
    ):
        launch = Launch(tmp_path, concurrent=1, budget_hours=hours)
        outlook = look_ahead(situation, launch, simulate=True)
        assert text in outlook.text
        assert outlook.refusals == ()
    (refusal,) = look_ahead(situation, Launch(tmp_path, concurrent=1, budget_hours=0.04)).refusals
    assert refusal.startswith("The trials up to the first look take about 0.04 hours")


def test_where_only_evaluations_are_missing_they_are_what_is_probed(tmp_path, probed, monkeypatch):
    situation = survey(STUDY, tmp_path)
    tasks = [
        dataclasses.replace(task, source="0" * 20, way=way)
        for task, way in zip(situation.trials().values(), ("evaluate",) * 12, strict=True)
    ]
    monkeypatch.setattr(type(situation), "tasks", lambda *_: (tasks, []))
    predicted = plan(situation, Launch(tmp_path, concurrent=1))
    ((blocks, _),) = probed
    assert (len(blocks), predicted.trainings, predicted.evaluations) == (PROBED, 0, 12)
    assert predicted.wall_s is not None
    # Counts that are only added up again need no time, and nothing is probed.
    tasks[:] = [dataclasses.replace(task, way="rescore") for task in tasks]
    assert plan(situation, Launch(tmp_path, concurrent=1)).wall_s.likely == 0
    assert len(probed) == 1
