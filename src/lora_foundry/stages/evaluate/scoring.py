"""From pictures to figures: which of the traits asked for an instrument sees, and how close pictures are
to the training set. Kept apart from the making of the pictures, so that the arithmetic can be checked by
hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.evaluation import EvaluationPicture, ScoreRow
from lora_foundry.measures import Grey, contrast, difference, grey, sharpness, thumbnail
from lora_foundry.ports import Embedder, FloatArray, Tagger, Trait

_LEAST_LENGTH = 1e-8
NO_THUMBNAILS: Grey = np.zeros((0, 0))
COPY = 0.5  # a picture half as far from a training picture as those are from each other is taken for a copy


class EvaluationMetrics(NamedTuple):
    """What pictures are measured with: the described traits, the instruments there are, and the training set as
    the embedder sees it, a row a picture. thumbnails: (n, 1024), the same pictures as `measures.thumbnail` has them."""

    traits: Sequence[Trait]
    tagger: Tagger | None
    embedder: Embedder | None
    own: FloatArray | None
    thumbnails: Grey = NO_THUMBNAILS
    least_contrast: float = 0.0
    least_sharpness: float = 0.0


def score(
    files: Sequence[str],
    records: Sequence[PictureRecord],
    images: Sequence[Image.Image],
    metrics: EvaluationMetrics,
) -> ScoreRow:
    """Identity and adherence by the tagger, likeness by the embedder; None for what has no instrument."""
    traits, tagger, embedder, own = metrics[:4]
    seen: Sequence[Mapping[str, str]] = tagger.read(images) if tagger else [{} for _ in images]
    asked = [tagger.understand(record.shot.words()) if tagger else [] for record in records]
    by_trait = shares_right([traits] * len(seen), seen)
    by_attribute = shares_right(asked, seen, hidden_is_wrong=True)
    return ScoreRow(
        identity=mean_share(by_trait),
        adherence=mean_share(by_attribute),
        identity_by_trait=by_trait,
        adherence_by_attribute=by_attribute,
        likeness=likeness(embedder.embed(images), own) if embedder and own is not None else None,
        **look_at(images, metrics),
        pictures=tuple(
            _picture(file, record, traits, shot, row)
            for file, record, shot, row in zip(files, records, asked, seen, strict=True)
        ),
    )


def look_at(images: Sequence[Image.Image], metrics: EvaluationMetrics) -> dict[str, float]:
    """What needs no model: variety, nearness to the training set, and whether there is anything to see."""
    small = [thumbnail(image) for image in images]
    found = {"sound": round(sum(_is_sound(image, metrics) for image in images) / max(len(images), 1), 4)}
    pairs = [difference(one, other) for at, one in enumerate(small) for other in small[at + 1 :]]
    if pairs:
        found["variety"] = round(float(np.mean(pairs)), 4)
    if len(metrics.thumbnails):
        nearest = [1.0 - float((metrics.thumbnails @ one.ravel()).max()) for one in small]
        found["nearest"] = round(float(np.mean(nearest)), 4)
        if len(metrics.thumbnails) > 1:
            copies = own_nearness(metrics.thumbnails) * COPY
            found["memorised"] = round(sum(each < copies for each in nearest) / len(nearest), 4)
    return found


def own_nearness(thumbnails: Grey) -> float:
    """The median over the training pictures (a row each) of the difference to the nearest other one."""
    nearest = []
    for place, one in enumerate(thumbnails):
        alike = thumbnails @ one
        alike[place] = -1.0
        nearest.append(1.0 - float(alike.max()))
    return float(np.median(nearest))


def _is_sound(image: Image.Image, metrics: EvaluationMetrics) -> bool:
    levels = grey(image)
    return contrast(levels) >= metrics.least_contrast and sharpness(levels) >= metrics.least_sharpness


def _picture(
    file: str, record: PictureRecord, traits: Sequence[Trait], shot: Sequence[Trait], seen: Mapping[str, str]
) -> EvaluationPicture:
    return EvaluationPicture(
        file=file,
        shot=record.shot,
        prompt=record.request.prompt,
        seed=record.request.seed,
        seen=dict(seen),
        traits_right=sum(seen.get(trait.attribute) == trait.value for trait in traits),
        traits_seen=sum(trait.attribute in seen for trait in traits),
        shot_right=sum(seen.get(trait.attribute) == trait.value for trait in shot),
        shot_asked=len(shot),
    )


def shares_right(
    asked: Sequence[Sequence[Trait]], seen: Sequence[Mapping[str, str]], hidden_is_wrong: bool = False
) -> dict[str, float]:
    """For each attribute asked for, the share of pictures that show the right value.

    A picture in which the attribute cannot be seen does not count: nobody can tell a figure's eyes from
    behind. With `hidden_is_wrong` it counts as wrong: who asks for a smile and gets a back did not get a
    smile.
    """
    right: dict[str, list[bool]] = {}
    for traits, row in zip(asked, seen, strict=True):
        for trait in traits:
            if hidden_is_wrong or trait.attribute in row:
                right.setdefault(trait.attribute, []).append(row.get(trait.attribute) == trait.value)
    return {attribute: round(sum(hits) / len(hits), 4) for attribute, hits in right.items()}


def mean_share(shares: Mapping[str, float]) -> float | None:
    """The mean over attributes, each counting the same however often it was visible; None for none."""
    return round(sum(shares.values()) / len(shares), 4) if shares else None


def likeness(embeddings: FloatArray, own: FloatArray) -> float:
    """Mean cosine of `embeddings` with the direction of the mean of `own`."""
    return round(float((embeddings @ _direction(own.sum(axis=0))).mean()), 4)


def own_likeness(own: FloatArray) -> float | None:
    """Mean cosine of each row with the mean of the others: what a perfect LoRA could reach. None for a
    single row."""
    if len(own) < 2:
        return None
    total = own.sum(axis=0)
    return round(float(np.mean([row @ _direction(total - row) for row in own])), 4)


def _direction(vector: FloatArray) -> FloatArray:
    return vector / np.float32(max(float(np.linalg.norm(vector)), _LEAST_LENGTH))
