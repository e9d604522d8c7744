"""No training starts that would spill: what it needs, what the driver says, and ComfyUI's share, handed over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import SecretStr

from lora_foundry import composition
from lora_foundry.backends.comfyui.handover import ComfyUIGpu, NotEnoughMemoryError, Waits, take_gpu
from lora_foundry.backends.gpu import LocalGpu
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import BackendError
from lora_foundry.families._shared import memory
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.memory import MIB, driver_free, needed_memory, training_memory
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.testing.comfyui_stub import StubServer

GIB = 1 << 30
SHORT = Waits(queue=0.1, memory=0.1, command=20.0)
MINI = find_base("mini")


def train(**changes: Any) -> TrainSection:
    recipe = load_recipe("mini", ["train.memory=as_set"])
    return recipe.train.model_copy(update=changes)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose torch finds a CUDA device."""
    monkeypatch.setattr(memory, "find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(
        memory.torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc")
    )
    monkeypatch.setattr(memory.torch.cuda, "mem_get_info", lambda device: (5 * GIB, 8 * GIB))


def test_the_need_grows_with_what_is_kept_and_never_without_reason() -> None:
    least = training_memory(MINI, train())
    assert training_memory(MINI, train(batch_size=train().batch_size * 2)) > least
    assert training_memory(MINI, train(resolution=train().resolution * 2)) > least
    assert training_memory(MINI, train(rank=512)) > least
    assert training_memory(MINI, train(precision="fp32")) >= least
    assert training_memory(MINI, train(gradient_checkpointing=True)) < least
    assert training_memory(MINI, train(needs_mib=7)) == 7 * MIB


def test_a_processor_needs_no_gpu_and_a_dry_run_none_either(card: None) -> None:
    assert needed_memory(MINI, train(backend="dry-run"), "cuda") == 0
    assert needed_memory(MINI, train(), "cuda") == training_memory(MINI, train())
    small = training_memory(MINI, train(batch_size=1, gradient_checkpointing=True))
    least = needed_memory(MINI, train(memory="auto"), "cuda")  # its blocks streamed, its base in fewer bits
    assert 0 < least < small
    assert needed_memory(MINI, train(memory="auto", quantise="none", network="dora"), "cuda") == small


def test_on_a_processor_nothing_is_asked() -> None:
    assert needed_memory(MINI, train(), "cpu") == 0
    assert driver_free("cpu") is None
    with LocalGpu(MINI, Settings(device="cpu")).room(train()):
        pass


def nvml(free: int) -> Any:
    """NVML's interface, as far as it is used, with one GPU."""
    calls: list[str] = []

    def handle(uuid: str) -> str:
        calls.append(uuid)
        return "handle"

    return SimpleNamespace(
        calls=calls,
        nvmlInit=lambda: calls.append("init"),
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetMemoryInfo=lambda found: SimpleNamespace(free=free),
    )


def test_the_driver_is_asked_by_the_gpu_s_own_id(card: None) -> None:
    driver = nvml(3 * GIB)
    assert driver_free("cuda", driver) == 3 * GIB
    assert driver.calls == ["init", "GPU-abc", "shutdown"]


def test_where_nvml_fails_cuda_is_asked(card: None) -> None:
    driver = nvml(3 * GIB)
    driver.nvmlDeviceGetMemoryInfo = None
    assert driver_free("cuda", driver) == 5 * GIB
    assert driver.calls[-1] == "shutdown"


def test_a_training_that_would_spill_is_refused_with_the_figures(card: None) -> None:
    gpu = LocalGpu(MINI, Settings(device="cuda"), lambda device: 2 * GIB)
    with gpu.room(train(needs_mib=2048)):
        pass
    with (
        pytest.raises(BackendError, match=r"about 2049 MiB of GPU memory and 2048 MiB are free"),
        gpu.room(train(needs_mib=2049)),
    ):
        pytest.fail("the training was started")


def settings(url: str, **changes: Any) -> Settings:
    return Settings(comfyui_url=url, device="cpu", **changes)


def test_comfyui_gives_its_memory_back_before_the_training() -> None:
    with StubServer() as stub:
        stub.vram_free, stub.vram_after_free = 1 * GIB, 7 * GIB
        gpu = ComfyUIGpu(MINI, settings(stub.url), lambda device: 6 * GIB, SHORT)
        with gpu.room(train(needs_mib=6144)):
            assert stub.vram_free == 7 * GIB


@pytest.mark.parametrize(("server", "driver"), [(2 * GIB, 8 * GIB), (8 * GIB, 2 * GIB)])
def test_both_counts_must_be_enough_and_both_are_said(server: int, driver: int) -> None:
    with StubServer() as stub:
        stub.vram_free = stub.vram_after_free = server
        gpu = ComfyUIGpu(MINI, settings(stub.url), lambda device: driver, SHORT)
        words = rf"about 6144 MiB .* {server // MIB} MiB by ComfyUI's count and {driver // MIB} MiB by the driver's"
        with pytest.raises(NotEnoughMemoryError, match=words), gpu.room(train(needs_mib=6144)):
            pytest.fail("the training was started")


def test_a_server_that_is_not_there_holds_nothing_but_the_driver_is_still_asked() -> None:
    nobody = "http://127.0.0.1:9"
    assert take_gpu(nobody, 1, lambda: 5, SHORT) == (None, None, 5)
    with pytest.raises(NotEnoughMemoryError, match=r"and 0 MiB by the driver's are free"):
        take_gpu(nobody, 6, lambda: 5, SHORT)


def commands(folder: Path, stub_port: int) -> dict[str, tuple[str, ...]]:
    """Real commands: one that ends the process that the first file names, one that starts a server of the same port."""
    stop = "import os, signal, sys; os.kill(int(open(sys.argv[1]).read()), signal.SIGTERM)"
    return {
        "comfyui_stop": (sys.executable, "-c", stop, str(folder / "pid")),
        "comfyui_start": (sys.executable, "-c", SERVE, str(folder), str(stub_port), "8"),
    }


SERVE = """
import os, pathlib, sys, time
from lora_foundry.testing.comfyui_stub import StubServer
folder, port, gib = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
stub = StubServer(); stub.port = port; stub.vram_free = stub.vram_after_free = gib << 30
with stub:
    (folder / "port").write_text(str(stub.port)); (folder / "pid").write_text(str(os.getpid()))
    time.sleep(120)
"""


def test_where_the_user_allowed_it_comfyui_is_stopped_and_started_again(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path), "0", "1"])
    try:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert first.poll() is None
        port = int((tmp_path / "port").read_text())
        url = f"http://127.0.0.1:{port}"
        gpu = ComfyUIGpu(MINI, settings(url, **commands(tmp_path, port)), lambda device: 8 * GIB, SHORT)
        with gpu.room(train(needs_mib=6144)):
            assert first.wait(10) != 0
        assert take_gpu(url, 1, lambda: None, SHORT).before == 8 * GIB, "it was not started again"
    finally:
        first.kill()
        first.wait()
        second = int((tmp_path / "pid").read_text())
        if second != first.pid:
            subprocess.run(["kill", str(second)], check=True)


def test_a_stop_command_that_fails_stops_the_training_and_starts_comfyui_again(tmp_path: Path) -> None:
    with StubServer() as stub:
        stub.vram_free = stub.vram_after_free = 1 * GIB
        mark = tmp_path / "started"
        changed = {
            "comfyui_stop": (sys.executable, "-c", "raise SystemExit('no such unit')"),
            "comfyui_start": (sys.executable, "-c", f"open({str(mark)!r}, 'w').close()"),
        }
        gpu = ComfyUIGpu(MINI, settings(stub.url, **changed), lambda device: 8 * GIB, SHORT)
        with pytest.raises(BackendError, match="ended with 1: no such unit"), gpu.room(train(needs_mib=6144)):
            pytest.fail("the training was started")


@pytest.mark.parametrize(
    ("changes", "used", "shared"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"comfyui": Path("/comfy")}, False, True),
        ({"comfyui_url": "http://localhost:8188"}, False, True),
        ({"comfyui_url": "http://gpu-box:8188"}, True, False),
        ({"comfyui_url": "http://comfyui:8188", "comfyui_gpu": "shared"}, False, True),
        ({"comfyui_gpu": "own"}, True, False),
    ],
)
def test_whether_comfyui_computes_on_the_gpu_that_trains(
    changes: dict[str, Any], used: bool, shared: bool
) -> None:
    recipe = load_recipe("mini", ["generate.backend=comfyui"] if used else [])
    here = Settings(**changes)
    in_a_child = Settings.model_validate(json.loads(json.dumps(here.for_child())))
    for settings in (here, in_a_child):
        assert settings.comfyui_shares_gpu(used) is shared
        assert isinstance(RecipePorts(recipe, MINI, settings).gpu, ComfyUIGpu if shared else LocalGpu)


def test_a_child_is_told_every_setting_but_the_secrets_and_asks_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Settings(token=SecretStr("s" * 40), notify=SecretStr("json://localhost"), recipe="sd15")
    told = here.for_child()
    monkeypatch.setenv("LORA_FOUNDRY_COMFYUI_URL", "http://127.0.0.1:9999")
    monkeypatch.setenv("LORA_FOUNDRY_NOTIFY", "json://elsewhere")
    there = Settings.model_validate(json.loads(json.dumps(told)))
    assert there == here.model_copy(update={"token": None, "notify": None})
    assert told.keys() == Settings.model_fields.keys()


def test_nothing_in_the_code_depends_on_which_settings_were_given_by_name() -> None:
    """In another process all of them were. What a payload from outside gives by name is its own matter."""
    source = Path(composition.__file__).parent
    asking = [path for path in source.rglob("*.py") if "model_fields_set" in path.read_text(encoding="utf-8")]
    assert [path.name for path in asking] == ["payloads.py"]
