"""Translate a command of the official code."""

from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def command(words: tuple[str, ...]) -> None:
    """Translate a command of the official ToCo code.

    Prints the `toco train` command that is equivalent to WORDS, and notes on arguments without a
    counterpart. Example: from-official-args -- python -m torch.distributed.launch
    --nproc_per_node=2 scripts/dist_train_voc_seg_neg.py --backbone deit_base_patch16_224 --temp 0.3
    """
    from toco.official.arguments import translate

    translation = translate(words)
    click.echo(translation.command())
    for note in translation.notes:
        click.echo(f"- {note}")
