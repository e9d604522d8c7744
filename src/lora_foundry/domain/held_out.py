"""What a LoRA is measured on: shots that no training picture shows, with the face in view; prompts that
say the trigger and none of the character's traits, or the measure would test the base; seeds of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.evaluation import Side
from lora_foundry.domain.picture_plan import prompt_of, request_of
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.shots import Shot, Vocabulary, plan_shots

_SEED_BITS = 53  # the largest whole number that every reader of JSON keeps exactly
_MOST_PLANS = 20


def held_out_shots(
    vocabulary: Vocabulary, count: int, seed: int, trained: Collection[Shot]
) -> tuple[Shot, ...]:
    """`count` shots that show a face, all different and none in `trained`, spread evenly like the training
    plan.

    Where a small vocabulary has too few of them, shots that were trained on or stand there twice fill up.
    """
    faces = with_faces(vocabulary)
    known, fresh, spare = set(trained), list[Shot](), list[Shot]()
    for attempt in range(_MOST_PLANS):
        for shot in plan_shots(faces, count, evaluation_seed(seed, f"plan-{attempt}")):
            (spare if shot in known or shot in fresh else fresh).append(shot)
        if len(fresh) >= count:
            break
    return tuple([*fresh, *spare][:count])


def with_faces(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary without the words from which the face is not seen; as it is where nothing would be
    left."""
    hidden = set(vocabulary.faceless)
    poses = tuple(word for word in vocabulary.poses if word not in hidden)
    angles = tuple(word for word in vocabulary.angles if word not in hidden)
    if not hidden or not poses or not angles:
        return vocabulary
    return Vocabulary(
        poses=poses,
        expressions=vocabulary.expressions,
        angles=angles,
        lightings=vocabulary.lightings,
        backgrounds=vocabulary.backgrounds,
        impossible=tuple(
            (word, tuple(other for other in others if other not in hidden))
            for word, others in vocabulary.impossible
            if word not in hidden
        ),
    )


def evaluation_prompts(
    character: Character, recipe: Recipe, shots: Collection[Shot], model: str, side: Side
) -> list[PictureRecord]:
    """Every picture of one side. "before" and "after" ask for the very same; "without_trigger" leaves the trigger out
    and takes the first seed of each prompt; so does "choice", with seeds of its own."""
    made, seeds = recipe.generate, recipe.evaluate.seeds
    own = "choice-" if side == "choice" else ""
    trigger = "" if "without_trigger" in side else character.trigger
    return [
        PictureRecord(
            file=f"{place + 1:03d}_{number + 1}.png",
            shot=shot,
            request=request_of(
                made,
                f"{place + 1:03d}.{number}",
                prompt_of(made, trigger, shot),
                evaluation_seed(recipe.seed, f"{own}{place * seeds + number}"),
            ),
            model=model,
            guidance_rescale=made.guidance_rescale,
        )
        for place, shot in enumerate(shots)
        for number in range(1 if "without_trigger" in side or side == "choice" else seeds)
    ]


def evaluation_seed(seed: int, index: int | str) -> int:
    """The seed of one picture of the evaluation, which depends on no other picture and is no training
    seed."""
    digest = hashlib.sha256(f"evaluate-{seed}-{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)
