"""From pictures to figures: which of the traits asked for an instrument sees, and how close pictures are
to the training set. Kept apart from the making of the pictures, so that the arithmetic can be checked by
hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.evaluation import EvaluationPicture, ScoreRow
from lora_foundry.domain.shots import Shot
from lora_foundry.measures import Grey, contrast, grey, sharpness, thumbnail
from lora_foundry.ports import Embedder, FloatArray, Tagger, Trait

_LEAST_LENGTH = 1e-8
NO_THUMBNAILS: Grey = np.zeros((0, 0))
COPY = 0.5  # a picture half as far from a training picture as those are from each other is taken for a copy


class EvaluationMetrics(NamedTuple):
    """What pictures are measured with: the described traits, the instruments there are, and the training set as
    the embedder sees it, a row a picture. thumbnails: (n, 1024), the same pictures as `measures.thumbnail` has them.
    own_nearness: of these, see the function of that name."""

    traits: Sequence[Trait]
    tagger: Tagger | None
    embedder: Embedder | None
    own: FloatArray | None
    thumbnails: Grey = NO_THUMBNAILS
    own_nearness: float = 0.0
    least_contrast: float = 0.0
    least_sharpness: float = 0.0


class Observed(NamedTuple):
    """One picture as the instruments see it. asked: the parts of its shot that the tagger knows. likeness: cosine to the
    mean of the training set. nearest: difference to the nearest training picture; None where there is none."""

    picture: EvaluationPicture
    asked: Sequence[Trait]
    likeness: float | None
    thumbnail: Grey
    nearest: float | None
    sound: bool


def score(
    files: Sequence[str],
    records: Sequence[PictureRecord],
    images: Sequence[Image.Image],
    metrics: EvaluationMetrics,
) -> ScoreRow:
    """Identity and adherence by the tagger, likeness by the embedder; None for what has no instrument."""
    return summarise(observe(files, records, images, metrics), metrics)


def observe(
    files: Sequence[str],
    records: Sequence[PictureRecord],
    images: Sequence[Image.Image],
    metrics: EvaluationMetrics,
) -> list[Observed]:
    """Each picture by itself; what the models say of it is asked once, however often it is counted afterwards."""
    traits, tagger, embedder, own = metrics[:4]
    seen: Sequence[Mapping[str, str]] = tagger.read(images) if tagger else [{} for _ in images]
    cosines = cosines_to(embedder.embed(images), own) if embedder and own is not None else None
    found = []
    for place, (file, record, image, row) in enumerate(zip(files, records, images, seen, strict=True)):
        asked = tagger.understand(record.shot.words()) if tagger else []
        small = thumbnail(image).ravel()
        alike = metrics.thumbnails @ small if len(metrics.thumbnails) else None
        found.append(
            Observed(
                picture=_picture(file, record, traits, asked, row),
                asked=asked,
                likeness=None if cosines is None else float(cosines[place]),
                thumbnail=small,
                nearest=None if alike is None else 1.0 - float(alike.max()),
                sound=_is_sound(image, metrics),
            )
        )
    return found


def summarise(observed: Sequence[Observed], metrics: EvaluationMetrics) -> ScoreRow:
    """The scores of these pictures together. One that stands there twice counts twice, and makes no pair with itself."""
    seen = [each.picture.seen for each in observed]
    by_trait = shares_right([metrics.traits] * len(seen), seen)
    by_attribute = shares_right([each.asked for each in observed], seen, hidden_is_wrong=True)
    cosines = [each.likeness for each in observed if each.likeness is not None]
    nearest = [each.nearest for each in observed if each.nearest is not None]
    memorised = None
    if nearest and len(metrics.thumbnails) > 1:
        copies = metrics.own_nearness * COPY
        memorised = _mean([each < copies for each in nearest])
    return ScoreRow(
        identity=mean_share(by_trait),
        adherence=mean_share(by_attribute),
        identity_by_trait=by_trait,
        adherence_by_attribute=by_attribute,
        likeness=_mean(cosines),
        variety=_variety(observed),
        nearest=_mean(nearest),
        memorised=memorised,
        sound=_mean([each.sound for each in observed]),
        pictures=tuple(each.picture for each in observed),
    )


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _variety(observed: Sequence[Observed]) -> float | None:
    """Mean difference of all pairs of different pictures; None for fewer than two. See `measures.difference`."""
    times = Counter(id(each) for each in observed)
    thumbnails = {id(each): each.thumbnail for each in observed}
    if len(times) < 2:
        return None
    stacked, weights = np.stack(list(thumbnails.values())), np.array([times[each] for each in thumbnails])
    pairs = np.outer(weights, weights)
    np.fill_diagonal(pairs, 0)
    return round(1.0 - float((pairs * (stacked @ stacked.T)).sum() / pairs.sum()), 4)


def hears_shots(shots: Sequence[Shot], metrics: EvaluationMetrics) -> bool:
    """Whether adherence can be measured; else the variety that is left of the base's stands for it."""
    tagger = metrics.tagger
    return tagger is not None and any(tagger.understand(shot.words()) for shot in shots)


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


def cosines_to(embeddings: FloatArray, own: FloatArray) -> FloatArray:
    """Cosine of each row of `embeddings` with the direction of the mean of `own`."""
    return embeddings @ _direction(own.sum(axis=0))


def own_likeness(own: FloatArray) -> float | None:
    """Mean cosine of each row with the mean of the others: what a perfect LoRA could reach. None for a
    single row."""
    if len(own) < 2:
        return None
    total = own.sum(axis=0)
    return round(float(np.mean([row @ _direction(total - row) for row in own])), 4)


def _direction(vector: FloatArray) -> FloatArray:
    return vector / np.float32(max(float(np.linalg.norm(vector)), _LEAST_LENGTH))
