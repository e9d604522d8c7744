"""What leaves this machine when a LoRA is given to others: the file, pictures that it made, scores, trigger, recipe and the
base's licence. Everything that goes out passes here, so nothing else can: no local path, no reference picture, and with
`publish.metadata = "minimal"` nothing but what is needed to load and call the LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from lora_foundry.domain.evaluation import Evaluation, Scores
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.run import Run
from lora_foundry.domain.sharing import bare_name, shareable_recipe
from lora_foundry.errors import InputError
from lora_foundry.files.images import PARAMETERS_KEY, a1111_parameters, load_picture, read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.safe_paths import inside
from lora_foundry.files.storage import read_model
from lora_foundry.recipe_files import recipe_toml
from lora_foundry.settings import Settings

MOST_PICTURES = 8
_HUB = "hf:"


@dataclass(frozen=True)
class ReleasePicture:
    """A picture drawn with the LoRA. name: of its file. data: PNG. made_with: A1111's text of its prompt and settings, which
    is also inside the PNG; empty where the recipe wants minimal metadata."""

    name: str
    data: bytes
    made_with: str


@dataclass(frozen=True)
class Release:
    """A LoRA and what is said of it. base: the base's name; base_repository: where the hub has it, empty if nowhere known.
    scores, description, recipe: empty where the recipe wants minimal metadata."""

    name: str
    lora: Path
    character: str
    trigger: str
    strength: float
    base: str
    base_repository: str
    licence: str
    description: str
    scores: Scores | None
    recipe: str
    pictures: tuple[ReleasePicture, ...]


def gather(settings: Settings, name: str) -> Release:
    """What there is to give of a character's newest LoRA. Raises InputError where none was published here."""
    root = inside(settings.datasets_dir, name, "name")
    paths = RunPaths(root, root.name.lower().replace(" ", "_"))
    run, found = read_model(paths.run_file, Run), read_model(paths.evaluation_result, Evaluation)
    publication = read_model(paths.publication, Publication)
    if run is None or found is None or publication is None:
        raise InputError(
            f"There is no trained LoRA of {name!r} here; make one with `lora-foundry create {name!r}` first."
        )
    lora = publication.lora
    if not publication.published or lora is None:
        raise InputError(
            f"The LoRA of {name} is {publication.verdict}; train it better before others get it."
        )
    if not lora.is_file():
        raise InputError(
            f"{lora} is gone; run `lora-foundry create` again with the same words to install it anew."
        )
    minimal = run.recipe.publish.metadata == "minimal"
    model = run.recipe.model
    return Release(
        name=run.output_name,
        lora=lora,
        character=run.character.name,
        trigger=run.trigger,
        strength=found.strength,
        base=bare_name(found.model),
        base_repository="/".join(model.source.removeprefix(_HUB).split("/")[:2])
        if model.source.startswith(_HUB)
        else "",
        licence=model.licence,
        description="" if minimal else run.described,
        scores=None if minimal else found.scores,
        recipe="" if minimal else recipe_toml(shareable_recipe(run.recipe)),
        pictures=_pictures(paths, found, minimal),
    )


def _pictures(paths: RunPaths, found: Evaluation, minimal: bool) -> tuple[ReleasePicture, ...]:
    """The best picture first. Each is encoded anew, so that nothing is in the file but what is put there here."""
    best = found.best().file
    files = dict.fromkeys([best, *(each.file for each in found.after.pictures)])
    made = list[ReleasePicture]()
    for file in list(files)[:MOST_PICTURES]:
        path = paths.evaluation_pictures() / file
        picture, record = load_picture(path), read_record(path)
        if picture is None:
            continue
        text = ""
        if record is not None and not minimal:
            text = a1111_parameters(record.model_copy(update={"model": bare_name(record.model)}))
        notes, data = PngInfo(), BytesIO()
        if text:
            notes.add_text(PARAMETERS_KEY, text)
        picture.save(data, "PNG", pnginfo=notes)
        made.append(ReleasePicture(f"{len(made) + 1:02d}.png", data.getvalue(), text))
    return tuple(made)
