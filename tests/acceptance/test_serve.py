"""`lora-foundry serve --with-worker` as a user starts and stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from tests.commands import Commands

TOKEN = "a-token-of-this-test"


@contextmanager
def started(
    home: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The process and the lines it printed until it said where it serves."""
    command = (sys.executable, "-m", "lora_foundry", "serve", "--port", "0", "--home", str(home), *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stdout is not None
    lines = []
    try:
        while not lines or not lines[-1].startswith("Serving "):
            line = process.stdout.readline()
            assert line, "the server ended before it served"
            lines.append(line.strip())
        yield process, lines
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()
        process.stdout.close()


def ask(address: str, path: str, **options: object) -> requests.Response:
    """Asks until the server answers at all."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return requests.get(address + path, timeout=20, **options)  # type: ignore[arg-type]
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_server_and_worker_start_work_and_end_together(home: Path) -> None:
    with started(home, "--with-worker") as (process, lines):
        assert not [line for line in lines if "Token" in line], "loopback needs none"
        address = lines[-1].split()[1]
        assert ask(address, "/api/v1/health").json()["status"] == "ok"
        deadline = time.monotonic() + 60
        while not ask(address, "/api/v1/system").json()["workers"]:
            assert time.monotonic() < deadline, "no worker came"
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        with requests.get(f"{address}/api/v1/events", stream=True, timeout=20) as stream:
            assert next(stream.iter_lines()) == b"retry: 1000"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert not [child for child in children if child.is_running() and child.status() != "zombie"]


@pytest.mark.parametrize("own", [True, False])
def test_another_address_needs_a_token_that_is_printed_once_only_if_it_was_made(
    commands: Commands, home: Path, own: bool
) -> None:
    words = ("serve", "--port", "0", "--home", str(home), "--host", "0.0.0.0")
    serving = commands.start(*words, environment={"LORA_FOUNDRY_TOKEN": TOKEN} if own else {})
    try:
        while not (lines := serving.stdout.read_text().splitlines()) or not lines[-1].startswith("Serving "):
            assert serving.returncode is None, "the server ended before it served"
            time.sleep(0.05)
        printed = [line.split(": ")[1] for line in lines if line.startswith("Token")]
        assert len(printed) == (0 if own else 1)
        token = TOKEN if own else printed[0]
        address = lines[-1].split()[1]
        assert ask(address, "/api/v1/pipelines").status_code == 401
        assert (
            ask(address, "/api/v1/pipelines", headers={"authorization": f"Bearer {token}"}).status_code == 200
        )
    finally:
        serving.kill()
        serving.wait()


def test_a_port_that_is_taken_is_one_sentence(commands: Commands, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = str(first.getsockname()[1])
        second = commands.run("serve", "--port", port, "--home", str(home), environment={})
    assert second.returncode == 2
    assert f"Port {port} of 127.0.0.1 is not free" in second.stderr


def test_a_second_ctrl_c_ends_it_without_a_traceback(commands: Commands, home: Path) -> None:
    serving = commands.start("serve", "--port", "0", "--home", str(home), environment={})
    try:
        while "Serving " not in (said := serving.stdout.read_text()):
            assert serving.returncode is None, "the server ended before it served"
            time.sleep(0.05)
        assert ask(said.split()[1], "/api/v1/health").status_code == 200
        for _ in range(2):
            serving.send_signal(signal.SIGINT)
            time.sleep(0.02)  # two that wait at once are one
        ended = serving.done()
    finally:
        serving.kill()
    assert (ended.returncode, ended.stderr) == (0, "")
