"""The command line of a study or a search: common verbs and options, errors as sentences."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from sweeps.core.commands.same_command import TYPED, same_command
from sweeps.core.commands.slurm_options import SLURM_OPTIONS, submit_to_slurm
from sweeps.core.design.seeds import PAPER_SEEDS, Sequential
from sweeps.core.design.study import Study
from sweeps.core.findings.exit_status import INCOMPLETE, STOPPED
from sweeps.core.plan.launch_options import Launch, checked_storage, default_storage
from toco.command_line import SETTINGS, Commands, run, sentence_of
from toco.config import parse_assignments
from toco.files import is_no_room

if TYPE_CHECKING:
    # Optuna and the driver take seconds to import; -h needs neither.
    from sweeps.core.design.search_space import SearchStudy
    from sweeps.core.run.roles import Connect

AnyStudy = TypeVar("AnyStudy", "Study", "SearchStudy")
RUN = "run"


def integers(
    _context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Read ``0,1,2``; a click callback."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"expected integers with commas between them, as in 0,1,2; got {text!r}"
        ) from None


def assignments(
    _context: click.Context, _option: click.Parameter, texts: Sequence[str]
) -> dict[str, str]:
    """Read ``a.b=value`` given several times; a click callback."""
    try:
        return parse_assignments(texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _changed(
    study: AnyStudy,
    data: Path | None,
    weights: Path | None,
    changes: Mapping[str, Any],
    **fields: Any,  # noqa: ANN401 - of the study
) -> AnyStudy:
    """Return ``study`` with the values of a command line.

    ``fields`` that are ``None`` do not change.
    """
    paths = {"data.root": data, "backbone.weights": weights}
    # Absolute paths, because workers run in other folders.
    absolute = {
        path: str(value.expanduser().resolve())
        for path, value in paths.items()
        if value is not None
    }
    set_fields = {name: value for name, value in fields.items() if value is not None}
    return dataclasses.replace(
        study, **set_fields, changes={**study.changes, **changes, **absolute}
    )


def _seeds(
    study: Study,
    recipe: str | None,
    looks: tuple[int, ...] | None,
    sequential: bool,
    budget_hours: float | None,
    seeds: tuple[int, ...] | None,
) -> tuple[int, ...] | Sequential:
    """Return the seeds of a command line.

    Args:
        study: The study without options.
        recipe: Recipe of the command line; the study's own declaration holds for its own recipe.
        looks: Value of ``--looks``.
        sequential: Whether ``--sequential`` is given.
        budget_hours: Value of ``--budget-hours``.
        seeds: Value of ``--seeds``.

    Raises:
        click.UsageError: A list and looks are given, or the looks do not ascend.
    """
    sequential = sequential or looks is not None or budget_hours is not None
    if seeds is not None and sequential:
        raise click.UsageError(
            "--seeds is a fixed list, and --sequential, --looks and --budget-hours add seeds where "
            "claims are open. Give --seeds or these."
        )
    if seeds is not None:
        return seeds
    if sequential:
        declared = study.sequential or Sequential()
        try:
            return dataclasses.replace(declared, looks=looks or declared.looks)
        except ValueError as error:
            raise click.UsageError(f"--looks: {error}") from None
    return study.seeds if recipe in (None, study.recipe) else PAPER_SEEDS


def study_command(
    study: AnyStudy,
    text: str | None,
    adapt: Callable[..., AnyStudy] | None = None,
    options: Sequence[Callable[[Any], Any]] = (),
    connect: Connect | None = None,
) -> click.Group:
    """Make the command line of a study or a search; without a verb it runs.

    Args:
        study: The study without options.
        text: Its help: the docstring of its file.
        adapt: Function that returns the study to use. It gets the study with the values of the
            common options, and the values of ``options`` by name. A study needs it if it depends
            on the recipe, for example on the depth of its backbone.
        options: Further options of this study, made by ``click.option``.
        connect: Connects to the workers; by default to Ray.
    """
    is_study: bool = isinstance(study, Study)
    own_names = {parameter.name for parameter in _parameters(options)}

    def build(values: Mapping[str, Any]) -> AnyStudy:
        own_values = {name: value for name, value in values.items() if name in own_names}
        shared = {name: value for name, value in values.items() if name not in own_names}
        if isinstance(study, Study):
            rules = {name: shared.pop(name) for name in ("looks", "sequential", "budget_hours")}
            shared["seeds"] = _seeds(study, shared["recipe"], **rules, seeds=shared["seeds"])
        built = _changed(study, **shared)
        return adapt(built, **own_values) if adapt else built

    parameters = _parameters((*_COMMON, *(_SEEDS if is_study else _SEARCH), *options))
    group = VerbGroup(study.name, help=text, context_settings=SETTINGS)
    for command in _verbs(partial(_command, build, parameters), is_study, connect):
        group.add_command(command)
    return group


class VerbGroup(Commands):
    """A group of verbs, of which ``run`` may be left out; ``group()`` runs the command line."""

    def __call__(self) -> NoReturn:
        """Run with the arguments of the command line."""
        run(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` before options without a verb, and store the options as they were typed."""
        if not args or (
            args[0] not in self.commands and args[0] not in SETTINGS["help_option_names"]
        ):
            args = [RUN, *args]
        ctx.meta[TYPED] = args[1:]
        return super().parse_args(ctx, args)


def _command(
    build: Callable[[Mapping[str, Any]], Any],
    parameters: Sequence[click.Parameter],
    name: str,
    text: str,
    do: Callable[..., int],
    options: Sequence[Callable[[Any], Any]] = (),
) -> click.Command:
    """Make the command of a verb.

    Args:
        build: Makes the study from the values of ``parameters``.
        parameters: Options of the study.
        name: The verb.
        text: Its help.
        do: Called with the study, the launch and the remaining options; returns the exit status.
        options: Options of this verb alone.
    """

    def command(storage: Path | None, **values: Any) -> None:  # noqa: ANN401 - all other options
        of_study = {
            str(parameter.name): values.pop(str(parameter.name)) for parameter in parameters
        }
        # Verbs that fill MLflow print how to fill it again.
        if _TRACKING in options:
            context = click.get_current_context()
            values["sync_command"] = shlex.join(same_command(context, "sync"))
        of_launch = {name: values.pop(name) for name in _LAUNCH & values.keys()}
        if "budget_hours" in of_study:
            # It decides also whether the study is sequential.
            of_launch["budget_hours"] = of_study["budget_hours"]
        study = build(of_study)
        launch = Launch(checked_storage(storage or default_storage()), **of_launch)
        sys.exit(do(study, launch, **values))

    verb_parameters = _parameters((_STORAGE, *options))
    return click.Command(name, help=text, params=[*verb_parameters, *parameters], callback=command)


def _parameters(options: Sequence[Callable[[Any], Any]]) -> list[click.Parameter]:
    """Return the parameters of ``options``, which ``click.option`` made."""

    @click.command
    def command() -> None:
        """Only its parameters are used."""

    for option in options:
        option(command)
    return command.params


def _run_to_the_end(run: Callable[..., int], *asked: Study | SearchStudy | Launch) -> int:
    """Run a study or a search; turn an interruption or a full disk into a message.

    The same command then continues.
    """
    try:
        return run(*asked)
    except KeyboardInterrupt:
        click.echo("Stopped. The same command goes on from here.")
        return STOPPED
    except OSError as error:
        if not is_no_room(error):
            raise
        click.echo(f"Error: {sentence_of(error)} The same command goes on from here.", err=True)
        return INCOMPLETE


def _lazy(path: str) -> Callable[..., int]:
    """Return the function ``module:function``, imported on its first call.

    Plots and fits take seconds to import.
    """
    return lambda *arguments, **options: resolve_name(path)(*arguments, **options)


def _run(study: Study | SearchStudy, launch: Launch, *, connect: Connect | None) -> int:
    from sweeps.core.store.finished import recall

    launch.check_addresses()
    if isinstance(study, Study) and (finished := recall(study, launch.storage)):
        page = launch.storage / finished.folder / finished.page
        click.echo(
            f"{finished.text_printed}\n\nReport: {page}\n"
            "All of its trials have ended; nothing was run."
        )
        return finished.exit_code
    from sweeps.core.run.start import connect_to_ray, run_study

    return run_study(study, launch, connect or connect_to_ray)


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_LAUNCH = {field.name for field in dataclasses.fields(Launch)}

_COMMON = (
    click.option(
        "--recipe",
        help="Recipe of every training. [default: shapes_nano, the embedded benchmark]",
    ),
    click.option("--data", type=_FOLDER, help="Folder of the data set (data.root)."),
    click.option(
        "--weights",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File of pretrained weights (backbone.weights).",
    ),
    click.option(
        "--set",
        "changes",
        multiple=True,
        callback=assignments,
        help="Set a field in all trainings: a.b=value.",
    ),
)

_STORAGE = click.option(
    "--storage",
    type=click.Path(path_type=Path),
    help="Folder of studies, visible to all nodes. "
    "[default: ./results; in a Ray job ~/toco-results]",
)

_SEEDS = (
    click.option(
        "--seeds",
        callback=integers,
        help="Fixed seeds of every row, as in 0,1,2.  "
        "[default: those of the study; 0,1,2 with another --recipe]",
    ),
    click.option(
        "--looks",
        callback=integers,
        help="As --sequential, with a test after each of these numbers of seeds, as in 3,5,7,10.",
    ),
    click.option(
        "--sequential",
        is_flag=True,
        help="Add seeds where claims are open until they are decided. Studies do so by themselves "
        "for their own recipe.",
    ),
    click.option(
        "--budget-hours",
        type=click.FloatRange(0, min_open=True),
        help="As --sequential, without a look that would exceed these GPU hours, or CPU core hours "
        "where trainings have no GPU. A larger budget goes on with the same study.",
    ),
)

_SEARCH = (
    click.option(
        "--trials",
        "num_trials",
        type=click.IntRange(1),
        help="Number of trials; raise it to continue a search.",
    ),
    click.option(
        "--seed", type=click.IntRange(0), help="Seed of all trainings and of the proposals."
    ),
)

_TRACKING = click.option(
    "--tracking-uri",
    help="MLflow store: sqlite:///PATH or http://HOST:PORT, with user name and password in the "
    "variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. "
    "[default: sqlite:///STORAGE/mlflow.db]",
)

_RESOURCES = (
    click.option(
        "--concurrent",
        default=2,
        show_default=True,
        type=click.IntRange(1),
        help="Trainings at once.",
    ),
    click.option("--cpus-per-trial", default=1.0, show_default=True, type=click.FloatRange(0)),
    click.option("--gpus-per-trial", default=0.0, show_default=True, type=click.FloatRange(0)),
    click.option(
        "--price-per-hour",
        type=click.FloatRange(0),
        help="Price of a GPU hour, or of a CPU core hour where trainings have no GPU.",
    ),
)

_MAX_FAILURES = click.option(
    "--max-failures",
    default=3,
    show_default=True,
    help="Restarts of a training; -1: any number.",
)

_RUNNING = (
    _MAX_FAILURES,
    click.option(
        "--no-probe",
        "probe",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Do not time a few steps for the forecast where the ledger has no history.",
    ),
    click.option(
        "--address",
        help="Ray cluster: HOST:PORT or auto. [default: RAY_ADDRESS, else a new local one]",
    ),
)

_AHEAD = click.option(
    "--ahead",
    is_flag=True,
    help="Let free workers start the seeds of the next look before the present look is complete.",
)

_LEAVE = click.option(
    "--leave",
    is_flag=True,
    help="End as soon as other drivers run all trials that are left, so that no node waits. A "
    "sequential study may need this driver for its next look, so there it has no effect before "
    "the last one.",
)

_WATCH = click.option(
    "--watch",
    is_flag=False,
    flag_value=10.0,
    type=click.FloatRange(1),
    help="Show it again every so many seconds (10) until all trials have ended.",
)

_UNDERPOWERED = click.option(
    "--accept-underpowered", is_flag=True, help="Run although the seeds cannot decide the claims."
)

_BUNDLE = click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a zip file for reviewers.",
)

_STDOUT = click.option("--stdout", is_flag=True, help="Print the report and write nothing.")

_OTHER = click.option(
    "--with", "other", type=_FOLDER, help="Folder to compare with.  [default: the previous state]"
)


def _verbs(
    verb: Callable[..., click.Command], is_study: bool, connect: Connect | None
) -> tuple[click.Command, ...]:
    """Make the commands of a study, or of a search, with ``verb``."""
    # Made first: ``run`` has much help and many options, and a search has no ``diff``.
    contradicted = "3 where a claim of the paper is contradicted, " if is_study else ""
    run = verb(
        RUN,
        "Run the missing trials, write the report, print it. Exit status: 0, or "
        f"{contradicted}4 where trials have no result, 130 where Ctrl-C or SIGTERM stopped it, "
        "1 or 2 where it could not run.",
        partial(_run_to_the_end, partial(_run, connect=connect)),
        (*_RESOURCES, *_RUNNING, *((_AHEAD, _LEAVE, _UNDERPOWERED) if is_study else ()), _TRACKING),
    )
    diff = verb(
        "diff",
        "Compare with an earlier state of the study, or with the folder of another study.",
        _lazy("sweeps.core.commands.diff:print_diff"),
        (_OTHER,),
    )
    submit = verb(
        "submit",
        "Queue drivers of the study in Slurm, and leave. They share the trials by the storage.",
        submit_to_slurm,
        (*SLURM_OPTIONS, _MAX_FAILURES, _AHEAD, _UNDERPOWERED, _TRACKING),
    )
    return (
        run,
        *((submit,) if is_study else ()),
        verb(
            "plan",
            "Show which trials would run, their cost and their power. Runs nothing.",
            _lazy("sweeps.core.plan.plan_text:print_plan"),
            (*_RESOURCES, *((_AHEAD,) if is_study else ())),
        ),
        verb(
            "status",
            "Show which trials have ended, run or failed, and why none runs.",
            _lazy("sweeps.core.commands.status:print_status"),
            (_WATCH,),
        ),
        verb(
            "report",
            "Write the report of the present state and print it. Exit status as for run.",
            _lazy("sweeps.core.commands.status:print_report"),
            (*((_BUNDLE,) if is_study else ()), _STDOUT),
        ),
        *((diff,) if is_study else ()),
        verb(
            "sync",
            "Fill MLflow again from the ledger.",
            _lazy("sweeps.core.commands.status:sync"),
            (_TRACKING,),
        ),
    )
