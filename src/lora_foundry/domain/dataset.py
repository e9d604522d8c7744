"""The training set's records: what was asked for each picture, what came back, and its caption.

They are stored as generation_metadata.json and tagging_results.json, the names the original system used."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_foundry.domain.sections.dataset import Framing
from lora_foundry.domain.shots import Shot


class ImageRequest(BaseModel):
    """Everything that decides one picture. Two equal requests are the same picture."""

    model_config = ConfigDict(frozen=True)

    key: str
    prompt: str
    negative: str
    seed: int
    width: int
    height: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str


class ReferenceUse(BaseModel):
    """A picture that generated ones follow, and how closely: 0 not at all, 1 as closely as the means allow.

    An image-prompt adapter takes `strength` as its scale; image-to-image denoises the remaining 1 - strength.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    strength: float = 0.5


class PictureRecord(BaseModel):
    """One picture of the set: its file name in images/, its shot and its request.

    The same record, without the hash, is embedded in the picture itself. attempt counts the pictures that curation had
    made for this shot before this one. guidance_rescale is the one choice of the recipe that the request leaves out.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    shot: Shot
    request: ImageRequest
    model: str
    attempt: int = 0
    guidance_rescale: float = 0.0
    sha256: str = ""


class Crop(BaseModel):
    """A part of a picture of the set, copied. `source` is the picture's name in the set; the box is left, top, right and
    bottom in its pixels; mask_sha256 is empty where it has no mask. sha256: of the file as it was cut here, empty until it
    was. framing: None where a person drew the box; such a crop takes the place of its source, the others stand beside it."""

    model_config = ConfigDict(frozen=True)

    source: str
    source_sha256: str
    framing: Framing | None
    box: tuple[int, int, int, int]
    mask_sha256: str = ""
    sha256: str = ""

    @property
    def by_hand(self) -> bool:
        """Whether a person drew the box."""
        return self.framing is None

    def same_cut(self, other: Crop) -> bool:
        """Whether both are cut from the same, in the same way."""
        return self.model_copy(update={"sha256": ""}) == other.model_copy(update={"sha256": ""})


class Crops(BaseModel):
    """crops.json: by name in the set. Written before any of the files, so that each is known for what it is."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, Crop] = {}


NOTHING_ASKED = Shot("", "", "", "", "")
# What a shot of that framing is called, in the words of the recipes.
FRAMED: dict[Framing, Shot] = {
    "face": NOTHING_ASKED._replace(angle="close-up portrait"),
    "upper_body": NOTHING_ASKED._replace(angle="upper body shot"),
}


def own_record(file: str, sha256: str, model: str, shot: Shot = NOTHING_ASKED) -> PictureRecord:
    """A person's own picture as a record: nothing was asked for it, so its request is empty, and its shot says what is
    known of it, such as the framing of a crop."""
    request = ImageRequest(
        key=file,
        prompt="",
        negative="",
        seed=0,
        width=0,
        height=0,
        steps=0,
        cfg=0.0,
        sampler="",
        scheduler="",
    )
    return PictureRecord(file=file, shot=shot, request=request, model=model, sha256=sha256)


class Round(BaseModel):
    """One round before the set itself: how far its pictures lie apart, which of them a short LoRA was trained on.

    distance: mean pairwise cosine distance of all its pictures; cohesion: mean cosine of the kept ones. lora: its
    SHA-256; empty where none was trained, as where the distance had stopped falling. completed: what the next round's
    description has more than this one's.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    fingerprint: str
    model: str
    distance: float
    cohesion: float
    kept: tuple[str, ...]
    lora: str = ""
    completed: tuple[str, ...] = ()
    seconds: float = 0.0


class GenerationMetadata(BaseModel):
    """generation_metadata.json: written last by the generate stage, so its existence means done. completed: what the
    reference image and the rounds added to the description, in every prompt of the set."""

    model_config = ConfigDict(frozen=True)

    character: str
    trigger: str
    description: str
    recipe: str
    seed: int
    model: str
    fingerprint: str
    pictures: tuple[PictureRecord, ...]
    rounds: tuple[Round, ...] = ()
    completed: tuple[str, ...] = ()
    seconds: float


class Caption(BaseModel):
    """The caption of one picture.

    text: as it stands in its file. source: the captioner's name, or "edited" where a person has written it.
    written: SHA-256 of the caption that was written last, by which a person's change is noticed.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    text: str
    source: str
    written: str = ""


class TaggingResults(BaseModel):
    """tagging_results.json: written last by the caption stage. former: trigger words of earlier runs, which a person's
    captions may still say."""

    model_config = ConfigDict(frozen=True)

    character: str
    trigger: str
    captioner: str
    pruned: tuple[str, ...]
    fingerprint: str
    captions: tuple[Caption, ...]
    former: tuple[str, ...] = ()
