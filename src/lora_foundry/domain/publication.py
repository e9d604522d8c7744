"""What publishing ends with, and the card that is laid beside a LoRA in the forms that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_foundry.domain.evaluation import Scores


class Proof(BaseModel):
    """What a server showed when it was asked to load a LoRA.

    server: its name, version and address. picture_change: mean difference of grey levels (0-255) between one
    seed's pictures without and with the LoRA. keys: how many keys of the file it was asked to take.
    checked_by: how it is known that none was left out ("the checkpoint's keys", "the server's log").
    """

    model_config = ConfigDict(frozen=True)

    server: str
    picture_change: float
    keys: int
    checked_by: tuple[str, ...] = ()


class Publication(BaseModel):
    """publication.json: written last by the publish stage. The paths are None if unpublished.

    kept: where an older LoRA of this character, which had the same name, stands now. proof: None where no
    server was asked.
    """

    model_config = ConfigDict(frozen=True)

    published: bool
    verdict: str
    lora: Path | None = None
    preview: Path | None = None
    metadata: Path | None = None
    card: Path | None = None
    kept: Path | None = None
    proof: Proof | None = None
    sha256: str = ""
    picture_change: float = 0.0
    fingerprint: str = ""


class LoraCard(BaseModel):
    """What people and programs want to know about a LoRA file.

    base_version: kohya's name for the architecture (ss_base_model_version). base_names: what ComfyUI-Lora-Manager and
    A1111 call it. strength: at which it was measured.
    """

    model_config = ConfigDict(frozen=True)

    character: str
    trigger: str
    description: str
    tags: tuple[str, ...]
    strength: float
    sha256: str
    base_model: str
    base_version: str
    base_names: tuple[str, str] = ("Other", "Unknown")
    steps: int
    scores: Scores
    recipe: dict[str, Any]
    made_by: str

    def manager_form(self, lora: Path, preview: Path, size: int, modified: float) -> dict[str, Any]:
        """`<name>.metadata.json`, the form of ComfyUI-Lora-Manager, which skips a LoRA whose file lacks one of
        the first eight entries. Its trigger words are `civitai.trainedWords`; entries that it does not know, ours,
        it keeps."""
        return {
            "file_name": lora.stem,
            "model_name": lora.stem,
            "file_path": lora.as_posix(),
            "size": size,
            "modified": modified,
            "sha256": self.sha256,
            "base_model": self.base_names[0],
            "preview_url": preview.as_posix(),
            "from_civitai": False,
            "civitai": {"trainedWords": self.trigger.split(", ")},
            "tags": ["character"],
            "modelDescription": self.description,
            "usage_tips": json.dumps({"strength": self.strength}),
            **self.model_dump(mode="json", exclude={"tags", "base_model", "base_names", "sha256"}),
            "character_tags": list(self.tags),
            "trained_on": self.base_model,
        }

    def a1111_form(self) -> dict[str, Any]:
        """`<name>.json`, the form of A1111 and its forks: a click on the card writes the activation text."""
        return {
            "description": f"{self.character}: {self.description}",
            "sd version": self.base_names[1],
            "activation text": self.trigger,
            "preferred weight": self.strength,
        }
