"""The names that LoRA files have for a base's modules: kohya's prefixes for the networks of a pipeline, and the forms of
a module's path that any family's files may use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.registry import family_part

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet_",),
    "transformer": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}


def modules_by_name(pipeline: Any, base: Base) -> Iterator[tuple[str, Any]]:
    """The pipeline's modules by every name that a LoRA may use for them: kohya's, and those of the diffusers form."""
    for part in PREFIXES:
        network = getattr(pipeline, part, None)
        for path, module in network.named_modules() if network is not None else ():
            yield from ((name, module) for name in file_names(part, path, base))


def file_names(part: str, path: str, base: Base) -> Iterator[str]:
    """Every name that a LoRA file may have for the module at `path` of a part of the pipeline."""
    other_forms = getattr(family_part(base.family, "names"), "other_forms", None)
    for form in (path, *(other_forms(part, path) if other_forms is not None else ())):
        yield from (prefix + form.replace(".", "_") for prefix in PREFIXES[part])
        yield f"{part}.{form}"
        if part == "transformer":
            yield f"diffusion_model.{form}"


def clip_forms(part: str, path: str) -> Iterable[str]:
    """Files always say text_model; whether the encoder's own modules do depends on the library's version."""
    return (f"text_model.{path}",) if part.startswith("text_encoder") else ()


def layer_paths(tensors: Iterable[str], mark: str, prefixes: tuple[str, ...]) -> Iterator[str]:
    """The paths of the layers in a family's own file, without any of the `prefixes`; of a file without a tensor whose name
    ends as the `mark` does, none, since it is another family's."""
    names = list(tensors)
    if not any(name.endswith(mark) for name in names):
        return
    for name in names:
        if name.endswith(".weight"):
            path = name.removesuffix(".weight")
            for prefix in prefixes:
                path = path.removeprefix(prefix)
            yield path


def comfyui_names(family: str, tensors: Iterable[str]) -> Iterable[str]:
    """The names of LoRA modules that ComfyUI derives for a family from the tensors of its own file, beside those it
    derives for every family from the tensors' names themselves."""
    found: Iterable[str] = family_part(family, "names").comfyui_names(tensors)
    return found
