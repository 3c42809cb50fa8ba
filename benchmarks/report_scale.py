"""How large the page of a study of 50,000 trials is, and how long it takes to write, to open and to use.

    python -m benchmarks report-scale --out benchmarks/results/report_scale.json

Makes a ledger of invented results up, writes the study's report, and opens the page in headless Chromium a few times.
Hardware: one CPU core, 300 MB of disk. Needs Chromium, and Playwright, which `pip install -e '.[dev]'` installs.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks._chromium import chromium
from benchmarks._record import out_option, write
from sweeps.core.design.study import A_A
from sweeps.core.report import write_report
from sweeps.core.store.ledger_entry import FORMAT_VERSION as LEDGER_FORMAT
from sweeps.core.store.study_record import FORMAT_VERSION
from toco.files import write_record

LIMIT_S, LIMIT_BYTES = 3.0, 20_000_000
LOAD_MS = 120_000
METRICS = {"val/cam_miou": "M", "val/aux_cam_miou": "M_m", "val/seg_miou": "Seg"}
SEEDS = 3

OPENED = "(performance.timing.loadEventEnd - performance.timing.navigationStart) / 1000"
TIMED = """(async () => {{
  const begun = performance.now();
  {act};
  while (!({done})) await new Promise((resolve) => setTimeout(resolve, 1));
  document.body.getBoundingClientRect();
  return (performance.now() - begun) / 1000;
}})()"""
EXPAND = TIMED.format(
    act="document.querySelector('button[data-row]').click()", done="document.querySelector('.detail table')"
)
TURN = TIMED.format(
    act="document.querySelector('.pager button[value=\"1\"]').click()",
    done="document.querySelector('.pager output').textContent.includes('page 2 ')",
)
FIND = TIMED.format(
    act="const box = document.querySelector('.pager input'); box.value = 'failed'; "
    "box.dispatchEvent(new Event('input'))",
    done="document.querySelector('.pager output').textContent.includes('page 1 ')",
)


@click.command("report-scale", help=__doc__)
@click.option("--trials", default=50_000, show_default=True, help="Trials of the study, three for every row.")
@click.option("--times", default=5, show_default=True, help="How often the page is opened.")
@out_option
def report_scale(trials: int, times: int, out: Path | None) -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as folder:
        study_dir = make_up(Path(folder), trials)
        begun = time.perf_counter()
        report = write_report(study_dir)
        written_s = time.perf_counter() - begun
        details = [path.stat().st_size for path in (study_dir / "details").glob("*.js")]
        opened = [use(report.page) for _ in range(times)]
        numbers: dict[str, Any] = {
            "trials": trials,
            "page_bytes": report.page.stat().st_size,
            "details_files": len(details),
            "details_bytes": sum(details),
            "largest_details_file_bytes": max(details, default=0),
            "write_report_s": round(written_s, 2),
            "times": times,
        }
    for name, values in zip(
        ("open_s", "expand_row_s", "turn_page_s", "find_s"), zip(*opened, strict=True), strict=True
    ):
        numbers[name] = {"median": round(statistics.median(values), 3), "longest": round(max(values), 3)}
    write(out, "report-scale", numbers)
    click.echo(json.dumps(numbers, indent=2))
    if numbers["open_s"]["longest"] >= LIMIT_S or numbers["page_bytes"] >= LIMIT_BYTES:
        raise click.ClickException(f"Expected less than {LIMIT_S} s and {LIMIT_BYTES} bytes.")


def use(page: Path) -> list[float]:
    """Open a page in a new browser, open a row, turn to the next page and find a word; the seconds of each."""
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 1200})
        tab.goto(page.resolve().as_uri(), timeout=LOAD_MS)
        return [float(tab.evaluate(script)) for script in (OPENED, EXPAND, TURN, FIND)]


def make_up(storage: Path, trials: int) -> Path:
    """A ledger and a study's folder with a base, rows in one factor, and the base again; one trial in 100 failed."""
    draw = random.Random(0)  # noqa: S311 - invented results
    num_rows = trials // SEEDS
    cells, rows = [], []
    for number in range(num_rows):
        again = number == num_rows - 1
        changes = {"method.ptc.weight": 0.2 if again else 0.2 + number / 100}
        seeds = [seed + SEEDS * again for seed in range(SEEDS)]
        keys = [hashlib.sha256(f"{number}/{seed}".encode()).hexdigest()[:20] for seed in seeds]
        label = A_A if again else f"weight {changes['method.ptc.weight']:.2f}"
        cells.append({"label": label, "changes": changes, "seeds": seeds, "keys": keys})
        role = "a/a" if again else "row" if number else "base"
        rows.append(
            {
                "block": 0,
                "label": label,
                "cell": number,
                "versus": 0 if number else None,
                "role": role,
                "paper_row": None,
            }
        )
        level = 0.5 + 0.1 * draw.random()
        for seed, key in zip(seeds, keys, strict=True):
            write_trial(storage / "ledger" / key[:2], key, seed, changes, draw, level)
    study = {
        "format_version": FORMAT_VERSION,
        "start_id": "0" * 32,
        "name": "scale",
        "title": f"{trials} invented trials",
        "digest": "0" * 16,
        "recipe": "shapes_nano",
        "changes": {},
        "data": "shapes",
        "design": "one factor at a time",
        "notes": [],
        "seeds": list(range(SEEDS)),
        "purpose": "direction",
        "significance": 0.05,
        "power": 0.8,
        "smallest_effect": 0.005,
        "metrics": [{"key": key, "title": title, "higher_is_better": True} for key, title in METRICS.items()],
        "blocks": [{"title": "weight", "factors": ["method.ptc.weight"], "metrics": ["val/cam_miou"], "paper": None}],
        "rows": rows,
        "cells": cells,
        "inputs": [],
        "forecast": None,
    }
    study_dir = storage / "scale-00000000"
    study_dir.mkdir()
    write_record(study_dir / "study.json", study, durable=False)
    return study_dir


def write_trial(
    folder: Path, key: str, seed: int, changes: dict[str, float], draw: random.Random, level: float
) -> None:
    """An entry of the ledger, or the failure of a trial; as the ledger writes them, but without waiting for a disk."""
    head = {"format_version": LEDGER_FORMAT, "key": key}
    if draw.random() < 0.01:
        trace = "Traceback:\n" + "  a line\n" * 20 + "MemoryError"
        failure = {**head, "time": "", "host": "", "reason": "MemoryError", "traceback": trace}
        write_record(folder / f"{key}.failures" / "1.json", failure, durable=False)
        return
    config: dict[str, Any] = {
        "seed": seed,
        "num_steps": 160,
        "method": {"ptc": {"weight": changes["method.ptc.weight"]}},
    }
    config["method"] |= {f"field_{number}": number for number in range(60)}
    identity: dict[str, Any] = {
        "config": key,
        "training_config": key,
        "code": {"toco.train.loop": "1" * 16},
        "weights": None,
    }
    identity |= {"data": {"train": "a", "val": "b"}, "versions": {"torch": "2.13", "timm": "1.0"}, "seed": seed}
    versions = {"python": "3.11", "toco": "0.1", "torch": "2.13", "timm": "1.0"}
    provenance = {"commit": "0" * 40, "dirty": False, "versions": versions, "platform": "Linux", "device": "CPU"}
    provenance |= {"num_threads": 1, "data_manifest": {"train": "a", "val": "b"}, "weights_sha256": None}
    entry = {
        **head,
        "training_key": key,
        "status": "finished",
        "step": 160,
        "attempts": 0,
        "message": None,
        "identity": identity,
        "config": config,
        "metrics": {metric: level + 0.02 * draw.gauss(0, 1) for metric in METRICS},
        "wall_time_s": 60.0,
        "step_time_s": 0.3,
        "peak_memory_bytes": 500_000_000,
        "provenance": {**provenance, "started": "2026-01-01T00:00:00+00:00"},
        "resources": {"cpus": 1.0, "gpus": 0.0, "world_size": 1},
        "origin": {"study": "scale", "recipe": "shapes_nano", "search": False, "derived_from": None, "forked_at": None},
        "run": f"runs/{key}",
    }
    write_record(folder / f"{key}.json", entry, durable=False)
