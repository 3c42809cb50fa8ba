"""``python -m sweeps``: lists the studies, and runs every verb on each of them."""

from __future__ import annotations

import toco.interrupts

if __name__ == "__main__":
    toco.interrupts.install_handlers()  # before the imports below, which take seconds

import sys

import click

import sweeps
from sweeps.core.commands.compare import compare
from sweeps.core.design.search_space import SearchStudy
from sweeps.core.design.study import Study
from toco.command_line import SETTINGS, Commands, invoke, run
from toco.registry import available, load

VERBS = {
    "plan": "Show which trials would run, their cost and their power.",
    "run": "Run the missing trials, write the report, print the table.",
    "submit": "Queue drivers of a study in Slurm, and leave.",
    "status": "Show which trials have ended, run or failed, and why none runs.",
    "report": "Write the report of the present state and print its table.",
    "diff": "Compare with an earlier state of the study, or with another study.",
    "sync": "Fill MLflow again from the ledger.",
}


@click.group(
    cls=Commands,
    context_settings=SETTINGS,
    help="Studies. Each is a file in sweeps/; python sweeps/NAME.py is short for python -m sweeps "
    "run NAME. A study of your own is a module, such as my_package.my_study, in this folder or in "
    "one of PYTHONPATH.",
)
def main() -> None:
    """Group the verbs."""


@main.command("list")
def list_studies() -> None:
    """List the studies, searches first: name, design, rows, trials, title."""
    for name, study in sorted(studies().items(), key=lambda item: isinstance(item[1], Study)):
        if isinstance(study, Study):
            rows = sum(len(block.rows) for block in study.design.blocks())
            varied = ", ".join(
                dict.fromkeys(path for block in study.design.blocks() for path in block.factors)
            )
            about = f"{study.design.name}, {rows} rows, {study.seeds_text}: {varied}"
        else:
            about = (
                f"search, {study.num_trials} trials, seed {study.seed}: {', '.join(study.space)}"
            )
        click.echo(f"{name}\n  {study.title}\n  {about}")


main.add_command(compare)


def studies() -> dict[str, Study | SearchStudy]:
    """Return the ``STUDY`` of every public module in ``sweeps``: a table or a search."""
    modules = {name: load(sweeps.__name__, name) for name in available(sweeps.__name__)}
    return {name: module.STUDY for name, module in modules.items() if hasattr(module, "STUDY")}


def _add(verb: str, text: str) -> None:
    # All arguments after the study's name belong to the study's own command line, ``--help``
    # included.
    @main.command(
        verb, help=text, add_help_option=False, context_settings={"ignore_unknown_options": True}
    )
    @click.argument("study")
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def command(context: click.Context, study: str, arguments: tuple[str, ...]) -> None:
        if study in SETTINGS["help_option_names"]:
            click.echo(context.get_help())
            return
        try:
            module = load(sweeps.__name__, study)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        if not hasattr(module, "STUDY"):
            raise click.UsageError(
                f"{study} is no study; the studies are {', '.join(sorted(studies()))}."
            )
        if not isinstance(module.main, click.Group):
            raise click.UsageError(
                f"main of {study} has no verbs: expected {sweeps.ENTRY['main'].splitlines()[0]}."
            )
        if verb not in module.main.commands:
            raise click.UsageError(
                f"{study} has no {verb}; it has {', '.join(module.main.commands)}."
            )
        program = f"python -m {study}" if "." in study else f"python sweeps/{study}.py"
        sys.exit(invoke(module.main, [verb, *arguments], program))


for _verb, _text in VERBS.items():
    _add(_verb, _text)

if __name__ == "__main__":
    run(main, prog_name="python -m sweeps")
