"""The plug-in points, all of them: to add a backend, write one class that has one of these shapes and name it in
`registry.BACKENDS`. Stages see only these protocols, never a backend's name.

Images are PIL RGB pictures. A backend may load its model at the first call; `close` gives the memory back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import ImageRequest, PictureRecord, ReferenceUse
from lora_foundry.domain.lora import LoraUse, TrainedLora
from lora_foundry.domain.news import News
from lora_foundry.domain.publication import LoraCard, Proof
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.sections import TrainSection

FloatArray = npt.NDArray[np.float32]


class GeneratedImage(NamedTuple):
    """A picture and the request that it answers."""

    request: ImageRequest
    image: Image.Image


class Generator(Protocol):
    """Makes pictures from prompts."""

    @property
    def model(self) -> str:
        """The base model's name and hash, as recorded with every picture."""
        ...

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        """Yields a picture for every request, batch by batch, as they come to be.

        A batch is made as a whole: the same batch gives the same bytes on the same machine. Raises BaseModelError for
        a base that cannot be used, VerificationError for a LoRA with keys that the base does not have, InputError for
        a reference that cannot be read or that this backend or its workflow cannot use, BackendError for what may
        pass.
        """
        ...

    def close(self) -> None:
        """Gives back the memory; the next call loads again."""
        ...


class Captioner(Protocol):
    """Says what pictures show, as tags."""

    def describe(
        self, character: Character, pictures: Sequence[PictureRecord], folder: Path
    ) -> list[list[str]]:
        """The tags of each picture of `folder`: features of the character first, then the shot's words."""
        ...


class Trait(NamedTuple):
    """One thing a tagger can tell: an attribute (hair_color) and its value (brown hair)."""

    attribute: str
    value: str


class Tagger(Protocol):
    """Reads visible traits from pictures; the measuring instrument of the evaluation."""

    def understand(self, tags: Iterable[str]) -> list[Trait]:
        """The traits that `tags` ask for, as far as this instrument can see them ("red dress" may be two)."""
        ...

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """For each picture the value it shows of every attribute that is visible in it."""
        ...


class Embedder(Protocol):
    """Turns pictures into vectors whose cosine says whether they show the same character."""

    @property
    def same(self) -> float:
        """The least cosine of a character's picture with the mean of that character's pictures."""
        ...

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        """(n, d), float32, each row of length 1."""
        ...


class Box(NamedTuple):
    """A rectangle in a picture's own pixels."""

    left: float
    top: float
    width: float
    height: float


class Detector(Protocol):
    """Finds the faces in pictures."""

    def find(self, images: Sequence[Image.Image]) -> list[list[Box]]:
        """The faces of each picture, the surest first."""
        ...


class TrainingImage(NamedTuple):
    """A picture's path, its caption as the trainer reads it, and how often an epoch shows it.

    regular: a regularisation picture, which shows what must stay as it is. mask: a picture that is white where this
    one counts.
    """

    path: Path
    caption: str
    repeats: int = 1
    regular: bool = False
    mask: Path | None = None


class TrainingJob(NamedTuple):
    """All that a trainer needs: the pictures, the settings, and where it may write. `metadata` goes into the file."""

    images: tuple[TrainingImage, ...]
    settings: TrainSection
    trigger: str
    output: Path
    workdir: Path
    metadata: dict[str, str]


class ProgressCallback(Protocol):
    """Receives news; must return quickly."""

    def __call__(self, event: ProgressEvent) -> None: ...


class Trainer(Protocol):
    """Trains a LoRA of the base it was made for."""

    @property
    def model(self) -> str:
        """The base model's name and hash."""
        ...

    def train(self, job: TrainingJob, progress: ProgressCallback) -> TrainedLora:
        """Trains, or goes on from the newest checkpoint in `job.workdir`, and writes `job.output` in kohya's names.

        Raises PermanentError kinds for bad settings or a bad base, DivergedError for NaN, BackendError for a crash.
        """
        ...


class Gpu(Protocol):
    """The memory that a training needs and other programs may hold."""

    def room(self, settings: TrainSection) -> AbstractContextManager[None]:
        """For the time of a training: what others hold is asked back, and what is free is looked at, not assumed.

        Raises BackendError with the figures, on entering, where the training would spill into main memory.
        """
        ...


class PublishedFiles(NamedTuple):
    """Where a LoRA and what stands beside it were installed, and where an older one of that name is kept now."""

    lora: Path
    preview: Path
    metadata: Path
    card: Path
    kept: Path | None = None


class Publisher(Protocol):
    """Installs a proven LoRA where it is used."""

    def publish(self, lora: Path, preview: Path, card: LoraCard, folder: Path, name: str) -> PublishedFiles:
        """Copies atomically to `folder/name.*`; an older LoRA of the same character is kept as a version.

        Raises InputError for a name that belongs to another character or to somebody else, before anything is written.
        """
        ...


class Prover(Protocol):
    """The program that will use a LoRA, asked whether it can."""

    def prove(self, lora: LoraUse, request: ImageRequest, min_change: float) -> Proof:
        """Lets it draw one seed without and with the LoRA, and looks whether it took every key.

        Raises VerificationError for a LoRA that it does not take whole, that blackens the picture or changes it by less
        than `min_change` grey levels (0-255), BackendError for what may pass.
        """
        ...

    def installed(self, files: PublishedFiles) -> None:
        """Lets it know the file by its final name, and forget an older one of that name. Raises BackendError where it
        does not see the file."""
        ...


class Notifier(Protocol):
    """Tells people that a run is over."""

    def notify(self, news: News) -> None:
        """Sends it, in a few seconds. Raises BackendError where somebody did not get it."""
        ...


class Ports(Protocol):
    """The backends that a recipe chose. Each is made at its first use, so a stage loads only what it needs."""

    @property
    def generator(self) -> Generator: ...

    @property
    def captioner(self) -> Captioner: ...

    @property
    def captioners(self) -> Sequence[Captioner]: ...

    @property
    def tagger(self) -> Tagger | None: ...

    @property
    def embedder(self) -> Embedder | None: ...

    @property
    def detector(self) -> Detector | None: ...

    @property
    def gpu(self) -> Gpu: ...

    @property
    def trainer(self) -> Trainer: ...

    @property
    def prover(self) -> Prover | None: ...

    @property
    def publisher(self) -> Publisher: ...
