"""One run: a character, a recipe and the folders it works in. Every stage gets the same run and finds what the
stages before it left in the run's folder, so a stage can be run alone, again, or on another host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lora_foundry.domain.cast import Member, check_members
from lora_foundry.domain.character import Character
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.sections.dataset import Source
from lora_foundry.domain.shots import AXES
from lora_foundry.domain.tags import is_taught
from lora_foundry.errors import InputError

# What becomes of a character of that name that was asked for with other words or settings: it is kept as an earlier
# version, the run goes on in it, or it is replaced. The very same request always goes on.
Again = Literal["new", "continue", "replace"]
_MADE_UP = "elara"
MEMBERS = "members"  # below a cast's folder, a folder for each character


class Run(BaseModel):
    """What a pipeline works on. Plain data: it survives a trip through JSON to another process."""

    model_config = ConfigDict(frozen=True)

    character: Character
    recipe: Recipe
    dataset_dir: Path
    lora_dir: Path
    output_name: str
    version: int = Field(default=1, ge=1, description="Which of the character's versions it makes.")
    replaces: bool = Field(default=False, description="Whether the version before is removed, not kept.")
    members: tuple[Member, ...] = Field(
        default=(), description="Of a cast: the characters that its LoRA draws, each with a set of its own."
    )

    @property
    def member_runs(self) -> tuple[Run, ...]:
        """The run of each member of a cast, in a folder of its own; of one character it is the run itself."""
        return tuple(map(self._member_run, self.members)) or (self,)

    def _member_run(self, member: Member) -> Run:
        dataset = self.recipe.dataset
        if member.source != "auto":
            dataset = dataset.model_copy(update={"source": member.source})
        return self.model_copy(
            update={
                "character": member.character,
                "recipe": self.recipe.model_copy(update={"dataset": dataset}),
                "dataset_dir": self.dataset_dir / MEMBERS / member.character.name,
                "members": (),
            }
        )

    @property
    def triggers(self) -> tuple[str, ...]:
        """The trigger words of its LoRA, one for each character."""
        return tuple(each.character.trigger for each in self.member_runs)

    @property
    def trigger(self) -> str:
        """The same in one line, as people and programs are told it."""
        return ", ".join(self.triggers)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What a person should know before it begins and is no reason to refuse it: triggers that are plain words. A style may
        come without its trigger, so nothing is said of that."""
        if self.recipe.evaluate.subject == "style":
            return ()
        shots = [word for axis in AXES for word in self.recipe.shots.axis(axis)]
        return tuple(
            f"{each!r} is a word that the base already knows: its LoRA would change every {each}. Take a made-up word, such as "
            f"{_MADE_UP!r}."
            for each in self.triggers
            if is_taught(each, shots)
        )

    @property
    def described(self) -> str:
        """Who the LoRA draws, in words: the description, or each member with its own."""
        if not self.members:
            return self.character.description
        told = [each.character for each in self.members]
        return "; ".join(f"{each.name}: {each.description}".removesuffix(": ") for each in told)

    @property
    def source(self) -> Source:
        """Where the pictures come from: what the recipe says, or what the character was given."""
        said = self.recipe.dataset.source
        if said != "auto":
            return said
        return "described" if self.character.reference_image is None else "reference"

    @property
    def draws(self) -> bool:
        """Whether any picture is drawn for the set."""
        return self.source != "own"

    @property
    def _is_told(self) -> bool:
        """Whether anything says who is to be drawn: words, or a picture."""
        return bool(self.character.description) or self.character.reference_image is not None

    @model_validator(mode="after")
    def _can_begin(self) -> Self:
        """Raises InputError where the pictures are to come from something that is not there."""
        if self.members:
            check_members(self.members)
            if self.recipe.evaluate.subject == "style":
                raise InputError(
                    f"The recipe {self.recipe.name!r} is for a style, and a cast has characters; take one for characters."
                )
            for each in self.member_runs:
                each._check_member()
                Run.model_validate(each.model_dump())
            return self
        if self.draws and not self._is_told:
            raise InputError(
                'The description is empty; describe the character, as in "1girl, brown hair, armor", give a picture of '
                "it with --reference, or train on your own pictures with --pictures."
            )
        if self.source == "reference" and self.character.reference_image is None:
            raise InputError(
                'dataset.source = "reference" needs a reference image; give one with --reference.'
            )
        return self

    def _check_member(self) -> None:
        """Of a character of a cast. Raises InputError where nothing says who is to be drawn."""
        name = self.character.name
        if self.draws and not self._is_told:
            raise InputError(f"{name} has neither a description, a reference nor pictures.")
        if self.source == "reference" and self.character.reference_image is None:
            raise InputError(f'{name} has no reference, which dataset.source = "reference" needs.')


class ProgressEvent(BaseModel):
    """One line of news from a stage. `done` and `total` count the stage's own units (images, steps, files)."""

    model_config = ConfigDict(frozen=True)

    stage: str
    done: int
    total: int
    unit: str = "step"
    message: str = ""
    loss: float | None = None
    image: Path | None = None


def fingerprint(*parts: object) -> str:
    """16 hex digits that change when any of `parts` (models or JSON-like values) changes. Of a character's reference image
    the name counts, which is its content's hash wherever it is kept; its folder differs from host to host."""
    plain = _plain(parts)
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object, key: str = "") -> object:
    """A value as JSON has it."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {each: _plain(inner, str(each)) for each, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return Path(value).name if key == "reference_image" and isinstance(value, str) else value
