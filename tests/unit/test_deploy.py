"""The files of deploy/ name commands, options and settings that exist, and leave a worker the time that it needs to stop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lora_foundry.cli.app import app
from lora_foundry.settings import Settings
from lora_foundry.tasks.recovery import Timing

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
UNIT = (ROOT / "deploy/lora-foundry-worker.service").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")


def options_of(command: str) -> set[str]:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {option for parameter in parameters for option in parameter.opts}


@pytest.mark.parametrize("service", ["worker", "dashboard"])
def test_our_services_run_commands_that_exist(service: str) -> None:
    command, *words = COMPOSE["services"][service]["command"]
    assert {word for word in words if word.startswith("--")} <= options_of(command)
    names = {
        name.removeprefix("LORA_FOUNDRY_").lower() for name in COMPOSE["services"][service]["environment"]
    }
    assert names <= set(Settings.model_fields)
    assert COMPOSE["services"][service]["depends_on"].keys() <= COMPOSE["services"].keys()


def test_every_service_comes_from_an_image_and_every_volume_is_declared() -> None:
    assert set(COMPOSE["services"]) == {"worker", "dashboard", "postgres", "redis"}
    for service in COMPOSE["services"].values():
        assert service["image"]
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"]
    build = COMPOSE["services"]["worker"]["build"]
    assert (ROOT / "deploy" / build["context"] / build["dockerfile"]).is_file()


def test_nothing_but_the_loopback_address_is_opened_and_no_password_is_written_down() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "${POSTGRES_PASSWORD:?" in COMPOSE["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"]


def test_a_worker_has_the_time_to_hand_its_work_back() -> None:
    needed = Timing().grace + Timing().dead_after
    assert int(COMPOSE["services"]["worker"]["stop_grace_period"].removesuffix("s")) > needed
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)
    assert int(seconds) > needed
    assert "KillMode=mixed" in UNIT  # systemd must not kill the children before the worker has told them


def test_the_image_copies_what_the_build_context_lets_through() -> None:
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M))
    copied = {word for line in re.findall(r"^COPY (.+) \./?\S*$", DOCKERFILE, re.M) for word in line.split()}
    assert copied <= allowed
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r'"\.\[(.+)\]"', DOCKERFILE)
    assert extras is not None
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name} = \[", declared, re.M) for name in extras[1].split(","))
