"""A page in headless Chromium, driven over a pipe by the DevTools protocol."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

__all__ = ["CHROMIUM", "ChromiumPage"]

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_TIMEOUT_S = 60


class ChromiumPage:
    """One page; what it logs and requests is in ``errors`` and ``requests``."""

    def __init__(self, folder: Path) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._answers: dict[int, dict] = {}
        self._num_sent, self._unread = 0, b""
        read, theirs_out = os.pipe()
        theirs_in, self._write = os.pipe()
        self._read = read
        words = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking", f"--user-data-dir={folder}",
            "--remote-debugging-pipe", "--no-first-run", "about:blank",
        ]  # fmt: skip
        # Chromium reads from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words], pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        (target,) = [info["targetId"] for info in targets if info["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def call(self, method: str, **parameters) -> dict:
        """Call a method of the protocol and return its result."""
        self._num_sent += 1
        number = self._num_sent
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT_S
        while number not in self._answers:
            self._receive(deadline)
        answer = self._answers.pop(number)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self, deadline: float) -> None:
        ready = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))[0]
        content = os.read(self._read, 1 << 20) if ready else b""
        assert content, "Chromium does not answer"
        *messages, self._unread = (self._unread + content).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, event: dict) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.errors.append(json.dumps(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(event["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"][:200])

    def open(self, path: Path, *, width: int = 1280, is_dark: bool = False) -> None:
        """Open a file, and wait until its scripts have run."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + _TIMEOUT_S
        while self.run("document.documentElement?.dataset.ready") != "true":
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.05)

    def run(self, script: str) -> object:
        """Return the JSON value of an expression."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def screenshot(self, output: Path) -> None:
        """Write the whole page as a PNG file."""
        import base64

        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        output.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(_TIMEOUT_S)
        os.close(self._read)
        os.close(self._write)
