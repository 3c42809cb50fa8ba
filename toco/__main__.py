"""``python -m toco VERB``: the verbs are the modules of ``toco.commands``."""

from __future__ import annotations

import toco.interrupts

if __name__ == "__main__":
    toco.interrupts.install_handlers()  # before the imports below, which are slow

import click

from toco.command_line import SETTINGS, Commands, run
from toco.registry import available, load

_VERBS = "toco.commands"


class Verbs(Commands):
    """Finds a verb by the name of its module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of all verbs."""
        return [name.replace("_", "-") for name in available(_VERBS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb; ``None`` where there is none of this name."""
        module = cmd_name.replace("-", "_")
        return load(_VERBS, module).command if module in available(_VERBS) else None


@click.command(cls=Verbs, context_settings=SETTINGS)
@click.version_option(package_name="toco")
def main() -> None:
    """Token Contrast for weakly-supervised semantic segmentation."""


if __name__ == "__main__":
    run(main, prog_name="python -m toco")
