"""Entry point and conventions of the project's command lines.

These are ``toco``, ``sweeps``, studies, ``benchmarks`` and ``cluster``. :func:`run` is the entry
point of each, and :class:`Commands` the base of their groups. The conventions:

- An error that the user can fix is one sentence on standard error, with exit status 1; wrong usage
  has status 2.
- An unexpected error is a sentence that says whether this program or the user's own code is at
  fault, then the traceback; status 1.
- ``TOCO_TRACEBACK=1`` also shows the traceback of an error that became a sentence.
- Ctrl-C ends a command with one line and status 130, SIGTERM with 143; the ``run`` of a study ends
  with 130 after both. Both wait for a running import to end.
- When the reader of a pipe closes it, the command ends silently with status 141.
- ``-h`` is ``--help``. Unprintable characters, as in names of files, are printed escaped, except
  in progress bars.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from toco import interrupts
from toco.files import is_no_room, printable
from toco.own_modules import own_place

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""Settings of click's context for the outermost command of a command line."""
TRACEBACK = "TOCO_TRACEBACK"
"""Environment variable that also shows the traceback of expected errors; 0 or empty is off."""

_PROJECT_PACKAGES = frozenset({"toco", "sweeps", "benchmarks", "cluster", "__main__"})
_LINE_CHARACTERS = "\n\t"


class Stopped(click.ClickException):
    """A signal, or the end of input at a question, ended the command.

    The message may say what remains of the work.
    """

    def __init__(self, message: str = "Stopped.") -> None:
        super().__init__(message)
        self.exit_code: int = interrupts.exit_status()  # type: ignore[misc]

    def show(self, file: Any = None) -> None:  # noqa: ANN401 - as click declares it
        """Print the message, below the ``^C`` of a terminal."""
        stream = file or sys.stderr
        click.echo(("\n" if sys.stderr.isatty() else "") + self.message, file=stream)


class Commands(click.Group):
    """A group of commands whose expected errors are sentences."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run the command."""
        with errors_as_sentences():
            return super().invoke(ctx)


@contextlib.contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Turn expected errors into a ``click.ClickException``, and let others through."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped from error
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        raise click.ClickException(sentence) from error


def sentence_of(error: Exception) -> str | None:
    """Return the sentence for an expected error; ``None`` for an unexpected one."""
    root = type(error).__module__.partition(".")[0]
    # By name, because the class of a GPU's error would need an import of torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"There is not enough memory: {error}. Take smaller images, batches or crops, or fewer "
            "processes."
        )
    if isinstance(error, OSError) and error.errno is not None and root == "builtins":
        return _system_error_text(error)
    if isinstance(error, (ValueError, OSError)) or root in _PROJECT_PACKAGES:
        library = _raising_package(error)
        if root in _PROJECT_PACKAGES or library in _PROJECT_PACKAGES:
            return str(error)
        from pydantic import ValidationError

        from toco.config import sentences

        if isinstance(error, ValidationError):
            return sentences(error)
        place = own_place(error, _PROJECT_PACKAGES)
        where = f"{TRACEBACK}=1 shows where" if place is None else f"See {place}"
        return f"{library} refused its input: {str(error).removesuffix('.')}. {where}."
    return None


def run(command: click.Command, prog_name: str | None = None) -> NoReturn:
    """Run ``command`` on the process's arguments, and exit by the conventions of this module."""
    interrupts.install_handlers()
    _escape_messages()
    try:
        status = _run(command, prog_name)
    except KeyboardInterrupt:
        status = _show(Stopped())
    interrupts.restore_default_handlers()
    sys.exit(status)


def invoke(command: click.Command, words: Sequence[str], prog_name: str) -> int:
    """Run ``command`` on ``words``, and return its exit status.

    Unlike ``click.Command.main`` this does not hide a broken pipe.
    """
    try:
        with command.make_context(prog_name, list(words)) as context:
            value = command.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return value if isinstance(value, int) else 0


def _run(command: click.Command, prog_name: str | None) -> int:
    try:
        try:
            with errors_as_sentences():
                status = invoke(command, sys.argv[1:], prog_name or Path(sys.argv[0]).name)
        except SystemExit as end:
            status = _exit_status(end)
        sys.stdout.flush()
    except click.Abort:  # the end of input where a question was asked
        return _show(Stopped())
    except click.ClickException as error:
        if os.environ.get(TRACEBACK, "") not in ("", "0") and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        return _show(error)
    except BrokenPipeError as error:
        return _end_of_pipe(error)
    except Exception as error:
        return _show_fault(error)
    return status


def _exit_status(end: SystemExit) -> int:
    if isinstance(end.code, str):
        _print_error(end.code)
        return 1
    return end.code or 0


def _show(error: click.ClickException) -> int:
    text = _TerminalText()
    error.show(text)
    _print_error(text.getvalue())
    return error.exit_code


def _show_fault(error: Exception) -> int:
    description = f"{type(error).__name__}: {error}".rstrip(".")
    place = own_place(error, _PROJECT_PACKAGES)
    if place is None:
        origin = (
            "This is a fault of this program, not of its use. Please report it with what follows."
        )
    else:
        origin = f"It comes from {place}, which is no part of this program."
    _print_error(f"Error: {description}. {origin}")
    _print_error("".join(traceback.format_exception(error)))
    return 1


def _print_error(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(printable(text.rstrip("\n"), keep=_LINE_CHARACTERS), file=sys.stderr)


def _end_of_pipe(error: BrokenPipeError) -> int:
    """End silently if the reader of standard output is gone; show an error of another pipe."""
    pipe = select.poll()
    pipe.register(sys.stdout, 0)
    if any(events & (select.POLLERR | select.POLLHUP) for _, events in pipe.poll(0)):
        # Discard the remaining output, so that Python does not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return _show(click.ClickException(_system_error_text(error)))


def _system_error_text(error: OSError) -> str:
    """Describe an error of the operating system, with its files."""
    reason = error.strerror or str(error)
    names = (name for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    where = "".join(f"{printable(os.fsdecode(name))}: " for name in names)
    advice = " Make room, then give the same command again." if is_no_room(error) else ""
    return f"{where}{reason}.{advice}"


def _raising_package(error: BaseException) -> str:
    """Return the top-level package whose code raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""


def _escape_messages() -> None:
    """Escape unprintable characters in standard output, warnings and logs without a handler."""
    if type(sys.stdout) is io.TextIOWrapper:
        plain_stream = sys.stdout
        plain_stream.flush()
        sys.stdout = _EscapingStream(
            plain_stream.buffer,
            plain_stream.encoding,
            "backslashreplace",
            line_buffering=plain_stream.line_buffering,
            write_through=True,
        )
    format_warning = warnings.formatwarning

    def formatted(*arguments: Any, **options: Any) -> str:  # noqa: ANN401 - as warnings declares it
        return printable(format_warning(*arguments, **options), keep=_LINE_CHARACTERS)

    warnings.formatwarning = formatted
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_EscapingFormatter())


class _TerminalText(io.StringIO):
    """Text that click takes for a terminal, so that colours in a message are shown escaped."""

    def isatty(self) -> bool:
        return True


class _EscapingStream(io.TextIOWrapper):
    """A text stream that escapes control characters, which a terminal would obey.

    It is used for standard output. Progress bars on standard error need control characters.
    """

    def write(self, text: str, /) -> int:
        # Bytes go to the base class, which refuses them: click probes a stream this way.
        super().write(printable(text, keep="\n\t\r") if isinstance(text, str) else text)
        return len(text)


class _EscapingFormatter(logging.Formatter):
    """Formatter of log messages that escapes unprintable characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep=_LINE_CHARACTERS)
