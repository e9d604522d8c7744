"""The worker beside a server reads its settings from the environment, and has to arrive at the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_foundry.settings import Settings
from lora_foundry.web.serving import _environment


def test_a_worker_reads_the_settings_that_its_server_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, recipe="sd15", device="cpu", comfyui_stop=("systemctl", "stop", "a b"))
    for name, text in _environment(settings).items():
        monkeypatch.setenv(name, text)
    assert Settings(home=tmp_path) == settings
