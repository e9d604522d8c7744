"""The settings through the API: what is set and from where, no secret told, what is tested, what can be freed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lora_foundry.files.paths import RunPaths
from lora_foundry.settings import Settings
from lora_foundry.testing.comfyui_stub import StubServer
from lora_foundry.web.app import create_app
from lora_foundry.web.preferences import without_password

SECRETS = {
    "LORA_FOUNDRY_TOKEN": "a-token-of-sixteen",
    "LORA_FOUNDRY_COMFYUI_TOKEN": "for-comfy-alone",
    "LORA_FOUNDRY_VLM_KEY": "sk-very-secret",
    "LORA_FOUNDRY_NOTIFY": "ntfy://topic-that-is-secret",
    "LORA_FOUNDRY_REDIS_URL": "redis://name:hunter2@localhost:6399/0",
}


def test_every_setting_is_shown_with_its_source_and_no_secret(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LORA_FOUNDRY_DEVICE", "cpu")
    with TestClient(create_app(Settings(home=home)), base_url="http://localhost") as client:
        text = client.get("/api/v1/settings").text
        shown = {each["variable"]: each for each in client.get("/api/v1/settings").json()}
    assert len(shown) == len(Settings.model_fields)
    for secret in (
        "a-token-of-sixteen",
        "for-comfy-alone",
        "sk-very-secret",
        "topic-that-is-secret",
        "hunter2",
    ):
        assert secret not in text
    assert shown["LORA_FOUNDRY_DEVICE"]["value"] == "cpu"
    assert shown["LORA_FOUNDRY_DEVICE"]["source"] == "environment"
    assert shown["LORA_FOUNDRY_HOME"]["source"] == "command line"
    assert shown["LORA_FOUNDRY_KOHYA"]["source"] == "default"
    assert shown["LORA_FOUNDRY_REDIS_URL"]["value"] == "redis://name:***@localhost:6399/0"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://a:b@h/d", "postgresql://a:***@h/d"),
        ("redis://:b@h:1", "redis://***@h:1"),
        ("http://h:8188", "http://h:8188"),
    ],
)
def test_passwords_are_taken_out_of_addresses(address: str, shown: str) -> None:
    assert without_password(address) == shown


def tried(client: TestClient, subject: str) -> Any:
    return client.post(f"/api/v1/settings/test/{subject}").json()


def test_what_is_named_is_tested_and_what_is_not_says_how(home: Path, client: TestClient) -> None:
    assert tried(client, "database")["ok"]
    for subject, variable in (
        ("comfyui", "LORA_FOUNDRY_COMFYUI_URL"),
        ("sd-scripts", "LORA_FOUNDRY_KOHYA"),
        ("notifications", "LORA_FOUNDRY_NOTIFY"),
    ):
        answer = tried(client, subject)
        assert not answer["ok"]
        assert variable in answer["found"]
    assert client.post("/api/v1/settings/test/anything").status_code == 422
    with StubServer() as stub:
        named = create_app(Settings(home=home, comfyui_url=stub.url))
        with TestClient(named, base_url="http://localhost") as other:
            assert tried(other, "comfyui")["ok"]
    with TestClient(named, base_url="http://localhost") as other:
        assert not tried(other, "comfyui")["ok"]


def test_what_can_be_made_again_is_freed_and_nothing_else(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    for name in ("checkpoints", "cache"):
        (paths.training / name).mkdir(parents=True)
        (paths.training / name / "state.safetensors").write_bytes(b"x" * 5000)
    uses = {each["freeable"]: each for each in client.get("/api/v1/disk").json() if each["freeable"]}
    assert uses["checkpoints"]["bytes"] == 10_000
    assert uses["checkpoints"]["held"]
    assert client.delete("/api/v1/disk/checkpoints").status_code == 409
    client.post(f"{pipeline}/cancel")
    assert client.delete("/api/v1/disk/checkpoints").json() == {"bytes": 10_000}
    assert (paths.training / "loss.csv").is_file()
    assert paths.image(0).is_file()
    assert client.delete("/api/v1/disk/datasets").status_code == 422
