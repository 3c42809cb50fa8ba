import json
import logging
from pathlib import Path

import pytest

from toco.files import SEAL, UnreadableError
from toco.train import records
from toco.train.records import Rows, RowsMark, make_row, read_row, read_rows, rows_text

ROWS = [
    make_row(step, "val" if step % 2 == 0 else "train", 0.1 * step, {"a/b": 1 / step})
    for step in range(1, 5)
]
OLD = {"format_version": 1, "status": "finished", "step": 4}


def written(path: Path, rows: list[records.Row]) -> Path:
    path.write_text(rows_text(rows))
    return path


def test_rows_come_back_and_have_the_mark_that_they_were_written_with(tmp_path: Path) -> None:
    file = written(tmp_path / "metrics.jsonl", ROWS)
    found = read_rows(file)
    assert found == Rows(tuple(ROWS))
    assert RowsMark.of(found.before_fault) == RowsMark.of(ROWS)
    assert RowsMark.of(ROWS[:3]) != RowsMark.of(ROWS)
    assert RowsMark.of([*ROWS[:3], {**ROWS[3], "time_s": 9.0}]).sha256 != RowsMark.of(ROWS).sha256


@pytest.mark.parametrize("left", [1, 40, 100, -2])
def test_only_a_last_line_that_is_cut_off_is_no_row_and_no_fault(tmp_path: Path, left: int) -> None:
    file = written(tmp_path / "metrics.jsonl", ROWS)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:left])
    assert read_rows(file) == Rows(tuple(ROWS[:3]))
    file.write_bytes(b"".join(lines[:2]) + lines[2][:left] + b"\n" + lines[3])
    found = read_rows(file)
    assert (found.before_fault, found.after_fault) == (tuple(ROWS[:2]), (ROWS[3],))
    assert found.fault == f"{file} is damaged in line 3: its bytes are not those that were written."


def test_a_last_line_that_lacks_nothing_but_its_end_is_a_row(tmp_path: Path) -> None:
    file = written(tmp_path / "metrics.jsonl", ROWS)
    file.write_bytes(file.read_bytes()[:-1])
    assert read_rows(file) == Rows(tuple(ROWS))


def test_no_flipped_bit_of_a_row_goes_unseen() -> None:
    line = rows_text(ROWS[:1]).removesuffix("\n").encode()
    for position in range(len(line)):
        for bit in (1, 128):
            damaged = bytearray(line)
            damaged[position] ^= bit
            row = read_row(bytes(damaged))
            assert row is None, (position, bit, row)


def test_rows_of_the_version_before_are_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [{**row, "format_version": 1} for row in ROWS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(file) == Rows(tuple(rows))


def test_a_file_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == Rows(())


def test_a_record_comes_back_and_is_of_the_present_version(tmp_path: Path) -> None:
    records.write(tmp_path / "result.json", OLD)
    assert records.read(tmp_path / "result.json") == OLD | {
        "format_version": records.FORMAT_VERSION
    }


@pytest.mark.parametrize("position", range(0, 150, 7))
def test_no_flipped_byte_of_a_record_goes_unseen(tmp_path: Path, position: int) -> None:
    file = tmp_path / "result.json"
    records.write(file, OLD)
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(UnreadableError, match=r"result\.json"):
        records.read(file)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"format_version": 1, "con', "is not JSON: Unterminated string starting at in line 1"),
        (b"[]", "holds a JSON list, expected an object"),
        (b"null", "holds a JSON NoneType, expected an object"),
        (b"", "is not JSON"),
        (b"\xff\x00", "is not text in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{}", "has format version None and no digest"),
        (b'{"format_version": 2, "status": "finished"}', "has format version 2 and no digest"),
        (b'{"format_version": 1, "' + SEAL.encode() + b'": 3}', "is damaged"),
    ],
)
def test_a_damaged_record_is_named_with_its_fault_and_what_to_do(
    tmp_path: Path, content: bytes, fault: str
) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UnreadableError, match=fault) as raised:
        records.read(file, advice="Do this.")
    assert str(raised.value).startswith(str(file))
    assert str(raised.value).endswith(" Do this.")
    assert str(raised.value).count("\n") == 0


def test_a_record_of_the_version_before_is_read_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("result.json", "config.json"):
        (tmp_path / name).write_text(json.dumps(OLD))
    with caplog.at_level(logging.WARNING):
        assert (
            records.read(tmp_path / "result.json") == records.read(tmp_path / "config.json") == OLD
        )
    assert [record.message for record in caplog.records] == [
        f"{tmp_path} was written by toco 0.4 or before, whose files carry no digests: it is read "
        f"without that check."
    ]
