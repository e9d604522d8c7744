"""Tells Anima: a folder in the library's modular form, or ComfyUI's split files. The distilled Turbo has the same layers,
so that it is told by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lora_foundry.families._shared.kinds import Kind, PartFile, PublishedName, has_key
from lora_foundry.families._shared.split import language_model, qwen_vae
from lora_foundry.families._shared.vocabularies import QWEN3, T5
from lora_foundry.files.safetensors import Header

SUPPORTED = "Anima (a diffusers folder, or ComfyUI's model file with its VAE and text encoder beside it)"
PIPELINES = {"AnimaModularPipeline": "an Anima model", "AnimaPipeline": "an Anima model"}
FAMILY = "anima"
PUBLISHED = {"anima": PublishedName("Anima")}
VOCABULARIES = (QWEN3, T5)
ADAPTER = None
_DISTILLED = re.compile(r"turbo|distill|lightning|\dstep")
_WIDTH = 2048  # of the transformer
_TEXT_WIDTH, _TEXT_LAYERS = 1024, 28  # of Qwen3-0.6B
_FILES = "hf:circlestone-labs/Anima/split_files"

NEEDS = (
    PartFile("vae", "VAE", ("vae",), "qwen_image_vae.safetensors", qwen_vae,
             f"{_FILES}/vae/qwen_image_vae.safetensors", "Apache-2.0"),
    PartFile("text_encoder", "text encoder", ("text_encoders", "clip"), "qwen_3_06b_base.safetensors",
             lambda header: language_model(header, _TEXT_WIDTH, _TEXT_LAYERS),
             f"{_FILES}/text_encoders/qwen_3_06b_base.safetensors", "Apache-2.0"),
)  # fmt: skip


def look(header: Header, name: str) -> Kind | None:
    """An Anima model's file: Cosmos' transformer with the adapter that reads the words."""
    if has_key(header, "transformer_blocks.0.norm1.linear_1.weight", "patch_embed.proj.weight"):
        return Kind("a Cosmos transformer without Anima's adapter; give the folder that it is from")
    if not has_key(header, "blocks.0.mlp.layer1.weight", "x_embedder.proj.1.weight"):
        return None
    if not has_key(header, "llm_adapter.out_proj.weight"):
        return Kind("a Cosmos Predict 2 model, which Anima comes from")
    (first,) = (shape for key, shape in header.shapes.items() if key.endswith("x_embedder.proj.1.weight"))
    if first[0] != _WIDTH:
        return Kind("an Anima model of a size that is not known, or a part of one")
    distilled = bool(_DISTILLED.search(name.lower()))
    return Kind("an Anima model", FAMILY, "turbo" if distilled else "base", NEEDS, distilled)


def examine(path: Path, index: Mapping[str, object]) -> Kind | None:
    """A folder is the distilled model by its name."""
    hub = path.parent.parent.name  # of a snapshot in the hub's cache
    return Kind("an Anima model", FAMILY, distilled=bool(_DISTILLED.search(f"{path.name} {hub}".lower())))
