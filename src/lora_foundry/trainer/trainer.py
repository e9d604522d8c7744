"""The in-process trainer, as the Trainer port wants it: prepares a job (base, caches, LoRA, checkpoint), runs
the loop and exports. A job that was stopped at any moment goes on from its newest checkpoint when it is run
again."""

from __future__ import annotations

import gc
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import Self

import torch
from torch import Tensor

from lora_foundry.context import Context
from lora_foundry.domain.lora import SavedLora, TrainedLora
from lora_foundry.domain.run import ProgressEvent, fingerprint
from lora_foundry.domain.sections import TrainSection
from lora_foundry.domain.sections.train import WITHOUT_INFLUENCE
from lora_foundry.errors import BackendError, InputError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.devices import (
    choose_dtype,
    find_device,
    freed_memory_kept,
    use_available_cores,
)
from lora_foundry.families._shared.family import FamilyModel, load_family
from lora_foundry.files import storage
from lora_foundry.files.hashing import readable_hash
from lora_foundry.files.images import picture_size
from lora_foundry.files.paths import (
    CACHE,
    CHECKPOINTS,
    TENSORBOARD,
    TRAINING_CONFIG,
    TRAINING_LOG,
    TRAINING_LOSS,
    VALIDATION_LOSS,
)
from lora_foundry.ports import ProgressCallback, TrainingJob
from lora_foundry.trainer.adapter import NAME, Adapter
from lora_foundry.trainer.caches import CaptionCache, TensorFile, cache_latents, latent_name
from lora_foundry.trainer.checkpoints import Checkpoints, Learner
from lora_foundry.trainer.draws import Draws, derive_seed
from lora_foundry.trainer.events import EventFile
from lora_foundry.trainer.export import kohya_tensors, load_lora, write_lora
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.graphs import CudaRecorder, Recorded, can_record
from lora_foundry.trainer.journal import Journal
from lora_foundry.trainer.keeping import Keeper
from lora_foundry.trainer.loop import NEWS_SECONDS, Loop
from lora_foundry.trainer.material import Material, group_pictures, hold_out, plan_frames
from lora_foundry.trainer.memory import difference, fit, free_memory, step_down
from lora_foundry.trainer.metadata import Learned, describe_lora
from lora_foundry.trainer.optimizers import RunningMean, build_optimizer
from lora_foundry.trainer.passes import Part, Passes
from lora_foundry.trainer.resident import Resident
from lora_foundry.trainer.samples import draw_samples, sample_texts
from lora_foundry.trainer.schedule import steps_per_epoch, total_steps
from lora_foundry.trainer.validation import Validation, add_row

_FINAL_LOSSES = 100
# How a step is computed, which may change when memory runs out, and what it learns does not.
_MACHINE = frozenset({"backend", "memory", "gradient_checkpointing", "batch_size", "accumulation"})
_LENGTH = frozenset({"steps", "epochs"})
_log = logging.getLogger(__name__)


class InProcessTrainer:
    """Trains a LoRA in this process, on the best device there is."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.base, context.settings.device)

    def __init__(self, base: Base, device: str = "auto") -> None:
        self._base = base
        self._device_name = device

    @property
    def model(self) -> str:
        """See `ports.Trainer`."""
        return f"{self._base.name} [{self._base.identity[:12]}]"

    def train(self, job: TrainingJob, progress: ProgressCallback) -> TrainedLora:
        """See `ports.Trainer`."""
        started = perf_counter()
        total = total_steps(job.settings, job.images)
        with _translated(job):
            prepared, resumed, loss = self._run(job, progress, total)
            digest = prepared.export(job.output, total, loss)
        return TrainedLora(
            path=job.output,
            sha256=digest,
            steps=total,
            final_loss=loss,
            seconds=round(perf_counter() - started, 3),
            resumed_from=resumed,
            parameters=prepared.adapter.count(),
            saved=prepared.saved,
        )

    def _run(
        self, job: TrainingJob, progress: ProgressCallback, total: int
    ) -> tuple[Preparation, int, float]:
        """Runs the loop; where memory runs out, again from the newest checkpoint with settings that take less."""
        device = find_device(self._device_name)
        asked = job.settings
        settings, note = plan_memory(job, self._base, device)
        while True:
            if note:
                progress(ProgressEvent(stage="train", done=0, total=total, message=note))
            try:
                prepared = prepare(job._replace(settings=settings), self._base, device, progress)
                with freed_memory_kept(device):
                    return prepared, *prepared.run_loop(total, asked, note)
            except torch.OutOfMemoryError:
                smaller = step_down(settings)
                if asked.memory == "as_set" or smaller is None:
                    raise
                note = f"the memory did not suffice; going on with {difference(settings, smaller)}"
                settings = smaller
            prepared = None  # type: ignore[assignment]  # the memory must be free before the next attempt
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def plan_memory(job: TrainingJob, base: Base, device: torch.device) -> tuple[TrainSection, str]:
    """The settings that fit the device, and what was changed, in words. A training that goes on keeps what it had."""
    try:
        earlier = json.loads((job.workdir / TRAINING_CONFIG).read_text(encoding="utf-8"))
        if earlier.get("asked") == job.settings.model_dump(mode="json"):
            return TrainSection.model_validate(earlier["settings"]), ""
    except (OSError, ValueError):
        _log.debug("no earlier plan in %s", job.workdir)
    settings, changes = fit(job.settings, base, free_memory(device))
    return settings, f"fitted to the memory: {changes}" if changes else ""


def prepare(job: TrainingJob, base: Base, device: torch.device, progress: ProgressCallback) -> Preparation:
    """Checks the job and makes all that its first step needs. Raises InputError, BaseModelError."""
    _check(job)
    use_available_cores()
    return Preparation(job, base, device, _Reporter(progress, total_steps(job.settings, job.images)))


class Preparation:
    """All that must stand before the first step."""

    def __init__(self, job: TrainingJob, base: Base, device: torch.device, reporter: _Reporter) -> None:
        self._job, self._base, self._reporter, self._device = job, base, reporter, device
        settings = job.settings
        reporter.say("loading the base model")
        self._hashes = [readable_hash(image.path) for image in job.images]
        self._fingerprint = _fingerprint(job, base, self._hashes)
        self.model: FamilyModel = load_family(base, settings, device)
        held_out = hold_out(job.images, settings)
        self._material = self._prepare(held_out)
        self._validation = Validation(
            self.model,
            self._material,
            [(index, job.images[index].caption) for index in held_out],
            settings.seed,
        )
        targets = self.model.lora_targets(settings)
        self.adapter = Adapter(self.model.networks, targets, settings, derive_seed(settings.seed, "lora"))
        for network in self.model.networks.values():
            fuse(network, NAME)
        self.learner = Learner(
            self.adapter,
            build_optimizer(settings, self.adapter),
            torch.amp.GradScaler(
                device.type, enabled=choose_dtype(settings.precision, device) == torch.float16
            ),
            RunningMean(self.adapter, settings.ema) if settings.ema else None,
        )
        self.saved: tuple[SavedLora, ...] = ()
        if settings.start_from:
            load_lora(Path(settings.start_from).expanduser(), self.adapter, self.model)

    @property
    def frame(self) -> tuple[int, int]:
        """The commonest shape that the pictures are trained at."""
        return Counter(self._material.frames).most_common(1)[0][0]

    def run_loop(self, total: int, asked: TrainSection, note: str = "") -> tuple[int, float]:
        """Trains what is left to train; returns the step it went on from, and the final loss. `asked` is the recipe's
        section before it was fitted to the memory, `note` what was changed."""
        job, workdir = self._job, self._job.workdir
        self._write_config(total, asked)
        checkpoints = Checkpoints(storage.make_folder(workdir / CHECKPOINTS), self._fingerprint, total)
        start = checkpoints.restore(self.learner)
        events = EventFile(workdir / TENSORBOARD, start) if job.settings.tensorboard else None
        with Journal(workdir / TRAINING_LOSS, workdir / TRAINING_LOG, start, events) as journal:
            if note:
                journal.say(start, note)
            journal.say(
                start,
                f"{'going on' if start else 'start'}: {total} steps, {len(job.images)} pictures at "
                f"{self.frame[0]}x{self.frame[1]}, {self.adapter.count():,} weights, {self._device}",
            )
            keeper = Keeper(
                job.settings,
                total,
                steps_per_epoch(job.settings, job.images),
                workdir,
                lambda path, step: self._keep(path, step, journal.mean_loss(_FINAL_LOSSES)),
            )
            Loop(
                job.settings,
                total,
                self._passes(),
                self.learner,
                self._material,
                checkpoints,
                journal,
                keeper,
                self._reporter.step,
                lambda step: self._examine(step, journal),
            ).run(start)
            self.saved = keeper.saved()
            return start, journal.mean_loss(_FINAL_LOSSES)

    def _passes(self) -> Callable[[Part], Tensor]:
        """Forward and backward pass, recorded where that is asked for and can be."""
        settings = self._job.settings
        passes = Passes(self.model, self.learner.scaler, settings.samples_per_step)
        if not can_record(settings, self.model, self._device):
            if settings.cuda_graphs:
                _log.warning(
                    "train.cuda_graphs is without effect: it needs a CUDA device and a UNet, and neither gradient "
                    "checkpointing nor text encoders that learn; this training's steps are computed as usual."
                )
            return passes
        return Recorded(passes, CudaRecorder(self._device), self._device)

    def export(self, path: Path, step: int, loss: float) -> str:
        """Writes the LoRA as it stands after `step` steps; returns the file's SHA-256. Raises DivergedError,
        StorageError."""
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[self._job.settings.export_precision]
        state = self.learner.exported_state()
        tensors = kohya_tensors(self.adapter, state, self.model.export_name, dtype, self.model.file_format)
        learned = Learned(step, loss, self.adapter.count())
        described = describe_lora(self._job, self._base, self.frame, self.model.metadata(), learned)
        return write_lora(path, tensors, described)

    def _keep(self, path: Path, step: int, loss: float) -> str:
        """Writes an export on the way, and draws what it draws."""
        digest = self.export(path, step, loss)
        with self.learner.as_exported():
            draw_samples(
                self.model, self._material, self._job.settings, self._job.trigger, self._job.workdir, step
            )
        return digest

    def _examine(self, step: int, journal: Journal) -> None:
        """The validation loss, with the weights as they are exported."""
        if self._job.settings.validation == 0:
            return
        with self.learner.as_exported():
            loss = self._validation.measure()
        add_row(self._job.workdir / VALIDATION_LOSS, step, loss)
        journal.show(step, {"validation_loss": loss})
        journal.say(step, f"validation loss {loss:.4f}")

    def _write_config(self, total: int, asked: TrainSection) -> None:
        """What is trained, with everything that decides it, for people and for a later look."""
        job = self._job
        storage.write_json(
            job.workdir / TRAINING_CONFIG,
            {
                "base": self._base.name,
                "identity": self._base.identity,
                "trigger": job.trigger,
                "settings": job.settings,
                "asked": asked,
                "steps": total,
                "images": {image.path.name: image.caption for image in job.images},
                "frame": self.frame,
                "parameters": self.adapter.count(),
                "fingerprint": self._fingerprint,
            },
        )

    def _prepare(self, held_out: list[int]) -> Material:
        """Latents and text embeddings, from the disk or encoded now; the encoders are let go of."""
        job, settings = self._job, self._job.settings
        sizes = [picture_size(image.path) for image in job.images]
        frames = plan_frames(sizes, settings, self.model.side_multiple)
        files = {frame: self._cache_latents(frame, frames) for frame in sorted(set(frames))}
        captions = self._cache_captions()
        return Material(
            Draws(settings, job.images, group_pictures(frames, held_out), self._device),
            job.images,
            settings,
            Resident(
                lambda key: files[frames[key[0]]][latent_name(self._hashes[key[0]], key[1])], self._device
            ),
            captions,
            frames,
        )

    def _cache_latents(self, frame: tuple[int, int], frames: list[tuple[int, int]]) -> TensorFile:
        sides = (False, True) if self._job.settings.flip else (False,)
        pictures = zip(self._hashes, self._job.images, frames, strict=True)
        return cache_latents(
            self.model,
            {
                latent_name(digest, flipped): (image.path, flipped)
                for digest, image, own in pictures
                for flipped in sides
                if own == frame
            },
            frame,
            self._base.identity,
            self._job.workdir / CACHE,
            lambda done, count: self._reporter.preparing("encoding pictures", done, count),
        )

    def _cache_captions(self) -> CaptionCache:
        job, settings = self._job, self._job.settings
        learning = settings.text_encoder_rate > 0
        captions = CaptionCache(self.model, self._device, live=learning)
        if not learning:
            # Captions that are shuffled come up one by one; those of held-out pictures never are.
            texts = [] if settings.shuffle_tags else [image.caption for image in job.images]
            texts += sample_texts(settings, job.trigger)
            captions.prepare(
                ["", *texts],
                self._base.identity,
                job.workdir / CACHE,
                lambda done, count: self._reporter.preparing("encoding captions", done, count),
            )
        self.model.release_encoders(keep_text=learning or settings.shuffle_tags)
        return captions


class _Reporter:
    """Turns the loop's news into progress events, a few a second at most."""

    def __init__(self, progress: ProgressCallback, total: int) -> None:
        self._progress, self._total = progress, total
        self._told = 0.0

    def say(self, message: str) -> None:
        self._progress(ProgressEvent(stage="train", done=0, total=self._total, message=message))

    def preparing(self, what: str, done: int, count: int) -> None:
        if monotonic() - self._told >= NEWS_SECONDS:
            self._told = monotonic()
            self.say(f"{what}: {done} of {count}")

    def step(self, done: int, loss: float) -> None:
        self._progress(ProgressEvent(stage="train", done=done, total=self._total, loss=round(loss, 5)))


def _check(job: TrainingJob) -> None:
    """Raises InputError for a job without pictures, or with one that has no caption."""
    if not job.images:
        raise InputError(
            "There are no pictures to train on; run the generate stage, or put pictures into the folder."
        )
    for image in job.images:
        if not image.caption.strip():
            raise InputError(
                f"The caption of {image.path} is empty; write it, or run the caption stage again."
            )


def _fingerprint(job: TrainingJob, base: Base, hashes: list[str]) -> str:
    """Of all that decides the weights but how long it takes: a checkpoint with another one belongs to another
    training, and a finished one with the same goes on where more steps are asked for."""
    settings = job.settings.model_dump(mode="json", exclude={*_MACHINE, *_LENGTH, *WITHOUT_INFLUENCE})
    if job.settings.start_from:
        settings["start_from"] = readable_hash(Path(job.settings.start_from).expanduser())
    images = [
        (digest, image.caption, image.repeats, image.regular, image.mask and readable_hash(image.mask))
        for digest, image in zip(hashes, job.images, strict=True)
    ]
    return fingerprint("training-5", base.identity, settings, job.settings.samples_per_step, images)


@contextmanager
def _translated(job: TrainingJob) -> Iterator[None]:
    """torch's errors as ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"The GPU's memory is too small for batch size {job.settings.batch_size} at "
            f"{job.settings.resolution} pixels; lower train.batch_size or set train.gradient_checkpointing."
        ) from error
    except RuntimeError as error:
        raise BackendError(
            f"Training in {job.workdir} stopped: {' '.join(str(error).split())[:300]}"
        ) from error
