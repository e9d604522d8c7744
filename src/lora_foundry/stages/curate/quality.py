"""What is wrong with a picture, as far as it can be told from the picture and those beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from lora_foundry.domain.curation import Measures, Reason, Verdict
from lora_foundry.domain.run import Run
from lora_foundry.domain.sections import CurateSection
from lora_foundry.errors import InputError
from lora_foundry.files.images import load_picture, read_picture
from lora_foundry.identity import LEAST, Core, find_core, grow, likeness, mean_distance
from lora_foundry.measures import (
    Grey,
    contrast,
    difference,
    difference_hash,
    grey,
    hash_distance,
    sharpness,
    thumbnail,
)
from lora_foundry.ports import Box, Detector, Embedder, FloatArray, Ports, Tagger, Trait

OWN_EDGE = 1024
Key = tuple[int, int] | str
"""A picture: the shot and the attempt, or the name of a person's own file."""


@dataclass
class QualityFilter:
    """Tells what is wrong with a picture, given those that were accepted before it, and who is in them.

    reference: the embedding of the reference image, where there is one. `core` and `least` are what `identify` found.
    """

    rules: CurateSection
    size: tuple[int, int]
    tagger: Tagger | None = None
    traits: Sequence[Trait] = ()
    embedder: Embedder | None = None
    detector: Detector | None = None
    reference: FloatArray | None = None
    core: Core | None = None
    least: float | None = None
    _seen: dict[Key, tuple[int, Grey]] = field(default_factory=dict)
    _vectors: dict[Key, FloatArray] = field(default_factory=dict)

    def look(self, path: Path, key: Key, face: bool = True) -> tuple[Measures, tuple[Reason, ...]]:
        """What was measured, and every reason to reject the picture but that of identity, for which all must have
        been seen; without one, it counts as accepted. `face`: whether its shot shows a face."""
        image = load_picture(path)
        if image is None:
            return Measures(), (Reason(code="undecodable", text="the file is no whole picture"),)
        if image.size != self.size:
            text = f"{image.width}x{image.height} instead of {self.size[0]}x{self.size[1]}"
            return Measures(), (Reason(code="wrong_size", text=text),)
        return self._measure(image, key, face)

    def look_at_own(self, path: Path, key: str) -> tuple[Measures, tuple[Reason, ...]]:
        """The same for a person's own picture, of any size; large ones are measured at OWN_EDGE pixels, so that those
        of two cameras can be compared and none fills the memory."""
        try:
            image = read_picture(path, within=OWN_EDGE)
        except InputError as error:
            return Measures(), (Reason(code="undecodable", text=str(error)),)
        image.thumbnail((OWN_EDGE, OWN_EDGE), Image.Resampling.BOX)
        return self._measure(image, key, face=False)

    def _measure(self, image: Image.Image, key: Key, face: bool) -> tuple[Measures, tuple[Reason, ...]]:
        levels, bits, small = grey(image), difference_hash(image), thumbnail(image)
        right, seen = None, None
        if self.tagger is not None and self.traits:
            reading = self.tagger.read([image])[0]
            visible = [trait for trait in self.traits if trait.attribute in reading]
            right, seen = sum(reading[trait.attribute] == trait.value for trait in visible), len(visible)
        if self.embedder is not None:
            self._vectors[key] = self.embedder.embed([image])[0]
        faces = None if self.detector is None else self.detector.find([image])[0]
        measures = Measures(
            contrast=round(contrast(levels), 3),
            sharpness=round(sharpness(levels), 3),
            hash=f"{bits:016x}",
            subjects=None if faces is None else len(faces),
            face=_share(faces[0], image.size) if faces is not None and len(faces) == 1 else None,
            traits_right=right,
            traits_seen=seen,
        )
        reasons = (*self._rejections(measures, face), *self._duplicate(key, bits, small))
        if not reasons:
            self._seen[key] = (bits, small)
        return measures, reasons

    def identify(self, keys: Sequence[Key]) -> dict[Key, float]:
        """How like the character each of these pictures is: the cosine with the reference, else with the mean of their
        most cohesive cluster. Empty where that cannot be said."""
        known = [key for key in keys if key in self._vectors]
        if self.embedder is None or not self.rules.identity or len(known) < LEAST:
            return {}
        vectors = np.stack([self._vectors[key] for key in known])
        self.core = find_core(vectors, max(LEAST, round(self.rules.core * len(known))))
        self.least = self.rules.min_likeness or self.embedder.same
        centre = grow(vectors, self.core, self.least) if self.reference is None else self.reference
        return dict(zip(known, map(float, likeness(vectors, centre)), strict=True))

    def identified(self, verdict: Verdict, likeness: float | None) -> Verdict:
        """The verdict with what `identify` found of its picture; None where that is not known."""
        reasons, least = own_reasons(verdict), self.least
        if likeness is not None and least is not None and likeness < least:
            text = f"unlike the character: likeness {likeness:.2f} < {least:g}"
            reasons = (*reasons, Reason(code="identity", text=text))
        rounded = None if likeness is None else round(likeness, 4)
        measures = verdict.measures.model_copy(update={"likeness": rounded})
        update = {"reasons": reasons, "measures": measures, "accepted": not reasons}
        return verdict.model_copy(update=update)

    def distance(self, keys: Sequence[Key]) -> float | None:
        """Mean pairwise cosine distance of these pictures."""
        known = [self._vectors[key] for key in keys if key in self._vectors]
        return mean_distance(np.stack(known)) if len(known) > 1 else None

    def _rejections(self, measures: Measures, face: bool) -> list[Reason]:
        rules, found = self.rules, []
        if measures.contrast is not None and measures.contrast < rules.min_contrast:
            found.append(
                Reason(code="blank", text=f"blank: contrast {measures.contrast:g} < {rules.min_contrast:g}")
            )
        elif measures.sharpness is not None and measures.sharpness < rules.min_sharpness:
            text = f"blurred: sharpness {measures.sharpness:g} < {rules.min_sharpness:g}"
            found.append(Reason(code="blurred", text=text))
        if measures.trait_share < rules.min_traits and self.tagger is not None:
            text = (
                f"shows {measures.traits_right} of {measures.traits_seen} described traits that can be seen"
            )
            found.append(Reason(code="traits", text=text))
        if measures.subjects is not None and (measures.subjects > 1 or (face and measures.subjects == 0)):
            found.append(Reason(code="subjects", text=f"shows {measures.subjects} faces instead of one"))
        return found

    def _duplicate(self, key: Key, bits: int, small: Grey) -> list[Reason]:
        """Two pictures are one only if hash, thumbnail and, where there is one, embedding all say so."""
        for other, (other_bits, other_small) in self._seen.items():
            if (
                other != key
                and hash_distance(bits, other_bits) <= self.rules.duplicate_distance
                and difference(small, other_small) <= self.rules.duplicate_difference
                and self._alike(key, other)
            ):
                text = f"nearly the same as picture {_name(other)}"
                return [Reason(code="duplicate", text=text, other=_name(other))]
        return []

    def _alike(self, first: Key, second: Key) -> bool:
        if self.embedder is None:
            return True
        return float(self._vectors[first] @ self._vectors[second]) >= self.embedder.same


def _share(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box as shares of the picture's width and height, which hold for the picture at any size."""
    left, top, width, height = (round(value / size[axis % 2], 4) for axis, value in enumerate(box))
    return left, top, width, height


def _name(key: Key) -> str:
    return key if isinstance(key, str) else f"{key[0] + 1:03d}"


def make_filter(run: Run, ports: Ports, size: tuple[int, int], reference: Path | None) -> QualityFilter:
    """The filter that the recipe asks for, with its instruments."""
    tagger, traits = _traits(run, ports)
    rules, embedder = run.recipe.curate, ports.embedder if run.recipe.curate.identity else None
    target = None
    if reference is not None and embedder is not None and (image := load_picture(reference)) is not None:
        target = embedder.embed([image])[0]
    return QualityFilter(rules, size, tagger, traits, embedder, ports.detector, target)


def _traits(run: Run, ports: Ports) -> tuple[Tagger | None, Sequence[Trait]]:
    """The instrument and the described traits, if the recipe wants them checked."""
    if not run.recipe.curate.check_traits:
        return None, ()
    tagger = ports.tagger
    if tagger is None:
        raise InputError(
            "curate.check_traits needs an instrument that reads traits; set model.tagger, or turn it off."
        )
    return tagger, tagger.understand(run.character.tags)


def own_reasons(verdict: Verdict) -> tuple[Reason, ...]:
    """What is wrong with the picture itself, whoever it shows."""
    return tuple(reason for reason in verdict.reasons if reason.code != "identity")
