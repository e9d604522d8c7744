"""What a child of the leftovers tests does: it draws through a ComfyUI, with a LoRA that is lent to it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.domain.lora import LoraUse
from tests.contract.comfyui_fixtures import CHECKPOINT, request


def draw(url: str, home: Path, loras: Path, lora: Path) -> None:
    """Eight pictures, four of them on their way at once."""
    generator = ComfyUIGenerator(ComfyUIOptions(url, CHECKPOINT, lora_dir=loras, home=home))
    list(generator.generate([[request(number)] for number in range(8)], LoraUse(path=lora)))
    generator.close()


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The same as a worker's job; the words of the description are the addresses."""
    url, home, loras, lora = work["run"]["character"]["description"].split(" ")
    draw(url, Path(home), Path(loras), Path(lora))
    return {}


if __name__ == "__main__":
    draw(sys.argv[1], *(Path(argument) for argument in sys.argv[2:]))
