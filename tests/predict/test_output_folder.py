import hashlib
import json

import numpy as np
import pytest

from toco.files import read_record
from toco.predict.formats import index_png
from toco.predict.output_folder import OutputFolder
from toco.types import Shard

NAMES = ("a", "sub/b", "c", "d", "e")
INPUTS = [b"first", b"second", b"third", b"fourth", b"fifth"]


@pytest.fixture
def inputs():
    return list(INPUTS)


def folder(path, inputs=INPUTS, **about):
    def input_sha256(index):
        return hashlib.sha256(inputs[index]).hexdigest()

    return OutputFolder(path, {"scales": (1.0, 0.5)} | about, NAMES, ".png", input_sha256)


def picture(index):
    return index_png(np.full((2, 2), index, np.uint8))


def made_by(output_folder):
    """Images that a call makes."""
    made = []
    output_folder.fill(lambda index: made.append(index) or picture(index))
    return made


def test_work_that_was_stopped_goes_on_and_nothing_is_made_twice(tmp_path):
    made = []

    def make(index):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(index)
        return picture(index)

    with pytest.raises(KeyboardInterrupt):
        folder(tmp_path).fill(make)
    again = folder(tmp_path)
    assert again.missing() == [2, 3, 4]
    assert made_by(again) == [2, 3, 4]
    assert made_by(folder(tmp_path)) == []
    assert (tmp_path / "sub" / "b.png").is_file()
    assert not list(tmp_path.rglob("*.partial"))


def test_an_output_of_other_bytes_is_made_again(tmp_path, inputs):
    made_by(folder(tmp_path))
    inputs[1] = b"another picture"
    inputs[3], inputs[4] = inputs[4], inputs[3]
    assert folder(tmp_path, inputs).missing() == [1, 3, 4]
    assert made_by(folder(tmp_path, inputs)) == [1, 3, 4]
    assert made_by(folder(tmp_path, inputs)) == []


def test_an_output_under_the_name_of_another_is_made_again(tmp_path):
    whole = folder(tmp_path)
    made_by(whole)
    whole.output(2).write_bytes(whole.output(0).read_bytes())
    assert made_by(folder(tmp_path)) == [2]
    assert whole.output(2).read_bytes() != whole.output(0).read_bytes()


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-1], lambda content: content[::-1]]
)
def test_a_damaged_output_is_made_again(tmp_path, damage):
    whole = folder(tmp_path)
    made_by(whole)
    expected = whole.output(1).read_bytes()
    whole.output(1).write_bytes(damage(expected))
    assert made_by(folder(tmp_path)) == [1]
    assert whole.output(1).read_bytes() == expected


def test_an_input_that_changes_while_it_is_worked_on_is_made_again_the_next_time(tmp_path, inputs):
    def make(index):
        content = picture(len(inputs[index]))
        inputs[index] = b"changed afterwards"
        return content

    folder(tmp_path, inputs).fill(make)
    assert folder(tmp_path, inputs).missing() == [0, 1, 2, 3, 4]


def test_an_input_that_cannot_be_read_has_no_output(tmp_path, inputs):
    made_by(folder(tmp_path))
    inputs[2] = None

    def input_sha256(index):
        if inputs[index] is None:
            raise PermissionError(13, "Permission denied")
        return hashlib.sha256(inputs[index]).hexdigest()

    again = OutputFolder(tmp_path, {"scales": (1.0, 0.5)}, NAMES, ".png", input_sha256)
    assert again.missing() == [2]


def test_processes_share_the_images(tmp_path):
    shares = [folder(tmp_path).missing(Shard(rank, 2)) for rank in range(2)]
    assert shares == [[0, 2, 4], [1, 3]]
    folder(tmp_path).fill(picture, Shard(1, 2))
    assert folder(tmp_path).missing() == [0, 2, 4]


def test_nothing_is_written_before_the_first_output(tmp_path):
    folder(tmp_path / "out").missing()
    assert not (tmp_path / "out").exists()


def test_outputs_of_other_settings_are_not_mixed(tmp_path):
    made_by(folder(tmp_path, crf={"iterations": 10, "filter_name": "lattice"}))
    about = read_record(tmp_path / "about.json")
    assert about == {
        "format_version": 2,
        "scales": [1.0, 0.5],
        "crf": {"iterations": 10, "filter_name": "lattice"},
    }
    with pytest.raises(ValueError, match=r"outputs of other settings: flip was None and is True"):
        folder(tmp_path, crf=about["crf"], flip=True)
    with pytest.raises(
        ValueError, match=r"outputs of other settings: crf\.iterations was 10 and is 5\. Use"
    ):
        folder(tmp_path, crf={"iterations": 5, "filter_name": "lattice"})


def test_a_process_that_begins_in_another_way_at_the_same_time_is_refused(tmp_path):
    late = folder(tmp_path, flip=True)
    made_by(folder(tmp_path))
    with pytest.raises(ValueError, match="outputs of other settings: flip was None and is True"):
        made_by(late)


def test_a_process_that_begins_in_the_same_way_at_the_same_time_is_not_refused(
    tmp_path, monkeypatch
):
    made_by(folder(tmp_path))
    reads = []

    def read_too_early(path, **options):
        reads.append(path)
        if len(reads) == 1:
            raise FileNotFoundError(path)
        return read_record(path, **options)

    monkeypatch.setattr("toco.predict.output_folder.read_record", read_too_early)
    assert folder(tmp_path).missing() == []
    assert len(reads) == 2


def test_outputs_of_another_way_are_not_trusted_even_if_their_record_was_copied(tmp_path):
    made_by(folder(tmp_path / "one"))
    made_by(folder(tmp_path / "two", flip=True))
    (tmp_path / "one" / "about.json").write_bytes((tmp_path / "two" / "about.json").read_bytes())
    assert made_by(folder(tmp_path / "one", flip=True)) == [0, 1, 2, 3, 4]


def test_files_of_unknown_origin_are_left_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"has \.png files but no about\.json"):
        folder(tmp_path)
    assert (tmp_path / "a.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps({"scales": [1.0, 0.5]}),
            r"written by toco 0\.4 or older, .* Name another folder, or delete",
        ),
        ("", r"about\.json is damaged: .* Name another folder, or delete"),
        ("[]", r"about\.json is damaged"),
        ("[" * 100_000, r"about\.json is damaged"),
        ('{"format_version": 2, "scales"', r"about\.json is damaged"),
    ],
)
def test_a_folder_that_does_not_say_what_its_outputs_are_of_is_refused(tmp_path, content, message):
    (tmp_path / "about.json").write_text(content)
    (tmp_path / "a.png").write_bytes(picture(0))
    with pytest.raises(ValueError, match=message):
        folder(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out is no folder; name another"):
        folder(tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "../b"), "as a relative path, got '../b'"),
        (("/a",), "as a relative path"),
        (("a", "b", "a"), "'a' appears twice"),
    ],
)
def test_names_that_would_leave_the_folder_or_meet_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        OutputFolder(tmp_path / "out", {}, names, ".png", str)
    assert not (tmp_path / "out").exists()
