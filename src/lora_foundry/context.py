"""What every backend is made from: the run's recipe, the base that was found for it, and this machine's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_foundry.domain.recipe import Recipe
from lora_foundry.families._shared.base import Base
from lora_foundry.settings import Settings


@dataclass(frozen=True)
class Context:
    """Handed to `make` of a backend's class, which takes from it what it needs."""

    recipe: Recipe
    base: Base
    settings: Settings

    @property
    def instruments(self) -> Path | None:
        """The folder of the instruments' files, where the recipe names one."""
        folder = self.recipe.model.instruments
        return Path(folder).expanduser() if folder else None
