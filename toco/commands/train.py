"""Train a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from toco import interrupts
from toco.command_line import Stopped
from toco.commands import _options
from toco.config import parse_assignments, replace
from toco.registry import load


@click.command()
@click.argument("recipe")
@_options.changes
@click.option(
    "--run-dir", type=click.Path(path_type=Path), required=True, help="Folder of the run."
)
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir, if it exists.")
@_options.progress
def command(
    recipe: str, changes: tuple[str, ...], run_dir: Path, resume: bool, progress: bool
) -> None:
    """Train RECIPE and evaluate it, in a run folder.

    The run folder stores all results. Ctrl-C or SIGTERM makes a checkpoint and ends; --resume
    continues from the checkpoint. Under torchrun, all processes train the same run together:
    torchrun --standalone --nproc-per-node 2 -m toco train RECIPE --run-dir DIR
    """
    from toco.evaluate.report import mious
    from toco.processes import end_with_parent
    from toco.train.averages import DivergedError
    from toco.train.distributed import Place, RankError, joined
    from toco.train.dry_run import check_can_run
    from toco.train.loop import train as run

    base = load("toco.recipes", recipe).recipe()
    value = replace(base, parse_assignments(changes))
    if (place := Place.of_torchrun()) is not None:
        end_with_parent()  # a killed torchrun does not end its ranks
    try:
        check_can_run(value, base)
        with joined(value, place) as shard:
            result = run(value, run_dir, recipe=recipe, resume=resume, progress=progress)
    except (DivergedError, RankError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt as error:
        if (run_dir / "config.json").exists():
            raise Stopped(f"Stopped. --resume continues {run_dir}.") from error
        raise Stopped("Stopped before the first step; nothing was made.") from error
    if shard.rank:
        return
    click.echo(f"{result.status} after step {result.step}: {run_dir}")
    for name, miou in mious(result.metrics).items():
        click.echo(f"  {name + ' mIoU':<13} {100 * miou:5.1f} %")
    if (coverage := _coverage(run_dir, result.step)) is not None:
        click.echo(f"  {coverage}")
    # torchrun would treat a rank's exit status as a failure and end the others.
    if result.status == "stopped" and shard.world_size == 1:
        raise SystemExit(interrupts.exit_status())


def _coverage(run_dir: Path, step: int) -> str | None:
    """Report the classes with ground truth in the last evaluation; ``None`` if all have it."""
    from toco.train.run_folder import RunFolder

    try:
        return RunFolder(run_dir).evaluation(step).coverage()
    except (FileNotFoundError, ValueError):
        return None  # a stopped run has no evaluation of its last step
