"""What shows while a training runs where it goes: the loss on pictures that are never trained on, always with the same
noise at the same timesteps, so that it can be compared from one time to the next; and pictures of the same prompts and
seeds with every export that is kept. Both are of the weights as a file gets them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.devices import give_memory_back
from lora_foundry.families._shared.family import Batch, FamilyModel
from lora_foundry.files import storage
from lora_foundry.files.paths import SAMPLE_REQUEST, VALIDATION_LOSS, training_sample, training_samples
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer.data import TrainingDataset, derive_seed
from lora_foundry.trainer.logging import TrainingLog
from lora_foundry.trainer.state import TrainState

TIMESTEPS = (0.125, 0.375, 0.625, 0.875)
_HEADER = "step,loss\n"


class Previews:
    """Draws and measures in `job.workdir`; `held_out` are the pictures of the validation, by index."""

    def __init__(
        self,
        model: FamilyModel,
        dataset: TrainingDataset,
        state: TrainState,
        job: TrainingJob,
        held_out: Sequence[int],
    ) -> None:
        self._model, self._dataset, self._state, self._job = model, dataset, state, job
        self._held_out = held_out

    def begin(self, start: int) -> None:
        """Removes what another training, or steps that are to come again, left behind: a picture of a step that was never
        reached would stand beside ours as its last."""
        for picture, step in training_samples(self._job.workdir):
            if step > start:
                storage.remove_file(picture)
        losses = self._job.workdir / VALIDATION_LOSS
        if losses.exists():
            _write_rows(losses, {step: loss for step, loss in read_rows(losses) if step <= start})

    def draw_now(self, step: int, log: TrainingLog) -> list[Path]:
        """Draws because somebody has asked for it: the sample prompts, or where there are none captions of the set, which are
        encoded already. Where the memory does not hold the drawing, that is said and the training goes on."""
        texts = sample_texts(self._job.settings, self._job.trigger)
        try:
            return self.draw(step, texts or self._some_captions())
        except torch.OutOfMemoryError:
            pass  # not in the handler, whose error holds what the attempt had made
        give_memory_back()
        log.say(
            step,
            "the memory does not hold the drawing of sample pictures beside the training; none were drawn",
        )
        return []

    def _some_captions(self) -> list[str]:
        """Of the first picture of the set and of one half way through it, which in a cast is another's."""
        captions = [image.caption for image in self._job.images if not image.regular]
        return list(dict.fromkeys([captions[0], captions[len(captions) // 2]]))

    def draw(self, step: int, texts: Sequence[str] | None = None) -> list[Path]:
        """Draws the sample prompts, or others, into training/samples/step-NNNN-K.png."""
        settings, workdir = self._job.settings, self._job.workdir
        texts = sample_texts(settings, self._job.trigger) if texts is None else texts
        if not texts:
            return []
        conditions = [self._dataset.captions.one(text) for text in ["", *texts]]
        with self._state.as_exported():
            images = self._model.draw(
                conditions,
                self._dataset.bucket_sizes[0],
                settings.seed,
                settings.sample_steps,
                settings.sample_cfg,
            )
        paths = [training_sample(workdir, step, number) for number in range(1, len(images) + 1)]
        for path, image in zip(paths, images, strict=True):
            storage.write_aside(path, partial(image.save, format="PNG"))
        return paths

    def take_request(self) -> bool:
        """Whether somebody has asked for sample pictures; each request is taken once."""
        request = self._job.workdir / SAMPLE_REQUEST
        if not request.exists():
            return False
        storage.remove_file(request)
        return True

    def validate(self, step: int, log: TrainingLog) -> None:
        """Writes the validation loss into validation.csv and the log, where pictures are held out."""
        if not self._held_out:
            return
        with self._state.as_exported():
            loss = self._validation_loss()
        add_row(self._job.workdir / VALIDATION_LOSS, step, loss)
        log.show(step, {"validation_loss": loss})
        log.say(step, f"validation loss {loss:.4f}")

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """The mean loss over all held-out pictures and timesteps."""
        losses, count = [], len(TIMESTEPS)
        for index in self._held_out:
            latent = self._dataset.latents((index, False))
            seed = derive_seed(self._job.settings.seed, "validation", index)
            noise = torch.randn(count, *latent.shape, generator=torch.Generator().manual_seed(seed))
            condition = self._dataset.captions.one(self._job.images[index].caption)
            mask = self._dataset.mask(index, latent)
            batch = Batch(
                latent.expand(count, *latent.shape),
                self._model.stack([condition] * count),
                noise,
                torch.tensor(TIMESTEPS),
                None if mask is None else mask.expand(count, *mask.shape),
            )
            losses.append(self._model.losses(batch).mean())
        return float(torch.stack(losses).mean())


def sample_texts(settings: TrainSection, trigger: str) -> list[str]:
    """The sample prompts as they are drawn."""
    return [prompt.replace("{trigger}", trigger) for prompt in settings.sample_prompts]


def add_row(path: Path, step: int, loss: float) -> None:
    """Puts a figure into the file at its step; figures of later steps, which are to come again, go."""
    rows = {row[0]: row[1] for row in read_rows(path) if row[0] < step}
    _write_rows(path, rows | {step: loss})


def _write_rows(path: Path, rows: dict[int, float]) -> None:
    text = "".join(f"{number},{rows[number]:.6g}\n" for number in sorted(rows))
    storage.write_text(path, _HEADER + text)


def read_rows(path: Path) -> list[tuple[int, float]]:
    """The figures in the file, by step; none where there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
    except FileNotFoundError:
        return []
    return [(int(line.split(",")[0]), float(line.split(",")[1])) for line in lines]
