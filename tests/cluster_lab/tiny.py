"""A study of tiny trainings, its command line, and what must be equal however it was disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "backbone.width": 16,
    "backbone.depth": 3,
    "backbone.num_heads": 2,
    "backbone.image_size_px": 32,
    "backbone.weights": "null",
    "views.crop_size_px": 32,
    "data.num_train": 48,
    "data.num_val": 12,
    "data.image_size_px": 32,
    "method.local_crop_size_px": 16,
    "method.decoder_width": 8,
    "method.projection.hidden_width": 16,
    "method.projection.bottleneck_width": 8,
    "method.projection.output_width": 16,
    "method.segmentation.start_step": 2,
    "method.energy.start_step": 2,
    "optim.warmup_steps": 2,
    "optim.frozen_layers": 0,
    "evaluate.size_px": 32,
    "evaluate.num_pictures": 1,
    "batch_size": 4,
    "evaluate_every": 20,
    "log_every": 10,
}
TABLES = ("table.csv", "table.md", "table.tex")


def options(storage, num_steps):
    """The options of six trainings: two rows and the A/A row, two seeds each."""
    settings = {**SETTINGS, "num_steps": num_steps}
    changes = [part for path, value in settings.items() for part in ("--set", f"{path}={value}")]
    return ["--storage", str(storage), "--layers", "0,1", "--seeds", "0,1", *changes]


def environment():
    """What a process of the study needs on a host, and here."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}


def run_here(storage, num_steps):
    """Run the study on this machine, undisturbed; return its outcome."""
    command = [sys.executable, "-m", "sweeps", "run", "layer_ablation"]
    subprocess.run(
        [*command, *options(storage, num_steps), "--no-probe"],
        cwd=ROOT,
        env={**os.environ, **environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
    )
    return outcome(storage)


def folder(storage):
    """The folder of the study."""
    (path,) = [path for path in Path(storage).glob("layer_ablation-*") if path.is_dir()]
    return path


def outcome(storage):
    """Rows without durations, tables byte by byte, and how each trial ended."""
    storage = Path(storage)
    rows = {}
    for path in storage.glob("runs/*/metrics.jsonl"):
        read = map(json.loads, path.read_text().splitlines())
        rows[path.parent.name] = [
            (row["step"], row["kind"], {k: v for k, v in row["values"].items() if "time" not in k})
            for row in read
        ]
    entries = [json.loads(path.read_text()) for path in storage.glob("ledger/??/*.json")]
    return {
        "rows": rows,
        "tables": {name: (folder(storage) / name).read_bytes() for name in TABLES},
        "statuses": {entry["key"]: entry["status"] for entry in entries if "status" in entry},
    }


def newest_steps(storage):
    """The step of the newest checkpoint of each training."""
    steps = {}
    for path in Path(storage).glob("runs/*/checkpoints/step_*"):
        key = path.parents[1].name
        steps[key] = max(steps.get(key, 0), int(path.name.removeprefix("step_")))
    return steps


def leases(storage):
    """The leases on trials; a killed driver leaves that of its session, which means nothing."""
    paths = (Path(storage) / "leases").glob("*.json")
    return sorted(path.name for path in paths if not path.name.startswith("tune-"))
