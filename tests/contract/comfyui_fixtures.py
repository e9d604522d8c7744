"""What the ComfyUI contract tests share: one server, the stub or the real one that COMFYUI_URL names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lora_foundry.backends.comfyui.bindings import Values
from lora_foundry.backends.comfyui.client import Patience
from lora_foundry.backends.comfyui.graphs import Graph
from lora_foundry.backends.comfyui.workflows import load_workflow
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.testing.comfyui_stub import StubServer

REAL = os.environ.get("COMFYUI_URL", "")
CHECKPOINT = os.environ.get("COMFYUI_CHECKPOINT", "tiny.safetensors")
REAL_LORAS = os.environ.get("COMFYUI_LORAS", "")
# Short for the stub, whose pictures take no time; a real server on a processor loads its model first.
QUICK = Patience(answer=2.0, absence=3.0, stall=0.5, tick=0.3)
PATIENT = Patience(answer=60.0, absence=60.0, stall=120.0, tick=2.0)


@dataclass
class Server:
    """The server under test; `stub` is None where it is a real one."""

    url: str
    stub: StubServer | None
    loras: Path | None
    patience: Patience


def sd15(seed: int = 1, prompt: str = "a cat", steps: int = 1, side: int = 64, batch: int = 1) -> Graph:
    """The shipped SD1.5 workflow, small."""
    values = Values(
        prompt=prompt,
        seed=seed,
        width=side,
        height=side,
        steps=steps,
        batch=batch,
        sampler="euler",
        scheduler="normal",
        checkpoint=CHECKPOINT,
    )
    return load_workflow("sd15").bind(values)


def request(number: int, prompt: str = "a cat", steps: int = 1, side: int = 64) -> ImageRequest:
    return ImageRequest(
        key=f"shot-{number}",
        prompt=prompt,
        negative="blurry",
        seed=1000 + number,
        width=side,
        height=side,
        steps=steps,
        cfg=7.0,
        sampler="euler",
        scheduler="normal",
    )
