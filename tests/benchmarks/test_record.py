import json
import re
import time

import torch

from benchmarks import _record


def test_functions_take_turns_after_one_call_that_is_not_counted():
    called = []
    functions = {
        "a": lambda: called.append("a"),
        "b": lambda: (called.append("b"), time.sleep(0.02)),
    }
    seconds = _record.measure(functions, 3, "cpu")
    assert called == ["a", "b"] * 4
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert min(seconds["b"]) >= 0.02
    assert min(seconds["a"]) >= 0


def test_a_record_has_name_version_and_machine_and_no_date(tmp_path):
    out = tmp_path / "new" / "file.json"
    _record.write(out, "example", {"device": "cpu", "figure": 3})
    record = json.loads(out.read_text())
    assert (record["format_version"], record["name"], record["figure"]) == (1, "example", 3)
    assert record["machine"]["torch"] == torch.__version__
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert not re.search(r"20\d\d-\d\d-\d\d", out.read_text())


def test_nothing_is_written_without_a_file(tmp_path):
    _record.write(None, "example", {})
    assert list(tmp_path.iterdir()) == []


def test_the_matrix_peak_is_arithmetic_over_the_shortest_time(monkeypatch):
    monkeypatch.setattr(_record, "_PEAK_SIDE", {"cpu": 64})
    monkeypatch.setattr(
        _record, "measure", lambda functions, times, device: {"product": [0.5, 0.25, 1.0]}
    )
    assert _record.matrix_peak(torch.float32, "cpu") == 2 * 64**3 / 0.25


def test_the_peak_memory_of_a_process_is_never_less_than_what_it_holds():
    held = torch.ones(30_000_000)
    assert _record.peak_memory_bytes("cpu") > held.nbytes
