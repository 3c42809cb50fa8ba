"""Measure size and speed of the page of a study of 50,000 trials.

    python -m benchmarks report-scale --out benchmarks/results/report_scale.json

The benchmark fills a ledger with invented results, of which one in 100 is a failure, writes the
study's report, and opens the page in headless Chromium a few times. Hardware: one CPU core, 1 GB of
disk. It needs Chromium, and Playwright, which `pip install -e '.[dev]'` installs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks._chromium import chromium
from benchmarks._frame import benchmark
from benchmarks._invented import fill
from sweeps.core.report import write_report

# Goals of the page, to open and in size.
LIMIT_S, LIMIT_BYTES = 3.0, 20_000_000
# Far above the goal, so that a slow page is measured and not aborted.
LOAD_MS = 120_000
SEEDS, SHARE_FAILED = 3, 0.01

OPENED = "(performance.timing.loadEventEnd - performance.timing.navigationStart) / 1000"
TIMED = """(async () => {{
  const begun = performance.now();
  {act};
  while (!({done})) await new Promise((resolve) => setTimeout(resolve, 1));
  document.body.getBoundingClientRect();
  return (performance.now() - begun) / 1000;
}})()"""
EXPAND = TIMED.format(
    act="document.querySelector('button[data-row]').click()",
    done="document.querySelector('.detail table')",
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


@benchmark(times=5, device=None)
@click.option(
    "--trials", default=50_000, show_default=True, help="Trials of the study, three for every row."
)
def report_scale(trials: int, times: int) -> dict[str, Any]:
    """Write the report, and time its page in a browser."""
    with tempfile.TemporaryDirectory() as folder:
        situation = fill(
            Path(folder, "study.py"), Path(folder, "storage"), trials, SEEDS, SHARE_FAILED
        )
        situation.write()
        started = time.perf_counter()
        page = write_report(situation.path).page
        written_s = time.perf_counter() - started
        details = [path.stat().st_size for path in (page.parent / "details").glob("*.js")]
        page_bytes = page.stat().st_size
        opened = zip(*(use(page) for _ in range(times)), strict=True)
    seconds = dict(zip(("open_s", "expand_row_s", "turn_page_s", "find_s"), opened, strict=True))
    if max(seconds["open_s"]) >= LIMIT_S or page_bytes >= LIMIT_BYTES:
        measured = f"{max(seconds['open_s']):.3g} s and {page_bytes} bytes"
        raise click.ClickException(
            f"Expected less than {LIMIT_S} s and {LIMIT_BYTES} bytes, got {measured}."
        )
    return {
        "trials": trials,
        "page_bytes": page_bytes,
        "details_files": len(details),
        "details_bytes": sum(details),
        "largest_details_file_bytes": max(details, default=0),
        "write_report_s": round(written_s, 2),
        "times": times,
        **{
            name: {"median": round(statistics.median(values), 3), "longest": round(max(values), 3)}
            for name, values in seconds.items()
        },
    }


def use(page: Path) -> list[float]:
    """Time a page in a new browser: open it, expand a row, turn a page, find a word; seconds."""
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 1200})
        tab.goto(page.resolve().as_uri(), timeout=LOAD_MS)
        return [float(tab.evaluate(script)) for script in (OPENED, EXPAND, TURN, FIND)]
