"""Tells Krea 2: a diffusers folder, or ComfyUI's split files. Raw and the distilled Turbo have the same layers: a folder's
index says which it is, a file's name does; most models that people make of it come from Turbo, so that a name which says
nothing counts as distilled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lora_foundry.families._shared.kinds import Kind, PartFile, PublishedName, has_key
from lora_foundry.families._shared.split import qwen_vae, vision_language_model
from lora_foundry.families._shared.vocabularies import QWEN3
from lora_foundry.files.safetensors import Header

SUPPORTED = (
    "Krea 2 (a diffusers folder, or ComfyUI's transformer file with its VAE and text encoder beside it)"
)
PIPELINES = {"Krea2Pipeline": "a Krea 2 model"}
FAMILY = "krea2"
PUBLISHED = {"krea2": PublishedName("Krea 2")}
VOCABULARIES = (QWEN3,)
ADAPTER = None
_UNDISTILLED = re.compile(r"(^|[^a-z])(raw|base|undistilled|de-?turbo)([^a-z]|$)")
_WIDTH = 6144  # of the transformer
_TEXT_WIDTH, _TEXT_LAYERS = 2560, 36  # of Qwen3-VL-4B
_FILES = "hf:Comfy-Org/Krea-2"

NEEDS = (
    PartFile("vae", "VAE", ("vae",), "qwen_image_vae.safetensors", qwen_vae,
             f"{_FILES}/vae/qwen_image_vae.safetensors", "Apache-2.0"),
    PartFile("text_encoder", "text encoder", ("text_encoders", "clip"), "qwen3vl_4b_fp8_scaled.safetensors",
             lambda header: vision_language_model(header, _TEXT_WIDTH, _TEXT_LAYERS),
             f"{_FILES}/text_encoders/qwen3vl_4b_fp8_scaled.safetensors", "Apache-2.0"),
)  # fmt: skip


def look(header: Header, name: str) -> Kind | None:
    """A Krea 2 transformer, in its own layout or in diffusers'."""
    if not has_key(header, "txtfusion.projector.weight") and not has_key(
        header, "text_fusion.projector.weight"
    ):
        return None
    first = next(
        (shape for key, shape in header.shapes.items() if key.endswith(("first.weight", "img_in.weight"))),
        (0,),
    )
    if first[0] != _WIDTH:
        return Kind("a Krea 2 transformer of a size that is not known, or a part of one")
    distilled = not _UNDISTILLED.search(name.lower())
    return Kind("a Krea 2 transformer", FAMILY, "turbo" if distilled else "raw", NEEDS, distilled)


def examine(path: Path, index: Mapping[str, object]) -> Kind | None:
    """The index of a distilled model's folder says so."""
    return Kind(PIPELINES["Krea2Pipeline"], FAMILY, distilled=bool(index.get("is_distilled")))
