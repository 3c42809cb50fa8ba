"""Processes that make batches ahead of their use, and the way of a batch from them to the training.

A process shares a pair of connected sockets with the training, and nothing else: no lock, no queue,
and no room in ``/dev/shm``, which is small in many containers. A batch travels as a file without a
name, in memory, whose descriptor goes through the socket. When one of the two processes ends, its
socket does, and the other one sees it at once.
"""

from __future__ import annotations

import atexit
import errno
import io
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from toco.data.views.raw_batch import RawBatch
from toco.processes import MachineError, sendable

Keys = Sequence[tuple[int, int]]
"""Of a batch: epoch and index of each image."""

PATIENCE_S = 900.0
"""So long may a process make one batch before it counts as hanging: longer than any disk takes that still answers."""
_GRACE_S = 20.0
"""So long after a signal may several ranks wait for a batch, to stop together after it; torchrun kills after 30 s."""
_FAREWELL_S = 5.0
"""So long may a process finish its batch when nobody wants it any more."""
_AHEAD = 2
"""Batches that each process makes ahead of their use."""
_LOOK_EVERY_S = 0.2
_ALIGNMENT = 64
_MARK = b"F"
"""Sent with a descriptor, which cannot travel alone."""


class LoaderError(MachineError):
    """A loader process ended, or delivers nothing."""


class LoaderProcesses:
    """Makes batches in other processes, in order.

    Args:
        make: Makes a batch of its keys; it is pickled into every process.
        number: Processes.
        pin_memory: Copy the batches to page-locked memory.
        patience_s: Longest that one batch may take.
        share_stop: Whether other ranks stop with this one, so that it cannot stop before a batch
            arrives.
    """

    def __init__(
        self,
        make: Callable[[Keys], RawBatch],
        number: int,
        *,
        pin_memory: bool,
        patience_s: float,
        share_stop: bool,
    ) -> None:
        self._make, self._number = make, number
        self._pin_memory, self._patience_s = pin_memory, patience_s
        self._grace_s = _GRACE_S if share_stop else 0.0
        self._ending = threading.Event()

    def batches(self, keys: Iterator[Keys], stop: threading.Event) -> Iterator[RawBatch]:
        """The batches of ``keys``; fewer where ``stop`` is set while one is waited for.

        Raises:
            LoaderError: A process ended or delivers nothing, or the grace after ``stop`` is over.
            Exception: What making a batch raised.
        """
        # The thread that receives has the GPU of this one, in whose context memory is page-locked.
        take_gpu = (
            partial(torch.cuda.set_device, torch.cuda.current_device())
            if self._pin_memory
            else None
        )
        with (
            self._started() as processes,
            ThreadPoolExecutor(
                max_workers=1, thread_name_prefix="loader", initializer=take_gpu
            ) as receiver,
            ExitStack() as before_the_thread_is_waited_for,
        ):
            before_the_thread_is_waited_for.callback(self._ending.set)
            connections = list(processes)
            waiting: list[Connection] = []

            def ask(connection: Connection) -> None:
                if (wanted := next(keys, None)) is not None:
                    waiting.append(connection)
                    with suppress(BrokenPipeError):  # its end is noticed when its batch is due
                        connection.send(wanted)

            def receive() -> RawBatch | None:
                if not waiting:
                    return None
                connection = waiting.pop(0)
                batch = self._received(connection, processes[connection])
                if isinstance(batch, Exception):
                    raise batch
                ask(connection)
                return batch.pin_memory() if self._pin_memory else batch

            for connection in connections * _AHEAD:
                ask(connection)
            # Received, and pinned, in another thread while the training works on the batch before.
            following = receiver.submit(receive)
            while (batch := self._waited_for(following, stop)) is not None:
                following = receiver.submit(receive)
                yield batch

    def _waited_for(
        self, following: Future[RawBatch | None], stop: threading.Event
    ) -> RawBatch | None:
        waited_s = 0.0
        while True:
            if wait([following], timeout=_LOOK_EVERY_S).done:
                return following.result()
            if stop.is_set():
                waited_s += _LOOK_EVERY_S
                if waited_s >= self._grace_s:
                    if not self._grace_s:
                        return None
                    raise LoaderError(
                        f"A signal came, and the loader delivered no batch for {self._grace_s:.0f} s more, after which "
                        "all ranks could have stopped together. The training ends without a checkpoint of the last "
                        "steps; --resume goes on from the newest."
                    )

    def _received(self, connection: Connection, process: BaseProcess) -> RawBatch | Exception:
        try:
            # Looks are counted, not seconds: while this process is suspended, it waits for nobody.
            for _ in range(math.ceil(self._patience_s / _LOOK_EVERY_S)):
                if connection.poll(_LOOK_EVERY_S):
                    return _receive(connection)
                if self._ending.is_set():
                    break
        except (EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                return error
            process.join(_FAREWELL_S)
            code = process.exitcode
            how = (
                f"killed by signal {-code}"
                if code is not None and code < 0
                else f"ended with status {code}"
            )
            return LoaderError(
                f"A loader process was {how} while it made a batch; most often memory had run out. Lower num_workers, "
                "or set data.cache to node instead of memory; --resume goes on from the last checkpoint."
            )
        return LoaderError(
            f"A loader process has delivered no batch for {self._patience_s:.0f} s. See whether the disk of the images "
            "answers; --resume goes on from the last checkpoint."
        )

    @contextmanager
    def _started(self) -> Iterator[dict[Connection, BaseProcess]]:
        """The processes by their connections; none is left in the end."""
        # A fork would copy the locks of a process that has started threads or CUDA, and hang on
        # them.
        by_server = "forkserver" in multiprocessing.get_all_start_methods()
        context = (
            multiprocessing.get_context("forkserver")
            if by_server
            else multiprocessing.get_context("spawn")
        )
        processes: dict[Connection, BaseProcess] = {}

        def end() -> None:
            self._ending.set()
            for connection in processes:
                connection.close()
            for process in processes.values():
                process.join(_FAREWELL_S)
                process.kill()
                process.join()

        # Python waits for what is left of them when it exits, and an iterator that a traceback
        # keeps also keeps them.
        atexit.register(end)
        try:
            for number in range(self._number):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, self._make), name=f"loader {number}", daemon=True
                )
                # The end of the process is the end of the connection only if nobody else holds it.
                with _signals_blocked(), theirs:
                    process.start()
                processes[ours] = process
            yield processes
        finally:
            atexit.unregister(end)
            end()


def _work(connection: Connection, make: Callable[[Keys], RawBatch]) -> None:
    """Be a loader process, until nobody listens any more."""
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            keys: Keys = connection.recv()
            try:
                packed = _Packed.of(make(keys))
            except Exception as error:
                packed = _Packed.of(sendable(error, "In a loader process"))
            _send(connection, packed)


class _Pickler(pickle.Pickler):
    """Leaves the bytes of tensors out, as pickle does with those of NumPy's arrays."""

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401 - as pickle declares it
        return (
            (torch.from_numpy, (value.numpy(),))
            if isinstance(value, torch.Tensor)
            else NotImplemented
        )


@dataclass(frozen=True, slots=True)
class _Packed:
    """A batch, or what went wrong, ready to be sent.

    Attributes:
        head: Its pickle, without the bytes of its arrays.
        spans: First byte and number of bytes of each array in the file.
        size: Bytes of the file; 0 where there is none.
        file: Descriptor of the file.
    """

    head: bytes
    spans: list[tuple[int, int]]
    size: int
    file: int

    @classmethod
    def of(cls, answer: RawBatch | Exception) -> _Packed:
        """Pack an answer."""
        arrays: list[pickle.PickleBuffer] = []
        head = io.BytesIO()
        _Pickler(head, protocol=5, buffer_callback=arrays.append).dump(answer)
        spans, size = [], 0
        for array in arrays:
            spans.append((size, array.raw().nbytes))
            size += math.ceil(array.raw().nbytes / _ALIGNMENT) * _ALIGNMENT
        if not size:
            return cls(head.getvalue(), spans, 0, -1)
        file = _open_memory()
        try:
            os.truncate(file, size)
            for array, (start, _) in zip(arrays, spans, strict=True):
                _write(file, array.raw(), start)
        except OSError:
            os.close(file)
            raise
        return cls(head.getvalue(), spans, size, file)


def _send(connection: Connection, packed: _Packed) -> None:
    try:
        connection.send((packed.head, packed.spans, packed.size))
        if packed.size:
            # Not by multiprocessing, which on macOS waits for an answer and takes the next request
            # for it.
            with _socket_of(connection) as way:
                socket.send_fds(way, [_MARK], [packed.file])
    finally:
        if packed.size:
            os.close(packed.file)


def _receive(connection: Connection) -> RawBatch | Exception:
    """What :func:`_send` sent; a batch stays in the memory where it was made."""
    head, spans, size = connection.recv()
    arrays: list[memoryview] = []
    if size:
        with _socket_of(connection) as way:
            mark, files, _, _ = socket.recv_fds(way, len(_MARK), 1)
        if not mark:
            raise EOFError
        if not files:  # it was left behind, as this process cannot have more
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        (file,) = files
        try:
            memory = memoryview(mmap.mmap(file, size))
        finally:
            os.close(file)
        arrays = [memory[start : start + length] for start, length in spans]
    answer: RawBatch | Exception = pickle.loads(head, buffers=arrays)  # noqa: S301 - of our own process
    return answer


def _socket_of(connection: Connection) -> socket.socket:
    """The socket of a connection, with a descriptor of its own."""
    return socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


def _open_memory() -> int:
    """A descriptor of a file that has no name: in memory where the system has such files, else on the disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(file: int, content: memoryview, start: int) -> None:
    while content:
        written = os.pwrite(file, content, start)
        content, start = content[written:], start + written


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started in here inherit the block, also through the fork server, from their first instruction on.

    A terminal's Ctrl-C and a scheduler's SIGTERM reach the whole process group. The training
    process answers them with a checkpoint, for which it still needs its loader.
    """
    # The fork server starts it, and it would end the block before the fork server has inherited it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
