"""What is installed without extras is enough for every module, and what is said about a missing package can be done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from lora_foundry import extras
from lora_foundry.extras import EXTRAS, install_command, missing_package

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
USERS_EXTRAS = PROJECT["optional-dependencies"].keys() - {"dev"}

# Imports every module with all distributions blocked but those named on the command line, and prints what failed how.
WALK = """
import gc, importlib, json, pkgutil, sys
gc.disable()
blocked, failed = set(json.loads(sys.argv[1])), {}

class Without:
    # A finder that does not see what is blocked, as if it were not installed.
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import lora_foundry
for module in pkgutil.walk_packages(lora_foundry.__path__, "lora_foundry."):
    if module.name.endswith("__main__") or ".migrations" in module.name:
        continue
    try:
        importlib.import_module(module.name)
    except Exception as error:
        failed[module.name] = [type(error).__name__, str(error)]
print(json.dumps(failed))
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(requirements: list[str]) -> set[str]:
    """The distributions that these requirements bring in this environment, whatever brings them."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in requirements]
    while waiting:
        requirement, wanted = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted}):
            continue
        for extra in {"", *requirement.extras}:
            if (key := (canonical(requirement.name), extra)) not in found:
                found.add(key)
                try:
                    lines = metadata.requires(requirement.name) or []
                except metadata.PackageNotFoundError:  # for another system or another build
                    lines = []
                waiting += [(Requirement(line), extra) for line in lines]
    return {name for name, _ in found}


@pytest.mark.slow
def test_every_module_can_be_imported_with_the_runtime_packages_or_names_its_extra() -> None:
    allowed = needed(PROJECT["dependencies"]) | {"lora-foundry"}
    modules = metadata.packages_distributions().items()
    blocked = [name for name, owners in modules if not allowed & {canonical(owner) for owner in owners}]
    assert {"apprise", "lycoris", "pytest", "redis"} <= set(blocked), "nothing would be proven"
    words = [sys.executable, "-c", WALK, json.dumps(blocked)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    for module, (kind, said) in json.loads(done.stdout).items():
        assert kind == "MissingExtraError", f"{module}: {kind}: {said}"
        assert any(f"[{extra}]" in said for extra in USERS_EXTRAS), f"{module}: {said}"


def test_every_extra_is_known_with_the_packages_it_brings() -> None:
    assert set(EXTRAS.values()) == USERS_EXTRAS
    owners = metadata.packages_distributions()
    for module, extra in EXTRAS.items():
        brought = {canonical(Requirement(line).name) for line in PROJECT["optional-dependencies"][extra]}
        if module in owners:  # bitsandbytes is no use here and is not installed
            assert brought & {canonical(owner) for owner in owners[module]}, module


def texts() -> Iterator[Path]:
    for folder, pattern in (
        ("src", "*.py"),
        ("docs", "*.md"),
        ("deploy", "*"),
        ("examples", "*"),
        (".ci", "*"),
    ):
        yield from (path for path in (ROOT / folder).rglob(pattern) if path.is_file())
    yield from (ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile"))


def test_no_text_advises_an_extra_that_does_not_exist() -> None:
    named = 0
    for path in texts():
        text = path.read_text(encoding="utf-8", errors="replace")
        for listed in re.findall(r"(?:lora-foundry|[\s'\"]\.)\[([a-z,]+)\]", text):
            named += 1
            assert set(listed.split(",")) <= USERS_EXTRAS | {"dev"}, f"{path}: [{listed}]"
        for extra in re.findall(r"\bextra `([a-z]+)`", text):
            named += 1
            assert extra in USERS_EXTRAS | {"dev"}, f"{path}: the extra {extra}"
    assert named


class Installed:
    """A distribution that was installed in a certain way."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self._origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self._origin is None else json.dumps(self._origin)


def test_the_advice_fits_how_it_was_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, wheel = tmp_path / "a checkout", tmp_path / "lora_foundry-1.0-py3-none-any.whl"
    checkout.mkdir()
    wheel.touch()
    python = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))

    def advice(origin: dict[str, Any] | None, here: Path = tmp_path) -> str:
        monkeypatch.setattr(extras.metadata, "distribution", lambda name: Installed(origin))
        monkeypatch.chdir(here)
        return install_command("redis")

    short = str(python.relative_to(tmp_path))
    editable = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    assert advice(editable) == f'{short} -m pip install -e "a checkout[redis]"'
    assert advice(editable, checkout) == f'{python} -m pip install -e ".[redis]"'
    plain = {"url": checkout.as_uri(), "dir_info": {}}
    assert advice(plain, checkout) == f'{python} -m pip install ".[redis]"'
    at_hand = {"url": wheel.as_uri(), "archive_info": {}}
    assert advice(at_hand, checkout) == f'{python} -m pip install "{wheel}[redis]"'
    assert advice(at_hand) == f'{short} -m pip install "{wheel.name}[redis]"'
    repository = {"url": "https://example.org/x", "vcs_info": {"vcs": "git"}}
    assert advice(repository) == f'{short} -m pip install "lora-foundry[redis] @ git+https://example.org/x"'
    assert advice(None) == f'{short} -m pip install "lora-foundry[redis]"'
    wheel.unlink()
    assert advice(at_hand) == f'{short} -m pip install "lora-foundry[redis]"'


def test_run_from_its_source_alone_the_checkout_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras.metadata, "distribution", nowhere)
    monkeypatch.chdir(ROOT)
    assert install_command().endswith(' -m pip install -e "."')


def test_what_is_said_of_a_missing_package() -> None:
    said = str(
        missing_package("The recipe", ModuleNotFoundError("No module named 'redis.x'", name="redis.x"))
    )
    assert said.startswith("The recipe needs the package 'redis'; install it with: ")
    assert said.endswith('[redis]"')
    core = str(missing_package("The recipe", ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert "needs the package 'torch'" in core
    assert "[" not in core
    broken = str(
        missing_package("The recipe", ImportError("libcudart.so.12: cannot open shared object file"))
    )
    assert broken == (
        "The recipe needs a package that cannot be loaded (libcudart.so.12: cannot open shared object file); "
        "install it anew."
    )
