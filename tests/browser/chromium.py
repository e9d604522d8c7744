"""Finds a Chromium for the browser tests, or gets one: an installed one first, then Debian's package, then
Playwright's own. `python -m tests.browser.chromium` is what `make test` calls before the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")  # fmt: skip


def find_chromium() -> str | None:
    """The path of a Chromium that is there: the system's, else the one that Playwright downloaded."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def get_chromium() -> str | None:
    """`find_chromium`, after trying to install one where there is none."""
    ways = [[sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        ways = [
            ["apt-get", "update"],
            ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"],
            *ways,
        ]
    for command in ways:
        if found := find_chromium():
            return found
        print("$", " ".join(command), flush=True)
        try:
            subprocess.run(
                command, check=False, timeout=600, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            print(error)
    return find_chromium()


def main() -> None:
    """Says what the tests will use; in CI, a machine without a browser is a failure."""
    found = get_chromium()
    if found is not None:
        print(f"Browser tests use {found}")
        return
    print("*" * 100, "NO BROWSER: the tests of the dashboard will be SKIPPED. Install Chromium to run them.", "*" * 100,
          sep="\n", file=sys.stderr)  # fmt: skip
    if os.environ.get("CI"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
