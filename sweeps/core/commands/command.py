"""The command line of a study: the same verbs and options for all, and errors as sentences."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from sweeps.core.design.study import Study
from sweeps.core.findings.exit_status import INCOMPLETE, STOPPED
from sweeps.core.plan.launch_options import Launch, checked_storage, default_storage
from sweeps.core.plan.ray_environment import resolve_address
from toco.command_line import SETTINGS, Commands, run, sentence_of
from toco.config import parse_assignments
from toco.files import is_no_room
from toco.passwords import public_uri

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


def study_command(
    study: Study,
    text: str | None,
    adapt: Callable[..., Study] | None = None,
    options: Sequence[Callable[[Any], Any]] = (),
) -> click.Group:
    """The verbs of a study; without a verb it runs.

    Args:
        study: The study as it is without options.
        text: Its help: the docstring of its file.
        adapt: Called with the study after ``--recipe``, ``--seeds`` and ``--set``, and with ``options`` by name;
            returns the study to use. For what depends on the recipe, such as the depth of its backbone.
        options: Options of its own, as made by ``click.option``.
    """

    def build(
        *,
        recipe: str | None,
        data: Path | None,
        weights: Path | None,
        changes: dict[str, Any],
        seeds: tuple[int, ...] | None,
        **own: Any,  # noqa: ANN401 - the study's own options
    ) -> Study:
        built = dataclasses.replace(
            study,
            recipe=recipe or study.recipe,
            seeds=seeds or study.seeds,
            changes={**study.changes, **changes, **read_from(data, weights)},
        )
        return adapt(built, **own) if adapt else built

    verbs = (_run, _plan, _status, _report, _diff, _sync)
    return verb_group(study.name, text, verbs, build, (*COMMON, _SEEDS, *options))


def verb_group(
    name: str,
    text: str | None,
    verbs: Sequence[Verb],
    build: Callable[..., Any],
    options: Sequence[Callable[[Any], Any]],
) -> click.Group:
    """Commands for ``verbs``, which all take ``options``, and ``--storage``.

    Args:
        name: Of the study.
        text: Its help.
        verbs: What can be done with it.
        build: Makes the study of ``options``, given by name.
        options: What says which study it is.
    """
    group = VerbGroup(name, help=text, context_settings=SETTINGS)
    for verb in verbs:
        group.add_command(_command(verb, build, options))
    return group


def read_from(data: Path | None, weights: Path | None) -> dict[str, str]:
    """Changes of a config that come of ``--data`` and ``--weights``; absolute, as workers run in other folders."""
    paths = {"data.root": data, "backbone.weights": weights}
    return {path: str(value.expanduser().resolve()) for path, value in paths.items() if value is not None}


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
        do: Called with the study, the storage and ``options`` by name; returns the exit status.
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


def _command(verb: Verb, build: Callable[..., Any], options: Sequence[Callable[[Any], Any]]) -> click.Command:
    def command(*, storage: Path | None, **given: Any) -> None:  # noqa: ANN401 - all other options
        which = {name: given.pop(name) for name in names}
        context = click.get_current_context()
        if TRACKING in verb.options and isinstance(context.command, _VerbCommand):
            given["sync_command"] = context.command.sync_command(context)
        do = partial(verb.do, build(**which), checked_storage(storage or default_storage()), **given)
        sys.exit(_run_to_the_end(do) if verb.name == RUN else do())

    made: Any = command
    for option in reversed((_STORAGE, *verb.options)):
        made = option(made)
    number = len(made.__click_params__)
    for option in reversed(options):
        made = option(made)
    names = [parameter.name for parameter in made.__click_params__[number:]]
    return click.command(verb.name, _VerbCommand, help=verb.text)(made)


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


def _run_it(study: Study, storage: Path, **options: Any) -> int:  # noqa: ANN401 - fields of Launch
    from sweeps.core.store.finished import recall

    launch = Launch(storage, **options)
    resolve_address(launch.address)
    if launch.tracking and (ending := recall(study, storage)):
        click.echo(f"{ending.text}\n\nReport: {ending.page}\nAll of its trials are there; nothing was run.")
        return ending.exit_code
    # Only now: this imports what plots and fits, which takes longer than looking.
    from sweeps.core.run.driver import run_study

    return run_study(study, launch)


def _plan_it(study: Study, storage: Path, **options: Any) -> int:  # noqa: ANN401 - fields of Launch
    from sweeps.core.plan.plan_text import print_plan

    return print_plan(study, Launch(storage, **options))


def _status_it(study: Study, storage: Path) -> int:
    from sweeps.core.commands.status import print_status

    return print_status(study, storage)


def _report_it(study: Study, storage: Path, *, bundle: Path | None, stdout: bool) -> int:
    from sweeps.core.commands.status import print_report

    return print_report(study, storage, bundle, stdout=stdout)


def _diff_it(study: Study, storage: Path, other: Path | None) -> int:
    from sweeps.core.commands.diff import print_diff

    return print_diff(study, storage, other)


def _sync_it(study: Study, storage: Path, **options: Any) -> int:  # noqa: ANN401 - fields of Launch
    from sweeps.core.commands.status import sync

    return sync(study, Launch(storage, **options))


STDOUT = click.option("--stdout", is_flag=True, help="Print the table and write nothing.")

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

COMMON = (
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

TRACKING = click.option(
    "--tracking-uri",
    help="MLflow store: sqlite:///PATH or http://HOST:PORT, with user name and password in the variables "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. [default: sqlite:///STORAGE/mlflow.db]",
)

RESOURCES = (
    click.option("--concurrent", default=2, show_default=True, type=click.IntRange(1), help="Trainings at once."),
    click.option("--cpus-per-trial", default=1.0, show_default=True, type=click.FloatRange(0)),
    click.option("--gpus-per-trial", default=0.0, show_default=True, type=click.FloatRange(0)),
    click.option(
        "--price-per-hour",
        type=click.FloatRange(0),
        help="Of a GPU, or of a CPU core where trainings have no GPU, to foretell the cost.",
    ),
)

RUNNING = (
    click.option("--max-failures", default=3, show_default=True, help="Restarts of a training; -1: any number."),
    click.option("--address", help="Ray cluster: HOST:PORT or auto. [default: RAY_ADDRESS, else a new local one]"),
)

_run = Verb(
    RUN,
    "Run what is missing, write the report, print the table. Exit status: 0, or 3 where a claim of the paper is "
    "contradicted, 4 where trials have no result, 130 where Ctrl-C or SIGTERM stopped it, 1 or 2 where it could not "
    "run.",
    _run_it,
    (
        *RESOURCES,
        *RUNNING,
        click.option("--accept-underpowered", is_flag=True, help="Run although the seeds cannot answer the question."),
        TRACKING,
    ),
)
_plan = Verb(
    "plan", "Say what would run, what it would cost and what it could show. Runs nothing.", _plan_it, RESOURCES
)
_status = Verb("status", "Say what is there, what runs and what failed.", _status_it)
_report = Verb(
    "report",
    "Write the report of the study as it stands and print its table. Exit status as of run.",
    _report_it,
    (
        click.option("--bundle", type=click.Path(dir_okay=False, path_type=Path), help="Also make a reviewer's zip."),
        STDOUT,
    ),
)
_diff = Verb(
    "diff",
    "Compare with an earlier state of the study, or with another study's folder: cell by cell.",
    _diff_it,
    (click.option("--with", "other", type=_FOLDER, help="Folder to compare with.  [default: the state before]"),),
)
_sync = Verb("sync", "Fill MLflow again from the ledger.", _sync_it, (TRACKING,))
