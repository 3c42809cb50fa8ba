"""The page of made-up studies, taken apart: what it says, what it would load, what opens under a
row.
"""

import base64
import hashlib
import html as entities
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sweeps.core.design.paper import Claim, Paper, PaperRow
from sweeps.core.design.study import BASE_AGAIN
from sweeps.core.report import page as page_module
from sweeps.core.report.columns import difference_text, mean_text
from sweeps.core.report.numbers import format_p
from sweeps.core.report.page import ROWS_PER_FILE, ROWS_PER_PAGE, Page, page
from sweeps.core.report.report import make_report
from sweeps.core.report.table import NOT_VOC
from sweeps.core.store.forecast_record import Forecast
from sweeps.core.store.study_record import MlflowLinks
from tests.sweeps.core.records import FACTOR, M, make_study
from tests.sweeps.core.report.run_folders import write_runs
from toco.tracking import Pages

WRITTEN = "2026-01-02 03:04 UTC"
ROWS = {
    "#10": (0.60, 0.62, 0.64),
    "#8</script>": (0.50, 0.53, 0.53),
    BASE_AGAIN: (0.61, 0.60, 0.66),
}
PAPER = Paper(
    "Table 5 (a)",
    "VOC",
    (PaperRow("#10", {M: 0.705}), PaperRow("#8</script>", {M: 0.635})),
    (Claim("rises to #10", M, "#10", ("#8</script>",), 7.0, "large"),),
)


class Parsed(HTMLParser):
    """A page's tags, its text, its scripts by id, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.scripts: dict[str | None, str] = {}
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[str] = []
        self._script: str | None = None
        self._in_script = False
        self.feed(text)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self.loaded += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        if tag in ("script", "style"):
            self._in_script, self._script = True, dict(attrs).get("id")
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[self._script] += data
        else:
            self._texts.append(data)

    def policy(self) -> str:
        (found,) = [
            a for tag, a in self.attributes if a.get("http-equiv") == "Content-Security-Policy"
        ]
        return found["content"] or ""


def made(study) -> Page:
    report = make_report(study)
    return page(report.source, report.cards, WRITTEN)


def details(of: Page) -> dict[int, dict[str, Any]]:
    return {
        int(number): value
        for number, value in json.loads(Parsed(of.html).scripts["details"]).items()
    }


@pytest.fixture
def study(tmp_path: Path):
    amend = {"#8</script>": {"provenance": {"device": "<img src=x>"}}}
    found = make_study(
        ROWS, path=tmp_path / "fake-01234567", paper=PAPER, amend=amend, title="Blocks <b>&"
    )
    write_runs(found)
    return found


def test_the_page_loads_nothing_and_runs_only_its_own_script(study):
    parsed = Parsed(made(study).html)
    assert [link for link in parsed.loaded if not link.startswith(("data:image/", "#"))] == []
    assert {"link", "iframe", "object", "embed", "base", "form"} & set(parsed.tags) == set()
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[None].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}' 'strict-dynamic'" in parsed.policy()
    assert parsed.policy().startswith("default-src 'none';")
    assert [name for _, a in parsed.attributes for name in a if name.startswith("on")] == []


def test_texts_of_others_are_text(study):
    html = made(study).html
    parsed = Parsed(html)
    assert "Blocks <b>&" in parsed.text
    assert "#8</script>" in parsed.text
    assert "<img src=x>" in parsed.text
    assert parsed.tags.count("script") == html.count("</script>") == 3
    assert [
        a
        for tag, a in parsed.attributes
        if tag == "img" and not (a["src"] or "").startswith("data:")
    ] == []


def test_the_table_says_what_the_other_forms_say(study):
    table = make_report(study).source.table
    text = Parsed(made(study).html).text
    for row in table.blocks[0].rows:
        (line,) = re.findall(
            rf"<tr[^>]*><th[^>]*><button data-row=\"{row.planned.number}\".*?</tr>",
            made(study).html,
        )
        said = entities.unescape(re.sub(r"<[^>]*>", " ", line))
        shown = [row.planned.label, *mean_text(row.measurements[0]).split(" ± "), row.n]
        for one in row.comparisons:
            shown += [difference_text(one), format_p(one.figures.p_holm).strip("-")]
        assert [text for text in shown if text not in said] == []
        assert row.published(table.metrics[0]) in said
        assert row.verdict in said
    assert table.verdict in text
    assert table.claims[0].sentence in text
    assert all(text_of_dagger in text for text_of_dagger in table.footnotes)
    assert text.count(NOT_VOC) == 1


def test_what_opens_under_a_row(study):
    found = details(made(study))
    assert sorted(found) == [0, 1, 2]
    base, row, again = found[0], found[1], found[2]
    assert [trial[1] for trial in row["trials"]] == [0, 1, 2]
    assert [trial[7] for trial in row["trials"]] == [["50.0"], ["53.0"], ["53.0"]]
    assert [trial[0] for trial in row["trials"]] == [
        trial.key for trial in study.trials_of(study.rows[1])
    ]
    assert row["versus"] == "#10"
    assert row["config"] == [[FACTOR, "0", "1"]]
    assert again["config"] == []
    assert base["differences"] == []
    assert row["differences"][0][:2] == ["M", "-10.00"]
    assert len(row["remarks"]) == 1
    assert row["trials"][0][9] == [
        "train after step 40, 10 s: loss_total 2.5",
        "train after step 80, 20 s: loss_total 1.25",
        "train after step 120, 30 s: loss_total 0.8333",
        "train after step 160, 40 s: loss_total 0.625",
        "val after step 80, 20 s: cam_miou 0.25",
        "val after step 160, 40 s: cam_miou 0.5",
    ]


def test_a_log_that_was_cut_off_or_is_longer_is_told_from_its_end(study):
    run_dir = study.trials_of(study.rows[1])[0].run_dir
    rows = [
        {"step": n, "kind": "train", "time_s": n, "values": {"train/loss_total": n}}
        for n in range(1000)
    ]
    (run_dir / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10'
    )
    assert details(made(study))[1]["trials"][0][9] == [
        f"train after step {n}, {n} s: loss_total {n}" for n in range(995, 1000)
    ]


def test_a_base_shows_what_it_changes_in_the_recipe(tmp_path):
    states = {("#10", 0): "waiting", ("#8", 0): "waiting"}
    study = make_study(
        {"#10": (0.6,), "#8": (0.5,)}, states=states, path=tmp_path / "fake-01234567"
    )
    found = details(made(study))
    assert found[0]["config"] == [[FACTOR, "as the recipe has it", "0"]]
    assert found[1]["config"] == [[FACTOR, "0", "1"]]


def test_a_field_that_only_one_config_has_is_no_value_of_the_recipe(tmp_path):
    study = make_study({"#10": (0.6,), "#8": (0.5,)}, path=tmp_path / "fake-01234567")
    for trial in study.trials_of(study.rows[1]):
        trial.entry.config["method"] = {"own_setting": 3}
    changes = details(made(study))[1]["config"]
    assert ["method.own_setting", "no such field", "3"] in changes
    assert "as the recipe has it" not in str(changes)


def test_a_study_that_runs_is_a_dashboard(tmp_path):
    states = {
        ("#8", 0): "failed",
        ("#8", 1): "running",
        ("#9", 0): "diverged",
        ("#9", 1): "waiting",
    }
    rows = {"#10": (0.6, 0.6), "#8": (0.5, 0.5), "#9": (0.4, 0.4)}
    study = make_study(
        rows, states=states, path=tmp_path / "fake-01234567", running=True, eta_s=600.0
    )
    html = made(study).html
    parsed = Parsed(html)
    for said in (
        "2 finished",
        "1 running",
        "1 failed",
        "1 diverged",
        "1 waiting",
        "of 6 trials",
        "10 min left",
    ):
        assert said in parsed.text
    assert "#8, seed 1 40 of 160" in parsed.text
    assert (
        "MemoryError: none left #8, seed 0. Traceback (most recent call last): MemoryError: none "
        "left" in parsed.text
    )
    assert re.search(r"#8 .{0,20}0 of 2 1 running 1 failed", parsed.text)
    assert '<noscript><meta http-equiv="refresh" content="30"></noscript>' in html
    assert json.loads(parsed.scripts["page"])["running"] is True
    assert details(made(study))[1]["trials"][0][8].endswith("MemoryError: none left")


def test_a_finished_study_is_no_dashboard(study):
    html = made(study).html
    assert 'id="status"' not in html
    assert 'http-equiv="refresh"' not in html
    assert json.loads(Parsed(html).scripts["page"])["running"] is False


def test_the_same_failure_is_told_once(tmp_path):
    states = {(label, seed): "failed" for label in ("#8", "#9") for seed in range(4)}
    rows = {"#10": (0.6,) * 4, "#8": (0.5,) * 4, "#9": (0.5,) * 4}
    text = Parsed(made(make_study(rows, states=states, path=tmp_path / "fake-01234567")).html).text
    assert text.count("Traceback") == 1
    assert (
        "8 failed MemoryError: none left #8, seed 0; #8, seed 1; #8, seed 2; #8, seed 3; #9, seed "
        "0 and others" in text
    )


def test_a_study_that_has_not_begun(tmp_path):
    states = {(label, 0): "waiting" for label in ("#10", "#8")}
    study = make_study(
        {"#10": (0.6,), "#8": (0.5,)}, states=states, path=tmp_path / "fake-01234567"
    )
    html = made(study).html
    assert "<svg" not in html
    assert "2 waiting" in Parsed(html).text


def test_links_to_mlflow_are_those_that_mlflow_was_told_to_show(study):
    def trial_pages(links: MlflowLinks | None) -> list[str | None]:
        details = json.loads(
            Parsed(made(study.model_copy(update={"mlflow": links})).html).scripts["details"]
        )
        return [trial[10] for row in details.values() for trial in row["trials"]]

    pages = Pages("http://127.0.0.1:5000", "3")
    first = study.trials[0].key
    links = MlflowLinks(host=pages.host, experiment_id=pages.experiment_id, runs={first: "abc"})
    shown = set(trial_pages(links))
    assert shown == {pages.run("abc"), None}
    assert (
        pages.experiment.replace("&", "&amp;")
        in made(study.model_copy(update={"mlflow": links})).html
    )
    assert set(trial_pages(None)) == {None}
    assert "#/experiments" not in made(study).html


def test_many_rows_come_by_pages_and_their_details_by_files(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "INLINE_TRIALS", 100)
    rows = {f"row {number}": (number / 1000,) for number in range(ROWS_PER_PAGE + 30)}
    study = make_study(rows, path=tmp_path / "fake-01234567", states={("row 7", 0): "failed"})
    found = made(study)
    parsed = Parsed(found.html)
    assert found.html.count("<button data-row=") == ROWS_PER_PAGE
    rest = json.loads(parsed.scripts["rest-0"])
    assert len(rest["rows"]) == 30
    assert [row[0] for row in rest["means"]] == [
        None if n == 7 else n / 1000 for n in range(ROWS_PER_PAGE + 30)
    ]
    assert f'data-row="{ROWS_PER_PAGE}"' in rest["rows"][0]
    assert parsed.scripts["details"] == "{}"
    assert sorted(found.details) == ["details/0000.js", "details/0001.js", "details/0002.js"]
    for part, text in enumerate(found.details[name] for name in sorted(found.details)):
        content = json.loads(re.fullmatch(rf"tocoDetails\({part},(.*)\);\n", text)[1])
        numbers = range(part * ROWS_PER_FILE, min((part + 1) * ROWS_PER_FILE, len(rows)))
        assert [int(number) for number in content] == list(numbers)
    first = json.loads(found.details["details/0000.js"][len("tocoDetails(0,") : -3])
    assert first["12"]["trials"][0][7] == ["1.2"]


def test_a_small_study_needs_no_files(study):
    assert made(study).details == {}
    assert 'class="pager"' not in made(study).html


def test_what_was_run(study):
    text = Parsed(made(study).html).text
    assert "Hardware CPU x86_64, Linux-6.1-x86_64; <img src=x>, Linux-6.1-x86_64" in text
    assert "Trials 9 of 9 finished" in text
    assert "Time 9 min in all trials together, 60 s the longest" in text
    assert "method.ptc.weight 8.0" in text
    assert f"{FACTOR} varies" in text
    assert "seed varies" in text


def test_a_ladder_is_not_said_to_be_compared_with_the_base(tmp_path):
    values = {"cls": (0.4, 0.41), "+ PTC": (0.5, 0.52), "+ CTC": (0.6, 0.61)}
    ladder = make_study(values, versus={"+ CTC": "+ PTC"}, path=tmp_path / "fake-01234567")
    text = Parsed(made(ladder).html).text
    assert "against the row above" in text
    assert "against the base" not in text
    assert re.search(r"cls 40\.5 ± 0\.7 2 base", text)


def test_what_another_study_had_trained_is_not_held_against_the_forecast(tmp_path):
    predicted = Forecast(trainings=2, resumed=0, evaluations=0, concurrent=1, training_s=60.0)
    rows = {"#10": (0.6, 0.6), "#8": (0.5, 0.5)}
    path = tmp_path / "fake-01234567"
    alone = made(make_study(rows, path=path, forecast=predicted))
    assert "Trainings: predicted 2, ended 4." in Parsed(alone.html).text
    shared = made(
        make_study(
            rows, path=path, forecast=predicted, amend={"#10": {"origin": {"study": "other"}}}
        )
    )
    assert (
        "A training: predicted 60 s, took 60 s on average over 2: as predicted."
        in Parsed(shared.html).text
    )
    assert "Trainings: predicted" not in Parsed(shared.html).text
