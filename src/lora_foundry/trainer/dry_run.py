"""A rehearsal, where a recipe asks for one by name: everything up to the first step is real (the base is loaded, every
picture and caption encoded, the LoRA made), and then no step is taken. What it leaves is marked in its metadata and
in the result, changes no picture, and is never published."""

from __future__ import annotations

from time import perf_counter
from typing import Self

from lora_foundry.context import Context
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.devices import find_device
from lora_foundry.files.paths import TRAINING_CONFIG
from lora_foundry.files.storage import write_json
from lora_foundry.ports import ProgressCallback, TrainingJob
from lora_foundry.trainer import trainer
from lora_foundry.trainer.export import kohya_tensors, write_lora
from lora_foundry.trainer.metadata import Learned, describe_lora
from lora_foundry.trainer.schedule import total_steps

MARK = {"lora_foundry.dry_run": "true", "modelspec.usage_hint": "A dry run: nothing was trained."}


class DryRunTrainer:
    """Prepares a training and does not train."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.base, context.settings.device)

    def __init__(self, base: Base, device: str = "auto") -> None:
        self._base, self._device = base, device

    @property
    def model(self) -> str:
        """See `ports.Trainer`."""
        return trainer.InProcessTrainer(self._base, self._device).model

    def train(self, job: TrainingJob, progress: ProgressCallback) -> TrainedLora:
        """See `ports.Trainer`; the result says `dry_run` and no steps."""
        started = perf_counter()
        planned = total_steps(job.settings, job.images)
        training = trainer.prepare(job, self._base, find_device(self._device), progress)
        learned = Learned(step=0, loss=0.0, parameters=training.state.adapter.count())
        metadata = describe_lora(job, self._base, training.bucket_size, training.model.metadata(), learned)
        write_json(
            job.workdir / TRAINING_CONFIG, {"dry_run": True, "steps": planned, "settings": job.settings}
        )
        model, adapter = training.model, training.state.adapter
        tensors = kohya_tensors(adapter, adapter.state(), model.export_name, file_format=model.file_format)
        digest = write_lora(job.output, tensors, metadata | MARK)
        progress(
            ProgressEvent(
                stage="train", done=0, total=planned, message="dry run: ready to train, nothing trained"
            )
        )
        return TrainedLora(
            path=job.output,
            sha256=digest,
            steps=0,
            final_loss=0.0,
            seconds=round(perf_counter() - started, 3),
            parameters=training.state.adapter.count(),
            dry_run=True,
        )
