"""``python -m benchmarks COMMAND [--out FILE.json]``, from the root of the repository.

Every module of this folder without a leading underscore is a command with the name of its file.
"""

from __future__ import annotations

import toco.interrupts

if __name__ == "__main__":
    toco.interrupts.install_handlers()  # before the imports below, which are slow

import pkgutil
from importlib import import_module
from pathlib import Path

import click

from toco.command_line import SETTINGS, Commands, run


class _Folder(Commands):
    """The commands of this folder, imported on demand because each needs other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        modules = pkgutil.iter_modules([str(Path(__file__).parent)])
        return sorted(
            module.name.replace("_", "-") for module in modules if not module.name.startswith("_")
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        try:
            module = import_module(f"benchmarks.{cmd_name.replace('-', '_')}")
        except ModuleNotFoundError as error:
            return _Unavailable(cmd_name, error)
        return next(value for value in vars(module).values() if isinstance(value, click.Command))


class _Unavailable(click.Command):
    """A command whose packages are not installed, so that the other commands still work."""

    def __init__(self, name: str, error: ModuleNotFoundError) -> None:
        self._sentence = f"{name} needs the package {error.name!r}, which is not installed here."
        super().__init__(name, short_help=self._sentence, add_help_option=False)
        self.ignore_unknown_options = self.allow_extra_args = True

    def invoke(self, ctx: click.Context) -> None:
        raise click.ClickException(self._sentence)


@click.command(cls=_Folder, help=__doc__, context_settings=SETTINGS)
def main() -> None:
    """See the docstring of the module."""


if __name__ == "__main__":
    run(main, prog_name="python -m benchmarks")
