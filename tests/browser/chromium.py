"""A headless Chromium for tests, driven through its own WebDriver server with the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
WATCH = """
window.happened = [];
for (const name of ["alert", "confirm", "prompt", "print", "open"])
  window[name] = () => window.happened.push("called " + name);
document.addEventListener("securitypolicyviolation", e => window.happened.push("wanted " + e.blockedURI));
window.addEventListener("error", e => window.happened.push("failed " + e.message), true);
"""
"""Run before a page's own content: what it should never do is written down."""


class Missing(Exception):
    """What is not installed."""


class Browser:
    """One tab. ``run`` evaluates JavaScript in it, which the page's own policy does not hinder."""

    def __init__(self, session: str) -> None:
        self._session = session

    def command(self, name: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol."""
        return _post(f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, page: Path, *, width: int = 1100, height: int = 900, scheme: str = "light") -> None:
        """Loads a file in a window of this size; ``scheme`` is light or dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **metrics)
        self.requests()
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", features=features)
        _post(f"{self._session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What ``script`` (the body of a function) returns."""
        return _post(f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def requests(self) -> list[str]:
        """Addresses that the page asked for, its own among them; the next call begins anew."""
        entries = _post(f"{self._session}/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def picture(self, path: Path, top: int = 0, height: int = 1400) -> None:
        """A part of the page as PNG, as wide as the window."""
        clip = {"x": 0, "y": top, "width": self.run("return innerWidth"), "height": height, "scale": 1}
        made = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(made["data"]))

    def paper(self, path: Path) -> None:
        """The page as it is printed on A4."""
        made = self.command("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        path.write_bytes(base64.b64decode(made["data"]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with an empty profile that ends with the block. Raises Missing where none is installed."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        raise Missing("no Chromium is installed" if binary is None else "no chromedriver is installed")
    with tempfile.TemporaryDirectory() as profile:
        log = Path(profile, "driver.log")
        with log.open("wb") as stream:
            server = subprocess.Popen([driver, "--port=0"], stdout=stream, stderr=subprocess.STDOUT, env=os.environ)
        try:
            address = f"http://127.0.0.1:{_port(log, server)}/session"
            session = f"{address}/{_begin(address, binary, profile)}"
            try:
                browser = Browser(session)
                _post(f"{session}/url", {"url": "about:blank"})
                browser.command("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
                yield browser
            finally:
                _ask(urllib.request.Request(session, method="DELETE"))
        finally:
            server.terminate()
            server.wait(timeout=30)


def _port(log: Path, server: subprocess.Popen[bytes]) -> int:
    """The port that the server chose, from what it says when it is ready."""
    import re
    import time

    for _ in range(600):
        found = re.search(r"started successfully on port (\d+)", log.read_text(errors="replace"))
        if found:
            return int(found[1])
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"chromedriver did not start: {log.read_text(errors='replace')}")


def _begin(address: str, binary: str, profile: str) -> str:
    options = {"binary": binary, "args": [*SWITCHES, f"--user-data-dir={profile}/profile"]}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
    made = _post(address, {"capabilities": {"alwaysMatch": wanted}})
    return str(made["sessionId"])


def _post(address: str, data: Any) -> Any:
    body = json.dumps(data).encode()
    return _ask(urllib.request.Request(address, body, {"Content-Type": "application/json"}))


def _ask(request: urllib.request.Request) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode(errors="replace")[:2000]) from None
