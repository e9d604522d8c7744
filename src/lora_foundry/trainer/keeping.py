"""Exports kept while training goes on, so that the best of them can be chosen by measurement afterwards: the last
step is seldom the best one. Each is a whole LoRA file, named by its step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from lora_foundry.domain.lora import SavedLora
from lora_foundry.domain.sections import TrainSection
from lora_foundry.files import storage
from lora_foundry.files.paths import SAVED, saved_lora


class Keeper:
    """Knows after which steps an export is kept, and keeps it. `export` writes a file and returns its SHA-256."""

    def __init__(
        self,
        settings: TrainSection,
        total: int,
        steps_per_epoch: float,
        workdir: Path,
        export: Callable[[Path, int], str],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._workdir, self._export, self._clock = workdir, export, clock
        self._seconds = settings.save_every_minutes * 60
        self._last = clock()
        self.steps = planned_saves(settings, total, steps_per_epoch)

    def begin(self, start: int) -> None:
        """Removes what another training, or steps that are to come again, left behind."""
        for saved in self.saved():
            if saved.step > start:
                saved.path.unlink(missing_ok=True)
        storage.remove_leftovers(storage.make_folder(self._workdir / SAVED))

    def is_due(self, step: int) -> bool:
        """Whether an export is to be kept after `step` steps."""
        return step in self.steps or (self._seconds > 0 and self._clock() - self._last >= self._seconds)

    def keep(self, step: int) -> None:
        """Writes the export of this step. Raises StorageError, DivergedError."""
        self._export(saved_lora(self._workdir, step), step)
        self._last = self._clock()

    def saved(self) -> tuple[SavedLora, ...]:
        """All exports kept so far, the earliest first."""
        files = (self._workdir / SAVED).glob("step-*.safetensors")
        found = {int(path.stem.removeprefix("step-")): path for path in files}
        return tuple(
            SavedLora(step=step, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
            for step, path in sorted(found.items())
        )


def planned_saves(settings: TrainSection, total: int, steps_per_epoch: float) -> frozenset[int]:
    """The steps after which an export is kept: the ends of epochs, or `saves` of them evenly over the run; the last
    step is always among them unless nothing is kept at all."""
    every = settings.save_every_epochs * steps_per_epoch
    if every > 0:
        count = int(total / every)
        return frozenset({max(1, round(every * number)) for number in range(1, count + 1)} | {total})
    count = min(settings.saves, total)
    return frozenset(round(total * number / count) for number in range(1, count + 1))
