"""Headless Chromium for tests of pages, by its debugging protocol over a pipe, without a port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

#: Names of Chromium on the systems of continuous integration.
_NAMES = ("chromium", "chromium-browser", "google-chrome")
#: A page alone: no sandbox (containers), no GPU, no service of the browser that uses the network.
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--disable-extensions", "--mute-audio", "--hide-scrollbars"),
    "--remote-debugging-pipe",
]


def find_browser() -> str:
    """Return the path of Chromium; skip the test if there is none."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no browser ({', '.join(_NAMES)})")


class Browser:
    """One page in headless Chromium.

    Attributes:
        messages: errors and warnings of the console, and exceptions, in order.
        requests: the addresses that the page requested.
    """

    def __init__(self, width: int = 1200, height: int = 900) -> None:
        browser = find_browser()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._pending = b""
        self._count = 0
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # the protocol uses the descriptors 3 and 4
        redirect = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        flags = [*_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", browser, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _receive(self, timeout: float = 60.0) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._pending += part
        content, _, self._pending = self._pending.partition(b"\0")
        message = json.loads(content)
        self._record(message.get("method", ""), message.get("params", {}))
        return message

    def _record(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.messages.append(str([a.get("value") for a in params["args"]]))
        elif event == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, file: Path) -> None:
        """Open a file and wait until its scripts have run; forget messages of others."""
        self.messages.clear()
        self.requests.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, or of its promise."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, timeout: float = 30.0) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + timeout
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"expected {condition} within {timeout} s"
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait for the next two frames."""
        frame = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.evaluate(f"{frame}.then(() => true)")

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window."""
        metrics = {"deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **metrics)

    def use_dark(self, dark: bool) -> None:
        """Choose dark or light colours."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Press, move or release the left button, a ``kind`` of ``pressed|moved|released``."""
        options: dict[str, Any] = {"button": "left", "buttons": int(kind != "released")}
        options |= {"type": f"mouse{kind.title()}", "x": x, "y": y, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", **options)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key, such as ``ArrowRight`` with the key code 39."""
        options: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **options)
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(picture["data"]))
