"""ComfyUI's split files: a transformer in `diffusion_models/`, with its VAE and text encoder in folders beside. Given
the transformer, finds the others by what their headers show, or says which is missing and where it was looked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared.kinds import Kind, PartFile, packed_format
from lora_foundry.files.safetensors import Header, read_header

INDEX, _MODULAR_INDEX = (
    "model_index.json",
    "modular_model_index.json",
)  # of a diffusers folder, in its two forms
INDICES = (INDEX, _MODULAR_INDEX)
_MOST_LOOKED_AT = 200
_DENOISER_FOLDERS = ("diffusion_models", "unet", "checkpoints")
_PART_FOLDERS = ("vae", "text_encoders", "clip", "loras")


def find_parts(
    path: Path, kind: Kind, given: Mapping[str, Path], folders: Sequence[Path] = ()
) -> dict[str, Path]:
    """The files that belong to the denoiser at `path`, by part. `given` wins; else ComfyUI's folders beside it and below
    `folders` are searched. Raises BaseModelError for one that is missing or does not fit."""
    found: dict[str, Path] = {}
    for part in kind.needs:
        if part.part in given:
            chosen = given[part.part]
            if not _fits(chosen, part):
                raise BaseModelError(
                    f"{chosen} is not the {part.words} of {kind.name}; name the right file in model.{part.part} "
                    f"(usually {part.usual})."
                )
        else:
            beside = find_part(path, part, folders)
            if beside is None:
                raise BaseModelError(
                    f"{path} is {kind.name} alone, and its {part.words} is in none of "
                    f"{', '.join(map(str, _places(path, part, folders)))}; put {part.usual} there, name it in "
                    f"model.{part.part}, or let `lora-foundry setup` fetch it."
                )
            chosen = beside
        found[part.part] = chosen
    return found


def find_part(path: Path, part: PartFile, folders: Sequence[Path] = ()) -> Path | None:
    """The file of one part of the denoiser at `path`: of those that fit, the one with the usual name. None without one."""
    matching = [file for place in _places(path, part, folders) for file in _files(place) if _fits(file, part)]
    return min(matching, key=lambda file: (file.name != part.usual, len(file.name), file.name), default=None)


def _places(path: Path, part: PartFile, folders: Sequence[Path]) -> Iterator[Path]:
    """Where a part may lie: beside the denoiser, and in ComfyUI's folder for it, however deep the denoiser lies."""
    seen = set()
    roots = [parent.parent for parent in path.parents if parent.name in _DENOISER_FOLDERS]
    roots += [folder.parent if folder.name in _DENOISER_FOLDERS else folder for folder in folders]
    for place in [path.parent, *(root / name for root in roots for name in part.folders)]:
        if place not in seen:
            seen.add(place)
            yield place


def part_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders of base models, and ComfyUI's for other files beside them."""
    roots = dict.fromkeys(folder.parent for folder in folders if folder.name in _DENOISER_FOLDERS)
    return [*folders, *(root / name for root in roots for name in _PART_FOLDERS)]


def _files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.safetensors"))[:_MOST_LOOKED_AT] if place.is_dir() else []


def _fits(file: Path, part: PartFile) -> bool:
    try:
        header = read_header(file)
    except (OSError, BaseModelError):
        return False
    return part.fits(header) and not packed_format(header)


def language_model(header: Header, width: int, layers: int, prefix: str = "model.") -> bool:
    """Whether a file is a language model of this width with at least so many layers."""
    embedding = header.shapes.get(f"{prefix}embed_tokens.weight") or header.shapes.get("embed_tokens.weight")
    if embedding is None or embedding[1] != width:
        return False
    return any(f"layers.{layers - 1}." in key for key in header.shapes)


def vision_language_model(header: Header, width: int, layers: int) -> bool:
    """Whether a file is a language model that sees, too, of this width with at least so many layers."""
    sees = any(key.startswith(("visual.", "model.visual.")) for key in header.shapes)
    return sees and any(
        language_model(header, width, layers, prefix) for prefix in ("model.", "model.language_model.")
    )


def qwen_vae(header: Header) -> bool:
    """Whether a file is the VAE of Qwen-Image (16 channels, made for films) in its own layout or in diffusers'; Wan 2.1's
    has the same latents."""
    first = header.shapes.get("decoder.conv1.weight") or header.shapes.get("decoder.conv_in.weight")
    return first is not None and len(first) == 5 and first[1] == 16


def flux_vae(header: Header) -> bool:
    """Whether a file is the VAE of Flux.1 (16 channels, no quantisation layers)."""
    first = header.shapes.get("decoder.conv_in.weight") or header.shapes.get(
        "first_stage_model.decoder.conv_in.weight"
    )
    return (
        first is not None
        and first[1] == 16
        and len(first) == 4
        and not any("bn." in key for key in header.shapes)
    )


def index_of(folder: Path) -> Path:
    """The index of a diffusers folder: the plain one, or that of the library's modular form where it has no other. What is
    returned for a folder without one is not there."""
    return next((folder / name for name in INDICES if (folder / name).is_file()), folder / INDEX)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration. Raises BaseModelError where it is missing or damaged."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} is missing or damaged; download or copy the model again.") from error
    if not isinstance(data, dict):
        raise BaseModelError(f"{path} is damaged; download or copy the model again.")
    return data
