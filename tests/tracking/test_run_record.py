import re

import pytest

from toco.tracking import read_run_record


def test_an_unfinished_folder_reads_as_it_stands(run_folder):
    folder = read_run_record(run_folder().path)
    assert folder.digest == "0123456789abcdef"
    assert folder.config["method"] == {"aux_block": 9, "scales": [1.0, 0.5]}
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


@pytest.mark.parametrize(
    "line", ['{"step": 3}', "[" * 100_000, '{"step": 3, "kind": "train", "time_s": 1, "values": 2}']
)
def test_a_damaged_line_is_named_and_left_out(run_folder, caplog, line):
    training = run_folder()
    with (training.path / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    training.add_rows(range(4, 5))
    assert [row.step for row in read_run_record(training.path).rows] == [1, 2, 4]
    assert f"{training.path / 'metrics.jsonl'} is damaged in line 3" in caplog.text


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path} is not a run folder: it has no config.json")
    ):
        read_run_record(tmp_path)


def test_a_damaged_result_is_none_and_a_damaged_evaluation_is_left_out(run_folder, caplog):
    training = run_folder()
    training.add_evaluation(9, 0.25)
    training.add_evaluation(10, 0.5)
    (training.path / "result.json").write_text('{"status":')
    (training.path / "evaluations/step_00000010.json").write_text("[]")
    record = read_run_record(training.path)
    assert record.result is None
    assert record.last_evaluation is None
    assert f"{training.path / 'result.json'} is not JSON" in caplog.text
    assert "step_00000010.json holds a JSON list, expected an object" in caplog.text


@pytest.mark.parametrize("name", ["config.json", "provenance.json"])
@pytest.mark.parametrize("content", ["[]", '{"format_version": 1, "con', "\xff", "[" * 100_000])
def test_a_damaged_head_is_refused_by_name(run_folder, name, content):
    training = run_folder()
    (training.path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=re.escape(str(training.path / name))):
        read_run_record(training.path)
