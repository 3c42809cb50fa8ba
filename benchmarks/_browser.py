"""A page in headless Chromium: how long it takes to open, what it does when clicked, how it looks."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

PORT_FILE = "DevToolsActivePort"
_START_S, _LOAD_S = 30.0, 120.0


async def ask(page: Path, scripts: list[str], picture: Path | None = None, height: int = 1200) -> list[Any]:
    """Open ``page``, run ``scripts`` one after the other in it, and return what they return.

    Raises:
        ValueError: There is no Chromium, it does not start, or a script fails.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise ValueError("Expected chromium or google-chrome on the PATH to open the page; found neither.")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--hide-scrollbars"]
        browser = await asyncio.create_subprocess_exec(
            chromium,
            *options,
            f"--user-data-dir={profile}",
            f"--window-size=1280,{height}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_START_S):
                while not (Path(profile) / PORT_FILE).is_file():
                    await asyncio.sleep(0.05)
            port = (Path(profile) / PORT_FILE).read_text().split()[0]
            async with aiohttp.ClientSession() as session, asyncio.timeout(_LOAD_S):
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    target = next(tab for tab in await answer.json() if tab["type"] == "page")
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as tab:
                    return await _talk(_Tab(tab), page, scripts, picture)
        except TimeoutError:
            raise ValueError(f"{chromium} did not start, or did not open {page}, in time.") from None
        finally:
            browser.terminate()
            await browser.wait()


class _Tab:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        return await self._until(lambda message: message.get("id") == self._number)

    async def event(self, name: str) -> None:
        await self._until(lambda message: message.get("method") == name)

    async def _until(self, found: Any) -> dict[str, Any]:  # noqa: ANN401 - a predicate
        while True:
            message = json.loads((await self._socket.receive()).data)
            if found(message):
                return dict(message)


async def _talk(tab: _Tab, page: Path, scripts: list[str], picture: Path | None) -> list[Any]:
    await tab.call("Page.enable")
    await tab.call("Page.navigate", url=page.resolve().as_uri())
    await tab.event("Page.loadEventFired")
    answers = []
    for script in scripts:
        answer = await tab.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer["result"]:
            raise ValueError(f"The page's answer to {script!r} is an error: {answer['result']['exceptionDetails']}.")
        answers.append(answer["result"]["result"].get("value"))
    if picture is not None:
        shot = await tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        picture.write_bytes(base64.b64decode(shot["result"]["data"]))
    return answers
