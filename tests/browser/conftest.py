"""A real server with a real worker, and a real Chromium that looks at it. Without a browser these tests are skipped,
loudly, and where CI is set they fail: see tests/browser/chromium.py for how to get one."""

from __future__ import annotations

import io
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.browser.chromium import FLAGS, find_chromium
from tests.commands import Running, fork_server
from tests.painted import paint

PATIENCE = 60_000  # ms, for what a page does by itself
STAGES = (
    300_000  # ms, for whole stages: each starts a process that loads torch, and other tests may do the same
)
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
NO_BROWSER = (
    "NO BROWSER: install Chromium (Debian: apt install chromium), or `python -m playwright install chromium`."
)


class Server:
    """`lora-foundry serve` in a process of its own, on a port that stays the same when it is started again."""

    def __init__(self, home: Path, *options: str, token: str = "") -> None:
        self.home, self._options, self._token = home, options, token
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: Running | None = None

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        words = ["serve", "--home", str(self.home), "--port", str(self._port), *self._options]
        environment = {"OMP_NUM_THREADS": "1", "LORA_FOUNDRY_TOKEN": self._token or None}
        log = self.home / "server.log"
        self._process = Running(fork_server(), words, environment, log, log)
        end = time.monotonic() + PATIENCE / 1000
        while not self._answers():
            assert self._process.returncode is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def cpu_seconds(self) -> float:
        """What its own process has computed so far."""
        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _takes_connections(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
        except ConnectionRefusedError:
            return False
        return True

    def stop(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """As a service manager does; nothing may be left behind. meanwhile: is done when it takes no new connection."""
        if self._process is None:
            return
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        while self._takes_connections():
            time.sleep(0.05)
        meanwhile()
        self._process.wait(120)
        self._process = None
        assert psutil.wait_procs(children, timeout=1)[1] == [], "a worker outlived its server"

    def log(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one module: Playwright keeps an event loop running, which other tests' asyncio.run() would meet.

    Where there is no browser: a loud skip, or in CI a failure."""
    path = find_chromium()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(NO_BROWSER)
        pytest.skip(NO_BROWSER)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS), timeout=PATIENCE)
        yield chromium
        chromium.close()


class Faults(list[str]):
    """What a page complained of: uncaught errors, and whatever the content policy had to stop."""

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.append(f"{page.url}: {error}"))
        page.on("console", self._read)

    def _read(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text or message.type == "assert":
            self.append(message.text)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages; afterwards none of them may have complained."""
    contexts: list[BrowserContext] = []
    faults = Faults()

    def open_(address: str, **options: Any) -> Page:
        context = browser.new_context(**({"viewport": WIDE} | options))
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        faults.watch(page)
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="session")
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    """The folder of --screenshots."""
    folder = request.config.getoption("--screenshots")
    return Path(folder) if folder else None


def png(seed: int, side: int = 96) -> bytes:
    """A small picture as a file."""
    out = io.BytesIO()
    paint(seed, (side, side)).save(out, "PNG")
    return out.getvalue()


def settled(page: Page) -> Page:
    """The page, once it shows what it asked for."""
    page.locator("main:not([aria-busy=true])").wait_for()
    return page


def write_picture(page: Page, folder: Path, name: str) -> None:
    """A screenshot as WebP, which is a fifth of a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    page.evaluate("""() => Promise.all([...document.images].filter((image) => image.getAttribute("src")
        && image.getBoundingClientRect().top < innerHeight).map((image) => image.decode().catch(() => {})))""")
    with Image.open(io.BytesIO(page.screenshot(animations="disabled"))) as picture:
        picture.convert("RGB").save(folder / f"{name}.webp", quality=82, method=6)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skip of this kind must not drown among others."""
    if any(NO_BROWSER in str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_sep("*", NO_BROWSER, red=True, bold=True)
