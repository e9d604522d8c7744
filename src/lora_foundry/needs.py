"""What a recipe needs on this machine before a run: the base and what its family says belongs to it (VAE, text encoder,
vocabulary, training adapter), and the files of the instruments; what of it is here, and where the rest can be had.
`lora-foundry setup` fetches it, and `doctor` lists it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_foundry import registry
from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import FoundryError, MissingExtraError
from lora_foundry.families._shared.inspect import BUNDLED, companions, family_of_file, find_base, locate
from lora_foundry.families._shared.kinds import PartFile
from lora_foundry.families._shared.registry import family_of_recipe, family_part
from lora_foundry.families._shared.split import part_folders
from lora_foundry.families._shared.vocabularies import Vocabulary
from lora_foundry.files.download import Source, cached, parse_source
from lora_foundry.mini import MODEL_DIR
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
    return [*base_needs(recipe, settings), *_instruments(recipe, settings)]


def base_needs(recipe: Recipe, settings: Settings) -> list[Need]:
    """The bases, each with what belongs to it. What belongs to one that is not here is told for the bases of the recipes
    that ship; of another, once it is here."""
    model = recipe.model
    bases = [("base model", "base", model.base, model.source)]
    if model.train_base:
        bases.append(("base model for training", "train_base", model.train_base, model.train_source))
    needs: list[Need] = []
    for what, key, wanted, place in bases:
        needs.append(_base(what, key, wanted, place, recipe, settings))
        needs += _belongings(wanted, recipe, settings)
    return list(dict.fromkeys([*needs, *_adapter(recipe, settings)]))


def _base(what: str, key: str, wanted: str, place: str, recipe: Recipe, settings: Settings) -> Need:
    licence, name = recipe.model.licence, Path(wanted).name
    source = parse_source(place, name, licence) if place else Source(name, licence)
    advice = f"Put it into {settings.model_folders[0]}, or name its path: --set model.{key}=PATH."
    try:
        path = locate(wanted, settings.model_folders) if wanted != BUNDLED else MODEL_DIR
        if all(beside for _, beside in companions(path, settings.model_folders)):
            find_base(wanted, settings.model_folders)  # what is missing beside it is a need of its own
    except FoundryError as error:
        target = settings.model_folders[0] / name
        if target.exists():  # damaged, or of a kind that cannot be used: the inspection's sentence says what
            return Need(what, Source(name), None, None, str(error))
        return Need(what, source, None, target, advice)
    return Need(what, source, path)


def _family(wanted: str, settings: Settings) -> str:
    """The family of a base: what it is if it is here, else what our recipes say; empty where neither is known."""
    try:
        path = locate(wanted, settings.model_folders)
    except FoundryError:
        return family_of_recipe(wanted) or ""
    try:
        return find_base(wanted, settings.model_folders).family if path.is_dir() else family_of_file(path)
    except FoundryError:  # the base's own line says what is wrong
        return ""


def _belongings(wanted: str, recipe: Recipe, settings: Settings) -> Iterator[Need]:
    """What a base in a file has not in it, as its family says; a diffusers folder has everything."""
    family = _family(wanted, settings) if wanted.lower().endswith(".safetensors") else ""
    if not family:
        return
    try:
        beside = companions(locate(wanted, settings.model_folders), settings.model_folders)
    except FoundryError:
        beside = []
    for part, found in beside:
        yield _file(part, f"model.{part.part}", getattr(recipe.model, part.part), found, settings)
    for vocabulary in family_part(family, "detect").VOCABULARIES:
        yield from _vocabulary(vocabulary, settings)


def _adapter(recipe: Recipe, settings: Settings) -> Iterator[Need]:
    """The training adapter that the recipe names; the family says where its own can be had."""
    named = recipe.train.training_adapter
    if not named:
        return
    family = _family(recipe.model.train_base or recipe.model.base, settings)
    known: PartFile | None = family_part(family, "detect").ADAPTER if family else None
    part = known or PartFile(
        "training_adapter", "training adapter", ("loras",), "", lambda header: True, "", ""
    )
    yield _file(part, "train.training_adapter", named, None, settings)


def _file(part: PartFile, key: str, named: str, beside: Path | None, settings: Settings) -> Need:
    """A file that belongs to a base: where the recipe names it, else `beside` the base. One by its usual name can be
    fetched."""
    found, name = beside, Path(named).name or part.usual
    if named:
        try:
            found = locate(named, part_folders(settings.model_folders))
        except FoundryError:
            found = None
    target = settings.model_folders[0] / part.folders[0] / name
    advice = f"Put {name} into {target.parent}, or name its path: --set {key}=PATH."
    if named in ("", part.usual):
        return Need(part.words, parse_source(part.source, name, part.licence), found, target, advice)
    return Need(part.words, Source(name), found, target, advice)


def _vocabulary(vocabulary: Vocabulary, settings: Settings) -> Iterator[Need]:
    own = vocabulary.own_folder(settings.comfyui)
    for file in vocabulary.files:
        source = Source(file, vocabulary.licence, vocabulary.repository, file)
        found = own / file if own is not None and (own / file).is_file() else cached(source)
        yield Need(f"{vocabulary.words}'s vocabulary", source, found)


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
