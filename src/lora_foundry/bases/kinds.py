"""Which kind of model a file holds, told by the names of its tensors, so that a LoRA, a VAE or another family
given as a base is named for what it is. To support a family, give its row a family name here and write its
trainer module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SUPPORTED = (
    "supported are Stable Diffusion 1.x checkpoints (.safetensors) and Stable Diffusion diffusers folders"
)


class Kind(NamedTuple):
    """What a model is, in words, and the family that handles it (empty: none does)."""

    name: str
    family: str = ""


SD = "sd"
_LDM_UNET = "model.diffusion_model.input_blocks."

# A kind, and key fragments of which one must be present; the first row that fits wins.
_BY_KEYS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (
        Kind("a LoRA, not a base model"),
        ("lora_down", "lora_up", "lora_A", "lora_B", "lora.down", "hada_w1", "lokr_w"),
    ),
    (Kind("a textual inversion, not a base model"), ("emb_params", "string_to_param")),
    (Kind("a ControlNet, not a base model"), ("control_model.", "zero_convs", "controlnet_cond_embedding")),
    (Kind("a Stable Diffusion 3 model"), ("joint_blocks.0.",)),
    (Kind("a Flux or Chroma model"), ("double_blocks.0.", "single_transformer_blocks.0.")),
    (Kind("a Z-Image or Lumina model"), ("noise_refiner.0.",)),
    (Kind("a Qwen-Image model"), ("transformer_blocks.0.img_mlp",)),
    (Kind("an SDXL model (Illustrious, Pony and NoobAI are SDXL too)"), ("conditioner.embedders.",)),
    (Kind("an SDXL UNet"), ("add_embedding.linear_1", "label_emb.0.0")),
    (Kind("a Stable Diffusion 2.x checkpoint"), ("cond_stage_model.model.",)),
)

_BY_PIPELINE = {
    "StableDiffusionPipeline": Kind("Stable Diffusion", SD),
    "StableDiffusionXLPipeline": Kind("an SDXL model (Illustrious, Pony and NoobAI are SDXL too)"),
    "StableDiffusion3Pipeline": Kind("a Stable Diffusion 3 model"),
    "StableDiffusionInpaintPipeline": Kind("an inpainting model"),
    "FluxPipeline": Kind("a Flux model"),
    "ZImagePipeline": Kind("a Z-Image model"),
    "QwenImagePipeline": Kind("a Qwen-Image model"),
}


def kind_of_pipeline(class_name: str) -> Kind:
    """The kind of a diffusers folder by its pipeline class."""
    return _BY_PIPELINE.get(class_name, Kind(f"a folder for {class_name or 'no known pipeline'}"))


def kind_of_keys(shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    """The kind of one safetensors file by its tensors' names and shapes."""
    for kind, fragments in _BY_KEYS:
        if any(fragment in key for key in shapes for fragment in fragments):
            return kind
    if any(key.startswith(_LDM_UNET) for key in shapes):
        return _stable_diffusion(shapes)
    if any(key.startswith(("down_blocks.", "up_blocks.")) for key in shapes):
        return Kind("a UNet alone, without VAE and text encoder")
    if any(key.startswith(("text_model.", "transformer.text_model.")) for key in shapes):
        return Kind("a text encoder, not a base model")
    if any(key.startswith(("decoder.", "encoder.", "first_stage_model.")) for key in shapes):
        return Kind("a VAE, not a base model")
    return Kind("of a kind that is not known")


def _stable_diffusion(shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    """A file with the UNet of Stable Diffusion 1.x, which must also bring its VAE and text encoder."""
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 4))
    if len(first) > 1 and first[1] != 4:
        return Kind(f"an inpainting or depth model ({first[1]} input channels)")
    lacks = [
        word
        for word, prefix in (("VAE", "first_stage_model."), ("text encoder", "cond_stage_model.transformer."))
        if not any(key.startswith(prefix) for key in shapes)
    ]
    if lacks:
        return Kind(f"a Stable Diffusion checkpoint without its {' and '.join(lacks)}")
    return Kind("Stable Diffusion 1.x", SD)
