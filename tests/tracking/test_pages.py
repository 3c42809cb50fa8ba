"""Every link to MLflow, in a browser: it shows runs, and not the page for traces of language
models.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from playwright.sync_api import Page, expect

from benchmarks._chromium import chromium, find_chromium
from sweeps.core.report import report as report_writer
from sweeps.core.report import write_report
from sweeps.core.store.study_record import MlflowLinks
from tests.sweeps.core.records import make_study
from tests.tracking.servers import serving
from toco.__main__ import main
from toco.tracking import Pages, Tracker, open_store, sqlite_uri, track_run
from toco.tracking.address import LOCAL_UI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="No Chromium is installed."),
]
EXPERIMENT = "layer_ablation"
WAIT_MS = 90_000


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "my results #1"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    return folder / "mlflow.db"


def shows_trainings(page: Page, link: str, *words: str) -> None:
    page.goto("about:blank")
    page.goto(link)
    for word in words:
        expect(page.get_by_text(re.compile(word)).first).to_be_visible(timeout=WAIT_MS)
    assert "workflowType=machine_learning" in page.url
    assert "workflowType=genai" not in page.url
    expect(page.get_by_text("Tokens per Trace")).to_have_count(0)


def test_each_link_shows_its_runs(store: Path, run_folder, tmp_path: Path, monkeypatch):
    where: dict[str, Any] = {"tracking_uri": sqlite_uri(store), "experiment": EXPERIMENT}
    study = make_study({"#10": (0.6, 0.61), "#8": (0.5, 0.52)}, path=tmp_path / "fake-01234567")
    parent = Tracker(**where).ensure_parent("study", "study")
    runs = {}
    for number, trial in enumerate(study.trials):
        training = run_folder(f"training-{number}", seed=trial.seed)
        training.add_evaluation(2, 0.5)
        training.end("finished", 2)
        tags = {"cell": f"#{number}", "key": trial.key}
        runs[trial.key] = track_run(
            training.path,
            open_store(**where),
            parent_run_id=parent,
            run_name=f"training {number}",
            tags=tags,
        )
    Tracker(**where).finish_parent(parent)
    said = CliRunner().invoke(main, ["track", str(tmp_path / "training-0"), *_options(where)])
    (printed,) = re.findall(r"http\S+", said.output)
    assert printed.startswith(f"{LOCAL_UI}/#/experiments/")

    log = tmp_path / "server.log"

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "toco", "mlflow", str(store.parent), "--port", str(port)]

    with serving(command, log) as host:
        landing = re.findall(rf"^{EXPERIMENT}: (http\S+)$", log.read_text(), re.MULTILINE)
        pages = Pages(host, open_store(**where).experiment_id)
        assert landing == [pages.experiment]
        linked = study.model_copy(
            update={
                "mlflow": MlflowLinks(host=pages.host, experiment_id=pages.experiment_id, runs=runs)
            }
        )
        monkeypatch.setattr(report_writer, "read_study_record", lambda *_: linked)
        report = write_report(study.path)
        with chromium() as browser:
            page = browser.new_page()
            page.goto(report.page.as_uri())
            for button in page.locator("button[data-row]").all():
                button.click()
            links = page.locator('a[href*="#/experiments"]')
            expect(links).to_have_count(1 + len(runs))
            addresses = [link.get_attribute("href") for link in links.all()]
            assert sorted(addresses) == sorted([pages.experiment, *map(pages.run, runs.values())])
            shows_trainings(
                page, landing[0], r"[1-9]\d* matching runs", "Group by: cell", "^training 0$"
            )
            for number, run_id in enumerate(runs.values()):
                shows_trainings(page, pages.run(run_id), f"^training {number}$", "Parent run")
            shows_trainings(
                page, printed.replace(LOCAL_UI, host), "^training-0$|^training 0$", "Run ID"
            )


def _options(where: dict[str, Any]) -> list[str]:
    return ["--tracking-uri", where["tracking_uri"], "--experiment", where["experiment"]]
