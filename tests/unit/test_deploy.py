"""The files of deploy/ name commands, options and settings that exist, and leave a worker the time that it needs to stop."""

from __future__ import annotations

import os
import re
import subprocess
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


SKY: dict[str, Any] = yaml.safe_load((ROOT / "deploy/skypilot.yaml").read_text(encoding="utf-8"))
# SkyPilot wants older packages than ours beside it, so its Python is another one's.
PARSE = """
import sys, sky
task = sky.Task.from_yaml(sys.argv[1])
print(sorted(task.envs_and_secrets))
"""


def test_a_rented_machine_runs_commands_that_exist_and_is_given_back() -> None:
    lines = f"{SKY['setup']}\n{SKY['run']}".splitlines()
    commands = [line.partition("/bin/lora-foundry ")[2].split() for line in lines if "/lora-foundry " in line]
    assert [words[0] for words in commands] == ["setup", "doctor", "worker"]
    for command, *words in commands:
        assert {word for word in words if word.startswith("--")} <= options_of(command)
    assert "--until-idle" in commands[-1], "the worker ends, and the machine is then idle"
    assert SKY["resources"]["autostop"]["down"]
    said = {*SKY["envs"], *SKY["secrets"]}
    ours = {name.removeprefix("LORA_FOUNDRY_").lower() for name in said if name.startswith("LORA_FOUNDRY_")}
    assert ours <= set(Settings.model_fields)
    assert set(SKY["secrets"].values()) == {None}, "no password is written down"
    extras = re.search(r'"\.\[(.+)\]"', SKY["setup"])
    assert extras is not None
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name} = \[", declared, re.M) for name in extras[1].split(","))


def test_skypilot_s_own_parser_takes_the_file(tmp_path: Path) -> None:
    python = os.environ.get("SKYPILOT_PYTHON")
    if not python:
        pytest.skip("SKYPILOT_PYTHON names no Python that has SkyPilot, which wants older packages than ours")
    given = dict.fromkeys((*SKY["envs"], *SKY["secrets"]), "given")
    filled = SKY | {"envs": SKY["envs"] | {"LORA_FOUNDRY_STORAGE": "s3://bucket/prefix"}}
    filled["secrets"] = dict.fromkeys(SKY["secrets"], "secret")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(filled))
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [python, "-c", PARSE, str(tmp_path / "task.yaml")],
        cwd=ROOT, env=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(sorted(given))
