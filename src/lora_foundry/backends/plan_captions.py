"""Captions from the plan: what was asked for is what the picture is said to show. The original system's
way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import PictureRecord


class PlanCaptioner:
    """A Captioner that never looks at a picture."""

    def describe(
        self, character: Character, pictures: Sequence[PictureRecord], folder: Path
    ) -> list[list[str]]:
        """The character's tags, then the shot's words, for every picture."""
        return [[*character.tags, *picture.shot.words()] for picture in pictures]
