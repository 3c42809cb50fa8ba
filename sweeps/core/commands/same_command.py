"""The command of another verb for the same study: what a person, or a job, types next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from toco.passwords import public_uri

TYPED = "sweeps.arguments"
"""Key in the context of click with the options as they were typed."""


def same_command(context: click.Context, verb: str) -> list[str]:
    """Return the command of ``verb`` for the same study, with the typed options that it has.

    Its addresses have no password.
    """
    group = context.parent and context.parent.command
    assert isinstance(group, click.Group)  # noqa: S101 - verbs belong to a group
    words = _first_words(str(group.name), verb)
    typed, _, _ = context.command.make_parser(context).parse_args(list(context.meta[TYPED]))
    for option in group.commands[verb].params:
        value = typed.get(option.name or "")
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str):
                words += [option.opts[0], public_uri(text)]
            elif text is True:
                words.append(option.opts[0])
    return words


def _first_words(study: str, verb: str) -> list[str]:
    """Return the first words of the command ``verb`` of ``study``.

    The program may be a script, a module, or ``python -m sweeps``.
    """
    program, *typed = sys.argv
    if Path(program).name == "__main__.py":
        # typed is VERB STUDY ...; a study outside of this project is a module, with a dot.
        return [
            "python",
            "-m",
            "sweeps",
            verb,
            next((word for word in typed[1:2] if "." in word), study),
        ]
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.origin == str(Path(program).absolute()):
        return ["python", "-m", spec.name, verb]
    return ["python", program, verb]


def on_this_machine(words: Sequence[str], storage: Path) -> list[str]:
    """Complete a command for a job: this interpreter, and the absolute path of the storage."""
    words = [sys.executable, *words[1:]]
    if "--storage" in words:
        at = words.index("--storage")
        del words[at : at + 2]
    return [*words, "--storage", str(storage)]
