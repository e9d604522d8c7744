"""Which lanes a machine has, and which GPU an attempt is given."""

from __future__ import annotations

import pytest

from lora_foundry.errors import InputError
from lora_foundry.tasks.devices import device_for, lanes_for, visible_devices


@pytest.mark.parametrize(
    ("variable", "device", "visible"),
    [
        ("0,1", "auto", ["0", "1"]),
        ("GPU-a1, GPU-b2", "cuda", ["GPU-a1", "GPU-b2"]),
        ("4,5,6", "cuda:1", ["5"]),
        ("4,5,6", "cuda:9", []),
        ("-1", "auto", []),
        ("", "auto", []),
        ("0,1", "cpu", []),
    ],
)
def test_the_devices_that_may_be_used(
    variable: str, device: str, visible: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_devices(device) == visible


def test_a_worker_runs_five_tasks_one_of_them_on_the_gpu() -> None:
    assert lanes_for("all") == {"gpu": 1, "cpu": 4}, (
        "also where there is no GPU: it trains one task at a time"
    )
    assert lanes_for("gpu") == {"gpu": 1}
    assert lanes_for("cpu") == {"cpu": 4}
    with pytest.raises(InputError, match="gpu, cpu and all"):
        lanes_for("tpu")


def test_a_child_on_the_gpu_lane_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert device_for("gpu", "auto") == {"CUDA_VISIBLE_DEVICES": "3"}
    assert device_for("gpu", "cuda:1") == {"CUDA_VISIBLE_DEVICES": "5"}
    assert device_for("cpu", "auto") == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_for("gpu", "auto") == {}
