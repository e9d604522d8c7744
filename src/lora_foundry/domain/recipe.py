"""A recipe is every choice of a run as typed data: one section a stage, one TOML file, nothing else to configure.

Unknown keys are refused with the nearest known one, since a misspelt option that is silently ignored costs hours.
Every field's description here is its documentation; docs/reference/recipes.md is made from it and tested against it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from lora_foundry.domain.sections import (
    CaptionSection,
    CurateSection,
    DatasetSection,
    EvaluateSection,
    GenerateSection,
    ModelSection,
    PublishSection,
    Section,
    TrainSection,
)
from lora_foundry.domain.shots import Vocabulary
from lora_foundry.errors import InputError, did_you_mean
from lora_foundry.registry import choice_of

# Keys of earlier versions: what they are called now, or None where nothing stands in their place. Recipes of that time
# lie in users' files and in the rows of their databases.
FORMER_KEYS: dict[str, str | None] = {
    "caption.backend": None,
    "generate.settle": "generate.complete_description",
}


def with_current_keys(data: Any) -> Any:
    """Nested recipe values under today's keys; what already has them is returned as it is."""
    if not isinstance(data, Mapping):
        return data
    for former, current in FORMER_KEYS.items():
        section, _, key = former.partition(".")
        values = data.get(section)
        if isinstance(values, Mapping) and key in values:
            kept = {name: value for name, value in values.items() if name != key}
            data = {**data, section: kept}
            if current is not None:
                target, _, name = current.partition(".")
                data = {**data, target: {name: values[key], **(data.get(target) or {})}}
    return data


class Recipe(Section):
    """All choices of a run. `name` and `description` are for people."""

    name: str = Field(description="The recipe's name.")
    description: str = Field(description="One line on what it is for.")
    seed: int = Field(42, ge=0, lt=2**32, description="Fixes plan, picture seeds and evaluation.")
    model: ModelSection
    shots: Vocabulary
    dataset: DatasetSection = DatasetSection()
    generate: GenerateSection
    curate: CurateSection
    caption: CaptionSection
    train: TrainSection
    evaluate: EvaluateSection
    publish: PublishSection

    @model_validator(mode="before")
    @classmethod
    def _current_keys(cls, data: Any) -> Any:
        return with_current_keys(data)

    @model_validator(mode="after")
    def _crops_need_a_detector(self) -> Self:
        if self.dataset.crops and self.model.detector == "none":
            raise ValueError('dataset.crops needs something that finds faces; set model.detector = "yunet"')
        return self

    @model_validator(mode="after")
    def _style_is_nobody(self) -> Self:
        if self.evaluate.subject == "style" and self.curate.identity:
            raise ValueError(
                'evaluate.subject = "style" needs curate.identity = false, since its pictures show anybody; where a recipe '
                'extends "_style", that name comes last'
            )
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of a full set: `train.steps`, or epochs x repeats x images / pictures a step, rounded up."""
        train = self.train
        samples = self.generate.images * train.repeats * train.epochs
        return train.steps or -(-samples // train.samples_per_step)


def parse_recipe(text: str, source: str, settings: Iterable[str] = ()) -> Recipe:
    """A recipe from TOML text with `--set` settings ("train.rank=8") applied. Raises InputError naming `source`."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"The recipe {source} is not valid TOML: {error}.") from error
    for setting in settings:
        apply_setting(data, setting)
    return build_recipe(data, source)


def build_recipe(data: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from nested values. Raises InputError with the first fault in plain words."""
    data = with_current_keys(data)
    refuse_unknown_keys(Recipe, data, ())
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            raise InputError(f"The recipe {source} lacks {where}.") from error
        if fault["type"] == "value_error":  # settings that contradict one another; the sentence names them
            raise InputError(f"{fault['ctx']['error']}.") from error
        end = "" if fault["msg"].endswith("?") else "."
        raise InputError(
            f"{where} = {fault['input']!r} is not possible: {_plain(fault['msg'])}{end}"
        ) from error


def apply_setting(data: dict[str, Any], setting: str) -> None:
    """Applies one "section.key=value" to nested recipe values; the value is TOML, or else taken as text."""
    path, equals, raw = setting.partition("=")
    keys = tuple(part.strip() for part in path.split("."))
    if not equals or not all(keys):
        raise InputError(
            f"--set {setting!r} is not of the form section.key=value, as in --set train.rank=16."
        )
    former = ".".join(keys)
    if former in FORMER_KEYS:
        current = FORMER_KEYS[former]
        if current is None:
            return
        keys = tuple(current.split("."))
    refuse_unknown_keys(Recipe, _nest(keys, raw), ())
    target = data
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise InputError(f"--set {setting!r} is not possible: {key!r} is a single value, not a section.")
    if keys == ("model", "base"):
        forget_source(target)
    target[keys[-1]] = _toml_value(raw.strip())


def forget_source(model: dict[str, Any]) -> None:
    """Another base comes from another place than the one that a recipe named for its own."""
    model.pop("source", None)
    model.pop("licence", None)


def setting_values(settings: Iterable[str]) -> dict[str, Any]:
    """Settings as nested values, checked for unknown keys: {"train": {"rank": 8}} for "train.rank=8"."""
    data: dict[str, Any] = {}
    for setting in settings:
        apply_setting(data, setting)
    return data


def refuse_unknown_keys(section: type[BaseModel], data: Any, path: tuple[str, ...]) -> None:
    """Raises InputError for the first key of `data` that `section` does not have."""
    if not isinstance(data, Mapping):
        return
    for key, value in data.items():
        if key not in section.model_fields:
            full = ".".join((*path, str(key)))
            raise InputError(f"The recipe has no {full!r}; {_suggest(section, str(key), path)}")
        kind = section.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            refuse_unknown_keys(kind, value, (*path, key))


def _suggest(section: type[BaseModel], key: str, path: tuple[str, ...]) -> str:
    """The nearest key of this section, with its path, or else the same key of another section."""
    elsewhere = [full for full in field_paths() if full.rsplit(".", 1)[-1] == key]
    if elsewhere and not path:
        return f"did you mean {elsewhere[0]!r}?"
    hint = did_you_mean(key, section.model_fields)
    return hint.replace("did you mean '", "did you mean '" + "".join(part + "." for part in path))


def field_paths(section: type[BaseModel] | None = None, prefix: str = "") -> list[str]:
    """Every setting of a recipe as "section.key", in order."""
    paths: list[str] = []
    for name, field in (section or Recipe).model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not get_args(kind):
            paths += field_paths(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def help_of(field: FieldInfo) -> str:
    """What a field means, with what its choices are where they are the names of backends."""
    marker = choice_of([*field.metadata, *_inner_metadata(field.annotation)])
    description = field.description or ""
    return description if marker is None else f"{description} {marker.help}"


def _inner_metadata(annotation: Any) -> list[Any]:
    """The markers of the items of a list-valued field."""
    return [each for part in get_args(annotation) for each in getattr(part, "__metadata__", ())]


def _nest(keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    return dict(nested)


def _toml_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _plain(message: str) -> str:
    """pydantic's message as the end of a sentence."""
    return message[:1].lower() + message[1:].rstrip(".")
