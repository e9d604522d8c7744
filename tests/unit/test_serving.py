"""The worker beside a server reads its settings from the environment, and has to arrive at the same ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_foundry.settings import Settings
from lora_foundry.web.serving import _environment


def test_a_worker_reads_the_settings_that_its_server_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, recipe="sd15", device="cpu", comfyui_stop=("systemctl", "stop", "a b"))
    monkeypatch.setenv("LORA_FOUNDRY_REDIS_URL", "redis://elsewhere")  # the server was told not to use it
    monkeypatch.setenv("lora_foundry_kohya", "/elsewhere")
    told = _environment(settings.model_copy(update={"redis_url": None, "kohya": None}))
    for name in [name for name in os.environ if name.upper().startswith("LORA_FOUNDRY_")]:
        monkeypatch.delenv(name)
    for name, text in told.items():
        monkeypatch.setenv(name, text)
    assert Settings(home=tmp_path) == settings
