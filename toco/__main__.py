"""``python -m toco``: train, evaluate, pretrain, check data, list what there is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from toco import __version__
from toco.config import digest, parse_assignments, replace
from toco.registry import available, load

PACKAGES = ("recipes", "methods", "backbones", "data", "metrics")


class Sentences(click.Group):
    """Prints expected errors as the sentences they are, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error


option_set = click.option(
    "--set", "changes", multiple=True, metavar="a.b=VALUE", help="Change a setting by its dotted path; repeatable."
)


@click.group(cls=Sentences, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="toco")
def main() -> None:
    """Token Contrast for weakly-supervised semantic segmentation."""


@main.command(name="list")
def list_() -> None:
    """List recipes, methods, backbones, data sets and metrics."""
    for package in PACKAGES:
        click.echo(f"{package}:")
        for name in available(f"toco.{package}"):
            first_line = (load(f"toco.{package}", name).__doc__ or "").splitlines()[0]
            click.echo(f"  {name:<16} {first_line}")


@main.command()
@click.argument("recipe")
@option_set
def config(recipe: str, changes: tuple[str, ...]) -> None:
    """Print the config of RECIPE as JSON, with every default."""
    value = replace(load("toco.recipes", recipe).recipe(), parse_assignments(changes))
    click.echo(value.model_dump_json(indent=2))
    click.echo(f"digest {digest(value)}", err=True)


@main.command()
@click.argument("recipe")
@option_set
@click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="Folder that keeps the run.")
@click.option("--resume", is_flag=True, help="Go on with the run in --run-dir, if there is one.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def train(recipe: str, changes: tuple[str, ...], run_dir: Path, resume: bool, progress: bool) -> None:
    """Train RECIPE, evaluate it, and keep everything in a run folder.

    Ctrl-C or SIGTERM makes a checkpoint and ends; --resume goes on from it. Under torchrun, all processes train the one
    run together: torchrun --standalone --nproc-per-node 2 -m toco train RECIPE --run-dir DIR
    """
    from toco.train.averages import DivergedError
    from toco.train.distributed import Place, RankError, joined
    from toco.train.loop import train as run

    value = replace(load("toco.recipes", recipe).recipe(), parse_assignments(changes))
    try:
        with joined(value, Place.of_torchrun()) as shard:
            result = run(value, run_dir, recipe=recipe, resume=resume, progress=progress)
    except (DivergedError, RankError) as error:
        raise click.ClickException(str(error)) from error
    if shard.rank:
        return
    click.echo(f"{result.status} after step {result.step}: {run_dir}")
    for name in ("seg", "cam", "aux_cam"):
        if (miou := result.metrics.get(f"val/{name}_miou")) is not None:
            click.echo(f"  {name + ' mIoU':<13} {100 * miou:5.1f} %")


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True))
@option_set
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the evaluation and its pictures.")
def evaluate(run_dir: Path, changes: tuple[str, ...], out: Path | None) -> None:
    """Evaluate the newest checkpoint of RUN_DIR; --set changes the run's config, as in evaluate.size_px=224."""
    from toco.evaluate import evaluate as run
    from toco.evaluate.pictures import draw_similarity_curve, draw_threshold_curve, save_panels
    from toco.train.loop import open_data, restore

    method, value, step = restore(run_dir, parse_assignments(changes))
    _, val_set = open_data(value)
    evaluation = run(method, val_set, value.evaluate, value.torch_device(), progress=True, step=step)
    click.echo(evaluation.table())
    click.echo(evaluation.protocol)
    if out is not None:
        threshold = value.evaluate.background_threshold
        save_panels(evaluation.pictures, evaluation.class_names, threshold, out / "pictures")
        draw_similarity_curve({run_dir.name: evaluation.patch_similarity}).savefig(out / "patch_similarity.png")
        draw_threshold_curve(evaluation.threshold_curve, threshold).savefig(out / "threshold_curve.png")
        (out / "evaluation.json").write_text(evaluation.to_json())
        click.echo(f"Written to {out}")


@main.command()
@click.argument("run_dirs", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="sqlite:///results/mlflow.db",
    show_default=True,
    help="An MLflow store: sqlite:///PATH or http://HOST:PORT.",
)
@click.option("--experiment", default="toco", show_default=True)
def track(run_dirs: tuple[Path, ...], tracking_uri: str, experiment: str) -> None:
    """Fill MLflow from run folders; what is there already is not written twice."""
    from toco.tracking import track_run

    for run_dir in run_dirs:
        run_id = track_run(run_dir, tracking_uri=tracking_uri, experiment=experiment)
        click.echo(f"{run_dir} is MLflow run {run_id}")


@main.command()
@click.argument("weights", type=click.Path(path_type=Path, dir_okay=False))
@option_set
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def pretrain(weights: Path, changes: tuple[str, ...], progress: bool) -> None:
    """Pretrain the nano ViT on generated scenes; writes WEIGHTS (.safetensors) and a JSON file that says how."""
    from toco.train.pretrain import PretrainConfig
    from toco.train.pretrain import pretrain as run

    command = " ".join(["python -m toco pretrain", weights.name, *(f"--set {change}" for change in changes)])
    result = run(replace(PretrainConfig(), parse_assignments(changes)), weights, command=command, progress=progress)
    similarity = ", ".join(f"{value:.2f}" for value in result.patch_similarity)
    click.echo(f"{weights}: label accuracy {result.label_accuracy:.3f}; patch similarity by block {similarity}")


@main.group(name="data")
def data_() -> None:
    """Check data sets and convert labels."""


@data_.command()
@click.argument("root", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--train-list", default="train_aug", show_default=True, help="Name of the training list.")
@click.option("--val-list", default="val", show_default=True, help="Name of the validation list.")
@click.option("--labels", default="masks", show_default=True, help="masks, xml, or a csv, json or npz file in ROOT.")
@click.option("--classes", type=click.Path(path_type=Path), help="File of class names; default: ROOT/classes.txt.")
@click.option("--mask-folder", help="Folder of masks in ROOT.")
@click.option("--allow-empty-labels", is_flag=True, help="Take training images that show no class.")
def check(
    root: Path,
    train_list: str,
    val_list: str,
    labels: str,
    classes: Path | None,
    mask_folder: str | None,
    allow_empty_labels: bool,
) -> None:
    """Decode all of the VOC-shaped folder ROOT and report every fault; exits with 1 if there is one."""
    from toco.data import check_folder

    with tqdm(unit="image", leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = check_folder(
            root,
            train_list=train_list,
            val_list=val_list,
            labels=Path(labels) if labels not in ("masks", "xml") else labels,  # type: ignore[arg-type]
            classes=classes,
            mask_folder=mask_folder,
            allow_empty_labels=allow_empty_labels,
            on_progress=show,
        )
    click.echo(str(report))
    sys.exit(1 if report.faults else 0)


@data_.command(name="convert-labels")
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
def convert_labels_(source: Path, target: Path) -> None:
    """Convert the official pickled labels in SOURCE to TARGET (.npz or .json), running nothing that it holds."""
    from toco.data import convert_labels

    click.echo(f"{convert_labels(source, target)} labels written to {target}")


if __name__ == "__main__":
    sys.exit(main())
