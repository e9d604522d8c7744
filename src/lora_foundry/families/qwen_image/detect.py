"""Tells Qwen-Image: a diffusers folder, or ComfyUI's split files. The models that edit have the same layers, and the
distilled one has, too: a folder's pipeline and the names of folders and files say which it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lora_foundry.families._shared.kinds import Kind, PartFile, PublishedName, has_key
from lora_foundry.families._shared.split import qwen_vae, vision_language_model
from lora_foundry.families._shared.vocabularies import QWEN25
from lora_foundry.files.safetensors import Header

SUPPORTED = (
    "Qwen-Image (a diffusers folder, or ComfyUI's transformer file with its VAE and text encoder beside it)"
)
_EDITS = (
    "a Qwen-Image-Edit model, which changes pictures and is not trained on words alone; with ComfyUI it draws \
a character from one picture (the workflows qwen_image_edit and qwen_image_edit_2511)"
)
PIPELINES = {
    "QwenImagePipeline": "a Qwen-Image model",
    "QwenImageEditPipeline": _EDITS,
    "QwenImageEditPlusPipeline": _EDITS,
}
FAMILY = "qwen_image"
PUBLISHED = {"qwen_image": PublishedName("Qwen")}
VOCABULARIES = (QWEN25,)
ADAPTER = None
_DISTILLED = re.compile(r"distill|lightning|turbo")
_EDIT = re.compile(r"(^|[^a-z])edit([^a-z]|$)")
_EDIT_MARK = "__index_timestep_zero__"  # in ComfyUI's files of the newer models that edit
_WIDTH = 3072  # of the transformer
_TEXT_WIDTH, _TEXT_LAYERS = 3584, 28  # of Qwen2.5-VL-7B
_FILES = "hf:Comfy-Org/Qwen-Image_ComfyUI/split_files"

NEEDS = (
    PartFile("vae", "VAE", ("vae",), "qwen_image_vae.safetensors", qwen_vae,
             f"{_FILES}/vae/qwen_image_vae.safetensors", "Apache-2.0"),
    PartFile("text_encoder", "text encoder", ("text_encoders", "clip"), "qwen_2.5_vl_7b_fp8_scaled.safetensors",
             lambda header: vision_language_model(header, _TEXT_WIDTH, _TEXT_LAYERS),
             f"{_FILES}/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors", "Apache-2.0"),
)  # fmt: skip


def look(header: Header, name: str) -> Kind | None:
    """A Qwen-Image transformer; ComfyUI's layout is diffusers'."""
    if has_key(header, "txt_in.text_norm.weight"):
        return Kind("a Qwen-Image 2.1 model, another network than Qwen-Image")
    if not has_key(header, "txt_norm.weight", "transformer_blocks.0.attn.add_q_proj.weight"):
        return None
    first = next((shape for key, shape in header.shapes.items() if key.endswith("img_in.weight")), (0,))
    if first[0] != _WIDTH:
        return Kind("a Qwen-Image transformer of a size that is not known, or a part of one")
    plain = name.lower()
    if any(key.endswith(_EDIT_MARK) for key in header.shapes) or _EDIT.search(plain):
        return Kind(_EDITS)
    if any(key.endswith("addition_t_embedding.weight") for key in header.shapes):
        return Kind("a Qwen-Image-Layered model, which takes pictures apart")
    distilled = bool(_DISTILLED.search(plain))
    return Kind("a Qwen-Image transformer", FAMILY, "base", NEEDS, distilled)


def examine(path: Path, index: Mapping[str, object]) -> Kind | None:
    """A folder is the distilled model by its name."""
    if index.get("_class_name") != "QwenImagePipeline":
        return Kind(_EDITS)
    hub = path.parent.parent.name  # of a snapshot in the hub's cache
    said = f"{path.name} {hub} {index.get('_name_or_path', '')}".lower()
    return Kind(PIPELINES["QwenImagePipeline"], FAMILY, distilled=bool(_DISTILLED.search(said)))
