"""lora-foundry: describe a character; get a LoRA that draws it.

The public names are loaded on first use, so that `import lora_foundry` stays instant and never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_foundry.api import CreateResult, Foundry
    from lora_foundry.domain.character import Character
    from lora_foundry.domain.recipe import Recipe
    from lora_foundry.errors import FoundryError

__version__ = "0.1.0"
__all__ = ["Character", "CreateResult", "Foundry", "FoundryError", "Recipe", "__version__"]

_HOMES = {
    "Character": "lora_foundry.domain.character",
    "Recipe": "lora_foundry.domain.recipe",
    "FoundryError": "lora_foundry.errors",
    "Foundry": "lora_foundry.api",
    "CreateResult": "lora_foundry.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_foundry' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
