"""The in-process trainer, as the Trainer port wants it: prepares a job (base, caches, LoRA, checkpoint), runs
the loop and exports. A job that was stopped at any moment goes on from its newest checkpoint when it is run
again."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Self

import torch
from torch import Tensor

from lora_foundry.context import Context
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import ProgressEvent, fingerprint
from lora_foundry.domain.sections import TrainSection
from lora_foundry.domain.sections.train import WITHOUT_INFLUENCE
from lora_foundry.errors import BackendError, InputError
from lora_foundry.failures import lacks_memory, not_enough_memory
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.devices import (
    find_device,
    freed_memory_kept,
    give_memory_back,
    use_available_cores,
)
from lora_foundry.families._shared.family import Batch, FamilyModel, load_family
from lora_foundry.families._shared.memory import Means, means
from lora_foundry.families._shared.quantised import packing_of
from lora_foundry.files import storage
from lora_foundry.files.hashing import readable_hash
from lora_foundry.files.images import picture_size
from lora_foundry.files.paths import (
    CACHE,
    CHECKPOINTS,
    RECORDING,
    TENSORBOARD,
    TRAINING_CONFIG,
    TRAINING_LOG,
    TRAINING_LOSS,
)
from lora_foundry.ports import ProgressCallback, TrainingImage, TrainingJob
from lora_foundry.trainer.caches import CaptionCache, DeviceCache, TensorFile, cache_latents, latent_name
from lora_foundry.trainer.compiled import Compiled, can_compile, obstacle
from lora_foundry.trainer.cuda_graphs import CudaRecorder, Recorded, can_record
from lora_foundry.trainer.data import (
    NoiseSampler,
    TrainingDataset,
    derive_seed,
    group_pictures,
    hold_out,
    plan_bucket_sizes,
)
from lora_foundry.trainer.export import (
    CheckpointExporter,
    kohya_tensors,
    load_lora,
    saved_exports,
    write_lora,
)
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.images import BucketSize
from lora_foundry.trainer.logging import EventFile, ProgressReporter, TrainingLog
from lora_foundry.trainer.loop import Loop
from lora_foundry.trainer.lora import NAME, Adapter
from lora_foundry.trainer.memory import difference, fit, free_memory, is_out_of_memory, step_down
from lora_foundry.trainer.metadata import Learned, describe_lora
from lora_foundry.trainer.optimizers import build_optimizer
from lora_foundry.trainer.previews import Previews, sample_texts
from lora_foundry.trainer.schedule import planned_exports, steps_per_epoch, total_steps
from lora_foundry.trainer.state import EMA, Checkpoints, TrainState
from lora_foundry.trainer.step import ForwardBackward, OptimizerStep

_FINAL_LOSSES = 100
# How a step is computed, which may change when memory runs out, and what it learns does not.
_MACHINE = frozenset(
    {"backend", "memory", "gradient_checkpointing", "batch_size", "accumulation", "quantise"}
)
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
            training, resumed, loss = self._run(job, progress, total)
            digest = training.export(job.output, total, loss)
        return TrainedLora(
            path=job.output,
            sha256=digest,
            steps=total,
            final_loss=loss,
            seconds=round(perf_counter() - started, 3),
            resumed_from=resumed,
            parameters=training.state.adapter.count(),
            saved=saved_exports(job.workdir),
        )

    def _run(self, job: TrainingJob, progress: ProgressCallback, total: int) -> tuple[Training, int, float]:
        """Runs the loop; where memory runs out, again from the newest checkpoint with settings that take less."""
        device = find_device(self._device_name)
        asked = job.settings
        ways = means(self._base, asked, device)
        settings, note = plan_memory(job, self._base, device, ways)
        training: Training | None = None
        while True:
            if note:
                progress(ProgressEvent(stage="train", done=0, total=total, message=note))
            try:
                training = prepare(job._replace(settings=settings), self._base, device, progress)
                with freed_memory_kept(device):
                    return training, *training.run(total, asked, note)
            except RuntimeError as error:
                if any((job.workdir / CHECKPOINTS).glob("*")):
                    # What was learned on a base in 16 bits is not continued on another.
                    ways = ways._replace(packings=())
                smaller = step_down(settings, self._base, ways)
                if not is_out_of_memory(error) or asked.memory == "as_set" or smaller is None:
                    raise
                note = f"the memory did not suffice; going on with {difference(settings, smaller)}"
                settings = smaller
            training = None  # the memory must be free before the next attempt
            gc.collect()
            give_memory_back()


def plan_memory(job: TrainingJob, base: Base, device: torch.device, ways: Means) -> tuple[TrainSection, str]:
    """The settings that fit the device, and what was changed, in words. A training that goes on keeps what it had."""
    try:
        earlier = json.loads((job.workdir / TRAINING_CONFIG).read_text(encoding="utf-8"))
        if earlier.get("asked") == job.settings.model_dump(mode="json"):
            return TrainSection.model_validate(earlier["settings"]), ""
    except (OSError, ValueError):
        _log.debug("no earlier plan in %s", job.workdir)
    settings, changes = fit(job.settings, base, free_memory(device), ways)
    return settings, f"fitted to the memory: {changes}" if changes else ""


def prepare(job: TrainingJob, base: Base, device: torch.device, progress: ProgressCallback) -> Training:
    """Checks the job and makes all that its first step needs: the caches, the LoRA in the frozen base, the optimizer.
    Raises InputError, BaseModelError."""
    _check(job)
    use_available_cores()
    settings = job.settings
    reporter = ProgressReporter(progress, total_steps(settings, job.images))
    reporter.say("loading the base model")
    hashes = [readable_hash(image.path) for image in job.images]
    model = load_family(base, settings, device)
    held_out = hold_out(job.images, settings)
    dataset = _make_dataset(
        job, base=base, model=model, device=device, hashes=hashes, held_out=held_out, reporter=reporter
    )
    targets = model.lora_targets(settings)
    adapter = Adapter(model.networks, targets, settings, derive_seed(settings.seed, "lora"))
    if can_compile(settings, model):
        reporter.say("compiling the base's blocks, which may take some minutes before the first step")
    else:
        if settings.compile_blocks:
            _log.warning("The base's blocks are not compiled: %s.", obstacle(settings, model))
        _fuse(adapter, model)
    if settings.start_from:
        load_lora(Path(settings.start_from).expanduser(), adapter, model)
    state = TrainState(
        adapter,
        build_optimizer(settings, adapter),
        torch.amp.GradScaler(device.type, enabled=model.dtype == torch.float16),
        EMA(adapter, settings.ema) if settings.ema else None,
    )
    previews = Previews(model, dataset, state, job, held_out)
    return Training(
        job, base, device, _fingerprint(job, base, hashes), model, dataset, state, previews, reporter
    )


def _fuse(adapter: Adapter, model: FamilyModel) -> None:
    """Has the LoRA compute in its fused form, with copies in the type that the network computes in."""
    twins = adapter.keep_half_copies(model.dtype)
    for network in model.networks.values():
        fuse(network, NAME, twins)


def _make_dataset(
    job: TrainingJob,
    *,
    base: Base,
    model: FamilyModel,
    device: torch.device,
    hashes: list[str],
    held_out: list[int],
    reporter: ProgressReporter,
) -> TrainingDataset:
    """Latents and text embeddings, from the disk or encoded now; the encoders are let go of."""
    settings, folder = job.settings, job.workdir / CACHE
    sizes = plan_bucket_sizes(
        [picture_size(image.path) for image in job.images], settings, model.side_multiple
    )
    files: dict[BucketSize, TensorFile] = {}
    for size in sorted(set(sizes)):
        pictures = {
            latent_name(digest, flipped): (image.path, flipped)
            for digest, image, own in zip(hashes, job.images, sizes, strict=True)
            for flipped in ((False, True) if settings.flip else (False,))
            if own == size
        }
        files[size] = cache_latents(
            model, pictures, size, base.identity, folder, reporter.counting("encoding pictures")
        )
    sampler = NoiseSampler(settings, job.images, group_pictures(sizes, held_out), device)
    captions = _cache_captions(job, base, model, device, sampler, reporter)
    return TrainingDataset(
        sampler,
        job.images,
        settings,
        DeviceCache(lambda key: files[sizes[key[0]]][latent_name(hashes[key[0]], key[1])], device),
        captions,
        sizes,
    )


def _cache_captions(
    job: TrainingJob,
    base: Base,
    model: FamilyModel,
    device: torch.device,
    sampler: NoiseSampler,
    reporter: ProgressReporter,
) -> CaptionCache:
    settings = job.settings
    learning = settings.text_encoder_rate > 0
    captions = CaptionCache(model, device, live=learning)
    as_they_come = settings.shuffle_tags and not settings.cache_captions
    if not learning:
        # Captions that are shuffled come up one by one; those of held-out pictures never are.
        texts = [] if as_they_come else [image.caption for image in job.images]
        if settings.shuffle_tags and settings.cache_captions:
            texts += sampler.captions(total_steps(settings, job.images))
        texts += sample_texts(settings, job.trigger)
        captions.prepare(
            ["", *texts], base.identity, job.workdir / CACHE, reporter.counting("encoding captions")
        )
    model.release_encoders(keep_text=learning or as_they_come)
    return captions


@dataclass(frozen=True)
class Training:
    """A training that is ready for its first step."""

    job: TrainingJob
    base: Base
    device: torch.device
    fingerprint: str
    model: FamilyModel
    dataset: TrainingDataset
    state: TrainState
    previews: Previews
    reporter: ProgressReporter

    @property
    def bucket_size(self) -> BucketSize:
        """The commonest size that the pictures are trained at."""
        return Counter(self.dataset.bucket_sizes).most_common(1)[0][0]

    def run(self, total: int, asked: TrainSection, note: str = "") -> tuple[int, float]:
        """Trains what is left to train; returns the step it went on from, and the final loss. `asked` is the recipe's
        section before it was fitted to the memory, `note` what was changed."""
        job, settings, workdir = self.job, self.job.settings, self.job.workdir
        self._write_config(total, asked)
        checkpoints = Checkpoints(storage.make_folder(workdir / CHECKPOINTS), self.fingerprint, total)
        start = checkpoints.restore(self.state)
        events = EventFile(workdir / TENSORBOARD, start) if settings.tensorboard else None
        with TrainingLog(workdir / TRAINING_LOSS, workdir / TRAINING_LOG, start, events) as log:
            if note:
                log.say(start, note)
            log.say(
                start,
                f"{'going on' if start else 'start'}: {total} steps, {len(job.images)} pictures at "
                f"{self.bucket_size[0]}x{self.bucket_size[1]}, {self.state.adapter.count():,} weights, {self.device}",
            )
            if unseen := self.dataset.never_shown(total):
                log.say(
                    start,
                    f"so few steps show all but {unseen} of the pictures; raise train.steps or train.epochs",
                )
            exporter = CheckpointExporter(
                settings,
                planned_exports(settings, total, steps_per_epoch(settings, job.images)),
                workdir,
                lambda path, step: self.export(path, step, log.mean_loss(_FINAL_LOSSES)),
            )
            step = OptimizerStep(settings, total, self.dataset, self._forward_backward(), self.state)
            Loop(step, checkpoints, exporter, self.previews, log, self.reporter.step).run(start)
            return start, log.mean_loss(_FINAL_LOSSES)

    def export(self, path: Path, step: int, loss: float) -> str:
        """Writes the LoRA as it stands after `step` steps; returns the file's SHA-256. Raises DivergedError,
        StorageError."""
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[self.job.settings.export_precision]
        adapter, form = self.state.adapter, self.model.file_format
        tensors = kohya_tensors(adapter, self.state.exported_state(), self.model.export_name, dtype, form)
        learned = Learned(step, loss, adapter.count())
        described = describe_lora(self.job, self.base, self.bucket_size, self.model.metadata(), learned)
        return write_lora(path, tensors, described)

    def _forward_backward(self) -> Callable[[Batch], Tensor]:
        """Forward and backward pass, compiled or played back as CUDA graphs where that can be."""
        settings, model, adapter = self.job.settings, self.model, self.state.adapter
        computed = ForwardBackward(model, self.state.scaler, settings.samples_per_step)
        if can_compile(settings, model):
            return Compiled(computed, model.network, adapter.gradients(), partial(_fuse, adapter, model))
        if not can_record(settings, model, self.device):
            return computed
        marker = self.job.workdir / RECORDING
        return Recorded(computed, CudaRecorder(self.device), self.device, adapter.gradients(), marker)

    def _write_config(self, total: int, asked: TrainSection) -> None:
        """What is trained, with everything that decides it, for people and for a later look."""
        job = self.job
        storage.write_json(
            job.workdir / TRAINING_CONFIG,
            {
                "base": self.base.name,
                "identity": self.base.identity,
                "trigger": job.trigger,
                "settings": job.settings,
                "asked": asked,
                "steps": total,
                "images": dict(
                    zip(file_names(job.images), (image.caption for image in job.images), strict=True)
                ),
                "bucket_size": self.bucket_size,
                "parameters": self.state.adapter.count(),
                "fingerprint": self.fingerprint,
            },
        )


def file_names(images: Sequence[TrainingImage]) -> list[str]:
    """The pictures' file names, with folders where two have the same."""
    often = Counter(image.path.name for image in images)
    root = Path(os.path.commonpath([image.path.parent for image in images]))
    return [
        image.path.name if often[image.path.name] == 1 else image.path.relative_to(root).as_posix()
        for image in images
    ]


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
    settings: dict[str, object] = job.settings.model_dump(
        mode="json", exclude={*_MACHINE, *_LENGTH, *WITHOUT_INFLUENCE}
    )
    if job.settings.start_from:
        settings["start_from"] = readable_hash(Path(job.settings.start_from).expanduser())
    images = [
        (digest, image.caption, image.repeats, image.regular, image.mask and readable_hash(image.mask))
        for digest, image in zip(hashes, job.images, strict=True)
    ]
    packing = packing_of(job.settings)
    return fingerprint("training-6", base.identity, packing, settings, job.settings.samples_per_step, images)


@contextmanager
def _translated(job: TrainingJob) -> Iterator[None]:
    """torch's errors as ours."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            if lacks_memory(error):
                raise not_enough_memory(" ".join(str(error).split())[:200]) from error
            raise BackendError(
                f"Training in {job.workdir} stopped: {' '.join(str(error).split())[:300]}"
            ) from error
        raise BackendError(
            f"The GPU's memory is too small for batch size {job.settings.batch_size} at "
            f"{job.settings.resolution} pixels; lower train.batch_size or set train.gradient_checkpointing."
        ) from error
