"""The looks of a sequential study in MLflow over sqlite: after a run, and after ``sync``."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.core.commands.status import sync
from sweeps.core.plan.launch_options import Launch
from sweeps.core.run.start import run_study
from sweeps.core.statistics.sequential import boundaries
from toco.tracking import Tracker, open_store, sqlite_uri

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("sweeps", "sweeps/core")]
from sequential_study import LOOKS, STUDY, Trainings

CLAIMS = ("1 _8 differs from _10 in M", "2 _9 differs from _10 in M", "3 _11 differs from _10 in M")
ROWS = ("1 _8", "2 _9", "3 _10", "4 _11", "5 base again _A_A_")


def parent(uri):
    """Tags and metric histories (value by step) of the study's run."""
    store = open_store(uri, STUDY.name)
    (run,) = store.client.search_runs([store.experiment_id])
    histories = {
        name: [
            (metric.step, metric.value)
            for metric in store.client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }
    return run.data.tags, {name: sorted(values) for name, values in histories.items()}


def test_the_run_of_a_sequential_study_shows_its_looks(tmp_path, template, monkeypatch):
    # The runs of its trainings are the subject of other tests, and the figures of the page take
    # seconds.
    monkeypatch.setattr(Tracker, "track", lambda *_, **__: "1")
    empty = SimpleNamespace(html="", details={}, remarks=())
    monkeypatch.setattr("sweeps.core.report.report.page", lambda *_: empty)
    uris = []
    for name in ("run", "sync"):
        (tmp_path / name).mkdir()
        uris.append(sqlite_uri(Path(shutil.copy(template, tmp_path / name / "mlflow.db"))))
    storage = tmp_path / "results"
    assert run_study(STUDY, Launch(storage, uris[0]), Trainings().connect) == 0
    tags, metrics = parent(uris[0])
    assert tags["look"] == "3 of 3"
    assert [tags[f"claim.{claim}"] for claim in CLAIMS] == ["shown", "shown", "undecided"]
    assert [tags[f"claim_seeds.{claim}"] for claim in CLAIMS] == ["3", "5", "5"]

    # A claim has its evidence at each look that tests it, and the boundary of each look before it.
    (step, p), *more = metrics[f"claim_p/{CLAIMS[0]}"]
    assert (step, more) == (3, [])
    assert p == pytest.approx(0.00028, rel=0.02)
    assert [step for step, _ in metrics[f"claim_p/{CLAIMS[1]}"]] == [3, 4, 5]
    assert metrics[f"claim_p/{CLAIMS[2]}"] == [(3, 1.0), (4, 1.0), (5, 1.0)]
    rules = boundaries(LOOKS, 2.0)
    expected = [(3, 0.05 / 3 * 0.36), (4, rules.boundary(1, 0.025)), (5, rules.boundary(2, 0.025))]
    assert metrics[f"claim_boundary/{CLAIMS[0]}"] == [pytest.approx(expected[0])]
    for claim in CLAIMS[1:]:
        assert metrics[f"claim_boundary/{claim}"] == [pytest.approx(pair) for pair in expected]
    seeds = {row: [value for _, value in metrics[f"row_seeds/{row}"]] for row in ROWS}
    assert seeds == dict(
        zip(ROWS, [[3] * 3, [3, 4, 5], [3, 4, 5], [3, 4, 5], [3] * 3], strict=True)
    )
    # Nothing else, and nothing twice.
    assert len(metrics) == 2 * len(CLAIMS) + len(ROWS)

    assert sync(STUDY, Launch(storage, uris[1])) == 0
    assert parent(uris[1])[1] == metrics
    assert sync(STUDY, Launch(storage, uris[0])) == 0
    assert parent(uris[0])[1] == metrics
