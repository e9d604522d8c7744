"""What the scores of a LoRA mean, in words: a level, which decides the colour of every page, the reason, and what to do
next. Identity alone is not enough: a LoRA that draws its character without being asked, or copies its training pictures,
is no good one."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

Subject = Literal["character", "style"]
Level = Literal["good", "usable", "weak", "bad", "unmeasured"]
CLEAR = 0.1  # of a share: less is no difference that a person sees
_GOOD, _USABLE, _WEAK = 0.8, 0.6, 0.4


class Assessment(BaseModel):
    """The level, why, and what to do next; empty where nothing has to be done."""

    model_config = ConfigDict(frozen=True)

    level: Level
    reason: str
    next_step: str = ""


class BleedFound(NamedTuple):
    """Of a cast the pair that is least kept apart: how much of `shown` the trigger of `called` brings, above chance."""

    called: str
    shown: str
    above_chance: float


class Found(NamedTuple):
    """What was measured, shares from 0 to 1. identity: with the LoRA and its trigger; before: without the LoRA;
    without_trigger: with the LoRA and without the trigger."""

    identity: float | None
    before: float | None = None
    without_trigger: float | None = None
    adherence: float | None = None
    adherence_before: float | None = None
    memorised: float | None = None
    sound: float | None = None
    bleed: BleedFound | None = None
    subject: Subject = "character"


def assess(found: Found) -> Assessment:
    """The first thing that is wrong decides; what is worse is asked first."""
    if found.sound is not None and found.sound < 0.5:
        return Assessment(
            level="bad",
            reason=f"only {found.sound:.0%} of its pictures are neither blank nor blurred",
            next_step="lower train.learning_rate or the strength, and look at the training pictures",
        )
    if found.identity is None and found.subject == "style":
        return Assessment(
            level="unmeasured",
            reason="the base draws like these pictures already, or nothing measured the likeness",
            next_step="compare the pictures with and without the LoRA, or set model.embedder",
        )
    if found.identity is None:
        return Assessment(
            level="unmeasured",
            reason="identity was not measured",
            next_step="look at the pictures, or set model.tagger or model.embedder",
        )
    before = "" if found.before is None else f" (without the LoRA {found.before:.2f})"
    said = f"identity {found.identity:.2f}{before}"
    if found.subject == "style":
        said = f"{found.identity:.2f} of the way from the base to the style"
    return _too_little(found, said) or _too_much(found, said) or _enough(found, said)


def _too_little(found: Found, said: str) -> Assessment | None:
    """Where what it is to draw hardly comes, or comes in part."""
    style = found.subject == "style"
    identity = found.identity or 0.0
    gained = found.before is None or identity >= found.before + CLEAR / 2 or identity >= _GOOD
    if identity < _WEAK or not gained:
        return Assessment(
            level="bad",
            reason=f"{said}: it hardly draws the {found.subject}",
            next_step="train longer or at a higher rate, and see whether the training pictures show one "
            + found.subject,
        )
    if identity < _USABLE:
        return Assessment(
            level="weak",
            reason=f"{said}: only part of the {found.subject} comes through",
            next_step="train longer" if style else "train longer, or describe the character more fully",
        )
    return None


def _too_much(found: Found, said: str) -> Assessment | None:
    """Where the LoRA copies, or draws the character without being asked."""
    if (found.memorised or 0.0) > 0.5:
        return Assessment(
            level="weak",
            reason=f"{found.memorised:.0%} of its pictures are nearly training pictures",
            next_step="take an earlier checkpoint, or train on more and more different pictures",
        )
    if found.bleed is not None and found.bleed.above_chance > 2 * CLEAR:
        return Assessment(
            level="weak",
            reason=f"{said}, but the trigger of {found.bleed.called} brings {found.bleed.above_chance:.0%} of "
            f"{found.bleed.shown}, too",
            next_step="train longer, describe what tells them apart, or train each character alone",
        )
    without, identity = found.without_trigger or 0.0, found.identity or 0.0
    is_asked = (
        found.subject == "character"
    )  # people leave a style on, and many of its pictures say no trigger
    if is_asked and without > identity - CLEAR and without > (found.before or 0.0) + CLEAR:
        return Assessment(
            level="weak",
            reason=f"{said}, and {without:.2f} without the trigger word: the character appears without it, too",
            next_step="set train.regularisation or train.caption_dropout, so that the trigger alone calls it",
        )
    return None


def _enough(found: Found, said: str) -> Assessment:
    """Where the character comes when it is called."""
    if found.adherence is not None and (found.adherence_before or 0.0) - found.adherence > 2 * CLEAR:
        return Assessment(
            level="usable",
            reason=f"{said}, but prompts are followed less: adherence {found.adherence:.2f} instead of "
            f"{found.adherence_before or 0.0:.2f}",
            next_step="use it at a lower strength, or take an earlier checkpoint",
        )
    if (found.identity or 0.0) < _GOOD:
        return Assessment(
            level="usable",
            reason=said,
            next_step="train longer"
            if found.subject == "style"
            else "train longer if single features are wrong; the report says which",
        )
    return Assessment(level="good", reason=said)
