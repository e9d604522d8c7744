"""Recipe section [model]: the base model and the instruments. Every field's description is its documentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lora_foundry.domain.sections.base import BaseModelPath, LocalPath, Section
from lora_foundry.registry import OneOf


class ModelSection(Section):
    """[model]: the base model and the instruments that look at pictures."""

    base: BaseModelPath = Field(
        description="Base model: `mini` (bundled), a diffusers folder, or one .safetensors file; a bare "
        "file name is looked for in the models folder and in ComfyUI's checkpoints and diffusion_models folders.",
        json_schema_extra={"private": "file"},
    )
    source: str = Field(
        "",
        description="Where `lora-foundry setup` gets the base: `hf:owner/name` for a diffusers folder, "
        "`hf:owner/name/file.safetensors` for one file of the hub, or an https address.",
    )
    licence: str = Field("", description="The base's licence, as its makers call it; `setup` shows it first.")
    train_base: BaseModelPath = Field(
        "",
        description="Base that the LoRA is trained on, where it is not `base`: the undistilled model of a distilled "
        "(Turbo) one that draws. Empty trains on `base`.",
    )
    train_source: str = Field("", description="Where `lora-foundry setup` gets `train_base`, as in `source`.")
    vae: BaseModelPath = Field(
        "",
        description="A VAE's .safetensors file that is used in place of the base's own, or that belongs to a transformer "
        "in a file of its own and is not found beside it.",
    )
    text_encoder: BaseModelPath = Field(
        "",
        description="The text encoder's .safetensors file of a transformer in a file of its own, where it is not found "
        "in ComfyUI's folders.",
    )
    clip_skip: int = Field(
        1,
        ge=1,
        le=4,
        description="Which of CLIP's last layers Stable Diffusion 1.x and 2.x read: 1 the last, 2 the last but one, as "
        "many anime models want. SDXL always reads the last but one.",
    )
    prediction: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto",
        description="What the base predicts: noise (`epsilon`) or `v_prediction`; `auto` reads it from the "
        "checkpoint's keys and metadata or its "
        "configuration.",
    )
    zero_terminal_snr: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether the base's noise schedule ends in pure noise; `auto` reads it likewise."
    )
    tagger: Annotated[str, OneOf("tagger", also=("none",))] = Field(
        description="Instrument that reads visible traits; `none` leaves adherence unmeasured."
    )
    embedder: Annotated[str, OneOf("embedder", also=("none",))] = Field(
        description="Instrument that tells characters apart by their looks; `none` leaves identity unmeasured."
    )
    instruments: Annotated[str, LocalPath("models")] = Field(
        "",
        description="Folder of the instruments' ONNX files; those that are not there are fetched from the hub at their "
        "first use. Their names are in docs/guide/one-character.md.",
        json_schema_extra={"affects": "nothing", "private": "folder"},
    )
    detector: Annotated[str, OneOf("detector", also=("none",))] = Field(
        "none",
        description="Instrument that counts the faces of a picture; `none` rejects no picture for them.",
    )
