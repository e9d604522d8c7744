"""Which lanes a machine has, and which GPU an attempt is given."""

from __future__ import annotations

import pytest

from lora_foundry.errors import InputError
from lora_foundry.tasks.devices import Devices, lanes_for, visible_devices


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


def test_lanes_follow_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert lanes_for("all") == {"gpu": 2, "cpu": 3}
    assert lanes_for("gpu") == {"gpu": 2}
    assert lanes_for("cpu") == {"cpu": 5}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lanes_for("all") == {"gpu": 1, "cpu": 4}, "a machine without a GPU trains one task at a time"
    with pytest.raises(InputError, match="gpu, cpu and all"):
        lanes_for("tpu")


def test_a_device_is_held_until_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    devices = Devices("auto")
    assert devices.take("a", "gpu") == {"CUDA_VISIBLE_DEVICES": "0"}
    assert devices.take("b", "gpu") == {"CUDA_VISIBLE_DEVICES": "1"}
    assert devices.take("c", "gpu") == {}
    assert devices.take("d", "cpu") == {}
    devices.give_back("a")
    assert devices.take("e", "gpu") == {"CUDA_VISIBLE_DEVICES": "0"}
