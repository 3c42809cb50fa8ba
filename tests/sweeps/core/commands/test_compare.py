"""``python -m sweeps compare``: values against scipy, kinds of files, looks, refusals."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sweeps.__main__ import main
from tests.sweeps.core.damages import DAMAGES
from toco.train import records

MIOU = {
    "base": (61.2, 62.0, 60.9, 61.8, 61.1),
    "ptc": (63.5, 64.1, 63.0, 64.2, 63.1),
    "ctc": (61.9, 61.7, 62.4, 60.8, 62.5),
}
LOSS = {row: [round(1 - value / 100, 3) for value in values] for row, values in MIOU.items()}
"""A second metric, of which lower values are better."""
FULL = [(row, seed) for row in MIOU for seed in range(5)]


def write(path, places=FULL, values=MIOU, header="row,seed,miou"):
    lines = [f"{row},{seed},{values[row][seed]}" for row, seed in places]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def seeds(number):
    return [(row, seed) for row, seed in FULL if seed < number]


def compare(*words):
    return CliRunner().invoke(main, ["compare", *map(str, words)])


def lines_of(folder):
    """The lines of table.csv by row and metric."""
    with (folder / "table.csv").open() as file:
        return {(line["row"], line["metric"]): line for line in csv.DictReader(file)}


def close(text, value):
    assert float(text) == pytest.approx(value, abs=2e-6)


def test_means_tests_and_correction_are_those_of_scipy_and_statsmodels(tmp_path):
    done = compare(write(tmp_path / "a.csv"), "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    lines = lines_of(tmp_path / "out")
    tests = [stats.ttest_rel(MIOU[row], MIOU["base"]) for row in ("ptc", "ctc")]
    corrected = multipletests([test.pvalue for test in tests], method="holm")[1]
    for row, test, p in zip(("ptc", "ctc"), tests, corrected, strict=True):
        line = lines[row, "miou"]
        assert (line["versus"], line["declared"]) == ("base", "yes")
        close(line["mean"], np.mean(MIOU[row]) / 100)
        close(line["sd"], np.std(MIOU[row], ddof=1) / 100)
        close(line["p"], test.pvalue)
        close(line["p_holm"], p)
        low, high = test.confidence_interval(0.95)
        close(line["difference_low"], low / 100)
        close(line["difference_high"], high / 100)
    assert "Of 2 tested differences: 1 shown, 1 undecided." in done.output


def test_the_report_says_that_toco_did_not_run_the_trainings(tmp_path):
    done = compare(write(tmp_path / "a.csv"), "--output", tmp_path / "out")
    out = tmp_path / "out"
    names = {"comparison.json", "table.md", "table.csv", "table.tex", "report.html"}
    assert {path.name for path in out.iterdir()} == names
    said = "neither settings, data nor code were compared"
    texts = [done.output, *(path.read_text() for path in out.iterdir() if path.suffix != ".csv")]
    assert sum(said in text.replace("\n", " ") for text in texts) == 4
    page = (out / "report.html").read_text()
    assert "Training: it needs run folders, and the file has values only." in page
    assert "Token Contrast" not in page
    assert "../runs" not in page
    assert "\\begin{tabular}" in (out / "table.tex").read_text()


def test_without_a_folder_nothing_is_written_and_the_text_says_so(tmp_path):
    done = compare(write(tmp_path / "a.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert "a.csv is a table: 15 trainings in 3 rows by row, seeds from seed." in done.output
    assert "Nothing is recorded, so the error rate holds for one test." in done.output


@pytest.mark.parametrize(
    ("values", "options", "mean"),
    [
        ("0.635", (), "63.5 ± 1.0"),  # a fraction, by its name and values
        ("63.5", (), "63.5 ± 1.0"),  # percent, as given
        ("63.5", ("--number", "miou"), "63.500 ± 1.000"),
        ("0.635", ("--percent", "miou"), "0.6 ± 0.0"),
    ],
)
def test_values_are_read_in_their_unit(tmp_path, values, options, mean):
    shift = 0.01 if values.startswith("0.") else 1
    table = {row: [float(values) + step * shift for step in (-1, 0, 1)] for row in MIOU}
    done = compare(write(tmp_path / "a.csv", seeds(3), table), *options)
    assert re.search(rf"^base +{re.escape(mean)} ", done.output, re.M), done.output


def test_a_metric_of_another_name_is_printed_as_given(tmp_path):
    done = compare(write(tmp_path / "a.csv", header="row,seed,fid"))
    assert re.search(r"^base +61\.400 ± 0\.474", done.output, re.M), done.output
    assert "underpowered" not in done.output


def test_all_columns_of_numbers_are_metrics_and_the_first_is_tested(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{row},{MIOU[row][seed]},{seed},{LOSS[row][seed]},x" for row, seed in FULL]
    path.write_text("\n".join(["row,miou,seed,loss,note", *rows]))
    done = compare(path, "--lower", "loss", "--base", "ctc", "--output", tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert {metric for _, metric in lines} == {"miou", "loss"}
    assert (lines["ptc", "miou"]["declared"], lines["ptc", "loss"]["declared"]) == ("yes", "no")
    assert lines["ptc", "miou"]["versus"] == "ctc"
    assert lines["ptc", "loss"]["mark"] == lines["ptc", "miou"]["mark"] == "bold", done.output
    chosen = compare(path, "--metric", "loss", "--lower", "loss")
    assert "miou" not in chosen.output


def test_pairs_are_by_seed_and_incomplete_ones_are_named(tmp_path):
    places = [place for place in FULL if place != ("ptc", 1)]
    done = compare(
        write(tmp_path / "a.csv", places[::-1]), "--base", "base", "--output", tmp_path / "o"
    )
    line = lines_of(tmp_path / "o")["ptc", "miou"]
    kept = [0, 2, 3, 4]
    test = stats.ttest_rel(*(np.array(MIOU[row])[kept] for row in ("ptc", "base")))
    close(line["p"], test.pvalue)
    assert line["pairs"] == "4"
    assert "pairs are incomplete: ptc with seed 1 (miou)." in done.output
    assert done.exit_code == 4


def test_a_cell_without_a_value_is_a_training_without_result(tmp_path):
    path = write(tmp_path / "a.csv")
    path.write_text(path.read_text().replace("ptc,1,64.1", "ptc,1,"))
    done = compare(path)
    assert "pairs are incomplete: ptc with seed 1 (miou)." in done.output
    assert "5 (miou 4)" in done.output


# Exports.

WANDB = """
"Name","Agent","State","Notes","User","Tags","Created","Runtime","Sweep","lr","method","seed","_step","val/loss","val/mIoU"
"fast-3","","finished","-","me","","2026-01-03T00:00:00.000Z","100","","0.0001","ptc","1","100","0.31","0.641"
"fast-5","","crashed","-","me","","2026-01-03T00:00:00.000Z","90","","0.0001","ptc","2","80","",""
"fast-2","","finished","-","me","","2026-01-02T00:00:00.000Z","100","","0.0001","ptc","0","100","0.32","0.635"
"fast-1","","finished","-","me","","2026-01-01T01:00:00.000Z","100","","0.0001","cam","1","100","0.33","0.62"
"fast-0","","finished","-","me","","2026-01-01T00:00:00.000Z","100","","0.0001","cam","0","100","0.34","0.611"
""".lstrip()


def test_the_run_table_of_wandb(tmp_path):
    path = tmp_path / "wandb.csv"
    path.write_text(WANDB)
    refused = compare(path)
    assert (
        "has 2 metrics: val/loss, val/mIoU. Name those of the table by --metric" in refused.output
    )
    done = compare(path, "--metric", "val/mIoU", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "an export of W&B's run table: 4 trainings in 2 rows by method" in done.output
    assert "Runs that have not finished are left out: 1 crashed." in done.output
    line = lines_of(tmp_path / "out")["ptc", "val/mIoU"]
    test = stats.ttest_rel((0.635, 0.641), (0.611, 0.62))
    close(line["p"], test.pvalue)
    # The newest run comes first in the file; the first row is that of the oldest.
    assert line["versus"] == "cam"


def test_several_columns_that_vary_are_listed(tmp_path):
    path = tmp_path / "wandb.csv"
    path.write_text(WANDB.replace('"0.0001","ptc","1"', '"0.0002","ptc","1"'))
    assert "Several columns vary in" in compare(path).output
    assert ": lr, method. Name the one" in compare(path).output
    both = compare(path, "--row", "method", "--row", "lr", "--metric", "val/mIoU")
    assert "method=ptc, lr=0.0002" in both.output


def test_search_runs_of_mlflow(tmp_path, monkeypatch):
    """A real export, from a store in a file."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
    for row in ("cam", "ptc"):
        for seed in (0, 1, 2):
            run = client.create_run(experiment).info.run_id
            for name, value in (("method", row), ("seed", seed), ("lr", 0.1)):
                client.log_param(run, name, value)
            client.log_metric(run, "val/miou", MIOU["base" if row == "cam" else row][seed] / 100)
            client.log_metric(run, "best", float("nan"))
            client.set_terminated(run, "FINISHED")
    client.set_terminated(client.create_run(experiment).info.run_id, "FAILED")
    # Not ``set_tracking_uri``: it would hold for the later tests of this process.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.search_runs([experiment]).to_csv(tmp_path / "runs.csv")
    done = compare(tmp_path / "runs.csv", "--metric", "val/miou", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert (
        "MLflow's search_runs: 6 trainings in 2 rows by method, seeds from params.seed"
        in done.output
    )
    assert "left out: 1 FAILED." in done.output
    line = lines_of(tmp_path / "out")["ptc", "val/miou"]
    assert line["versus"] == "cam"
    close(line["p"], stats.ttest_rel(MIOU["ptc"][:3], MIOU["base"][:3]).pvalue)


def write_run(folder, block, seed, value, status="finished"):
    folder.mkdir(parents=True)
    config = {
        "data": {"name": "shapes"},
        "method": {"name": "toco", "aux_block": block},
        "evaluate": {},
        "num_steps": 20,
        "evaluate_every": 20,
        "seed": seed,
    }
    metrics = {"val/seg_miou": value / 2, "val/cam_miou": value} if status == "finished" else {}
    records.write(
        folder / "config.json", {"digest": "0", "recipe": "shapes_nano", "config": config}
    )
    records.write(folder / "provenance.json", {"data_manifest": {"train": "a", "val": "b"}})
    result = {"status": status, "step": 20, "message": "nan", "metrics": metrics}
    records.write(folder / "result.json", result)


def test_a_folder_of_run_folders(tmp_path):
    for number, (row, block) in enumerate((("base", 7), ("ptc", 9))):
        for seed in range(3):
            write_run(tmp_path / f"runs/{number}{seed}", block, seed, MIOU[row][seed] / 100)
    write_run(tmp_path / "runs/3", 9, 3, 0, "stopped")
    done = compare(tmp_path / "runs", "--output", tmp_path / "out")
    assert "run folders of toco: 6 trainings in 2 rows by method.aux_block" in done.output
    assert "left out: 1 stopped" in done.output
    assert "their code was not compared" in done.output
    lines = lines_of(tmp_path / "out")
    assert [row for row, metric in lines if metric == "val/cam_miou"] == ["7", "9"]
    close(
        lines["9", "val/cam_miou"]["p"], stats.ttest_rel(MIOU["ptc"][:3], MIOU["base"][:3]).pvalue
    )


def test_a_diverged_run_has_no_value_and_data_is_compared(tmp_path):
    for block in (7, 9):
        for seed in range(3):
            write_run(tmp_path / f"runs/{block}-{seed}", block, seed, 0.5 + block / 100 + seed / 50)
    shutil.rmtree(tmp_path / "runs/9-2")
    write_run(tmp_path / "runs/9-2", 9, 2, 0, "diverged")
    other = {"data_manifest": {"train": "other", "val": "b"}}
    records.write(tmp_path / "runs/9-0/provenance.json", other)
    done = compare(tmp_path / "runs")
    assert "9, seed 2: diverged. nan" in done.output
    assert "data differs from 7: train (seed 0)" in done.output


# Looks and the record.


def test_more_seeds_are_taken_by_the_looks_that_were_recorded(tmp_path):
    path, out = tmp_path / "a.csv", tmp_path / "out"
    first = compare(write(path, seeds(3)), "--looks", "3,5", "--output", out)
    assert first.exit_code == 4
    # The first look spends (3 / 5)^2 of the error.
    ptc, ctc = (
        stats.ttest_rel(MIOU[row][:3], MIOU["base"][:3]).pvalue / (3 / 5) ** 2
        for row in ("ptc", "ctc")
    )
    close(lines_of(out)["ptc", "miou"]["p_holm"], 2 * ptc)
    close(lines_of(out)["ctc", "miou"]["p_holm"], min(max(2 * ptc, ctc), 1))
    assert "1 shown, 1 open" in first.output
    assert "The next look needs base with seed 3, 4; ctc with seed 3, 4." in first.output
    # An incomplete look decides nothing; the other row needs no more seeds.
    part = [*seeds(3), ("base", 3), ("ptc", 3), ("ptc", 4), ("ctc", 4)]
    second = compare(write(path, part), "--output", out)
    assert "The next look needs base with seed 4; ctc with seed 3." in second.output
    assert "Trainings that no look needs are not used: 2." in second.output
    assert lines_of(out)["ptc", "miou"]["n"] == "3"
    last = compare(write(path), "--output", out)
    assert last.exit_code == 0, last.output
    assert "1 shown, 1 undecided" in last.output
    assert lines_of(out)["ctc", "miou"]["pairs"] == "5"
    # All seeds at once come to the same table, look by look.
    at_once = tmp_path / "other"
    compare(path, "--looks", "3,5", "--output", at_once)
    assert (at_once / "table.csv").read_bytes() == (out / "table.csv").read_bytes()


def test_seeds_that_come_later_stand_behind_the_others(tmp_path):
    path, out = tmp_path / "a.csv", tmp_path / "out"
    moved = {row: dict(enumerate(values, start=5)) for row, values in MIOU.items()}
    write(path, [(row, seed + 5) for row, seed in seeds(3)], moved)
    compare(path, "--looks", "3,5", "--output", out)
    before = lines_of(out)["ptc", "miou"]
    extra = "".join(f"{row},{seed},{value}\n" for row in MIOU for seed, value in ((0, 9), (1, 99)))
    path.write_text(path.read_text() + extra)
    compare(path, "--output", out)
    assert lines_of(out)["ptc", "miou"] == before
    assert json.loads((out / "comparison.json").read_text())["seeds"] == [5, 6, 7, 0, 1]


def test_seeds_beyond_the_cap_are_not_used(tmp_path):
    done = compare(write(tmp_path / "a.csv"), "--looks", "2,3")
    assert "Trainings that no look needs are not used: 6." in done.output
    assert "are not recorded, so nothing shows that they were chosen" in done.output


def test_the_same_command_again_changes_nothing(tmp_path):
    path, out = write(tmp_path / "a.csv"), tmp_path / "out"
    compare(path, "--base", "ptc", "--margin", "0.5", "--output", out)
    before = {name: (out / name).read_bytes() for name in ("comparison.json", "table.csv")}
    assert compare(path, "--output", out).exit_code == 0
    assert {name: (out / name).read_bytes() for name in before} == before


def test_no_difference_within_a_margin(tmp_path):
    near = {
        "base": MIOU["base"],
        "same": [value + 0.01 * (-1) ** n for n, value in enumerate(MIOU["base"])],
    }
    path = write(tmp_path / "a.csv", [(row, seed) for row in near for seed in range(5)], near)
    assert "1 no difference." in compare(path, "--margin", "0.5").output
    assert "1 undecided." in compare(path).output


def test_a_margin_of_another_number_is_not_in_points(tmp_path):
    path = write(tmp_path / "a.csv", header="row,seed,fid")
    text = " ".join(compare(path, "--looks", "3,5", "--margin", "2").output.split())
    assert "all differences of a claim are smaller than 2, with" in text


def test_more_seeds_are_refused_where_no_looks_were_recorded(tmp_path):
    path, out = tmp_path / "a.csv", tmp_path / "out"
    compare(write(path, seeds(3)), "--output", out)
    done = compare(write(path, seeds(4)), "--output", out)
    assert done.exit_code == 1
    assert "3 trainings are new (base with seed 3, ptc with seed 3, ctc with seed 3)" in done.output
    assert "recorded without --looks" in done.output
    assert "about 18 %" in done.output


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--base", "ptc"), "base: base, and now ptc"),
        (("--looks", "3,4"), "looks: 3, 5, and now 3, 4"),
        (("--margin", "1"), "margin: none, and now 1.0"),
        (("--lower", "miou"), "lower is better"),
        (("--number", "miou"), "miou (number, higher is better)"),
    ],
)
def test_other_rules_are_refused(tmp_path, words, name):
    path, out = write(tmp_path / "a.csv"), tmp_path / "out"
    compare(path, "--looks", "3,5", "--output", out)
    before = (out / "comparison.json").read_bytes()
    done = compare(path, "--output", out, *words)
    assert done.exit_code == 1
    assert name in done.output
    assert (out / "comparison.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ptc,1,64.1", "ptc,1,64.2"), "miou of ptc with seed 1 was 64.1 and is 64.2"),
        (("ptc,1,64.1", "ptc,1,"), "miou of ptc with seed 1 was 64.1 and is none"),
        (("ptc,1,64.1\n", ""), "ptc with seed 1 is gone"),
        (("ctc,", "xtc,"), "other rows: base, ptc, ctc, and now base, ptc, xtc"),
    ],
)
def test_changed_values_are_refused_and_named(tmp_path, change, message):
    path, out = write(tmp_path / "a.csv"), tmp_path / "out"
    compare(path, "--looks", "3,5", "--output", out)
    path.write_text(path.read_text().replace(*change))
    done = compare(path, "--output", out)
    assert done.exit_code == 1
    assert message in done.output


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_refused(tmp_path, damage):
    path, out = write(tmp_path / "a.csv"), tmp_path / "out"
    compare(path, "--output", out)
    record = out / "comparison.json"
    record.write_bytes(DAMAGES[damage](record.read_bytes()))
    before = record.read_bytes()
    done = compare(path, "--output", out)
    assert done.exit_code == 1, done.output
    assert "Restore it from a copy, or give another --output folder" in done.output
    assert record.read_bytes() == before


def test_a_folder_of_other_files_is_not_written_to(tmp_path):
    path, out = write(tmp_path / "a.csv"), tmp_path / "out"
    out.mkdir()
    (out / "table.md").write_text("mine")
    done = compare(path, "--output", out)
    assert "is not empty and holds no comparison.json. Give a new folder." in done.output
    assert [file.name for file in out.iterdir()] == ["table.md"]


# Errors.


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ('row,seed,miou\n"a,1,2\n', (), "is no CSV file: unexpected end of data in line 2"),
        (f"row,seed,miou\na,1,{'2' * 200_000}\n", (), "is no CSV file: field larger than"),
        ("", (), "is empty: expected a header such as row,seed,miou"),
        ("row,seed,miou\n", (), "has a header and no training"),
        ("row,seed,seed\na,1,2\n", (), "has the column seed more than once"),
        ("row,seed,miou\na,1\n", (), "line 2, has 2 cells; the header has 3 columns"),
        ("row,seed,miou\na,1,x\nb,1,2\n", (), "line 2: miou is 'x', expected a finite number"),
        ("row,seed,miou\na,1,2\nb,1,NaN\n", (), "line 3: miou is 'NaN', expected a finite"),
        ("row,seed,miou\na,1,2\n\nb,1,inf\n", (), "line 4: miou is 'inf', expected a finite"),
        ("row,seed,miou\na,x,2\n", (), "line 2: the seed in seed is 'x', expected an integer"),
        ("row,seed,miou\na,1.5,2\n", (), "line 2: the seed in seed is '1.5'"),
        ("row,seed,miou\n,1,2\n", (), "line 2: row, which names the row, is empty"),
        (
            "row,seed,miou\na,1,2\na,1,3\n",
            (),
            "line 3: a with seed 1 is there already (",
        ),
        ("row,seed,miou\na,1,2\na,2,3\n", (), "has one row, a: expected a base and"),
        ("row,seed,miou\na,1,2\nb,1,3\n", (), "has one seed, 1: a test needs at least two"),
        ("row,run,miou\na,1,2\n", (), "has no column seed. Name the column of the seeds by --seed"),
        ("x,seed,miou\n1,1,2\n", (), "has no column row, and no setting that varies"),
        ("row,seed,note\na,1,x\n", (), "has no column of numbers that could be a metric"),
        ("row,seed,miou\na,1,2\n", ("--row", "no"), "no column no for --row; there are row, seed"),
        ("row,seed,miou\na,1,2\n", ("--seed", "no"), "has no column no for --seed"),
        ("row,seed,miou\na,1,2\n", ("--metric", "no"), "has no column no for --metric"),
        ("row,a.seed,b.seed,m\na,1,2,3\n", (), "several columns of seeds: a.seed, b.seed"),
    ],
)
def test_errors_are_sentences(tmp_path, content, words, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    done = compare(path, *words)
    assert done.exit_code == 1
    assert message in done.output, done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--base", "no"), "--base: there is no row no; the rows are base, ptc, ctc."),
        (("--lower", "loss"), "--lower: loss is no metric of the table; the metrics are miou."),
        (("--percent", "loss"), "loss is no metric of the table"),
        (("--looks", "5,3"), "Looks are numbers of seeds that ascend"),
    ],
)
def test_wrong_names_and_looks_are_refused(tmp_path, words, message):
    done = compare(write(tmp_path / "a.csv"), *words)
    assert done.exit_code != 0
    assert message in done.output


def test_folders_without_runs_and_missing_files_are_refused(tmp_path):
    assert "holds no run that has ended" in compare(tmp_path).output
    assert "does not exist" in compare(tmp_path / "no.csv").output


def test_tables_of_other_programs(tmp_path):
    """Semicolons, a byte order mark, CRLF and an index without a name."""
    lines = [f"{n};{row};{seed}.0;{MIOU[row][seed]}" for n, (row, seed) in enumerate(FULL)]
    path = tmp_path / "a.csv"
    path.write_bytes("\r\n".join([";Row;Seed;mIoU", *lines]).encode("utf-8-sig"))
    done = compare(path)
    assert "15 trainings in 3 rows by Row, seeds from Seed." in done.output
