import re

import pytest

from toco.tracking import read_run_record


def test_an_unfinished_folder_reads_as_it_stands(run_folder):
    folder = read_run_record(run_folder().path)
    assert folder.digest == "0123456789abcdef"
    assert folder.parameters == {
        "seed": 0,
        "method.aux_block": 9,
        "method.scales": [1.0, 0.5],
        "data.root": None,
        "evaluate.background_threshold": 0.5,
    }
    assert [(row.step, row.time_s) for row in folder.rows] == [(1, 0.5), (2, 1.0)]
    assert folder.rows[1].values == {"train/loss_total": 1.0, "train/ptc": 0.25}
    assert folder.result is None
    assert folder.last_evaluation is None
    assert folder.started_ms == 1767323045000  # 2026-01-02 03:04:05 UTC


def test_evaluations_pictures_and_result(run_folder):
    training = run_folder()
    training.add_evaluation(9, 0.25)
    training.add_evaluation(10, 0.5)
    training.end("finished", 10)
    folder = read_run_record(training.path)
    assert list(folder.evaluations) == [9, 10]
    assert folder.last_evaluation is not None
    assert folder.last_evaluation["step"] == 10
    assert [path.name for path in folder.pictures[10]] == ["scene_0001.png"]
    assert folder.rows[-1].values == {"val/cam_miou": 0.5}  # null is no number
    assert folder.result is not None
    assert folder.result["status"] == "finished"


def test_a_line_cut_off_by_a_crash_is_not_a_row(run_folder):
    training = run_folder()
    with (training.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "train", "time_s": 1.5, "values": {"train/ptc": 0.1')
    assert [row.step for row in read_run_record(training.path).rows] == [1, 2]


def test_a_bad_line_is_named(run_folder):
    training = run_folder()
    with (training.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3}\n')
    training.add_rows(range(4, 5))
    with pytest.raises(ValueError, match="line 3: expected step, kind, time_s and values"):
        read_run_record(training.path)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is not a run folder: it has no config.json")):
        read_run_record(tmp_path)


def test_broken_json_names_the_file(run_folder):
    training = run_folder()
    (training.path / "result.json").write_text('{"status":')
    with pytest.raises(ValueError, match=r"result\.json is not readable JSON"):
        read_run_record(training.path)
