import json

import pytest

from toco.evaluate.output_folder import OutputFolder
from toco.types import Shard

NAMES = ("a", "sub/b", "c", "d", "e")


def folder(path, **about):
    return OutputFolder(path, {"scales": (1.0, 0.5)} | about, NAMES, ".png")


def test_work_that_was_stopped_goes_on_and_nothing_is_made_twice(tmp_path):
    made = []

    def make(index):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(index)
        return b"%d" % index

    with pytest.raises(KeyboardInterrupt):
        folder(tmp_path).fill(make)
    again = folder(tmp_path)
    assert again.missing() == [2, 3, 4]
    made.clear()
    again.fill(lambda index: made.append(index) or b"%d" % index)
    assert made == [2, 3, 4]
    assert [again.output(index).read_bytes() for index in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert (tmp_path / "sub" / "b.png").is_file()
    assert not list(tmp_path.rglob("*.partial"))


def test_processes_share_the_images(tmp_path):
    shares = [folder(tmp_path).missing(Shard(rank, 2)) for rank in range(2)]
    assert shares == [[0, 2, 4], [1, 3]]
    folder(tmp_path).fill(lambda _: b"", Shard(1, 2))
    assert folder(tmp_path).missing() == [0, 2, 4]


def test_outputs_of_other_settings_are_not_mixed(tmp_path):
    folder(tmp_path)
    assert json.loads((tmp_path / "about.json").read_text()) == {"scales": [1.0, 0.5]}
    with pytest.raises(ValueError, match=r"made in another way: flip was None and is True"):
        folder(tmp_path, flip=True)
    nested = {"crf": {"iterations": 10, "filter_name": "lattice"}}
    OutputFolder(tmp_path / "crf", nested, NAMES, ".png")
    nested["crf"]["iterations"] = 5
    with pytest.raises(ValueError, match=r"another way: crf\.iterations was 10 and is 5\. Give"):
        OutputFolder(tmp_path / "crf", nested, NAMES, ".png")


def test_files_of_unknown_origin_are_left_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds \.png files but no about\.json"):
        folder(tmp_path)
    assert (tmp_path / "a.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "../b"), "as a relative path, got '../b'"),
        (("/a",), "as a relative path"),
        (("a", "b", "a"), "'a' is there twice"),
    ],
)
def test_names_that_would_leave_the_folder_or_meet_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        OutputFolder(tmp_path / "out", {}, names, ".png")
    assert not (tmp_path / "out").exists()
