"""The command line of a study or a search: the same verbs and options for all, and errors as sentences."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from sweeps.core.design.study import Study
from sweeps.core.findings.exit_status import INCOMPLETE, STOPPED
from sweeps.core.plan.launch_options import Launch, checked_storage, default_storage
from sweeps.core.plan.ray_environment import resolve_address
from toco.command_line import SETTINGS, Commands, run, sentence_of
from toco.config import parse_assignments
from toco.files import is_no_room
from toco.passwords import public_uri

if TYPE_CHECKING:
    # Optuna and what runs studies take seconds to import; -h needs neither.
    from sweeps.core.design.search_space import SearchStudy
    from sweeps.core.run.driver import Connect

AnyStudy = TypeVar("AnyStudy", "Study", "SearchStudy")
RUN = "run"
_TYPED = "sweeps.arguments"


def integers(_context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Read ``0,1,2``; a click callback."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected integers with commas between them, as in 0,1,2; got {text!r}") from None


def assignments(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    """Read ``a.b=value`` given several times; a click callback."""
    try:
        return parse_assignments(texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """What a command line says of the study: which one it is, and not how it runs.

    Attributes:
        recipe: What every training starts from.
        data: Folder of the data set.
        weights: File of the backbone's weights.
        changes: Fields of the recipe that are set in all trainings.
        seeds: Of a study.
        trials: How many a search has.
        seed: Of a search.
        own: Options of the study's own, by name.
    """

    recipe: str | None
    data: Path | None
    weights: Path | None
    changes: Mapping[str, Any]
    seeds: tuple[int, ...] | None = None
    trials: int | None = None
    seed: int | None = None
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def apply(self, study: AnyStudy) -> AnyStudy:
        """``study`` with these options."""
        fields = {"recipe": self.recipe, "seeds": self.seeds, "num_trials": self.trials, "seed": self.seed}
        given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        paths = {"data.root": self.data, "backbone.weights": self.weights}
        # Absolute, as workers run in other folders.
        absolute = {path: str(value.expanduser().resolve()) for path, value in paths.items() if value is not None}
        return dataclasses.replace(study, **given, changes={**study.changes, **self.changes, **absolute})


def study_command(
    study: AnyStudy,
    text: str | None,
    adapt: Callable[..., AnyStudy] | None = None,
    options: Sequence[Callable[[Any], Any]] = (),
    connect: Connect | None = None,
) -> click.Group:
    """The verbs of a study or a search; without a verb it runs.

    Args:
        study: The study as it is without options.
        text: Its help: the docstring of its file.
        adapt: Called with the study after its options, and with ``options`` by name; returns the study to use. For what
            depends on the recipe, such as the depth of its backbone.
        options: Options of its own, as made by ``click.option``.
        connect: Connects to the workers; to Ray unless given.
    """
    is_study: bool = isinstance(study, Study)
    own = {parameter.name for parameter in _parameters(options)}

    def build(given: Mapping[str, Any]) -> AnyStudy:
        of_own = {name: value for name, value in given.items() if name in own}
        shared = {name: value for name, value in given.items() if name not in own}
        built = StudyOptions(**shared, own=of_own).apply(study)
        return adapt(built, **of_own) if adapt else built

    parameters = _parameters((*_COMMON, *((_SEEDS,) if is_study else _SEARCH), *options))
    group = VerbGroup(study.name, help=text, context_settings=SETTINGS)
    for verb in _verbs(is_study, connect):
        group.add_command(_command(verb, build, parameters))
    return group


class VerbGroup(Commands):
    """A group whose verb may be left out. Called without arguments, it is the program."""

    def __call__(self) -> NoReturn:
        """Run on the words of the command line."""
        run(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` before options without a verb."""
        if not args or (args[0] not in self.commands and args[0] not in SETTINGS["help_option_names"]):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb.

    Attributes:
        text: Its help.
        do: Called with the study, the launch and the options that are no fields of it; returns the exit status.
        options: Options of this verb alone.
    """

    name: str
    text: str
    do: Callable[..., int]
    options: tuple[Callable[[Any], Any], ...] = ()


class _VerbCommand(click.Command):
    """A verb that knows how ``sync`` is called for what it was called for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments as they were typed."""
        ctx.meta[_TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def sync_command(self, ctx: click.Context) -> str:
        """The command line of ``sync`` with the same study, storage and store, quoted for a shell, without password."""
        assert isinstance(ctx.parent, click.Context)  # noqa: S101 - verbs belong to a group
        group = ctx.parent.command
        sync = group.commands["sync"] if isinstance(group, click.Group) and "sync" in group.commands else self
        words = _sync_words(str(group.name))
        typed, _, _ = self.make_parser(ctx).parse_args(list(ctx.meta[_TYPED]))
        for option in sync.params:
            value = typed.get(option.name or "")
            for text in value if isinstance(value, list | tuple) else [value]:
                if isinstance(text, str):
                    words += [option.opts[0], public_uri(text)]
        return shlex.join(words)


def _sync_words(study: str) -> list[str]:
    """How ``sync`` of ``study`` is called by the program that runs: a script, a module, or ``python -m sweeps``."""
    program, *typed = sys.argv
    if Path(program).name == "__main__.py":
        # A study of the user's own is named by its module there.
        return ["python", "-m", "sweeps", "sync", next((word for word in typed[1:2] if "." in word), study)]
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.origin == str(Path(program).absolute()):
        return ["python", "-m", spec.name, "sync"]
    return ["python", program, "sync"]


def _command(
    verb: Verb, build: Callable[[Mapping[str, Any]], Any], parameters: Sequence[click.Parameter]
) -> click.Command:
    """The command of a verb; ``build`` makes the study of what ``parameters`` were given."""

    def command(storage: Path | None, **given: Any) -> None:  # noqa: ANN401 - all other options
        of_study = {str(parameter.name): given.pop(str(parameter.name)) for parameter in parameters}
        context = click.get_current_context()
        if _TRACKING in verb.options and isinstance(context.command, _VerbCommand):
            given["sync_command"] = context.command.sync_command(context)
        of_launch = {name: given.pop(name) for name in _LAUNCH & given.keys()}
        study = build(of_study)
        launch = Launch(checked_storage(storage or default_storage()), **of_launch)
        do = partial(verb.do, study, launch, **given)
        sys.exit(_run_to_the_end(do) if verb.name == RUN else do())

    own = _parameters((_STORAGE, *verb.options))
    return _VerbCommand(verb.name, help=verb.text, params=[*own, *parameters], callback=command)


def _parameters(options: Sequence[Callable[[Any], Any]]) -> list[click.Parameter]:
    """What ``options``, made by ``click.option``, say."""

    @click.command
    def command() -> None:
        """Only its parameters are used."""

    for option in options:
        option(command)
    return command.params


def _run_to_the_end(run: Callable[[], int]) -> int:
    """Run a study or a search. Somebody may stop it, or a full disk may; the same command goes on from there."""
    try:
        return run()
    except KeyboardInterrupt:
        click.echo("Stopped. The same command goes on from here.")
        return STOPPED
    except OSError as error:
        if not is_no_room(error):
            raise
        click.echo(f"Error: {sentence_of(error)} The same command goes on from here.", err=True)
        return INCOMPLETE


# Each imports what it needs when it is called: what plots and fits takes seconds to import.


def _run(study: Study | SearchStudy, launch: Launch, *, connect: Connect | None) -> int:
    from sweeps.core.store.finished import recall

    resolve_address(launch.address)
    # An address that is none is refused, whatever is known.
    uri = launch.tracking
    if uri and isinstance(study, Study) and (ended := recall(study, launch.storage)):
        page = launch.storage / ended.folder / ended.page
        click.echo(f"{ended.text_printed}\n\nReport: {page}\nAll of its trials are there; nothing was run.")
        return ended.exit_code
    from sweeps.core.run.driver import connect_to_ray, run_study

    return run_study(study, launch, connect or connect_to_ray)


def _plan(study: Study | SearchStudy, launch: Launch) -> int:
    from sweeps.core.plan.plan_text import print_plan

    return print_plan(study, launch)


def _status(study: Study | SearchStudy, launch: Launch) -> int:
    from sweeps.core.commands.status import print_status

    return print_status(study, launch.storage)


def _report(study: Study | SearchStudy, launch: Launch, *, stdout: bool, bundle: Path | None = None) -> int:
    from sweeps.core.commands.status import print_report

    return print_report(study, launch.storage, bundle, stdout=stdout)


def _diff(study: Study, launch: Launch, other: Path | None) -> int:
    from sweeps.core.commands.diff import print_diff

    return print_diff(study, launch.storage, other)


def _sync(study: Study | SearchStudy, launch: Launch) -> int:
    from sweeps.core.commands.status import sync

    return sync(study, launch)


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_LAUNCH = {field.name for field in dataclasses.fields(Launch)}

_COMMON = (
    click.option("--recipe", help="What every training starts from. [default: shapes_nano, the embedded benchmark]"),
    click.option("--data", type=_FOLDER, help="Folder of the data set (data.root)."),
    click.option(
        "--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="backbone.weights, a file."
    ),
    click.option("--set", "changes", multiple=True, callback=assignments, help="Set a field in all: a.b=value."),
)

_STORAGE = click.option(
    "--storage",
    type=click.Path(path_type=Path),
    help="Folder of studies, seen by all nodes. [default: ./results; in a Ray job ~/toco-results]",
)

_SEEDS = click.option("--seeds", callback=integers, help="A row is their mean, as in 0,1,2.  [default: the study's]")

_SEARCH = (
    click.option("--trials", type=click.IntRange(1), help="Trials in all; a search goes on where this is raised."),
    click.option("--seed", type=click.IntRange(0), help="Of all trainings and of the proposals."),
)

_TRACKING = click.option(
    "--tracking-uri",
    help="MLflow store: sqlite:///PATH or http://HOST:PORT, with user name and password in the variables "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. [default: sqlite:///STORAGE/mlflow.db]",
)

_RESOURCES = (
    click.option("--concurrent", default=2, show_default=True, type=click.IntRange(1), help="Trainings at once."),
    click.option("--cpus-per-trial", default=1.0, show_default=True, type=click.FloatRange(0)),
    click.option("--gpus-per-trial", default=0.0, show_default=True, type=click.FloatRange(0)),
    click.option(
        "--price-per-hour",
        type=click.FloatRange(0),
        help="Of a GPU, or of a CPU core where trainings have no GPU, to foretell the cost.",
    ),
)

_RUNNING = (
    click.option("--max-failures", default=3, show_default=True, help="Restarts of a training; -1: any number."),
    click.option("--address", help="Ray cluster: HOST:PORT or auto. [default: RAY_ADDRESS, else a new local one]"),
)

_UNDERPOWERED = click.option(
    "--accept-underpowered", is_flag=True, help="Run although the seeds cannot answer the question."
)

_BUNDLE = click.option("--bundle", type=click.Path(dir_okay=False, path_type=Path), help="Also make a reviewer's zip.")

_STDOUT = click.option("--stdout", is_flag=True, help="Print the report and write nothing.")

_OTHER = click.option("--with", "other", type=_FOLDER, help="Folder to compare with.  [default: the state before]")


def _verbs(is_study: bool, connect: Connect | None) -> tuple[Verb, ...]:
    """What can be done with a study, or with a search."""
    contradicted = "3 where a claim of the paper is contradicted, " if is_study else ""
    run = Verb(
        RUN,
        f"Run what is missing, write the report, print it. Exit status: 0, or {contradicted}4 where trials have no "
        "result, 130 where Ctrl-C or SIGTERM stopped it, 1 or 2 where it could not run.",
        partial(_run, connect=connect),
        (*_RESOURCES, *_RUNNING, *((_UNDERPOWERED,) if is_study else ()), _TRACKING),
    )
    diff = Verb(
        "diff",
        "Compare with an earlier state of the study, or with another study's folder: cell by cell.",
        _diff,
        (_OTHER,),
    )
    return (
        run,
        Verb("plan", "Say what would run, what it would cost and what it could show. Runs nothing.", _plan, _RESOURCES),
        Verb("status", "Say what is there, what runs and what failed.", _status),
        Verb(
            "report",
            "Write the report as things stand, and print it. Exit status as of run.",
            _report,
            (*((_BUNDLE,) if is_study else ()), _STDOUT),
        ),
        *((diff,) if is_study else ()),
        Verb("sync", "Fill MLflow again from the ledger.", _sync, (_TRACKING,)),
    )
