"""The installed Chromium, driven by Playwright with a temporary profile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Find an installed Chromium or Chrome; Playwright's own browser is not downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless browser.

    Raises:
        ValueError: No Chromium is installed.
    """
    program = find_chromium()
    if program is None:
        raise ValueError(
            "Expected chromium, chromium-browser or google-chrome on the PATH; found none of them."
        )
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=_OPTIONS) as browser,
    ):
        yield browser
