import dataclasses
import math
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

sys.path.insert(0, str(Path(__file__).parents[1]))
from records import FACTOR, SEG, M, make_study

from sweeps.core.design.designs import Block
from sweeps.core.design.study import BASE_AGAIN, Metric
from sweeps.core.findings import analysis, comparisons
from sweeps.core.findings.analysis import analyse
from sweeps.core.findings.evaluations import num_images
from sweeps.core.statistics.paired import detectable_effect
from toco.evaluate.confusions import Confusions
from toco.train import records

BASE = [0.50, 0.52, 0.51, 0.49]
VALUES = {
    "#10": BASE,
    "#9": [0.47, 0.48, 0.485, 0.45],
    "#11": [0.30, 0.29, 0.33, 0.31],
    BASE_AGAIN: [0.51, 0.50, 0.53, 0.48],
}
CLASSES = ("background", "square", "circle")


def test_tests_are_paired_by_seed_and_corrected_over_the_declared_comparisons_alone():
    metrics = {
        M: VALUES,
        SEG: {label: [1 - value for value in values] for label, values in VALUES.items()},
    }
    found = analyse(make_study(VALUES, more={SEG: metrics[SEG]}))
    p = [stats.ttest_rel(VALUES[label], BASE).pvalue for label in ("#9", "#11")]
    corrected = multipletests(p, method="holm")[1]
    for label, row, expected in zip(("#9", "#11"), found.rows[1:3], corrected, strict=True):
        figures = row.figures[M]
        assert figures.declared
        assert figures.p_holm == pytest.approx(expected, rel=1e-9)
        assert figures.significant == (expected <= 0.05)
        assert figures.paired.difference == pytest.approx(np.mean(VALUES[label]) - np.mean(BASE))
    # Shown, yet never tested: the other metric, the A/A row, the base.
    others = [found.rows[1].figures[SEG], found.rows[3].figures[M], found.rows[0].figures[M]]
    assert [(figures.declared, figures.p_holm, figures.underpowered) for figures in others] == [
        (False, None, False)
    ] * 3
    assert others[0].paired.difference == pytest.approx(0.505 - 0.47125)
    assert others[2].paired is None
    assert found.rows[0].figures[M].summary.mean == pytest.approx(0.505)


def test_a_comparison_that_has_not_run_counts_in_the_family():
    waiting = {("#11", replicate): "waiting" for replicate in range(4)}
    row = analyse(make_study(VALUES, states=waiting)).rows[1]
    assert row.figures[M].p_holm == pytest.approx(2 * stats.ttest_rel(VALUES["#9"], BASE).pvalue)


def test_a_trial_without_a_result_takes_its_pair_with_it():
    study = make_study(
        VALUES, states={("#10", 1): "failed", ("#9", 2): "diverged", ("#11", 0): "running"}
    )
    found = analyse(study)
    assert (found.rows[1].finished, found.rows[1].planned) == (3, 4)
    assert found.rows[1].states == {"finished": 3, "diverged": 1}
    assert found.rows[2].states == {"running": 1, "finished": 3}
    paired = found.rows[1].figures[M].paired
    assert (paired.n, paired.difference) == (2, pytest.approx((0.47 - 0.50 + 0.45 - 0.49) / 2))
    assert found.power.n == 2


def test_a_row_without_results_has_no_figures_and_breaks_nothing():
    found = analyse(
        make_study(VALUES, states={(label, i): "waiting" for label in VALUES for i in range(4)})
    )
    for row in found.rows:
        assert row.figures[M].summary is None
        assert row.figures[M].paired is None
        assert not row.figures[M].bold
    assert found.power.n == 0
    assert math.isinf(found.power.detectable_sd)
    assert found.power.metrics[M].underpowered
    assert found.floors[M] is None


def test_the_noise_floor_is_what_differs_where_nothing_does():
    found = analyse(make_study({**VALUES, "near": [0.501, 0.519, 0.512, 0.489]}))
    again = VALUES[BASE_AGAIN]
    pooled = math.sqrt((np.var(BASE, ddof=1) + np.var(again, ddof=1)) / 2)
    assert found.floors[M] == pytest.approx(stats.t.ppf(0.975, 6) * pooled * math.sqrt(2 / 4))
    below = {number: row.figures[M].below_noise_floor for number, row in enumerate(found.rows)}
    # #10, #9, #11, near, A/A
    assert below == {0: None, 1: False, 2: False, 3: True, 4: True}
    without = analyse(make_study({"#10": BASE, "#9": VALUES["#9"]}))
    assert without.floors == {M: None}
    assert without.rows[1].figures[M].below_noise_floor is None
    assert any("no A/A row" in note for note in without.notes)


def test_marks_are_the_best_what_is_not_distinguishable_from_it_and_the_first_that_is():
    values = {
        "low": [0.20, 0.21, 0.19, 0.20],
        "best": [0.60, 0.62, 0.59, 0.61],
        "like it": [0.60, 0.61, 0.60, 0.60],
        "middle": [0.41, 0.42, 0.40, 0.40],
        BASE_AGAIN: [0.9, 0.9, 0.9, 0.9],
    }
    losses = {label: [1 - value for value in row] for label, row in values.items()}
    columns = (Metric(M, "M"), Metric("val/loss", "loss", higher_is_better=False))
    study = make_study(values, more={"val/loss": losses}).model_copy(update={"metrics": columns})
    for key in (M, "val/loss"):
        rows = analyse(study).rows
        assert [row.figures[key].bold for row in rows] == [False, True, True, False, False]
        assert [row.figures[key].underlined for row in rows] == [False, False, False, True, False]


def test_one_seed_tells_no_row_from_the_best_and_says_so():
    found = analyse(make_study({"#10": [0.5], "#9": [0.1], BASE_AGAIN: [0.5]}))
    assert [row.figures[M].bold for row in found.rows] == [True, True, False]
    assert found.rows[1].figures[M].p_holm is None
    assert found.rows[1].figures[M].underpowered
    assert any("one seed" in note for note in found.notes)


def test_blocks_are_marked_apart_and_share_one_family():
    blocks = [
        (Block("(a)", (), (FACTOR,), (M,), None), ("#10", "#9")),
        (Block("(b)", (), ("method.ema_decay",), (SEG,), None), ("#10", "#11")),
    ]
    found = analyse(make_study(VALUES, blocks=blocks, more={SEG: VALUES}))
    assert [row.figures[M].bold for row in found.rows] == [True, False, True, False, False]
    assert [(row.figures[M].declared, row.figures[SEG].declared) for row in found.rows[:4]] == [
        (False, False),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert found.power.comparisons == 2
    p = stats.ttest_rel(VALUES["#11"], BASE).pvalue
    assert found.rows[3].figures[SEG].p_holm == pytest.approx(2 * p)


def test_a_ladder_compares_each_row_with_the_one_before():
    study = make_study(VALUES, versus={"#11": "#9"})
    paired = analyse(study).rows[2].figures[M].paired
    assert paired.difference == pytest.approx(np.mean(VALUES["#11"]) - np.mean(VALUES["#9"]))


def test_power_is_in_the_scatter_of_the_studys_own_pairs():
    found = analyse(make_study(VALUES, smallest_effect=0.08))
    spreads = [np.std(np.subtract(VALUES[label], BASE), ddof=1) for label in ("#9", "#11")]
    sd = math.sqrt(np.mean(np.square(spreads)))
    power = found.power.metrics[M]
    assert power.sd == pytest.approx(sd)
    assert found.power.detectable_sd == pytest.approx(detectable_effect(4, 2, 0.05, 0.8))
    assert power.detectable == pytest.approx(found.power.detectable_sd * sd)
    assert not power.underpowered
    assert detectable_effect(power.seeds_needed, 2, 0.05, 0.8) * sd <= 0.08
    assert detectable_effect(power.seeds_needed - 1, 2, 0.05, 0.8) * sd > 0.08


@pytest.mark.parametrize(("smallest", "underpowered"), [(0.5, False), (0.005, True)])
def test_only_what_is_not_significant_and_could_not_have_been_is_underpowered(
    smallest, underpowered
):
    study = make_study(
        {"#10": BASE, "far": VALUES["#11"], "near": [0.51, 0.50, 0.52, 0.485]},
        smallest_effect=smallest,
    )
    far, near = (row.figures[M] for row in analyse(study).rows[1:])
    assert (far.significant, far.underpowered) == (True, False)
    assert (near.significant, near.underpowered) == (False, underpowered)
    assert (near.detectable > smallest) == underpowered


@pytest.mark.parametrize(
    ("amend", "phrase"),
    [
        ({"config": {"batch_size": 32}}, "effective batch size is 32, in #10 16"),
        ({"config": {"method": {"ptc": {"weight": 4.0}}}}, "method.ptc.weight is 4.0, in #10 8.0"),
        (
            {"identity": {"code": {"toco.losses.ptc": "f" * 16}}},
            "code differs from #10: toco.losses.ptc",
        ),
        (
            {"identity": {"code": {"toco.heads.new": "f" * 16}}},
            "code differs from #10: toco.heads.new",
        ),
        ({"identity": {"data": {"val": "cc"}}}, "data differs from #10: val"),
        ({"identity": {"weights": "abc"}}, "pre-trained weights differ from #10"),
        ({"provenance": {"versions": {"torch": "2.12.1"}}}, "torch is 2.12.1, in #10 2.13.0"),
        ({"provenance": {"versions": {"python": "3.12.1"}}}, "python is 3.12, in #10 3.11"),
        ({"provenance": {"device": "NVIDIA H100"}}, "device is NVIDIA H100, in #10 CPU x86_64"),
        (
            {"provenance": {"platform": "Linux-6.1-aarch64"}},
            "platform is Linux aarch64, in #10 Linux x86_64",
        ),
        ({"provenance": {"num_threads": 8}}, "number of threads is 8, in #10 1"),
        ({"resources": {"world_size": 2}}, "world size is 2, in #10 1"),
        ({"origin": {"search": True}}, "chosen by a search, after looking at other trials"),
    ],
)
def test_what_differs_besides_the_factor_is_a_dagger(amend, phrase):
    rows = analyse(make_study(VALUES, amend={"#9": amend})).rows
    assert [row.confounders for row in rows] == [(), (phrase,), (), ()]


@pytest.mark.parametrize(
    "amend",
    [
        {
            "provenance": {
                "commit": "another",
                "dirty": True,
                "started": "2027-01-01T00:00:00+00:00",
            }
        },
        {"provenance": {"versions": {"python": "3.11.1", "toco": "9.9"}}},
        {"provenance": {"platform": "Linux-6.9.3-x86_64"}},
        {"wall_time_s": 1.0, "origin": {"study": "other", "forked_at": 80}},
        {"resources": {"cpus": 4.0}},
    ],
)
def test_what_computes_nothing_is_no_dagger(amend):
    assert all(
        row.confounders == () for row in analyse(make_study(VALUES, amend={"#9": amend})).rows
    )


def test_a_setting_without_effect_on_results_is_no_dagger():
    from toco.recipes.shapes_nano import recipe

    config = recipe().model_dump(mode="json")
    amend = {label: {"config": config} for label in VALUES}
    amend["#9"] = {
        "config": {
            **config,
            "num_workers": 7,
            "evaluate": {**config["evaluate"], "num_pictures": 9},
        }
    }
    assert all(row.confounders == () for row in analyse(make_study(VALUES, amend=amend)).rows)
    amend["#9"]["config"]["num_steps"] = 370
    daggers = [row.confounders for row in analyse(make_study(VALUES, amend=amend)).rows]
    assert daggers == [(), ("num_steps is 370, in #10 360",), (), ()]


def test_a_factor_that_picks_a_component_brings_its_settings_and_code():
    amend = {"#9": {"config": {"method": {"name": "other", "ptc": {"weight": 1.0}}}}}
    amend["#9"]["identity"] = {"code": {"toco.methods.other": "3" * 16}}
    named = make_study(
        VALUES, amend=amend, factors=("method.name",), changes={label: {} for label in VALUES}
    )
    assert analyse(named).rows[1].confounders == ()
    amend["#9"]["identity"]["code"]["toco.losses.ptc"] = "f" * 16
    assert analyse(make_study(VALUES, amend=amend, factors=("method.name",))).rows[
        1
    ].confounders == ("code differs from #10: toco.losses.ptc",)


def test_a_dagger_of_some_seeds_says_which():
    study = make_study(VALUES)
    odd = study.trials_of(study.rows[1])[2]
    entry = odd.entry.model_copy(
        update={"resources": dataclasses.replace(odd.entry.resources, world_size=4)}
    )
    trials = [list(trials) for trials in study.trials_by_cell]
    trials[study.rows[1].cell][2] = dataclasses.replace(odd, entry=entry)
    study = study.model_copy(update={"trials_by_cell": trials})
    assert analyse(study).rows[1].confounders == ("world size is 4, in #10 1 (seed 2)",)


def confusions(value, seed, images=12, names=None):
    """Counts by image whose mIoU over all of them is near ``value``, and that mIoU."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 20, (images, 3, 3)).astype(np.int32)
    counts[:, range(3), range(3)] += round(100 * value)
    total = counts.sum(0).astype(float)
    right = np.diag(total)
    iou = right / (total.sum(0) + total.sum(1) - right)
    names = names or tuple(f"image{number}" for number in range(images))
    matrices = {"seg": counts, "cam": np.zeros_like(counts), "aux_cam": np.zeros_like(counts)}
    histograms = dict.fromkeys(("cam", "aux_cam"), np.zeros((3, 2, 2), np.int64))
    found = Confusions(names, CLASSES, matrices, np.array([0.5]), histograms)
    return found, iou


def write(trial, steps):
    """Run folder of a trial: ``steps`` has by step what ``confusions`` gave."""
    folder = trial.run_dir / "evaluations"
    folder.mkdir(parents=True)
    for step, (found, iou) in steps.items():
        np.savez_compressed(folder / f"step_{step:08d}.npz", **found.arrays())
        content = {"class_names": CLASSES, "per_class": {"seg_iou": [*iou[:2], None]}}
        records.write(folder / f"step_{step:08d}.json", content)


def imaged(tmp_path, change=lambda trial, evaluations: evaluations, steps=(160,), **options):
    """A study of two rows and three seeds with what its evaluations left on disk."""
    results = {
        (label, seed): {step: confusions(level, 100 * row + 10 * seed + step) for step in steps}
        for row, (label, level) in enumerate({"#10": 0.9, "#9": 0.6}.items())
        for seed in range(3)
    }
    values = {
        label: [
            float(np.mean([iou.mean() for _, iou in results[label, seed].values()]))
            for seed in range(3)
        ]
        for label in ("#10", "#9")
    }
    path = tmp_path / "fake-01234567"
    study = make_study(values, metrics=(Metric(SEG, "seg"),), path=path, **options)
    for row in study.rows:
        for trial in study.trials_of(row):
            write(trial, change((row.label, trial.seed), results[row.label, trial.seed]))
    return study, results


def test_how_many_images_trials_were_evaluated_on(tmp_path):
    study, _ = imaged(tmp_path)
    assert num_images(study.trials) == 12
    assert num_images(make_study({"#10": [0.5]}).trials) is None
    study.trials[0].run_dir.joinpath("evaluations", "step_00000160.npz").write_bytes(b"damaged")
    assert num_images(study.trials[:1]) is None
    assert num_images(study.trials) == 12


def test_the_interval_over_images_is_of_the_same_difference(tmp_path):
    study, results = imaged(tmp_path)
    found = analyse(study).rows[1].figures[SEG]
    assert found.images.difference == pytest.approx(found.paired.difference, abs=1e-12)
    assert found.images.low < found.images.difference < found.images.high
    # Second implementation: the images themselves drawn again, one draw for all networks.
    generator = np.random.default_rng(5)

    def miou(label, seed, drawn):
        total = results[label, seed][160][0].matrices["seg"][drawn].sum(0)
        right = np.diag(total)
        return (right / (total.sum(0) + total.sum(1) - right)).mean()

    differences = []
    for _ in range(1000):
        drawn = generator.integers(0, 12, 12)
        differences.append(
            np.mean([miou("#9", seed, drawn) - miou("#10", seed, drawn) for seed in range(3)])
        )
    spread = np.std(differences)
    np.testing.assert_allclose(
        [found.images.low, found.images.high],
        np.quantile(differences, [0.025, 0.975]),
        atol=spread / 3,
    )


def test_a_result_that_is_a_mean_over_evaluations_has_all_of_them_in_its_interval(tmp_path):
    amend = {label: {"config": {"evaluate": {"average_last": 2}}} for label in ("#10", "#9")}
    study, _ = imaged(tmp_path, steps=(80, 160), amend=amend)
    found = analyse(study).rows[1]
    assert found.figures[SEG].images.difference == pytest.approx(
        found.figures[SEG].paired.difference, abs=1e-12
    )
    assert found.classes[SEG][0].summary.n == 3


def test_scores_by_class_are_means_over_seeds_with_paired_differences(tmp_path):
    study, results = imaged(tmp_path)
    background, square, circle = analyse(study).rows[1].classes[SEG]
    iou = {
        label: np.array([results[label, seed][160][1] for seed in range(3)])
        for label in ("#10", "#9")
    }
    assert (background.name, square.name) == CLASSES[:2]
    assert background.summary.mean == pytest.approx(iou["#9"][:, 0].mean())
    assert square.paired.difference == pytest.approx((iou["#9"] - iou["#10"])[:, 1].mean())
    assert square.paired.p == pytest.approx(
        stats.ttest_rel(iou["#9"][:, 1], iou["#10"][:, 1]).pvalue
    )
    assert square.images.low < square.paired.difference < square.images.high
    assert (circle.summary, circle.paired) == (None, None)


def test_without_every_pairs_matrices_there_is_no_interval_over_images(tmp_path):
    study, _ = imaged(tmp_path)
    (study.trials_of(study.rows[0])[1].run_dir / "evaluations" / "step_00000160.npz").unlink()
    found = analyse(study).rows[1]
    assert found.figures[SEG].images is None
    assert found.classes[SEG][1].paired.n == 3


@pytest.mark.parametrize(
    "damage", ["other images", "not of this result", "of a method without it", "cut off"]
)
def test_matrices_that_do_not_belong_to_the_numbers_are_not_used(tmp_path, damage):
    def change(trial, evaluations):
        found, iou = evaluations[160]
        if trial != ("#9", 1):
            return evaluations
        if damage == "other images":
            found = dataclasses.replace(found, names=found.names[::-1])
        if damage == "of a method without it":
            cam, histogram = found.matrices["cam"], found.histograms["cam"]
            found = dataclasses.replace(found, matrices={"cam": cam}, histograms={"cam": histogram})
        if damage == "not of this result":
            swapped = {**found.matrices, "seg": found.matrices["seg"][:, ::-1].copy()}
            found = dataclasses.replace(found, matrices=swapped)
        return {160: (found, iou)}

    study, _ = imaged(tmp_path, change)
    if damage == "cut off":
        file = study.trials_of(study.rows[1])[1].run_dir / "evaluations" / "step_00000160.npz"
        file.write_bytes(file.read_bytes()[:200])
    found = analyse(study)
    assert found.rows[1].figures[SEG].images is None
    assert any("do not add up" in note for note in found.notes) == (damage == "not of this result")


def grid(effect_of_both):
    """Two crossed factors of two levels, four seeds; ``effect_of_both``
    comes on top of their sum.
    """
    generator = np.random.default_rng(0)
    values, changes = {}, {}
    for low, high in product((0.1, 0.2), (0.6, 0.7)):
        label = f"{low}, {high}"
        mean = (
            0.5
            + 0.3 * (low > 0.1)
            + 0.05 * (high > 0.6)
            + effect_of_both * (low > 0.1 and high > 0.6)
        )
        values[label] = list(mean + generator.normal(0, 0.002, 4))
        changes[label] = {"method.low": low, "method.high": high}
    return make_study(values, changes=changes, factors=("method.low", "method.high")), values


def test_crossed_factors_are_analysed_together():
    study, values = grid(effect_of_both=-0.1)
    (crossing,) = analyse(study).crossings
    assert (crossing.block, crossing.metric) == (0, M)
    assert [term.name for term in crossing.anova.interactions] == ["method.low x method.high"]
    (warning,) = crossing.warnings
    assert "method.low depends on method.high" in warning
    means = {(m.factor, m.level, m.other, m.other_level): m.mean for m in crossing.means}
    assert means == {
        ("method.low", low, "method.high", high): pytest.approx(np.mean(values[f"{low}, {high}"]))
        for low, high in product((0.1, 0.2), (0.6, 0.7))
    }
    both = next(effect for effect in crossing.effects if len(effect.factors) == 2)
    corners = {label: np.mean(row) for label, row in values.items()}
    expected = (
        corners["0.2, 0.7"] - corners["0.1, 0.7"] - corners["0.2, 0.6"] + corners["0.1, 0.6"]
    ) / 2
    assert both.estimate.difference == pytest.approx(expected)


def test_factors_that_only_add_up_raise_no_warning():
    (crossing,) = analyse(grid(effect_of_both=0.0)[0]).crossings
    assert crossing.warnings == ()


def test_one_factor_at_a_time_and_ladders_cross_nothing():
    ladder = {"#10": {"a": 0, "b": 0}, "#9": {"a": 1, "b": 0}, "#11": {"a": 1, "b": 1}}
    assert analyse(make_study(VALUES, changes=ladder, factors=("a", "b"))).crossings == ()
    assert analyse(make_study(VALUES)).crossings == ()


def test_an_unfinished_grid_is_analysed_as_far_as_it_goes():
    study, _ = grid(effect_of_both=0.0)
    labels = [row.label for row in study.rows]
    values = {label: [0.5, 0.6, 0.55, 0.52] for label in labels}
    changes = {row.label: study.changes_of(row) for row in study.rows}
    states = {(labels[3], replicate): "waiting" for replicate in range(4)} | {
        (labels[2], 0): "running"
    }
    factors = ("method.low", "method.high")
    assert (
        analyse(make_study(values, changes=changes, factors=factors, states=states)).crossings == ()
    )
    del states[labels[3], 2]
    (crossing,) = analyse(
        make_study(values, changes=changes, factors=factors, states=states)
    ).crossings
    assert crossing.effects == ()


def test_large_studies_leave_out_what_reads_files_and_say_so(tmp_path, monkeypatch):
    study, _ = imaged(tmp_path)
    monkeypatch.setattr(analysis, "MANY_TRIALS", 5)
    monkeypatch.setattr(comparisons, "MANY_ROWS", 1)
    found = analyse(study)
    assert found.rows[1].figures[SEG].images is None
    assert found.rows[1].classes == {}
    assert not any(row.figures[SEG].bold for row in found.rows)
    assert found.rows[1].figures[SEG].p_holm is not None
    assert any("6 trials" in note for note in found.notes)
    assert any("marked" in note for note in found.notes)
