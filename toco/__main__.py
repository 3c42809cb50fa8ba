"""``python -m toco VERB``: the verbs are the modules of ``toco.commands``."""

from __future__ import annotations

import sys
from typing import Any

import click

from toco import __version__
from toco.registry import available, load

_VERBS = "toco.commands"


class Verbs(click.Group):
    """Finds a verb by the name of its module; prints expected errors as sentences, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all verbs."""
        return [name.replace("_", "-") for name in available(_VERBS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, imported when it is wanted."""
        module = cmd_name.replace("-", "_")
        return load(_VERBS, module).command if module in available(_VERBS) else None

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="toco")
def main() -> None:
    """Token Contrast for weakly-supervised semantic segmentation."""


if __name__ == "__main__":
    sys.exit(main())
