"""Nobody's server is touched uninvited: a ComfyUI that was not named and is not drawn with gets not a single request, and
another program's web server at a named address is no reason to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lora_foundry import settings as settings_module
from lora_foundry.backends.comfyui.handover import Waits, take_gpu
from lora_foundry.backends.gpu import LocalGpu
from lora_foundry.composition import RecipePorts
from lora_foundry.doctor import examine
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.testing.comfyui_http import OtherServer
from lora_foundry.testing.comfyui_stub import StubServer
from lora_foundry.web.app import create_app

SHORT = Waits(queue=0.1, memory=0.1)


def test_a_comfyui_that_nobody_named_gets_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StubServer() as stub:
        monkeypatch.setattr(settings_module, "COMFYUI_ADDRESS", stub.url)
        settings, recipe = Settings(home=tmp_path, device="cpu"), load_recipe("mini")
        ports = RecipePorts(recipe, find_base("mini"), settings)
        assert isinstance(ports.gpu, LocalGpu)
        with ports.gpu.room(recipe.train):
            pass
        assert ports.prover is None
        assert all("ComfyUI" not in finding.subject for finding in examine(settings, recipe))
        with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
            assert "none was named" in client.get("/api/v1/system").json()["comfyui"]["detail"]
        assert stub.requests == []


def test_another_web_server_at_the_address_is_asked_once_and_left_alone() -> None:
    with OtherServer() as other:
        assert take_gpu(other.url, 1, lambda: None, SHORT).before is None
        assert other.requests == ["GET /system_stats"]


def test_a_comfyui_that_was_named_is_asked_for_its_memory() -> None:
    with StubServer() as stub:
        assert take_gpu(stub.url.removeprefix("http://"), 1, lambda: None, SHORT).before is not None
        assert stub.requests.count("POST /free") == 1
