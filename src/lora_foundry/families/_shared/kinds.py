"""How a family says what a file or folder is, and what is no base of any family: a LoRA, a ControlNet, a text encoder
alone. Each is named for what it is, so that the sentence about it says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from lora_foundry.families._shared.vocabularies import Vocabulary
from lora_foundry.files.safetensors import Header

Shapes = Mapping[str, tuple[int, ...]]


class PartFile(NamedTuple):
    """A file that a denoiser needs beside it where ComfyUI keeps a model in several: its part of the pipeline, what to
    call it, ComfyUI's folders for it, the file's usual name, how its header is recognised, and where `setup` gets it
    (`hf:owner/name/file`) under which licence."""

    part: str
    words: str
    folders: tuple[str, ...]
    usual: str
    fits: Callable[[Header], bool]
    source: str
    licence: str


class PublishedName(NamedTuple):
    """What ComfyUI-Lora-Manager calls a base ("base_model", as Civitai does), and A1111 ("sd version")."""

    manager: str
    a1111: str = "Unknown"


class Kind(NamedTuple):
    """What a model is, in words, the family that handles it (empty: none does), and the configuration of that family's
    that a file is loaded with. needs: the files that belong to it, where it is a denoiser alone. distilled: drawn in few
    steps without guidance, and not to be trained as it is."""

    name: str
    family: str = ""
    configuration: str = ""
    needs: tuple[PartFile, ...] = ()
    distilled: bool = False


class Detect(Protocol):
    """A family's module `detect`: what it recognises, by names, headers and configurations alone."""

    SUPPORTED: str
    """What can be used, in words, for the sentence about what cannot."""

    PIPELINES: Mapping[str, str]
    """Classes of diffusers pipelines that are this family's, each in words."""

    VOCABULARIES: tuple[Vocabulary, ...]
    """What its text encoders read with where the base is not a diffusers folder, which has its own."""

    ADAPTER: PartFile | None
    """The training adapter of its distilled model, where there is one."""

    PUBLISHED: Mapping[str, PublishedName]
    """What other programs call the base, by how the `ss_base_model_version` of `train.py` begins."""

    def look(self, header: Header, name: str) -> Kind | None:
        """What a safetensors file called `name` is, if it has to do with this family.

        A module may also have `examine(path, index) -> Kind | None`, which says more of a diffusers folder whose parts
        are all there: None where the pipeline's class says all."""
        ...


_LORA = ("lora_down", "lora_up", "lora_A", "lora_B", "lora.down", "hada_w1", "lokr_w")

# A kind, and key fragments of which one must be present; the first row that fits wins.
_OTHERS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (Kind("a LoRA, not a base model"), _LORA),
    (Kind("a textual inversion, not a base model"), ("emb_params", "string_to_param")),
    (Kind("a ControlNet, not a base model"), ("control_model.", "zero_convs", "controlnet_cond_embedding")),
    (Kind("an IP-Adapter, not a base model"), ("ip_adapter.",)),
)
_UNSUPPORTED: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (Kind("a Stable Diffusion 3 model"), ("joint_blocks.0.", "joint_transformer_blocks.0.")),
    (Kind("a Flux.1 or Chroma model"), ("double_blocks.0.", "single_transformer_blocks.0.")),
    (Kind("a Wan video model"), ("blocks.0.cross_attn.k_img", "blocks.0.self_attn.norm_q")),
)
# Parts of models, told by how their keys begin.
_PARTS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (
        Kind("a text encoder alone (a language model), not a base model; keep it in ComfyUI's text_encoders folder"),
        ("model.embed_tokens.", "model.layers.0.self_attn.", "model.language_model.", "embed_tokens.", "layers.0.self_attn."),
    ),
    (
        Kind("a text encoder alone (T5), not a base model; keep it in ComfyUI's text_encoders folder"),
        ("encoder.block.0.", "shared.weight"),
    ),
    (
        Kind("a text encoder alone (CLIP), not a base model; keep it in ComfyUI's text_encoders folder"),
        ("text_model.", "transformer.text_model.", "transformer.resblocks."),
    ),
    (Kind("a CLIP vision model, not a base model"), ("vision_model.",)),
    (
        Kind("a VAE, not a base model; model.vae uses it in place of a base's own"),
        ("decoder.", "encoder.", "first_stage_model."),
    ),
)  # fmt: skip

_PIPELINES = {
    "StableDiffusion3Pipeline": "a Stable Diffusion 3 model",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusionXLInpaintPipeline": "an inpainting model",
    "FluxPipeline": "a Flux.1 model",
    "ChromaPipeline": "a Chroma model",
    "WanPipeline": "a Wan video model",
}

# Ways to store weights in few bits that only the program knows that made them.
_PACKED = (
    (".quant_state.bitsandbytes", "NF4 (bitsandbytes)"),
    (".absmax", "NF4 (bitsandbytes)"),
    (".weight_scale_2", "NVFP4"),
    (".wscales", "SVDQuant"),
    (".qweight", "a packed integer format"),
)
_SCALE, _WEIGHT = ".weight_scale", ".weight"  # of ComfyUI's own formats, told by the types of their tensors


def other_kind(shapes: Iterable[str]) -> Kind | None:
    """What a file is that no family could mean: a LoRA, a ControlNet and the like."""
    return _by_fragment(_OTHERS, shapes)


def stranger(shapes: Iterable[str]) -> Kind:
    """What a file is that no family recognised."""
    names = list(shapes)
    found = _by_fragment(_UNSUPPORTED, names)
    if found is not None:
        return found
    for kind, marks in _PARTS:
        if any(key.startswith(marks) for key in names):
            return kind
    return Kind("of a kind that is not known")


def strange_pipeline(class_name: str) -> Kind:
    """What a diffusers folder is whose pipeline is no family's."""
    word = class_name.removesuffix("Pipeline") or "no known pipeline"
    return Kind(_PIPELINES.get(class_name, f"a diffusers folder for {word}"))


def packed_format(header: Header) -> str:
    """The format of weights that cannot be read back as numbers by themselves; empty where they can. fp8 can, with the
    scales beside it."""
    for ending, words in _PACKED:
        if any(key.endswith(ending) or f"{ending}__" in key for key in header.shapes):
            return words
    scaled = [key for key in header.shapes if key.endswith(_SCALE)]
    if any(header.types[key] in ("U8", "F8_E8M0") for key in scaled):
        return "MXFP8"
    if any(header.types.get(key.removesuffix(_SCALE) + _WEIGHT) == "I8" for key in scaled):
        return "int8"
    return ""


def _by_fragment(rows: Iterable[tuple[Kind, tuple[str, ...]]], names: Iterable[str]) -> Kind | None:
    keys = list(names)
    for kind, fragments in rows:
        if any(fragment in key for key in keys for fragment in fragments):
            return kind
    return None


def has_key(header: Header, *endings: str) -> bool:
    """Whether the file has, for each of `endings`, a tensor whose name ends so."""
    return all(any(key.endswith(ending) for key in header.shapes) for ending in endings)
