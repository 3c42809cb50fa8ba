"""Loader processes that make batches in advance, and the transfer of batches to the training.

A loader process and the training share only a pair of connected sockets: no lock, no queue, and no
space in ``/dev/shm``, which is small in many containers. A batch is an anonymous file in memory,
whose descriptor is sent through the socket. When one of the two processes ends, its socket closes,
and the other process notices at once.
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
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from toco import interrupts
from toco.data.views.raw_batch import RawBatch
from toco.processes import MachineError, sendable, signals_blocked

Keys = Sequence[tuple[int, int]]
"""Epoch and index of each image of a batch."""

PATIENCE_S = 900.0
"""Time for one batch, after which a process counts as hanging; slow disks answer much sooner."""
_GRACE_S = 20.0
"""Time after a signal in which several ranks wait for a batch, to stop together after it.

torchrun kills the ranks after 30 s.
"""
_JOIN_S = 5.0
"""Time in which a process may finish its last batch before it is killed."""
_BATCHES_AHEAD = 2
"""Number of batches that each process makes in advance."""
_POLL_S = 0.2  # interval of polling
_ALIGNMENT = 64  # bytes; a cache line
_MARK = b"F"
"""Byte that is sent with a descriptor, which cannot be sent without data."""


class LoaderError(MachineError):
    """A loader process ended or hangs."""


class LoaderProcesses:
    """Group of processes that make batches, delivered in order.

    Args:
        make: Function that makes a batch from its keys; it is pickled into every process.
        number: Number of processes.
        pin_memory: Whether to copy the batches to page-locked memory.
        patience_s: Longest time for one batch.
        share_stop: Whether this rank stops together with others, and therefore waits for its
            batch.
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
        """Yield the batches of ``keys``; end early if ``stop`` is set while waiting for a batch.

        Raises:
            LoaderError: A process ended or hangs, or the grace time after ``stop`` is over.
            Exception: Any error from making a batch.
        """
        # The receiving thread uses this thread's GPU, because page-locked memory belongs to its
        # context.
        take_gpu = (
            partial(torch.cuda.set_device, torch.cuda.current_device())
            if self._pin_memory
            else None
        )
        with (
            self._running_processes() as processes,
            ThreadPoolExecutor(
                max_workers=1, thread_name_prefix="loader", initializer=take_gpu
            ) as receiver,
            ExitStack() as before_shutdown,
        ):
            before_shutdown.callback(self._ending.set)
            connections = list(processes)
            pending: list[Connection] = []

            def ask(connection: Connection) -> None:
                if (batch_keys := next(keys, None)) is not None:
                    pending.append(connection)
                    with suppress(BrokenPipeError):  # reported when the batch is received
                        connection.send(batch_keys)

            def receive() -> RawBatch | None:
                if not pending:
                    return None
                connection = pending.pop(0)
                batch = self._receive_batch(connection, processes[connection])
                if isinstance(batch, Exception):
                    raise batch
                ask(connection)
                return batch.pin_memory() if self._pin_memory else batch

            for connection in connections * _BATCHES_AHEAD:
                ask(connection)
            # A thread receives and pins the next batch while the training uses the previous one.
            next_batch = receiver.submit(receive)
            while (batch := self._wait_for(next_batch, stop)) is not None:
                next_batch = receiver.submit(receive)
                yield batch

    def _wait_for(
        self, next_batch: Future[RawBatch | None], stop: threading.Event
    ) -> RawBatch | None:
        waited_s = 0.0
        while True:
            if wait([next_batch], timeout=_POLL_S).done:
                return next_batch.result()
            if stop.is_set():
                waited_s += _POLL_S
                if waited_s >= self._grace_s:
                    if not self._grace_s:
                        return None
                    raise LoaderError(
                        f"The loader delivered no batch within {self._grace_s:.0f} s after a "
                        "signal, so that the ranks cannot stop after the same step. The training "
                        "ends without a checkpoint of the last steps; --resume continues from the "
                        "newest checkpoint."
                    )

    def _receive_batch(self, connection: Connection, process: BaseProcess) -> RawBatch | Exception:
        try:
            # Count polls instead of seconds, so that the time of a suspended process does not
            # count.
            for _ in range(math.ceil(self._patience_s / _POLL_S)):
                if connection.poll(_POLL_S):
                    return _receive(connection)
                if self._ending.is_set():
                    break
        except (EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                return error
            process.join(_JOIN_S)
            code = process.exitcode
            cause = (
                f"killed by signal {-code}"
                if code is not None and code < 0
                else f"ended with status {code}"
            )
            return LoaderError(
                f"A loader process was {cause} while it made a batch; usually the memory is "
                "exhausted. Lower num_workers, or set data.cache to node instead of memory; "
                "--resume continues from the last checkpoint."
            )
        return LoaderError(
            f"A loader process has delivered no batch for {self._patience_s:.0f} s. Check that the "
            "disk of the images responds; --resume continues from the last checkpoint."
        )

    @contextmanager
    def _running_processes(self) -> Iterator[dict[Connection, BaseProcess]]:
        """Start the processes, by connection, and end all of them afterwards."""
        # A fork would copy locks that threads or CUDA hold, and block on them.
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
                process.join(_JOIN_S)
                process.kill()
                process.join()

        # At exit Python waits for running processes; a traceback may keep the iterator, and with it
        # the processes, until then.
        atexit.register(end)
        try:
            for number in range(self._number):
                training_end, loader_end = context.Pipe()
                process = context.Process(
                    target=_run_loader,
                    args=(loader_end, self._make),
                    name=f"loader {number}",
                    daemon=True,
                )
                # The connection closes with the process only if no other process has its end open.
                with signals_blocked(interrupts.SIGNALS), loader_end:
                    process.start()
                processes[training_end] = process
            yield processes
        finally:
            atexit.unregister(end)
            end()


def _run_loader(connection: Connection, make: Callable[[Keys], RawBatch]) -> None:
    """Make batches in a loader process until the connection closes."""
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
    """Pickler that keeps the bytes of tensors out of the stream, as for NumPy arrays."""

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401 - as pickle declares it
        return (
            (torch.from_numpy, (value.numpy(),))
            if isinstance(value, torch.Tensor)
            else NotImplemented
        )


@dataclass(frozen=True, slots=True)
class _Packed:
    """Batch or exception, ready to be sent.

    Attributes:
        head: Pickle without the bytes of the arrays.
        spans: First byte and number of bytes of each array in the file.
        size: Size of the file in bytes; 0 without a file.
        file: Descriptor of the file.
    """

    head: bytes
    spans: list[tuple[int, int]]
    size: int
    file: int

    @classmethod
    def of(cls, answer: RawBatch | Exception) -> _Packed:
        """Pack a batch or an exception."""
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
            # On macOS multiprocessing's own function waits for an acknowledgement, and would take
            # the next request for it.
            with _socket_of(connection) as raw_socket:
                socket.send_fds(raw_socket, [_MARK], [packed.file])
    finally:
        if packed.size:
            os.close(packed.file)


def _receive(connection: Connection) -> RawBatch | Exception:
    """Receive what :func:`_send` sent; arrays use the sender's memory without a copy."""
    head, spans, size = connection.recv()
    arrays: list[memoryview] = []
    if size:
        with _socket_of(connection) as raw_socket:
            mark, files, _, _ = socket.recv_fds(raw_socket, len(_MARK), 1)
        if not mark:
            raise EOFError
        if not files:  # the system dropped it: this process has too many open files
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
    """Return the socket of a connection, with a separate descriptor."""
    return socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


def _open_memory() -> int:
    """Open an anonymous file, in memory if the system supports it, else on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(file: int, content: memoryview, start: int) -> None:
    while content:
        written = os.pwrite(file, content, start)
        content, start = content[written:], start + written
