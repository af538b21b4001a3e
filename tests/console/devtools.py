"""A browser without a window that a test drives: it opens pages, looks, types, takes pictures."""

import asyncio
import base64
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from ..processes import STOP_S, spawn
from ..sdk.browser import QUIET

SEEN_S = 30.0


class Tab:
    """One page of a browser; `problems` are the errors that it has reported."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.problems: list[str] = []

    async def listen(self) -> None:
        """Take in what the browser says, for as long as it does."""
        async for message in self._socket:
            said = message.json()
            waiting = self._waiting.pop(said.get("id", 0), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(said)
            self._note(said.get("method", ""), said.get("params", {}))

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    async def call(self, method: str, **words: Any) -> Any:
        """Return the result of a method of the DevTools protocol."""
        number = next(self._ids)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": words})
        async with asyncio.timeout(SEEN_S):
            said = await answer
        assert "error" not in said, (method, said["error"])
        return said["result"]

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.call("Page.navigate", url=url)

    async def ask(self, expression: str) -> Any:
        """Return what an expression is in the page."""
        said = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in said, (expression, said["exceptionDetails"])
        return said["result"].get("value")

    async def see(self, expression: str, what: str = "", timeout_s: float = SEEN_S) -> None:
        """Wait until an expression is true in the page, also over a reload."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(AssertionError):  # between two pages there is nothing to ask
                if await self.ask(f"Boolean({expression})"):
                    return
            if time.monotonic() > deadline:
                shown = await self.ask("document.body.innerText.slice(0, 3000)")
                raise AssertionError(f"{what or expression}\n{shown}\n{self.problems}")
            await asyncio.sleep(0.02)

    async def text(self, selector: str) -> str:
        """Return the text of an element as it is rendered."""
        return str(await self.ask(f"document.querySelector({selector!r}).innerText"))

    async def click(self, selector: str) -> None:
        """Click an element."""
        await self.ask(f"document.querySelector({selector!r}).click()")

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Press one key, such as Tab or Enter."""
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        letters = {"text": "\r"} if key == "Enter" else {"text": key} if key == " " else {}
        word = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **word, **letters)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **word)

    async def look(
        self, width: int, height: int, *, dark: bool = False, still: bool = True
    ) -> None:
        """Be a screen of a size, light or dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        said = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(said["data"]))


@asynccontextmanager
async def browser(program: Path, folder: Path) -> AsyncIterator[Tab]:
    """Start a browser of its own and hand out its page; it ends with the context."""
    profile, log = folder / "profile", folder / "browser.log"
    command = [str(program), *QUIET, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = spawn([*command, "about:blank"], folder, log, {}, start_new_session=True)
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(await _page(session, profile), max_msg_size=0) as socket,
            asyncio.TaskGroup() as tasks,
        ):
            tab = Tab(socket)
            listening = tasks.create_task(tab.listen())
            for domain in ("Page", "Runtime", "Log"):
                await tab.call(f"{domain}.enable")
            yield tab
            listening.cancel()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it is many processes, all of this group
        process.wait(STOP_S)


async def _page(session: aiohttp.ClientSession, profile: Path) -> str:
    """Return the address at which the browser's first page can be driven."""
    port = profile / "DevToolsActivePort"
    async with asyncio.timeout(SEEN_S):
        while not (port.exists() and port.read_text().count("\n")):
            await asyncio.sleep(0.02)
        while True:
            url = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json/list"
            async with session.get(url) as answer:
                pages = [one for one in await answer.json() if one["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
            await asyncio.sleep(0.02)
