"""The options of ``submit`` that concern Slurm, and their way into the submission."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sweeps.core.commands.same_command import on_this_machine, same_command

if TYPE_CHECKING:
    from sweeps.core.design.study import Study
    from sweeps.core.plan.launch_options import Launch

_OWN_OPTIONS = ("array", "time", "gres", "partition", "account")
"""Options of sbatch that ``submit`` has, too."""


def sbatch_options(
    _context: click.Context, _option: click.Parameter, texts: Sequence[str]
) -> dict[str, str]:
    """Read ``name=value`` or ``flag`` given several times; a click callback."""
    options: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if re.fullmatch(r"[a-z][a-z0-9-]*", name) is None:
            raise click.BadParameter(
                f"expected the long name of an option of sbatch, as in mem=32G; got {text!r}"
            )
        if name in _OWN_OPTIONS:
            raise click.BadParameter(f"{name} has an option of its own: give --{name}.")
        if name in options:
            raise click.BadParameter(f"{name} is given twice; give it once.")
        options[name] = value
    return options


SLURM_OPTIONS = (
    click.option("--slurm", is_flag=True, help="Submit to Slurm. The only scheduler so far."),
    click.option(
        "--array",
        default=1,
        show_default=True,
        type=click.IntRange(1),
        help="Number of drivers. They share the trials.",
    ),
    click.option("--time", help="Time limit of a driver, as in 24:00:00."),
    click.option("--gres", help="GPUs of a driver, as in gpu:1. Each trial gets one by default."),
    click.option("--partition", help="Partition."),
    click.option("--account", help="Account."),
    click.option(
        "--sbatch",
        "further",
        multiple=True,
        callback=sbatch_options,
        help="Any other option of sbatch, as in --sbatch mem=32G --sbatch exclusive.",
    ),
    click.option(
        "--concurrent",
        "at_once",
        type=click.IntRange(1),
        help="Trainings at once in each driver.  [default: one for each GPU of --gres]",
    ),
    click.option(
        "--cpus-per-trial", "cpus", default=1.0, show_default=True, type=click.FloatRange(0)
    ),
    click.option(
        "--gpus-per-trial",
        "gpus",
        type=click.FloatRange(0),
        help="[default: 1 with --gres, else 0]",
    ),
    click.option(
        "--template",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Script to fill.  [default: cluster/slurm/study.sbatch]",
    ),
    click.option("--print", "print_only", is_flag=True, help="Show the file and submit nothing."),
    click.option("--cancel", is_flag=True, help="Cancel what was submitted of this study."),
)


def submit_to_slurm(
    study: Study,
    launch: Launch,
    *,
    slurm: bool,
    array: int,
    gres: str | None,
    further: Mapping[str, str],
    at_once: int | None,
    cpus: float,
    gpus: float | None,
    template: Path | None,
    print_only: bool,
    cancel: bool,
    **named: str | None,
) -> int:
    """Submit a study, show the file, or cancel; see ``sweeps.core.commands.submit``."""
    from sweeps.core.commands import submit
    from sweeps.core.slurm.script import Resources

    if not slurm:
        raise click.UsageError("submit needs the scheduler: give --slurm.")
    if cancel and print_only:
        raise click.UsageError("--print submits nothing, and --cancel ends jobs: give one of them.")
    if cancel:
        return submit.cancel(study, launch)
    options = submit.SlurmOptions(
        array,
        {name: value for name, value in {**named, "gres": gres}.items() if value is not None},
        further,
        Resources.of_options(gres, at_once, cpus, gpus),
        template,
    )
    context = click.get_current_context()
    run, status = (
        on_this_machine(same_command(context, verb), launch.storage) for verb in ("run", "status")
    )
    if print_only:
        return submit.print_script(study, launch, options, run)
    return submit.submit(study, launch, options, run, status)
