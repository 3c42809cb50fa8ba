import errno
import shutil

import pytest

from sweeps.core.run.failures import (
    MOST_MACHINE_FAILURES,
    Attempts,
    Failure,
    LeftOutError,
    ScratchError,
    StorageError,
    failure_of,
    kind_of,
)
from toco.data.loading.loader_processes import LoaderError
from toco.train.distributed import RankError


def machine(node, kind="machine"):
    return Failure(
        kind, "OSError: [Errno 28] No space left on device", "trace", f"host of {node}", node
    )


FLAW = Failure("trial", "KeyError: 'x'", "trace", "host of a", "a")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "room"),
        (OSError(errno.EIO, "Input/output error"), "machine"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "room"),
        (OSError(errno.EMFILE, "Too many open files"), "machine"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]), "room"),
        (shutil.Error([("a", "b", "[Errno 13] Permission denied: 'a' -> 'b'")]), "trial"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "trial"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "machine"),
        (
            LoaderError("A loader process was killed by signal 9 while it made a batch; ..."),
            "machine",
        ),
        (
            LoaderError("A loader process has delivered no batch for 900 s. Check that ..."),
            "machine",
        ),
        (RankError("Rank 1 of 2 was killed, exit code -9."), "machine"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), "machine"),
        (MemoryError(), "machine"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "trial"),
        (ValueError("image7.png cannot be decoded."), "hopeless"),
        (StorageError("full"), "storage"),
        (ScratchError("full"), "room"),
        (LeftOutError("elsewhere"), "left out"),
    ],
)
def test_what_an_error_is_a_failure_of(error, kind):
    assert kind_of(error) == kind


def test_a_failure_says_what_and_where_in_a_line():
    failure = failure_of(OSError(errno.ENOSPC, "No space left on device"), "w1", "node")
    assert failure.sentence == "OSError: [Errno 28] No space left on device (on w1)"
    assert "OSError" in failure.trace
    assert failure_of(KeyError(), "", "").sentence == "KeyError"


def test_a_trials_own_failures_count_until_it_may_not_start_again():
    attempts = Attempts(2, lambda: {"a", "b"})
    assert [attempts.failed("one", FLAW).starts_again for _ in range(3)] == [True, True, False]
    assert attempts.failed("two", FLAW).starts_again
    assert attempts.avoided("one") == frozenset()
    hopeless = Failure("hopeless", "ValueError: no", "", "", "a")
    assert not Attempts(-1, lambda: {"a"}).failed("one", hopeless).starts_again


def test_a_machines_failure_does_not_count_while_there_is_another_node():
    attempts = Attempts(0, lambda: {"a", "b"})
    assert attempts.failed("one", machine("a")).starts_again
    assert attempts.avoided("one") == {"a"}
    assert attempts.avoided("two") == frozenset()
    # It has been everywhere now.
    assert not attempts.failed("one", machine("b")).starts_again


def test_a_node_where_two_trials_failed_is_left_out_and_said_to_be_once():
    attempts = Attempts(0, lambda: {"a", "b", "c"})
    assert attempts.failed("one", machine("a")).left_out is None
    decision = attempts.failed("two", machine("a"))
    assert decision.starts_again
    assert decision.left_out == (
        "host of a gets no more trials: 2 failed there by the machine's fault, at last: "
        "OSError: [Errno 28] No space left on device"
    )
    assert attempts.left_out == {"a"}
    assert attempts.avoided("three") == {"a"}
    assert attempts.failed("three", machine("a")).left_out is None
    # The last two fall out one after the other, but for the very last.
    for key in ("four", "five"):
        attempts.failed(key, machine("b"))
    assert attempts.avoided("six") == {"a", "b"}
    for key in ("six", "seven"):
        assert attempts.failed(key, machine("c")).left_out is None
    assert attempts.left_out == {"a", "b"}


def test_a_trial_that_fails_on_every_node_speaks_against_none():
    attempts = Attempts(3, lambda: {"a", "b"})
    for key in ("one", "two"):
        attempts.failed(key, machine("a", "lost"))
    assert attempts.left_out == {"a"}
    assert attempts.failed("one", machine("b", "lost")).starts_again
    assert attempts.left_out == set()
    assert attempts.avoided("one") == frozenset()


def test_on_one_node_a_machines_failures_are_bounded_as_others_are():
    attempts = Attempts(3, lambda: {"a"})
    assert [attempts.failed("one", machine("a", "lost")).starts_again for _ in range(4)] == [
        True,
        True,
        True,
        False,
    ]
    assert attempts.left_out == set()


def test_nodes_that_come_and_go_do_not_keep_a_trial_failing_for_ever():
    number = 0
    attempts = Attempts(1, lambda: {f"node {number}", f"node {number + 1}"})
    for number in range(MOST_MACHINE_FAILURES + 1):
        assert attempts.failed("one", machine(f"node {number}")).starts_again
    number += 1
    assert not attempts.failed("one", machine(f"node {number}")).starts_again


def test_where_only_avoided_nodes_are_left_they_are_used():
    nodes = {"a", "b"}
    attempts = Attempts(3, lambda: nodes)
    attempts.failed("one", machine("a"))
    nodes.discard("b")
    assert attempts.avoided("one") == frozenset()


def test_a_node_that_is_left_out_is_used_while_there_is_no_other():
    nodes = {"a", "b"}
    attempts = Attempts(3, lambda: nodes)
    for key in ("one", "two"):
        attempts.failed(key, machine("a"))
    nodes.discard("b")
    assert attempts.left_out == attempts.avoided("three") == set()
    nodes.add("b")
    assert attempts.left_out == attempts.avoided("three") == {"a"}


def test_a_trial_that_has_to_use_a_node_again_does_not_use_one_that_is_left_out():
    nodes = {"a", "b", "c"}
    attempts = Attempts(3, lambda: nodes)
    for key in ("one", "two"):
        attempts.failed(key, machine("a"))
    attempts.failed("three", machine("b"))
    nodes.discard("c")
    assert attempts.avoided("three") == {"a"}


def test_a_node_that_is_left_out_counts_for_nobody():
    attempts = Attempts(0, lambda: {"a"})
    for _ in range(5):
        assert attempts.failed("one", machine("a", "left out")).starts_again
    # An attempt that ended before it said where it was counts: nothing else bounds it.
    assert not attempts.failed("one", machine("", "lost")).starts_again


def test_without_room_anywhere_no_attempt_is_used_up_and_the_sentence_is_handed_on():
    attempts = Attempts(0, lambda: {"a", "b"})
    for _ in range(5):
        decision = attempts.failed("one", machine("a", "storage"))
        assert decision.starts_again
        assert decision.no_room == "OSError: [Errno 28] No space left on device (on host of a)"
    decision = attempts.failed("one", machine("a", "room"))
    assert decision.starts_again
    assert decision.no_room is None
    assert attempts.avoided("one") == {"a"}
    for _ in range(5):
        decision = attempts.failed("one", machine("b", "room"))
        assert decision.starts_again
        assert decision.no_room is not None
