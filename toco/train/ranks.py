"""Train on several GPUs of this machine, with one process for each."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from toco.processes import end_with_parent, sendable
from toco.train.distributed import Place, RankError, check_shares, joined
from toco.train.loop import Observer, Result
from toco.train.run_config import RunConfig

_POLL_S = 0.5
"""Interval at which a request to stop is passed on to the ranks."""
_LONGEST_WAIT_S = 10.0
"""Longest wait from a failure's first sign to its reason, and again for all processes to end."""


@dataclass(frozen=True, slots=True)
class _EvaluationMessage:
    step: int
    metrics: dict[str, float]
    checkpoint: Path


@dataclass(frozen=True, slots=True)
class _ResultMessage:
    rank: int
    result: Result


def train_on_ranks(
    world_size: int,
    train: Callable[..., Result],
    config: RunConfig,
    run_dir: Path,
    *,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
    **options: Any,  # noqa: ANN401 - as train takes them
) -> Result:
    """Train ``config`` in ``world_size`` processes together, and return the result of rank 0.

    All processes have ended when this returns or raises.

    Args:
        world_size: Number of ranks. On GPUs, rank N takes GPU N.
        train: :func:`toco.train.loop.train`, or another function of a module with its signature.
        config: The run.
        run_dir: The run folder.
        observer: Receives every evaluation, in this process.
        stop: Asks all ranks to stop after the same step, once another thread sets it.
        options: Further arguments of ``train``, which must be picklable.

    Raises:
        ValueError: The batch of ``config`` cannot be divided among so many ranks.
        RankError: A rank was killed.
        Exception: The error of the first rank that failed.
    """
    check_shares(config, world_size)
    with tempfile.TemporaryDirectory(prefix="toco-ranks-") as folder:
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        places = [
            Place(rank, world_size, rank, world_size, rendezvous) for rank in range(world_size)
        ]
        # Signals may be blocked in the ranks, as in this process.
        shared_stop = multiprocessing.get_context("spawn").Event()
        calls = [(place, train, config, run_dir, shared_stop, options) for place in places]
        with _rank_processes(calls) as ranks, _passed_on(stop, shared_stop):
            return _receive_results(ranks, observer)


def _receive_results(ranks: Mapping[Connection, BaseProcess], observer: Observer | None) -> Result:
    """Receive the messages of all ranks until they end; return rank 0's result."""
    results: dict[int, Result] = {}
    open_connections = dict.fromkeys(ranks)
    lost_rank: BaseException | None = None
    deadline = 0.0
    while open_connections:
        ready: list[Any] = wait(
            list(open_connections),
            timeout=max(deadline - time.monotonic(), 0) if lost_rank else None,
        )
        if not ready:
            break
        for connection in ready:
            try:
                message = connection.recv()
            except (EOFError, ConnectionError):
                process = ranks[connection]
                process.join()
                raise RankError(
                    f"{process.name} was killed, exit code {process.exitcode}."
                ) from lost_rank
            match message:
                case _EvaluationMessage():
                    if observer is not None:
                        observer.on_evaluation(message.step, message.metrics, message.checkpoint)
                    with suppress(
                        BrokenPipeError
                    ):  # the rank was killed meanwhile; the next recv above finds out
                        connection.send(None)
                case _ResultMessage():
                    results[message.rank] = message.result
                    del open_connections[connection]
                case RankError():
                    lost_rank, deadline = message, time.monotonic() + _LONGEST_WAIT_S
                    del open_connections[connection]
                case _:
                    raise message
    if lost_rank is not None:
        raise lost_rank
    return results[0]


@contextmanager
def _rank_processes(calls: list[tuple[Any, ...]]) -> Iterator[dict[Connection, BaseProcess]]:
    """Start a process for each of ``calls`` of :func:`_run_rank`; end all on exit.

    Yields:
        The processes by the connections to them.
    """
    # Spawn, because a fork would copy the locks of a process that has started threads or CUDA.
    context = multiprocessing.get_context("spawn")
    ranks: dict[Connection, BaseProcess] = {}
    try:
        for number, call in enumerate(calls):
            parent_end, child_end = context.Pipe()
            process = context.Process(
                target=_run_rank, args=(child_end, *call), name=f"Rank {number} of {len(calls)}"
            )
            process.start()
            # The connection closes with the process only if this process holds no copy of its end.
            child_end.close()
            ranks[parent_end] = process
        yield ranks
    finally:
        # A rank that loses another rank, or this process, ends on its own. Rank 0 first completes
        # the file that it is writing.
        for connection in ranks:
            connection.close()
        deadline = time.monotonic() + _LONGEST_WAIT_S
        for rank in ranks.values():
            rank.join(max(deadline - time.monotonic(), 0))
            rank.kill()
            rank.join()


@contextmanager
def _passed_on(stop: threading.Event | None, shared_stop: Event) -> Iterator[None]:
    """Set ``shared_stop`` within the block once ``stop`` is set."""
    closing = threading.Event()

    def wait_for_stop(stop: threading.Event) -> None:
        while not closing.is_set():
            if stop.wait(_POLL_S):
                shared_stop.set()
                return

    if stop is not None:
        threading.Thread(target=wait_for_stop, args=(stop,), name="stop", daemon=True).start()
    try:
        yield
    finally:
        closing.set()


def _run_rank(
    parent: Connection,
    place: Place,
    train: Callable[..., Result],
    config: RunConfig,
    run_dir: Path,
    shared_stop: Event,
    options: Mapping[str, Any],
) -> None:
    end_with_parent()
    stop = threading.Event()

    def wait_for_stop() -> None:
        shared_stop.wait()
        stop.set()

    threading.Thread(target=wait_for_stop, name="stop", daemon=True).start()
    try:
        with joined(config, place):
            observer = _ParentObserver(parent) if place.rank == 0 else None
            message = _ResultMessage(
                place.rank, train(config, run_dir, observer=observer, stop=stop, **options)
            )
    except Exception as error:
        with suppress(BrokenPipeError):  # another rank failed first, and the parent has hung up
            parent.send(sendable(error, f"On rank {place.rank}"))
    else:
        parent.send(message)


class _ParentObserver:
    """Observer that sends evaluations to the parent process and waits for its answer."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent

    def on_evaluation(self, step: int, metrics: dict[str, float], checkpoint: Path) -> None:
        self._parent.send(_EvaluationMessage(step, metrics, checkpoint))
        self._parent.recv()
