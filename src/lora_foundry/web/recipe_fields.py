"""A recipe as a form needs it: from the models themselves, so that a new field shows up with its help text."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lora_foundry.domain.recipe import Recipe, help_of
from lora_foundry.registry import choice_of

Kind = Literal["integer", "number", "boolean", "text", "choice", "choices", "list", "table", "counts"]
# What most people set, if anything: the base, how much, how large, how long. All else is there, folded.
BASIC = (
    *("model.base", "generate.images", "train.resolution", "train.rank"),
    *("train.learning_rate", "train.steps", "train.batch_size", "train.memory"),
)
_KINDS: tuple[tuple[type, Kind], ...] = (
    (bool, "boolean"), (int, "integer"), (float, "number"), (str, "text"),
)  # fmt: skip
_LIMITS = {"ge": "minimum", "gt": "above", "le": "maximum", "lt": "below", "multiple_of": "multiple_of"}


class RecipeField(BaseModel):
    """One setting. `path` is what "path=value" changes; `default` is None where every recipe must say it itself.

    type: `choice` is one of `choices`, `choices` any number of them, `list` any words, `table` rows of a word
    and the words that belong to it, `counts` whole numbers by name. basic: one of the few that most people set.
    """

    path: str
    name: str
    type: Kind
    value: Any
    default: Any = None
    description: str
    choices: list[str] | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    multiple_of: float | None = None
    basic: bool = False


class FieldGroup(NamedTuple):
    """A section's name, its docstring and its fields."""

    name: str
    description: str
    fields: list[RecipeField]


def fields_of(recipe: Recipe) -> list[FieldGroup]:
    """Every field of a recipe, by section."""
    top: list[RecipeField] = []
    groups = [FieldGroup("", "What belongs to no section.", top)]
    for name, field in Recipe.model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, BaseModel):
            inner = type(value).model_fields.items()
            fields = [_field(f"{name}.{key}", key, each, getattr(value, key)) for key, each in inner]
            words = " ".join((type(value).__doc__ or "").split())
            groups.append(FieldGroup(name, words, fields))
        elif name not in ("name", "description"):
            top.append(_field(name, name, field, value))
    return groups


def _field(path: str, name: str, field: FieldInfo, value: Any) -> RecipeField:
    kind, choices = _kind(field.annotation)
    if marker := choice_of(field.metadata):
        kind, choices = "choice", list(marker.choices)
    limits = {
        _LIMITS[key]: float(getattr(each, key))
        for each in field.metadata
        for key in _LIMITS
        if getattr(each, key, None) is not None
    }
    default = None if field.default is PydanticUndefined else field.default
    return RecipeField(
        path=path, name=name, type=kind, value=value, default=default, choices=choices,
        description=help_of(field), basic=path in BASIC, **limits,
    )  # fmt: skip


def _kind(annotation: Any) -> tuple[Kind, list[str] | None]:
    """The kind of control that a type needs, and the words it offers."""
    if get_origin(annotation) is Literal:
        return "choice", [str(each) for each in get_args(annotation)]
    if get_origin(annotation) is dict:
        return "counts", None
    if get_origin(annotation) in (tuple, list):
        inner = get_args(annotation)[0]
        if marker := choice_of(getattr(inner, "__metadata__", ())):
            return "choices", list(marker.choices)
        inner = get_args(inner)[0] if get_origin(inner) is Annotated else inner
        if get_origin(inner) is Literal:
            return "choices", [str(each) for each in get_args(inner)]
        return ("list", None) if inner in (str, int, float) else ("table", None)
    for base, kind in _KINDS:
        if annotation is base:
            return kind, None
    for each in get_args(annotation):  # X | None, Annotated
        found, choices = _kind(each)
        if found != "table":
            return found, choices
    return "table", None
