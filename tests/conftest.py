"""What all tests share: no network, a home of their own, small settings for the real miniature model."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck
from hypothesis import settings as examples

from lora_foundry.domain.character import Character
from tests.commands import Commands, fork_server
from tests.disk import wait_for_no_disk
from tests.forked import forking
from tests.homes import ELARA, Homes, make_homes
from tests.turns import CORES, WAITING, a_turn

os.environ["HF_HUB_OFFLINE"] = "1"
wait_for_no_disk()
FAILED = pytest.StashKey[bool]()
# How long an example takes, or its making, says how busy the machine is, and is no test's matter.
examples.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
examples.load_profile("untimed")
# What the tests import are half a million objects that stay: to look through them again and again, while they are
# imported and later in every test, takes a fifth of the import's time.
gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", metavar="DIR", help="Have the browser tests write a picture of each page there."
    )


@pytest.fixture(autouse=True)
def blame_for_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test that failed left open, its own frames hold until another test begins, and that one would fail for it:
    here they are let go of, and the test that failed is told of what it left."""
    yield
    if FAILED in request.node.stash:
        for name in {"last_exc", "last_value", "last_traceback"} & vars(sys).keys():
            delattr(sys, name)
        gc.collect()


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None:
        item.stash[FAILED] = True


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home of Zoë"


@pytest.fixture
def elara() -> Character:
    return ELARA


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run of the tests see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def homes(shared_folder: Path) -> Homes:
    """Copies of one home, before every stage and finished; whichever worker asks first makes them."""
    folder = shared_folder / "homes"
    with FileLock(shared_folder / "homes.lock"):
        return Homes(folder) if folder.exists() else make_homes(folder)


@pytest.fixture
def finished(homes: Homes, home: Path) -> Path:
    """A home of one's own in which Elara's pipeline is completed."""
    return homes.copy(home)


@pytest.fixture(scope="session")
def processes() -> Any:
    return fork_server()


@pytest.fixture
def forked_children() -> Iterator[None]:
    """A worker in the test's own process forks its children, instead of starting an interpreter for each."""
    with forking():
        yield


@pytest.fixture
def commands(processes: Any, tmp_path: Path) -> Commands:
    return Commands(processes, tmp_path / "said")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of `timeout`, which is the test's own
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that computes waits for its turn where there are more workers than cores; one that waits anyway does not."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers <= CORES or item.nodeid.partition("::")[0] in WAITING:
        return (yield)
    assert item.config.cache is not None
    with a_turn(item.config.cache.mkdir("turns"), CORES):  # the same folder for all workers
        return (yield)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests are skipped, by name, where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
