"""Frame of every benchmark: its command, the printed figures and the JSON file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce, wraps
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks._record import write
from benchmarks.table import describe


def benchmark(
    *, times: int | None, device: str | None = "cpu", threads: bool = False
) -> Callable[[Callable[..., dict[str, Any]]], click.Command]:
    """Make a command of a function that returns measured figures.

    Name and help of the command are the name and docstring of the function's module.

    Args:
        times: Default of ``--times``, the number of timed runs; ``None`` for a benchmark without
            this option.
        device: Default of ``--device``; ``None`` for a benchmark without this option.
        threads: Whether ``--threads`` sets the CPU threads of torch.
    """
    options = [
        click.option(
            "--out", type=click.Path(path_type=Path), help="Write the result here, as JSON."
        )
    ]
    if times is not None:
        options.append(
            click.option(
                "--times",
                default=times,
                show_default=True,
                type=click.IntRange(1),
                help="Timed runs of each.",
            )
        )
    if threads:
        options.append(
            click.option(
                "--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's]"
            )
        )
    if device is not None:
        options.append(click.option("--device", default=device, show_default=True))

    def command_of(function: Callable[..., dict[str, Any]]) -> click.Command:
        module = sys.modules[function.__module__]
        name = module.__name__.rpartition(".")[2].replace("_", "-")

        @wraps(function)
        def run(out: Path | None, **chosen: Any) -> None:  # noqa: ANN401 - values of options
            if threads and (number := chosen.pop("threads")) is not None:
                torch.set_num_threads(number)
            click.echo(describe(write(out, name, function(**chosen))))

        return click.command(name, help=module.__doc__)(
            reduce(lambda wrapped, option: option(wrapped), options, run)
        )

    return command_of
