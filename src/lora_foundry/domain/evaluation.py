"""What the evaluation found, as it is stored in evaluation/scores.json: the same held-out prompts and seeds without
and with the LoRA, so that a figure is always a comparison and never a claim."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from lora_foundry.domain.shots import Shot


class EvaluationPicture(BaseModel):
    """One picture of the evaluation: `file` within the folder of pictures, and what the instrument saw in it."""

    model_config = ConfigDict(frozen=True)

    file: str
    shot: Shot
    seed: int
    seen: dict[str, str] = {}


class ScoreRow(BaseModel):
    """The scores of one group of pictures; shares from 0 to 1, None where no instrument could tell.

    identity: share of the described traits that are visible and right. adherence: share of the prompted parts of the
    shot that the pictures show. similarity: mean cosine to the mean of the training set.
    """

    model_config = ConfigDict(frozen=True)

    identity: float | None = None
    adherence: float | None = None
    identity_by_trait: dict[str, float] = {}
    adherence_by_attribute: dict[str, float] = {}
    similarity: float | None = None
    pictures: tuple[EvaluationPicture, ...] = ()


class Evaluation(BaseModel):
    """scores.json: written last by the evaluate stage, so its existence means done.

    before: without the LoRA. after: with it, at `strength`. self_similarity: how close the training set's own pictures
    are to their mean. note: why scores are None; empty where they are not.
    """

    model_config = ConfigDict(frozen=True)

    before: ScoreRow
    after: ScoreRow
    strength: float
    lora_sha256: str
    self_similarity: float | None = None
    note: str = ""
    fingerprint: str
    seconds: float
