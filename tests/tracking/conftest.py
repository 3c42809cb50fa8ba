import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toco.tracking import address, open_store


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@dataclass(frozen=True)
class Training:
    """A run folder that grows as a training would make it grow."""

    path: Path

    def add_rows(self, steps: range) -> None:
        with (self.path / "metrics.jsonl").open("a") as file:
            for step in steps:
                values = {"train/loss_total": 2.0 / step, "train/ptc": 0.5 / step}
                file.write(
                    json.dumps(
                        {"step": step, "kind": "train", "time_s": 0.5 * step, "values": values}
                    )
                    + "\n"
                )

    def add_evaluation(self, step: int, cam_miou: float) -> None:
        metrics = {"val/cam_miou": cam_miou, "val/aux_cam_miou": None}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(
                json.dumps({"step": step, "kind": "val", "time_s": 0.5 * step, "values": metrics})
                + "\n"
            )
        evaluation = {
            "format_version": 1,
            "step": step,
            "metrics": metrics,
            "class_names": ["background", "disc", "star"],
            "per_class": {"seg_iou": [0.9, 0.5, None], "cam_iou": [0.8, 0.4, 0.2]},
            "threshold_curve": {
                "thresholds": [0.3, 0.5],
                "cam_miou": [0.4, 0.45],
                "aux_cam_miou": [0.3, 0.5],
            },
            "patch_similarity": [0.5, 0.625, 0.75],
        }
        write_json(self.path / "evaluations" / f"step_{step:08d}.json", evaluation)
        folder = self.path / "pictures" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (12, 4), (step % 256, 0, 0)).save(folder / "scene_0001.png")

    def end(self, status: str, step: int, message: str | None = None) -> None:
        result = {
            "format_version": 1,
            "status": status,
            "step": step,
            "digest": "0123456789abcdef",
            "metrics": {"val/cam_miou": 0.4375},
            "last_metrics": {"val/cam_miou": 0.45},
            "message": message,
            "step_time_s": 8.0,
            "wall_time_s": 10.0,
            "peak_memory_bytes": 1000,
        }
        write_json(self.path / "result.json", result)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Training]:
    """Makes an unfinished run folder with two training rows."""

    def make(name: str = "aux_block=9-seed=0", **config: Any) -> Training:
        run_dir = tmp_path / name
        tree = {
            "seed": 0,
            "evaluate": {"background_threshold": 0.5},
            "method": {"aux_block": 9, "scales": [1.0, 0.5]},
            "data": {"root": None},
            **config,
        }
        head = {
            "format_version": 1,
            "digest": "0123456789abcdef",
            "recipe": "shapes_nano",
            "config": tree,
        }
        write_json(run_dir / "config.json", head)
        provenance = {
            "format_version": 1,
            "commit": "c0ffee",
            "dirty": False,
            "versions": {"torch": "2.13.0"},
            "platform": "Linux",
            "device": "cpu",
            "data_manifest": {"train": "aa", "val": "bb"},
            "weights_sha256": None,
            "started": "2026-01-02T03:04:05+00:00",
        }
        write_json(run_dir / "provenance.json", provenance)
        training = Training(run_dir)
        training.add_rows(range(1, 3))
        return training

    return make


@pytest.fixture(scope="session")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests (its first use costs seconds); every test has an experiment of its
    own.
    """
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow, to copy: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    open_store(address.sqlite_uri(path), "template")
    return path
