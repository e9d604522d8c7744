"""What a recipe needs on this machine before a run: the base, the files of its instruments, CLIP's vocabulary; what of it
is here, and where the rest can be had. `lora-foundry setup` fetches it, and `doctor` lists it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_foundry import registry
from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import FoundryError, MissingExtraError
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.files.download import Source, cached, parse_source
from lora_foundry.settings import Settings


@dataclass(frozen=True)
class Need:
    """One thing that a recipe needs. `found`: where it is, or None; `target`: where `setup` would put it, None being the
    hub's own cache, which other programs share; `advice`: what to do where it cannot be fetched."""

    what: str
    source: Source
    found: Path | None
    target: Path | None = None
    advice: str = ""

    @property
    def fetchable(self) -> bool:
        """Whether `setup` can bring it."""
        return bool(self.source.repository or (self.source.url and self.target))


def needs_of(recipe: Recipe, settings: Settings) -> list[Need]:
    """Everything that a run of `recipe` reads beside what a person brings, in the order of its use."""
    model = recipe.model
    bases = [_base("base model", "base", model.base, model.source, recipe, settings)]
    if model.train_base:
        what = "base model for training"
        bases.append(_base(what, "train_base", model.train_base, model.train_source, recipe, settings))
    return [*bases, *_vocabulary(recipe, settings), *_instruments(recipe, settings)]


def _base(what: str, key: str, wanted: str, place: str, recipe: Recipe, settings: Settings) -> Need:
    licence, name = recipe.model.licence, Path(wanted).name
    source = parse_source(place, name, licence) if place else Source(name, licence)
    advice = f"Put it into {settings.model_folders[0]}, or name its path: --set model.{key}=PATH."
    try:
        found = find_base(wanted, settings.model_folders).path
    except FoundryError as error:
        target = settings.model_folders[0] / name
        if target.exists():  # damaged, or of a kind that cannot be used: the inspection's sentence says what
            return Need(what, Source(name), None, None, str(error))
        return Need(what, source, None, target, advice)
    return Need(what, source, found)


def _vocabulary(recipe: Recipe, settings: Settings) -> Iterator[Need]:
    """A checkpoint file has no tokenizer; where its family reads prompts with CLIP, its vocabulary is needed beside it."""
    if Path(recipe.model.base).suffix != ".safetensors":
        return
    from lora_foundry.families._shared.loading import (
        CLIP_VOCABULARY,
        VOCABULARY_VARIABLE,
        comfyui_vocabulary,
    )

    given = os.environ.get(VOCABULARY_VARIABLE) or comfyui_vocabulary(settings.comfyui)
    for file in ("vocab.json", "merges.txt"):
        source = Source(file, "MIT", CLIP_VOCABULARY, file)
        own = Path(given) / file if given else None
        found = own if own is not None and own.is_file() else cached(source)
        yield Need("CLIP's vocabulary", source, found)


def _instruments(recipe: Recipe, settings: Settings) -> Iterator[Need]:
    model = recipe.model
    chosen: list[tuple[registry.Kind, str]] = [
        ("tagger", model.tagger),
        *(("captioner", name) for name in recipe.caption.look),
        ("embedder", model.embedder),
        ("detector", model.detector),
    ]
    folder = Path(model.instruments).expanduser() if model.instruments else None
    seen: set[Source] = set()
    for kind, name in chosen:
        if name == "none":
            continue
        try:
            sources: tuple[Source, ...] = getattr(registry.load(kind, name), "sources", ())
        except MissingExtraError as error:
            yield Need(f"{kind} {name}", Source(name), None, None, str(error))
            continue
        for source in sources:
            if source not in seen:
                seen.add(source)
                yield _instrument(f"{kind} {name}", source, folder)


def _instrument(what: str, source: Source, folder: Path | None) -> Need:
    own = folder / source.name if folder is not None else None
    found = own if own is not None and own.is_file() else cached(source)
    where = folder or "a folder, and name it: --set model.instruments=FOLDER"
    return Need(what, source, found, advice=f"Put {source.name} ({source.licence}) into {where}.")
