"""The whole set on paper before the first picture is made: shot, prompt and seed of every picture and of
every later attempt at it, from the recipe and the character alone. Whoever makes pictures, or finds some,
compares with this."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict

from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import ImageRequest, PictureRecord
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import fingerprint
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.domain.shots import Shot, plan_shots

_SEED_BITS = 53  # the largest whole number that every reader of JSON keeps exactly


class PicturePlan(BaseModel):
    """What each picture of a set has to be."""

    model_config = ConfigDict(frozen=True)

    slug: str
    description: str
    seed: int
    model: str
    settings: GenerateSection
    shots: tuple[Shot, ...]
    round: int = 0

    def record(self, index: int, attempt: int = 0) -> PictureRecord:
        """The picture of shot `index` at its `attempt`-th repetition: same shot, another seed."""
        shot, settings = self.shots[index], self.settings
        seed = picture_seed(self.seed, index, attempt, self.round)
        prompt = prompt_of(settings, self.description, shot)
        request = request_of(settings, f"{index + 1:03d}.{attempt}", prompt, seed)
        return PictureRecord(
            file=f"{self.slug}_{index + 1:03d}.png",
            shot=shot,
            request=request,
            model=self.model,
            attempt=attempt,
            guidance_rescale=settings.guidance_rescale,
        )

    def fits(self, record: PictureRecord | None, index: int) -> bool:
        """Whether a picture with this embedded record is one that this plan asks for at `index`, at any
        attempt."""
        if record is None:
            return False
        return record.model_copy(update={"sha256": ""}) == self.record(index, record.attempt)

    def fingerprint(self) -> str:
        """Changes with whatever changes a picture. The batch size is not of that kind: after an error for
        want of memory, a smaller one goes on with the pictures that are there."""
        plain = self.model_dump(mode="json", exclude={"settings"})
        return fingerprint("pictures-2", plain, self.settings.deciding("pictures"))


def plan_pictures(
    character: Character,
    recipe: Recipe,
    model: str,
    *,
    trigger: str = "",
    round_number: int = 0,
    count: int = 0,
    completed: tuple[str, ...] = (),
) -> PicturePlan:
    """The plan of a whole set, or of an earlier round of `count` pictures with seeds of its own. A LoRA that knows
    the `trigger` is called by it; `completed` is added to the description. Raises InputError if the recipe's shots allow
    none."""
    return PicturePlan(
        slug=character.slug,
        description=", ".join(filter(None, (trigger, character.description, *completed))),
        seed=recipe.seed,
        model=model,
        settings=recipe.generate,
        shots=plan_shots(recipe.shots, count or recipe.generate.images, recipe.seed),
        round=round_number,
    )


def request_of(
    settings: GenerateSection, key: str, prompt: str, seed: int, negative: str | None = None
) -> ImageRequest:
    """A picture drawn as the recipe draws; `negative` takes the place of the recipe's own negative prompt."""
    return ImageRequest(
        key=key,
        prompt=prompt,
        negative=settings.negative if negative is None else negative,
        seed=seed,
        width=settings.width,
        height=settings.height,
        steps=settings.steps,
        cfg=settings.cfg,
        sampler=settings.sampler,
        scheduler=settings.scheduler,
    )


def prompt_of(settings: GenerateSection, description: str, shot: Shot) -> str:
    """prefix, description, the shot's words, suffix. Without the trigger: the base has never heard it."""
    parts = (settings.prefix, description, *shot.words(), settings.suffix)
    return ", ".join(text for part in parts if (text := part.strip(" ,")))


def picture_seed(seed: int, index: int, attempt: int, round_number: int = 0) -> int:
    """A picture's own seed, which depends on no other picture."""
    name = f"picture-{seed}-{index}-{attempt}" + (f"-round-{round_number}" if round_number else "")
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)
