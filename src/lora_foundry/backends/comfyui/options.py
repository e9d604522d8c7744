"""What a recipe and the settings say of a ComfyUI server, and of what it draws with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_foundry.backends.comfyui.client import Patience
from lora_foundry.context import Context
from lora_foundry.domain.recipe import Recipe
from lora_foundry.families._shared.base import Base
from lora_foundry.settings import Settings


@dataclass(frozen=True)
class ComfyUIOptions:
    """Where the server is and what it draws with.

    checkpoint: the server's name for it, or its bare file name. identity: what tells it from others of that name.
    workflow and reference_workflow: a shipped one's name or a .json file, for prompts alone and for prompts with a
    reference image, which may have a checkpoint and further pictures of its own. lora_dir and checkpoint_file: the
    server's LoRA folder and the checkpoint itself as this machine sees them; paths: beginnings of the server's paths,
    and what they are here. lends: LoRAs will be drawn with, so that a workflow or a folder that cannot have them is
    refused at once. home: where it is written down what the server was given, so that others can take it back.
    sampling: the sampler and scheduler that will be asked for. merge: requests of a batch that differ in their seeds
    alone become one prompt; only its first picture is then the one that its seed would give alone.
    """

    url: str
    checkpoint: str
    token: str = field(default="", repr=False)
    identity: str = ""
    workflow: str = "sd15"
    reference_workflow: str = "img2img"
    reference_checkpoint: str = ""
    text_encoder: str = ""
    vae: str = ""
    references: tuple[Path, ...] = ()
    lora_dir: Path | None = None
    checkpoint_file: Path | None = None
    paths: Mapping[str, Path] = field(default_factory=dict)
    lends: bool = False
    home: Path | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    in_flight: int = 4
    merge: bool = False
    patience: Patience = field(default_factory=Patience)


def options_of(context: Context) -> ComfyUIOptions:
    """The options of a run."""
    return options_for(context.recipe, context.settings, context.base)


def options_for(recipe: Recipe, settings: Settings, base: Base | None = None) -> ComfyUIOptions:
    """The same where the base need not be here yet. Where the server proves and installs the LoRA, it must see the folder
    where LoRAs go."""
    section = recipe.generate
    proves = recipe.publish.verify != "none"
    return ComfyUIOptions(
        url=settings.comfyui_address,
        token=settings.comfyui_token,
        checkpoint=section.checkpoint or bare(recipe.model.base),
        identity="" if base is None else base.identity,
        workflow=section.workflow,
        reference_workflow=section.reference_workflow,
        reference_checkpoint=section.reference_checkpoint,
        text_encoder=section.text_encoder or bare(recipe.model.text_encoder),
        vae=section.vae or bare(recipe.model.vae),
        references=tuple(Path(path).expanduser() for path in section.references),
        lora_dir=settings.loras_dir if proves else settings.comfyui_loras_dir,
        checkpoint_file=None if base is None else _checkpoint_file(base, section.checkpoint, settings),
        paths=settings.comfyui_paths,
        lends=True,
        home=settings.home,
        sampling={"sampler": section.sampler, "scheduler": section.scheduler},
    )


def bare(path: str) -> str:
    """The last part of a path in the words of any system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _checkpoint_file(base: Base, checkpoint: str, settings: Settings) -> Path | None:
    """The file that the server draws with: the base itself, or what ComfyUI's folder has under its name."""
    name = bare(checkpoint)
    if base.layout == "file" and name in ("", base.path.name, base.name, f"{base.name}.safetensors"):
        return base.path
    if settings.comfyui is None or not name:
        return None
    for kind in ("checkpoints", "diffusion_models", "unet"):
        folder = settings.comfyui.expanduser() / "models" / kind
        for where, _, files in os.walk(folder, followlinks=True):
            if name in files:
                return Path(where) / name
    return None
