"""A Generator that paints with PIL instead of a model: for tests of what stages do with pictures, good and
bad ones.

It keeps the port's promise (a request decides its picture) and can be told which pictures come out wrong."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import ImageRequest, ReferenceUse
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.errors import BackendError
from lora_foundry.ports import GeneratedImage, Tagger
from lora_foundry.recipe_files import load_recipe


def paint(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of coloured shapes; another one for every seed."""
    rng = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    image = Image.new("RGB", size, colour())
    draw = ImageDraw.Draw(image)
    for _ in range(24):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        box = (x - rng.randrange(4, 14), y - rng.randrange(4, 14), x + 8, y + 8)
        draw.ellipse(box, fill=colour(), outline=(0, 0, 0))
    return image


def spoil(image: Image.Image, fault: str) -> Image.Image:
    """The picture with a fault of that name, still of the right size."""
    if fault == "blank":
        return Image.new("RGB", image.size, (90, 90, 90))
    if fault == "blurred":
        return image.filter(ImageFilter.GaussianBlur(2))
    if fault == "duplicate":
        return paint(1, image.size)
    raise AssertionError(fault)


class PaintedGenerator:
    """faults: request key ("003.0" is the first try at the third shot) -> how it comes out.
    breaks_after: after that many pictures the generator stops with a BackendError."""

    def __init__(self, faults: Mapping[str, str] | None = None, breaks_after: int | None = None) -> None:
        self.faults = dict(faults or {})
        self.breaks_after = breaks_after
        self.batches: list[list[str]] = []

    @property
    def model(self) -> str:
        return "painted [0]"

    @property
    def made(self) -> list[str]:
        return [key for batch in self.batches for key in batch]

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        for batch in batches:
            self.batches.append([request.key for request in batch])
            for request in batch:
                if self.breaks_after is not None and self.breaks_after <= 0:
                    raise BackendError("The painter is out of paint.")
                if self.breaks_after is not None:
                    self.breaks_after -= 1
                image = paint(request.seed, (request.width, request.height))
                fault = self.faults.get(request.key)
                yield GeneratedImage(request, spoil(image, fault) if fault else image)

    def close(self) -> None:
        pass


class PaintedPorts:
    """Ports with a painter; a stage that asks for anything else fails."""

    def __init__(self, generator: Any = None, tagger: Tagger | None = None) -> None:
        self.generator = generator or PaintedGenerator()
        self.tagger = tagger
        self.embedder = None
        self.detector = None
        self.captioners = ()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a stage asked for {name}")


def make_run(
    folder: Path, *settings: str, description: str = "1girl, brown hair", name: str = "Zoë van Dijk"
) -> Run:
    """A run of the mini recipe in `folder`."""
    return Run(
        character=Character(name=name, description=description),
        recipe=load_recipe("mini", ("generate.rounds=1", "train.regularisation=0", *settings)),
        base=Path("mini"),
        dataset_dir=folder,
        lora_dir=folder / "loras",
        output_name="zoë",
    )


def quiet(event: ProgressEvent) -> None:
    """A progress callback that does not listen."""


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name, without the seconds in result files."""
    return {
        path.relative_to(folder).as_posix(): _without_seconds(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _without_seconds(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".json":
        return data
    return b"\n".join(line for line in data.splitlines() if not line.lstrip().startswith(b'"seconds":'))
