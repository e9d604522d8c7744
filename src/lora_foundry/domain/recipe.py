"""A recipe is every choice of a run as typed data: one section a stage, one TOML file, nothing else to configure.

Unknown keys are refused with the nearest known one, since a misspelt option that is silently ignored costs hours.
Every field's description here is its documentation; docs/recipes.md is made from it and tested against it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError

from lora_foundry.domain.sections import (
    CaptionSection,
    CurateSection,
    EvaluateSection,
    GenerateSection,
    ModelSection,
    PublishSection,
    Section,
    TrainSection,
)
from lora_foundry.domain.shots import Vocabulary
from lora_foundry.errors import InputError, did_you_mean


class Recipe(Section):
    """All choices of a run. `name` and `description` are for people."""

    name: str = Field(description="The recipe's name.")
    description: str = Field(description="One line on what it is for.")
    seed: int = Field(42, ge=0, lt=2**32, description="Fixes plan, picture seeds and evaluation.")
    model: ModelSection
    shots: Vocabulary
    generate: GenerateSection
    curate: CurateSection
    caption: CaptionSection
    train: TrainSection
    evaluate: EvaluateSection
    publish: PublishSection

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
        raise InputError(f"{where} = {fault['input']!r} is not possible: {_plain(fault['msg'])}.") from error


def apply_setting(data: dict[str, Any], setting: str) -> None:
    """Applies one "section.key=value" to nested recipe values; the value is TOML, or else taken as text."""
    path, equals, raw = setting.partition("=")
    keys = tuple(part.strip() for part in path.split("."))
    if not equals or not all(keys):
        raise InputError(
            f"--set {setting!r} is not of the form section.key=value, as in --set train.rank=16."
        )
    refuse_unknown_keys(Recipe, _nest(keys, raw), ())
    target = data
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise InputError(f"--set {setting!r} is not possible: {key!r} is a single value, not a section.")
    target[keys[-1]] = _toml_value(raw.strip())


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
