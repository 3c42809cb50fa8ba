"""Errors on their way from one process to another."""

import pickle

import pytest

from toco.processes import sendable


class TwoPartError(Exception):
    """Cannot be read back from a pickle."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (
            FileNotFoundError(2, "No such file", "a.jpg"),
            FileNotFoundError(2, "No such file", "a.jpg"),
        ),
        (TwoPartError("the rack", "burns"), RuntimeError("TwoPartError: the rack: burns")),
    ],
)
def test_an_error_arrives_with_the_place_where_it_was_raised(error, sent):
    try:
        raise error
    except Exception as raised:
        arrived = pickle.loads(pickle.dumps(sendable(raised, "On rank 1")))  # noqa: S301 - our own
    assert (type(arrived), str(arrived)) == (type(sent), str(sent))
    (note,) = arrived.__notes__
    assert note.startswith("On rank 1:\nTraceback")
    assert "raise error" in note
