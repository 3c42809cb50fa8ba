"""``python -m sweeps list``: the studies there are."""

from __future__ import annotations

import click

import sweeps
from sweeps.core.study import Study
from toco.registry import available, load


@click.group(help="Sweeps. Each study is a file in sweeps/ and runs as python sweeps/NAME.py.")
def main() -> None:
    """Commands."""


@main.command("list")
def list_studies() -> None:
    """List the studies: name, what varies, trainings, title."""
    for name, study in studies().items():
        varied = ", ".join(f"{factor.path} in {list(factor.values)}" for factor in study.factors)
        click.echo(f"{name}\n  {study.title}\n  {varied}; seeds {list(study.seeds)}; {study.num_trials} trainings")


def studies() -> dict[str, Study]:
    """Every public module in ``sweeps`` that has a ``STUDY``."""
    modules = {name: load(sweeps.__name__, name) for name in available(sweeps.__name__) if name != "core"}
    return {name: module.STUDY for name, module in modules.items() if hasattr(module, "STUDY")}


if __name__ == "__main__":
    main()
