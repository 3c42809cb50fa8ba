"""Studies as they are read from disk, made from numbers, for tests of everything that comes after
the reading.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.core.design.designs import Block
from sweeps.core.design.paper import Paper
from sweeps.core.design.study import BASE_AGAIN, Cell, Metric, PlannedRow
from sweeps.core.store.ledger_entry import LedgerEntry
from sweeps.core.store.study_record import FORMAT_VERSION, StudyRecord, TrialRecord

M, SEG = "val/cam_miou", "val/seg_miou"
FACTOR = "method.aux_block"
CONFIG = {
    "data": {"name": "shapes"},
    "method": {
        "name": "toco",
        "aux_block": 9,
        "ptc": {"weight": 8.0, "start_step": 0},
        "ema_decay": 0.9,
    },
    "evaluate": {"background_threshold": 0.5},
    "num_steps": 160,
    "evaluate_every": 80,
    "batch_size": 16,
    "seed": 0,
    "device": "cpu",
}
PROVENANCE = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "versions": {
        "python": "3.11.9",
        "toco": "1.0",
        "torch": "2.13.0",
        "timm": "1.0.20",
        "numpy": "2.2.0",
    },
    "platform": "Linux-6.1-x86_64",
    "device": "CPU x86_64",
    "num_threads": 1,
    "data_manifest": {"train": "aa", "val": "bb"},
    "weights_sha256": None,
    "started": "2026-01-01T00:00:00+00:00",
}


def make_study(
    values_by_row: Mapping[str, Sequence[float]],
    *,
    blocks: Sequence[tuple[Block, Sequence[str]]] | None = None,
    more: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    metrics: Sequence[Metric] = (Metric(M, "M"),),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    factors: tuple[str, ...] = (FACTOR,),
    paper: Paper | None = None,
    published: Mapping[str, str] | None = None,
    versus: Mapping[str, str | None] | None = None,
    states: Mapping[tuple[str, int], str] | None = None,
    amend: Mapping[str, Mapping[str, Any]] | None = None,
    **fields: Any,
) -> StudyRecord:
    """A study with these values of its first metric, by seed 0, 1, 2... of each row.

    Args:
        values_by_row: The first row is the base of the others; a row with the label ``BASE_AGAIN``
            is the base once more.
        blocks: Blocks with the labels of their rows, the base of each first; a label in several
            blocks is one cell. One block with all rows where none is given.
        more: Values of further metrics, by key and row; columns of those keys are added.
        changes: What each row has different, by dotted path; rows are numbered in ``FACTOR`` where
            none is given.
        factors: Paths that vary in the one block.
        paper: Published table beside the one block; its rows stand beside ours of the same label.
        published: Label of the published row where it is not our own.
        versus: Row each row is compared with, where it is not the first of its block.
        states: Trials, by row and place among the seeds, that did not finish: ``failed``,
            ``diverged``, ``running``, ``waiting``.
        amend: Parts of the ledger's entries, by row, that are different from the others'.
        fields: Of ``StudyRecord``.
    """
    columns = (*metrics, *(Metric(key, key.rpartition("/")[2]) for key in more or {}))
    if blocks is None:
        block = Block("Row", (), factors, (columns[0].key,), paper)
        blocks = [(block, [label for label in values_by_row if label != BASE_AGAIN])]
    path = fields.pop("path", Path("results/fake-01234567"))
    base = next(iter(values_by_row))
    changes = {label: {FACTOR: number} for number, label in enumerate(values_by_row)} | dict(
        changes or {}
    )
    changes[BASE_AGAIN] = changes[base]
    seeds = tuple(range(len(values_by_row[base])))
    cells: dict[str, Cell] = {}
    trials_by_cell: list[tuple[TrialRecord, ...]] = []
    for label, values in values_by_row.items():
        trials = []
        for replicate, value in enumerate(values):
            seed = replicate + (len(seeds) if label == BASE_AGAIN else 0)
            numbers = {columns[0].key: value} | {
                key: rows[label][replicate] for key, rows in (more or {}).items()
            }
            state = (states or {}).get((label, replicate), "finished")
            trials.append(
                _trial(
                    path,
                    label,
                    seed,
                    replicate,
                    state,
                    numbers,
                    changes[label],
                    (amend or {}).get(label, {}),
                )
            )
        cells[label] = Cell(
            label,
            changes[label],
            tuple(trial.seed for trial in trials),
            tuple(trial.key for trial in trials),
        )
        trials_by_cell.append(tuple(trials))
    number_of = {label: number for number, label in enumerate(cells)}
    rows: list[PlannedRow] = []
    for number, (block, labels) in enumerate(blocks):
        first = len(rows)
        for label in labels:
            against = (versus or {}).get(label, labels[0] if label != labels[0] else None)
            place = None if against is None else first + list(labels).index(against)
            known = [row.label for row in block.paper.rows] if block.paper else []
            beside = (published or {}).get(label, label)
            row = beside if beside in known else None
            rows.append(
                PlannedRow(
                    len(rows),
                    number,
                    label,
                    number_of[label],
                    place,
                    "base" if place is None else "row",
                    row,
                )
            )
    if BASE_AGAIN in values_by_row:
        rows.append(PlannedRow(len(rows), 0, BASE_AGAIN, number_of[BASE_AGAIN], 0, "a/a", None))
    record = {
        "format_version": FORMAT_VERSION,
        "start_id": "0" * 32,
        "path": path,
        "trials_by_cell": tuple(trials_by_cell),
        "name": "fake",
        "title": "Fake trainings",
        "recipe": "shapes_nano",
        "data": "shapes",
        "digest": "0123456789abcdef",
        "changes": {},
        "design": "one factor at a time",
        "notes": (),
        "seeds": seeds,
        "purpose": "effect",
        "significance": 0.05,
        "power": 0.8,
        "smallest_effect": 0.005,
        "metrics": columns,
        "blocks": tuple(block for block, _ in blocks),
        "rows": tuple(rows),
        "cells": tuple(cells.values()),
        "inputs": (),
        "forecast": None,
        "eta_s": None,
        "running": False,
        "mlflow": None,
    }
    return StudyRecord(**{**record, **fields})


def _trial(
    path: Path,
    label: str,
    seed: int,
    replicate: int,
    state: str,
    numbers: Mapping[str, float],
    changes: Mapping[str, Any],
    amend: Mapping[str, Any],
) -> TrialRecord:
    key = hashlib.sha256(f"{label}/{seed}".encode()).hexdigest()[:20]
    run_dir = path.parent / "runs" / key
    if state not in ("finished", "diverged"):
        message = (
            "Traceback (most recent call last):\nMemoryError: none left"
            if state == "failed"
            else None
        )
        return TrialRecord(
            key, seed, replicate, state, message, int(state == "failed"), 40, None, run_dir
        )
    config = copy.deepcopy(CONFIG)
    for dotted, value in {**changes, "seed": seed}.items():
        *parents, leaf = dotted.split(".")
        node = config
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    message = None if state == "finished" else "ptc is nan after step 40."
    entry = {
        "key": key,
        "training_key": key[::-1],
        "status": state,
        "step": 160 if state == "finished" else 40,
        "attempts": 0,
        "message": message,
        "identity": {
            "config": "c" * 16,
            "training_config": "d" * 16,
            "code": {"toco.train.loop": "1" * 16, "toco.losses.ptc": "2" * 16},
            "data": {"train": "aa", "val": "bb"},
            "weights": None,
            "versions": {"torch": "2.13", "timm": "1.0"},
            "seed": seed,
        },
        "config": config,
        "metrics": dict(numbers) if state == "finished" else {},
        "wall_time_s": 60.0,
        "step_time_s": 0.3,
        "peak_memory_bytes": 500_000_000,
        "provenance": copy.deepcopy(PROVENANCE),
        "resources": {"cpus": 1.0, "gpus": 0.0, "world_size": 1},
        "origin": {
            "study": "fake",
            "recipe": "shapes_nano",
            "search": False,
            "derived_from": None,
            "forked_at": None,
        },
        "run": f"runs/{key}",
    }
    merged = LedgerEntry.model_validate(_merged(entry, amend))
    return TrialRecord(key, seed, replicate, state, message, 0, merged.step, merged, run_dir)


def _merged(content: dict[str, Any], amend: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in amend.items():
        content[name] = (
            _merged(content.get(name, {}), value) if isinstance(value, Mapping) else value
        )
    return content
