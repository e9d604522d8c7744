"""Tells FLUX.2 Klein: a diffusers folder, or ComfyUI's split files of the 4B model. The distilled model and the base have
the same layers: a folder's index says which it is, a file's name does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_foundry.families._shared.kinds import Kind, PartFile, PublishedName
from lora_foundry.families._shared.split import language_model
from lora_foundry.families._shared.vocabularies import QWEN3
from lora_foundry.files.safetensors import Header

SUPPORTED = "FLUX.2 Klein (a diffusers folder, or ComfyUI's 4B transformer file with its VAE and text encoder beside it)"
PIPELINES = {"Flux2KleinPipeline": "a FLUX.2 Klein model"}
FAMILY = "klein"
PUBLISHED = {
    "flux2_klein_4b_base": PublishedName("Flux.2 Klein 4B-base"),
    "flux2_klein_4b": PublishedName("Flux.2 Klein 4B"),
    "flux2_klein_9b_base": PublishedName("Flux.2 Klein 9B-base"),
    "flux2_klein_9b": PublishedName("Flux.2 Klein 9B"),
}
VOCABULARIES = (QWEN3,)
ADAPTER = None
_MARK = "double_stream_modulation_img."
WIDTH_4B = 3072  # of the 4B model's transformer
_TEXT_WIDTH, _TEXT_LAYERS = 2560, 36  # of Qwen3-4B
_FILES = "hf:Comfy-Org/vae-text-encorder-for-flux-klein-4b/split_files"  # the repository's own spelling


def flux2_vae(header: Header) -> bool:
    """Whether a file is the VAE of FLUX.2: 32 channels, and the statistics by which its latents are normalised."""
    first = header.shapes.get("decoder.conv_in.weight")
    return first is not None and first[1] == 32 and "bn.running_mean" in header.shapes


NEEDS = (
    PartFile("vae", "VAE", ("vae",), "flux2-vae.safetensors", flux2_vae,
             f"{_FILES}/vae/flux2-vae.safetensors", "Apache-2.0"),
    PartFile("text_encoder", "text encoder", ("text_encoders", "clip"), "qwen_3_4b.safetensors",
             lambda header: language_model(header, _TEXT_WIDTH, _TEXT_LAYERS),
             f"{_FILES}/text_encoders/qwen_3_4b.safetensors", "Apache-2.0"),
)  # fmt: skip


def look(header: Header, name: str) -> Kind | None:
    """A FLUX.2 transformer, in ComfyUI's layout or in diffusers'."""
    if not any(_MARK in key for key in header.shapes):
        return None
    first = next(
        (
            shape
            for key, shape in header.shapes.items()
            if key.endswith(("img_in.weight", "x_embedder.weight"))
        ),
        (),
    )
    if not first or first[0] != WIDTH_4B:
        return Kind(
            "a FLUX.2 transformer of another size than Klein 4B; give its diffusers folder if it is Klein"
        )
    distilled = "base" not in name.lower()
    return Kind("a FLUX.2 Klein transformer", FAMILY, "distilled" if distilled else "base", NEEDS, distilled)


def examine(path: Path, index: Mapping[str, object]) -> Kind | None:
    """The index of a distilled model's folder says so."""
    return Kind(PIPELINES["Flux2KleinPipeline"], FAMILY, distilled=bool(index.get("is_distilled")))
