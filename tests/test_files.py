"""Writers that leave a whole file or none, records that notice a changed byte, and text from
anywhere.
"""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toco.files import (
    SEAL,
    UnreadableError,
    append,
    files_below,
    is_no_room,
    is_sealed,
    printable,
    read_json,
    read_lines,
    read_record,
    read_text,
    record_text,
    sha256,
    whole_file,
    whole_folder,
    write_record,
    write_text,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)

WRITERS = {
    "whole_file": "with whole_file(target) as partial: partial.write_bytes(b'new' * 20000)",
    "write_text": "write_text(target, 'new' * 20000)",
    "write_record": "write_record(target, {'text': 'new' * 20000})",
    "whole_folder": """
with whole_folder(target) as partial:
    (partial / 'inner').mkdir()
    (partial / 'inner' / 'part').write_bytes(b'new' * 20000)
""",
}


class TestWriters:
    @pytest.mark.parametrize("writer", WRITERS)
    def test_a_crash_at_any_call_of_the_system_leaves_nothing_or_all(self, writer, tmp_path):
        """A child process makes the write once to count its system calls, then dies at each of them
        in turn.
        """
        script = textwrap.dedent(
            """
            import os, sys
            from pathlib import Path
            from toco.files import whole_file, whole_folder, write_record, write_text

            root = Path(sys.argv[1])
            calls = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "open", "shutil.rmtree")
            def crash_at(number, target):
                left = [number]
                def hook(event, arguments):
                    if event in calls:
                        if left[0] == 0:
                            os._exit(9)
                        left[0] -= 1
                sys.addaudithook(hook)
                WRITER
                return number - left[0]

            count = crash_at(10**9, root / "counted")
            print(count, flush=True)
            for number in range(count):
                child = os.fork()
                if child == 0:
                    crash_at(number, root / f"crashed_{number}")
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, number
            """
        ).replace("WRITER", textwrap.indent(WRITERS[writer].strip(), " " * 4).lstrip())
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) >= 2
        whole = _bytes_under(tmp_path / "counted")
        left = [
            path
            for path in tmp_path.iterdir()
            if not path.name.startswith(".") and path.name != "counted"
        ]
        assert all(_bytes_under(path) == whole for path in left)

    def test_an_exception_leaves_the_old_file_and_no_other(self, tmp_path):
        target = tmp_path / "file"
        write_text(target, "old")
        with pytest.raises(TypeError), whole_file(target) as partial:
            partial.write_text(None)
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    def test_an_exception_leaves_the_old_folder_and_no_other(self, tmp_path):
        target = tmp_path / "folder"
        with whole_folder(target) as partial:
            (partial / "old").touch()
        with pytest.raises(RuntimeError), whole_folder(target) as partial:
            raise RuntimeError
        with whole_folder(target) as partial:
            (partial / "new").touch()
        assert [path.name for path in target.iterdir()] == ["new"]
        assert list(tmp_path.iterdir()) == [target]

    def test_a_name_as_long_as_the_file_system_allows(self, tmp_path):
        target = tmp_path / ("x" * 255)
        write_text(target, "whole")
        assert target.read_text() == "whole"

    def test_everything_is_synced_before_it_has_its_name(self, tmp_path, monkeypatch):
        events = []
        fsync, rename = os.fsync, os.rename
        monkeypatch.setattr(os, "fsync", lambda number: (events.append("sync"), fsync(number))[1])
        monkeypatch.setattr(
            os, "rename", lambda *names: (events.append("rename"), rename(*names))[1]
        )
        with whole_folder(tmp_path / "folder") as partial:
            (partial / "file").touch()
        # The file, the folder; the name; the folder that has the name.
        assert events == ["sync", "sync", "rename", "sync"]


class TestRecords:
    @given(
        # Hypothesis also tries strings of the code under test, and the seal's name is refused.
        st.dictionaries(st.text().filter(lambda name: name != SEAL), JSON_VALUES, min_size=1),
        st.sampled_from([None, 1, 2]),
    )
    def test_what_is_written_is_read(self, tmp_path_factory, content, indent):
        path = tmp_path_factory.mktemp("record") / "record.json"
        write_record(path, content, indent=indent, durable=False)
        assert read_record(path) == content
        # Any JSON reader reads it, too.
        assert {**json.loads(path.read_text()), "record_sha256": None} == {
            **content,
            "record_sha256": None,
        }

    def test_the_seal_by_hand(self):
        body = '{"step":4'
        seal = hashlib.sha256(body.encode()).hexdigest()
        assert record_text({"step": 4}) == f'{body},"record_sha256":"{seal}"}}\n'

    @pytest.mark.parametrize("indent", [None, 2])
    def test_every_changed_bit_and_every_missing_end_is_noticed(self, tmp_path, indent):
        path = tmp_path / "record.json"
        whole = record_text(
            {"status": "finished", "metrics": {"miou": 0.25}}, indent=indent
        ).encode()
        # White space after the last field is not sealed, and cannot change a value.
        sealed = len(whole.rstrip(b"\n }"))
        for position in range(sealed):
            for bit in range(8):
                changed = bytearray(whole)
                changed[position] ^= 1 << bit
                assert not is_sealed(bytes(changed)), (position, bit)
        for length in range(sealed):
            path.write_bytes(whole[:length])
            with pytest.raises(UnreadableError, match=r"record\.json is damaged"):
                read_record(path)

    @pytest.mark.parametrize("content", [{}, {"record_sha256": ""}])
    def test_what_cannot_be_sealed_is_refused(self, content):
        with pytest.raises(ValueError, match="at least one field"):
            record_text(content)


class TestText:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_marks_and_line_ends(self, tmp_path, encoding, end):
        path = tmp_path / "classes.txt"
        path.write_bytes(end.join(["cat", "Löwe", "two\x0cpages\u2028", ""]).encode(encoding))
        assert read_lines(path) == ["cat", "Löwe", "two\x0cpages\u2028"]

    def test_no_last_line_end_and_empty_lines(self, tmp_path):
        path = tmp_path / "list.txt"
        path.write_text("a\n\nb")
        assert read_lines(path) == ["a", "", "b"]
        path.write_text("")
        assert read_lines(path) == []

    def test_another_encoding_is_a_sentence(self, tmp_path):
        path = tmp_path / "classes.txt"
        path.write_bytes("Löwe".encode("latin-1"))
        with pytest.raises(
            UnreadableError,
            match=r"classes.txt is not text in UTF-8: .* at byte 1\. Save it as UTF-8",
        ):
            read_text(path)

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ('{"a": 1,', "in line 1, column 9"),
            ("[" * 100_000, "nested too deeply"),
            ("1" * 5000, "Exceeds the limit"),
        ],
    )
    def test_broken_json_is_a_sentence(self, tmp_path, text, fault):
        path = tmp_path / "labels.json"
        path.write_text(text)
        with pytest.raises(UnreadableError, match=rf"labels.json is not JSON: .*{fault}"):
            read_json(path)

    def test_json_with_a_mark(self, tmp_path):
        path = tmp_path / "labels.json"
        path.write_bytes('{"Löwe": [1]}'.encode("utf-16"))
        assert read_json(path) == {"Löwe": [1]}


class TestAppend:
    def test_bytes_follow_each_other_in_a_file_that_is_made(self, tmp_path):
        for content in (b"one\n", b"two\n"):
            append(tmp_path / "lines", content)
        assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"

    @pytest.mark.parametrize("size", [20, 20_000])
    def test_a_disk_that_takes_a_part_gets_none_of_it(self, tmp_path, size):
        path = tmp_path / "lines"
        append(path, b"one\n")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            with pytest.raises(OSError, match=re.escape(str(path))):
                append(path, b"x" * size)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == b"one\n"

    def test_the_name_of_a_new_file_is_synced(self, tmp_path, monkeypatch):
        synced = []
        monkeypatch.setattr("toco.files.sync", synced.append)
        append(tmp_path / "lines", b"one\n")
        append(tmp_path / "lines", b"two\n")
        assert synced == [tmp_path]


def test_sha256_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Löwe 1.png", "Löwe 1.png"),
        ("\x1b]0;title\a\x1b[31mred.png", "\\x1b]0;title\\x07\\x1b[31mred.png"),
        ("a\nb", "a\\nb"),
        (os.fsdecode(b"\xff.png"), "\\udcff.png"),
        ("right\u202eleft", "right\\u202eleft"),
    ],
)
def test_unprintable_characters_are_escaped(text, shown):
    assert printable(text) == shown
    assert printable(text).encode()


def test_kept_characters():
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_room():
    assert is_no_room(OSError(errno.ENOSPC, "No space left on device"))
    assert is_no_room(shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]))
    assert not is_no_room(OSError(errno.ENOENT, "No such file"))
    assert not is_no_room(ValueError())


def _bytes_under(path):
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [file.read_bytes() for file in files]


class TestFilesBelow:
    def test_files_are_found_through_links_in_the_order_of_their_names(self, tmp_path):
        root, other = tmp_path / "root", tmp_path / "other"
        for folder in (root / "b", root / ".hidden", other / "deep"):
            folder.mkdir(parents=True)
        for file in (
            root / "z",
            root / "b" / "a",
            root / ".hidden" / "x",
            root / ".y",
            other / "deep" / "c",
        ):
            file.write_text("")
        (root / "a").symlink_to(other)
        (root / "c").symlink_to(other / "deep")
        found = files_below(root)
        assert [path.relative_to(root).as_posix() for path in found.files] == [
            "a/deep/c",
            "b/a",
            "c/c",
            "z",
        ]
        assert found.left_out == ()

    def test_loops_are_left_out_and_said(self, tmp_path):
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        (one / "file").write_text("")
        (one / "self").symlink_to(one)
        (one / "two").symlink_to(two)
        (two / "one").symlink_to(one)
        (one / "nothing").symlink_to(tmp_path / "nowhere")
        os.mkfifo(one / "pipe")
        found = files_below(one)
        assert found.files == (one / "file",)
        assert found.left_out == (
            f"{one / 'nothing'} is a link to nothing",
            f"{one / 'pipe'} is no file",
            f"{one / 'self'} is a link to a folder that holds the link",
            f"{one / 'two' / 'one'} is a link to a folder that holds the link",
        )

    def test_a_folder_that_cannot_be_opened_is_said(self, tmp_path, monkeypatch):
        (tmp_path / "closed").mkdir()
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("closed"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        assert files_below(tmp_path).left_out == (
            f"{tmp_path / 'closed'} cannot be opened (Permission denied)",
        )
