"""The making of the evaluation's pictures: whole batches, one file each, and what is there from before is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import BackendError
from lora_foundry.files.images import load_picture, read_record, save_picture
from lora_foundry.files.storage import make_folder, remove_file, remove_leftovers
from lora_foundry.ports import Generator, ProgressCallback
from lora_foundry.stages._shared.drawing import load_made


@dataclass
class EvaluationPictures:
    """Draws sets of pictures and counts them; `total` is how many there will be in all."""

    generator: Generator
    batch_size: int
    progress: ProgressCallback
    total: int = 0
    done: int = 0

    def draw(
        self,
        folder: Path,
        records: Sequence[PictureRecord],
        lora: LoraUse | None,
        message: str,
        kept: Sequence[PictureRecord] = (),
    ) -> list[Image.Image]:
        """Makes every picture that is not in its folder, takes away those that nothing asks for any more, and returns
        them all. kept: all that the folder may hold, where `records` are only a part of them."""
        remove_leftovers(make_folder(folder))
        wanted = {record.file for record in kept or records}
        for stale in folder.glob("*.png"):
            if stale.name not in wanted:
                remove_file(stale)
        missing = {
            record.request.key: record for record in records if not _is_there(folder / record.file, record)
        }
        self.done += len(records) - len(missing)
        batches = [
            [record.request for record in batch]
            for batch in _slices(records, self.batch_size)
            if any(record.request.key in missing for record in batch)
        ]
        for made in self.generator.generate(batches, lora) if batches else ():
            record = missing.pop(made.request.key, None)
            if record is None:
                continue  # it was there before; it was made again only because a batch is made as a whole
            save_picture(folder / record.file, made.image, record)
            self._report(message, folder / record.file)
        if missing:
            raise BackendError(
                f"The generator left out {len(missing)} evaluation pictures; run the same command again."
            )
        return [load_made(folder / record.file, "evaluate") for record in records]

    def _report(self, message: str, image: Path) -> None:
        self.done += 1
        total = max(self.total, self.done)
        self.progress(
            ProgressEvent(
                stage="evaluate", done=self.done, total=total, unit="image", message=message, image=image
            )
        )


def _slices(records: Sequence[PictureRecord], size: int) -> list[Sequence[PictureRecord]]:
    return [records[start : start + size] for start in range(0, len(records), size)]


def _is_there(path: Path, record: PictureRecord) -> bool:
    return read_record(path) == record and load_picture(path) is not None
