"""Tells Z-Image: a diffusers folder, or ComfyUI's split files. Turbo and the undistilled model have the same layers, so
that they are told apart by their names and, in a folder, by the shift of the scheduler."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lora_foundry.families._shared.kinds import Kind, PartFile, PublishedName, has_key
from lora_foundry.families._shared.split import flux_vae, language_model, read_json
from lora_foundry.families._shared.vocabularies import QWEN3
from lora_foundry.files.safetensors import Header

SUPPORTED = (
    "Z-Image (a diffusers folder, or ComfyUI's transformer file with its VAE and text encoder beside it)"
)
PIPELINES = {"ZImagePipeline": "a Z-Image model"}
FAMILY = "z_image"
PUBLISHED = {"zimage_turbo": PublishedName("ZImageTurbo"), "zimage": PublishedName("ZImageBase")}
VOCABULARIES = (QWEN3,)
ADAPTER = PartFile(
    "training_adapter", "training adapter", ("loras",), "zimage_turbo_training_adapter_v2.safetensors",
    lambda header: any("lora" in key for key in header.shapes),
    "hf:ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors", "Apache-2.0",
)  # fmt: skip
UNDISTILLED_SHIFT = 6.0  # of the scheduler of Tongyi-MAI/Z-Image; Turbo's is 3
_UNDISTILLED = re.compile(r"base|undistilled|de-?turbo|z-?_?image( |$)")
_WIDTH, _LUMINA_WIDTH = 3840, 2304  # of the transformer, and of Lumina 2's, which has the same layers
_TEXT_WIDTH, _TEXT_LAYERS = 2560, 36  # of Qwen3-4B
_FILES = "hf:Comfy-Org/z_image_turbo/split_files"

NEEDS = (
    PartFile("vae", "VAE", ("vae",), "ae.safetensors", flux_vae,
             f"{_FILES}/vae/ae.safetensors", "Apache-2.0"),
    PartFile("text_encoder", "text encoder", ("text_encoders", "clip"), "qwen_3_4b.safetensors",
             lambda header: language_model(header, _TEXT_WIDTH, _TEXT_LAYERS),
             f"{_FILES}/text_encoders/qwen_3_4b.safetensors", "Apache-2.0"),
)  # fmt: skip


def look(header: Header, name: str) -> Kind | None:
    """A Z-Image transformer, in ComfyUI's layout or in diffusers'."""
    if not has_key(header, "noise_refiner.0.attention.q_norm.weight") and not has_key(
        header, "noise_refiner.0.attention.norm_q.weight"
    ):
        if any("noise_refiner.0." in key for key in header.shapes):
            return Kind("a Z-Image or Lumina transformer in a layout that is not known")
        return None
    down = (shape for key, shape in header.shapes.items() if key.endswith("feed_forward.w2.weight"))
    width = next(down, (0,))[0]
    if width == _LUMINA_WIDTH:
        return Kind("a Lumina 2 model")
    if width != _WIDTH:
        return Kind("a Z-Image transformer of a size that is not known, or a part of one")
    distilled = _is_turbo(name)
    return Kind("a Z-Image transformer", FAMILY, "turbo" if distilled else "base", NEEDS, distilled)


def _is_turbo(name: str) -> bool:
    """Whether a name says Turbo; a "de-turbo" has the distillation taken back."""
    plain = name.lower().replace("-", "").replace("_", "")
    return "turbo" in plain and "deturbo" not in plain


def examine(path: Path, index: Mapping[str, object]) -> Kind | None:
    """A folder is the distilled Turbo by its name; one of another name by a scheduler that is not the undistilled
    model's, unless the name says otherwise."""
    hub = path.parent.parent.name  # of a snapshot in the hub's cache
    said = f"{path.name} {hub} {index.get('_name_or_path', '')}".lower()
    shift = float(str(read_json(path / "scheduler" / "scheduler_config.json").get("shift", 0.0)))
    distilled = _is_turbo(said)
    if not distilled and not _UNDISTILLED.search(said):
        distilled = shift < UNDISTILLED_SHIFT
    return Kind(PIPELINES["ZImagePipeline"], FAMILY, distilled=distilled)
