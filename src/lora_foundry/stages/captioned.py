"""A picture and the caption beside it, as people and other programs leave them."""

from __future__ import annotations

from pathlib import Path

from lora_foundry.errors import InputError
from lora_foundry.files.paths import RunPaths


def read_caption(image: Path) -> str:
    """What stands in the .txt beside the picture, on one line. Raises InputError where there is nothing."""
    path = RunPaths.caption(image)
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        raise InputError(
            f"{image} has no caption; write {path.name} beside it, or take the picture away."
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"The caption {path} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"The caption {path} cannot be read ({error.strerror or error}).") from error
    if not text:
        raise InputError(
            f"The caption {path} is empty; write what the picture shows, or take the picture away."
        )
    return text
