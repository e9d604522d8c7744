"""What of a run may leave this machine inside a LoRA, its card or its report: never a local path or the name of a
person's file, and with `publish.metadata = "minimal"` nothing but what a program needs to load and call the LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from pydantic import BaseModel

from lora_foundry.domain.character import Character
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.sections.base import LocalPath

Model = TypeVar("Model", bound=BaseModel)
# Of a LoRA's metadata, what programs need to load, find and call it.
_NEEDED = (
    "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.resolution",
    "modelspec.prediction_type", "modelspec.title", "modelspec.trigger_phrase", "modelspec.usage_hint",
    "modelspec.hash_sha256", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
    "ss_network_args", "ss_output_name", "ss_v2", "ss_resolution", "ss_clip_skip", "lora_foundry.version",
    "lora_foundry.recommended_strength", "lora_foundry.dry_run",
)  # fmt: skip


def needed_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries of a LoRA's metadata without which a program could not use it."""
    return {key: value for key, value in metadata.items() if key in _NEEDED}


def shareable_recipe(recipe: Recipe) -> Recipe:
    """The recipe without what only its owner's machine and eyes should see: folders become empty, files keep their bare
    names (sections.base.LocalPath says which fields may hold either), and pictures, whose names are a person's own, and
    prompts that were written for a look at the training are left out."""
    return _shareable(recipe)


def shareable_character(character: Character) -> dict[str, Any]:
    """The character without its reference image's place."""
    return character.model_dump(mode="json", exclude={"reference_image"})


def _shareable(model: Model) -> Model:
    changes: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            changes[name] = _shareable(value)
            continue
        extra = field.json_schema_extra
        marks = [mark for mark in field.metadata if isinstance(mark, LocalPath)]
        private = isinstance(extra, dict) and extra.get("private")
        if private or any(mark.place == "pictures" for mark in marks):
            changes[name] = type(value)()
        elif marks:
            listed = isinstance(value, tuple)
            changes[name] = tuple(map(bare_name, value)) if listed else bare_name(value)
    return model.model_copy(update=changes)


def bare_name(value: str) -> str:
    """A name as it is; of a path, whichever system wrote it, the file's name, and nothing of a folder's."""
    path = PurePosixPath(PureWindowsPath(value).as_posix())
    if len(path.parts) <= 1:
        return value
    return path.name if path.suffix else ""
