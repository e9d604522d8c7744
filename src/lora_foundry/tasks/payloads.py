"""What a payload may say, and how it becomes a run. Rows come from programs and hands that are not ours, so
every value is checked here, every folder is kept inside the folders of the settings, and each fault is one
sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character, check_name, file_name, split_tags
from lora_foundry.domain.recipe import Recipe, apply_setting, build_recipe
from lora_foundry.domain.run import Run
from lora_foundry.domain.task import Task, TaskPriority, TaskType
from lora_foundry.errors import BackendError, FoundryError, InputError, brief, did_you_mean, is_storable
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.files.safe_paths import check_recipe_paths, inside, readable_picture
from lora_foundry.files.versions import current_run, working_folder
from lora_foundry.pipeline import PIPELINE, StageName, stages_of
from lora_foundry.recipe_files import load_recipe, recipe_names
from lora_foundry.remote.access import find_reference, newest_version
from lora_foundry.settings import Settings

Kind = Literal["generation", "tagging", "training", "stage", "unknown"]
MOST_BYTES = 1_000_000
LONGEST_TIMEOUT = 30 * 24 * 3600  # seconds
_KINDS: dict[str, Kind] = {
    TaskType.LORA_GENERATION.lower(): "generation",
    TaskType.LORA_TAGGING.lower(): "tagging",
    TaskType.LORA_TRAINING.lower(): "training",
    TaskType.LORA_STAGE.lower(): "stage",
}
_STAGE_NAMES = tuple(stage.name for stage in PIPELINE)


class Payload(BaseModel):
    """What all payloads share. Unknown keys are another program's business."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    stages: ClassVar[tuple[str, ...]] = ()

    character_name: str
    recipe: str | dict[str, Any] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    task_uuid: str | None = None


class GenerationPayload(Payload):
    stages: ClassVar[tuple[str, ...]] = stages_of("generation")

    description: str
    output_dir: str | None = None
    reference_image: str | None = None


class TaggingPayload(Payload):
    stages: ClassVar[tuple[str, ...]] = stages_of("tagging")

    image_dir: str
    character_tags: str | list[str]
    description: str


class TrainingPayload(Payload):
    stages: ClassVar[tuple[str, ...]] = stages_of("training")

    training_dir: str
    output_name: str
    base_model: str | None = None
    network_dim: Annotated[int, Field(ge=1)] = 32
    network_alpha: Annotated[float, Field(gt=0)] = 16
    epochs: Annotated[int, Field(ge=1)] = 15
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4


class StagePayload(Payload):
    """One stage of a pipeline."""

    stage: StageName
    description: str = ""
    character_tags: str | list[str] = ""
    trigger: str = ""
    output_name: str | None = None
    reference_image: str | None = None
    version: Annotated[int, Field(ge=1, le=100_000)] | None = None
    replaces: bool = False
    members: list[dict[str, Any]] = Field(default_factory=list)  # of a cast, see domain.cast.Member


_MODELS: dict[Kind, type[Payload]] = {
    "generation": GenerationPayload,
    "tagging": TaggingPayload,
    "training": TrainingPayload,
    "stage": StagePayload,
    "unknown": Payload,
}
# What only a payload of ours has; a user_request without a marker is ours if it holds these and nothing
# unknown.
_SIGNS: tuple[tuple[Kind, frozenset[str]], ...] = (
    ("training", frozenset({"character_name", "training_dir", "output_name"})),
    ("tagging", frozenset({"character_name", "image_dir", "character_tags"})),
    ("generation", frozenset({"character_name", "description"})),
)


def recognise(task_type: str, payload: object) -> Kind | None:
    """Which of our kinds a row is; None for rows that are not ours and must not be touched."""
    kind = _KINDS.get(task_type.lower())
    if kind is not None or task_type.lower() != TaskType.USER_REQUEST or not isinstance(payload, dict):
        return kind
    marker = payload.get("task_type", payload.get("type"))
    if isinstance(marker, str):
        misspelt = marker.lower().startswith("lora_") and "character_name" in payload
        return _KINDS.get(marker.lower()) or ("unknown" if misspelt else None)
    for candidate, signs in _SIGNS:
        if signs <= payload.keys() <= _MODELS[candidate].model_fields.keys():
            return candidate
    return None


def lane_of(kind: Kind, payload: object) -> Literal["cpu", "gpu"]:
    """The lane a task needs; one that will be refused anyway needs only the cheap one."""
    names = _MODELS[kind].stages
    if kind == "stage" and isinstance(payload, dict):
        names = (payload.get("stage", ""),)
    return "gpu" if any(stage.lane == "gpu" for stage in PIPELINE if stage.name in names) else "cpu"


def stage_name(kind: Kind, payload: object) -> str:
    """A stage's name, or the kind of an old producer's task."""
    named = payload.get("stage") if kind == "stage" and isinstance(payload, dict) else None
    return named if isinstance(named, str) and named in _STAGE_NAMES else kind


@dataclass(frozen=True)
class Work:
    """A checked task: the run and the stages of it to be done."""

    run: Run
    stages: tuple[str, ...]

    def job(self, settings: Settings, attempt: dict[str, str] | None = None) -> dict[str, Any]:
        """The same as JSON-like values, for the process that does it. attempt: which one it is."""
        plain = {"run": self.run.model_dump(mode="json"), "stages": list(self.stages), "attempt": attempt}
        return plain | {"settings": settings.for_child()}


def prepare(kind: Kind, payload: object, settings: Settings) -> Work:
    """Checks a payload completely. Raises PermanentError kinds, each one sentence for the row's `error`, and BackendError
    where a folder does not answer; nothing else, whatever the payload holds."""
    return place(kind, payload, resolve(kind, payload, settings), settings)


def resolve(kind: Kind, payload: object, settings: Settings) -> Run:
    """The run that a payload asks for, as its row holds it: the recipe with all its values, and `dataset_dir` below the
    datasets' folder, since each host has that elsewhere. Raises as `prepare` does."""
    with _one_sentence(kind):
        checked = parse(kind, payload)
        recipe = _recipe(checked, settings)
        character, folder, output = _asked(checked, settings)
        version = checked.version if isinstance(checked, StagePayload) else None
        if version is None:  # the old producers' tasks work on what is there
            version = newest_version(settings, folder)
        return Run(
            character=character,
            recipe=recipe,
            dataset_dir=folder.relative_to(settings.datasets_dir.resolve()),
            lora_dir=Path(),
            output_name=file_name(output or f"{character.slug}_{recipe.name}"),
            version=version,
            members=_members(checked, settings),
            replaces=isinstance(checked, StagePayload) and checked.replaces,
        )


def place(kind: Kind, payload: object, held: Run, settings: Settings) -> Work:
    """A row's run in the folders of this machine, checked again: whoever writes the row may have written that, too.
    Raises as `prepare` does."""
    with _one_sentence(kind):
        checked = parse(kind, payload)
        stages = (checked.stage,) if isinstance(checked, StagePayload) else checked.stages
        check_recipe_paths(held.recipe, settings, _own_recipe(checked, settings))
        recipe_base(held.recipe, settings.model_folders, training="train" in stages, anywhere=False)
        given = held.character.reference_image
        reference = _reference(settings, None if given is None else str(given))
        character = held.character.model_copy(update={"reference_image": reference})
        folder = inside(settings.datasets_dir, held.dataset_dir.as_posix(), "folder")
        if isinstance(checked, StagePayload):
            folder = working_folder(folder, checked.version)
        members = tuple(_placed(member, settings) for member in held.members)
        places: dict[str, Any] = {
            "members": members,
            "character": character,
            "dataset_dir": folder,
            "lora_dir": settings.loras_dir,
        }
        places["output_name"] = file_name(held.output_name)
        return Work(held.model_copy(update=places), stages)


def plain_run(run: Run) -> dict[str, Any]:
    """A resolved run as the table keeps it; a folder is written in one way on every system."""
    return run.model_dump(mode="json") | {"dataset_dir": run.dataset_dir.as_posix()}


def held_run(value: object) -> Run | None:
    """The run that a row holds; None where there is none, or one that this version cannot read."""
    try:
        return None if value is None else Run.model_validate(value)
    except (ValidationError, FoundryError):
        return None


@contextmanager
def _one_sentence(kind: Kind) -> Iterator[None]:
    """Every fault as an error of ours, brief enough for a row."""
    try:
        yield
    except FoundryError as error:
        raise type(error)(brief(str(error))) from error
    except OSError as error:
        raise BackendError(brief(f"The task cannot be prepared now: {error.strerror or error}.")) from error
    except Exception as error:  # a row by hand must not stop the worker, whatever it trips over
        raise InputError(brief(f"The payload of the {kind} task cannot be used: {error}.")) from error


def check_numbers(task: Task) -> None:
    """Raises InputError for numbers of a row that mean nothing."""
    if task.priority not in tuple(TaskPriority):
        raise InputError(
            f"Priority {task.priority} does not exist; priorities are 1 (urgent) to 5 (scheduled)."
        )
    if not 0 < task.timeout <= LONGEST_TIMEOUT:
        raise InputError(f"A timeout of {task.timeout} s is not possible; it must be 1 to {LONGEST_TIMEOUT}.")
    if task.max_retries < 0:
        raise InputError(f"max_retries is {task.max_retries}; it must not be negative.")


def parse(kind: Kind, payload: object) -> Payload:
    """The payload as its model. Raises InputError with the first fault."""
    if not isinstance(payload, dict):
        raise InputError(
            f"The payload of a {kind} task must be a JSON object of few levels, not {type(payload).__name__}."
        )
    _check_texts(payload)
    if kind == "unknown":
        marker = str(payload.get("task_type", payload.get("type")))
        raise InputError(f"There is no task type {marker[:80]!r}; {did_you_mean(marker.lower(), _KINDS)}")
    try:
        return _MODELS[kind].model_validate(payload)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            raise InputError(f"The payload of a {kind} task lacks {where!r}.") from error
        raise InputError(f"The payload's {where!r} is not possible: {fault['msg']}.") from error


def _check_texts(payload: dict[str, Any]) -> None:
    """Raises InputError for a payload that is too long or too deep, and for text that no file or database holds."""
    try:
        size = len(json.dumps(payload))
    except RecursionError:
        raise InputError("The payload is nested too deep to be read.") from None
    if size > MOST_BYTES:
        raise InputError(f"The payload has {size} bytes; at most {MOST_BYTES} are read.")
    todo: list[tuple[str, Any]] = list(payload.items()) + [(key, key) for key in payload]
    while todo:
        where, value = todo.pop()
        if isinstance(value, dict):
            todo += [(where, each) for each in (*value, *value.values())]
        elif isinstance(value, list):
            todo += [(where, each) for each in value]
        elif isinstance(value, str) and not is_storable(value):
            raise InputError(
                f"The payload's {where[:40]!a} holds NUL or half a character: {value[:40]!a}; remove it."
            )


def _asked(payload: Payload, settings: Settings) -> tuple[Character, Path, str | None]:
    """Whose task it is, the character's folder and the LoRA's name, if the payload says it."""
    name = check_name(payload.character_name)
    root = settings.datasets_dir
    if isinstance(payload, GenerationPayload):
        folder = inside(root, payload.output_dir or name, "output_dir")
        reference = _reference(settings, payload.reference_image)
        character = Character(name=name, description=payload.description, reference_image=reference)
        return character, folder, None
    if isinstance(payload, TaggingPayload):
        folder = inside(root, payload.image_dir, "image_dir")
        return _character(name, payload.description, payload.character_tags), folder, None
    if isinstance(payload, TrainingPayload):
        folder = inside(root, payload.training_dir, "training_dir")
        earlier = current_run(folder)
        known = earlier.character if earlier and earlier.character.name == name else None
        return known or Character(name=name, description=name), folder, payload.output_name
    assert isinstance(payload, StagePayload)
    character = _character(name, payload.description, payload.character_tags, payload.trigger)
    reference = _reference(settings, payload.reference_image)
    character = character.model_copy(update={"reference_image": reference})
    return character, inside(root, name, "character_name"), payload.output_name


def _members(payload: Payload, settings: Settings) -> tuple[Member, ...]:
    """The characters of a cast, as far as their pictures can be read here."""
    told = payload.members if isinstance(payload, StagePayload) else []
    return tuple(_placed(Member.model_validate(each), settings) for each in told)


def _placed(member: Member, settings: Settings) -> Member:
    given = member.character.reference_image
    reference = _reference(settings, None if given is None else str(given))
    return member.model_copy(
        update={"character": member.character.model_copy(update={"reference_image": reference})}
    )


def _reference(settings: Settings, given: str | None) -> Path | None:
    """The reference picture on this host, fetched where another host has stored it. Raises InputError."""
    return readable_picture(settings, find_reference(settings, given))


def _character(name: str, description: str, tags: str | list[str], trigger: str = "") -> Character:
    listed = split_tags(tags if isinstance(tags, str) else ",".join(str(tag) for tag in tags))
    return Character(name=name, description=description, trigger=trigger, tags=listed)


def _recipe(payload: Payload, settings: Settings) -> Recipe:
    """The recipe that applies, with the payload's values over it."""
    changes = list(flatten(payload.settings))
    if isinstance(payload, TrainingPayload):
        given = payload.model_fields_set
        names = {
            "network_dim": "train.rank",
            "network_alpha": "train.alpha",
            "epochs": "train.epochs",
            "learning_rate": "train.learning_rate",
        }
        changes = [f"{path}={getattr(payload, key)}" for key, path in names.items() if key in given] + changes
        if payload.base_model is not None:
            changes.insert(0, f"model.base={json.dumps(payload.base_model)}")
    if isinstance(payload.recipe, dict):
        values = deepcopy(payload.recipe)
        for change in changes:
            apply_setting(values, change)
        return build_recipe(values, "in the payload")
    return load_recipe(_recipe_name(payload, settings), changes, settings.recipe_folders)


def _own_recipe(payload: Payload, settings: Settings) -> Recipe | None:
    """The recipe that the payload names, as this machine's own file has it; None where it names none that is here."""
    if isinstance(payload.recipe, dict):
        return None
    try:
        return load_recipe(_recipe_name(payload, settings), (), settings.recipe_folders)
    except FoundryError:
        return None  # the file was removed since the run was resolved


def _recipe_name(payload: Payload, settings: Settings) -> str:
    """A recipe that ships or lies in this home; no other file is read. Raises InputError."""
    given = payload.recipe if isinstance(payload.recipe, str) else settings.recipe
    name, known = given.removesuffix(".toml"), recipe_names(settings.recipe_folders)
    if name not in known and given != settings.recipe:
        raise InputError(f"There is no recipe {name[:80]!r}; {did_you_mean(name[:80], known)}")
    return name if name in known else given


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """{"train": {"steps": 800}} or {"train.steps": 800} as "train.steps=800"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, ensure_ascii=False)}"
