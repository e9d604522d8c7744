"""Which kind of model a file holds, told by the names of its tensors, so that a LoRA, a VAE or another family
given as a base is named for what it is. To support a family, give its row a family name here and write its
trainer module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SUPPORTED = (
    "supported are Stable Diffusion 1.x, 2.x and SDXL (Illustrious, Pony, NoobAI too) as .safetensors checkpoints "
    "or diffusers folders, and Z-Image as a diffusers folder"
)


class Kind(NamedTuple):
    """What a model is, in words, the family that handles it (empty: none does), and the configuration of ours that a
    single file of it is loaded with."""

    name: str
    family: str = ""
    configuration: str = ""


SD, SDXL, Z_IMAGE = "sd", "sdxl", "z_image"
_XL = "an SDXL model (Illustrious, Pony and NoobAI are SDXL too)"
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
    (
        Kind(
            "a Z-Image or Lumina transformer alone, without VAE and text encoder (give the diffusers folder)"
        ),
        ("noise_refiner.0.",),
    ),
    (Kind("a Qwen-Image model"), ("transformer_blocks.0.img_mlp",)),
)

# Parts of a base, told by how their keys begin.
_PARTS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (Kind("an SDXL UNet alone, without VAE and text encoders"), ("add_embedding.", "label_emb.")),
    (Kind("text encoders of an SDXL model, without UNet and VAE"), ("conditioner.embedders.",)),
    (
        Kind("the text encoder of a Stable Diffusion 2.x model, without UNet and VAE"),
        ("cond_stage_model.model.",),
    ),
    (Kind("a UNet alone, without VAE and text encoder"), ("down_blocks.", "up_blocks.")),
    (Kind("a text encoder, not a base model"), ("text_model.", "transformer.text_model.")),
    (Kind("a VAE, not a base model"), ("decoder.", "encoder.", "first_stage_model.")),
)

_BY_PIPELINE = {
    "StableDiffusionPipeline": Kind("Stable Diffusion", SD),
    "StableDiffusionXLPipeline": Kind(_XL, SDXL),
    "StableDiffusion3Pipeline": Kind("a Stable Diffusion 3 model"),
    "StableDiffusionInpaintPipeline": Kind("an inpainting model"),
    "FluxPipeline": Kind("a Flux model"),
    "ZImagePipeline": Kind("a Z-Image model", Z_IMAGE),
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
    for kind, marks in _PARTS:
        if any(key.startswith(marks) for key in shapes):
            return kind
    return Kind("of a kind that is not known")


def _stable_diffusion(shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    """A file with an original-layout UNet of Stable Diffusion, which must also bring its VAE and text encoders."""
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 4))
    if len(first) > 1 and first[1] != 4:
        return Kind(f"an inpainting or depth model ({first[1]} input channels)")
    kind, encoders = _version(shapes)
    needed = [("VAE", "first_stage_model."), *(("text encoder", prefix) for prefix in encoders)]
    lacks = dict.fromkeys(
        word for word, prefix in needed if not any(key.startswith(prefix) for key in shapes)
    )
    if lacks:
        return Kind(f"{kind.name} without its {' and '.join(lacks)}")
    return kind


def _version(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Kind, tuple[str, ...]]:
    """Which version of Stable Diffusion, and where its file has the text encoders."""
    if any(key.startswith("model.diffusion_model.label_emb.") for key in shapes):
        kind = Kind(_XL, SDXL, "sdxl")
        refiner = any(key.startswith("conditioner.embedders.0.model.") for key in shapes)
        if refiner:
            kind = Kind("an SDXL refiner")
            return kind, ()
        return kind, ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
    if any(key.startswith("cond_stage_model.model.") for key in shapes):
        return Kind("Stable Diffusion 2.x", SD, "sd2"), ("cond_stage_model.model.",)
    return Kind("a Stable Diffusion checkpoint", SD, "sd"), ("cond_stage_model.transformer.",)
