"""What a LoRA file says about itself, in the words that other programs look for: sd-scripts' `ss_*` entries,
Stability's `modelspec.*` (sai_model_spec 1.0.1) and our own. Nothing in it changes between equal trainings,
so there are no times."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lora_foundry import __version__
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.quantised import packing_of
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer.schedule import total_steps

_OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "prodigy": "pytorch_optimizer.Prodigy",
    "adafactor": "transformers.optimization.Adafactor",
    "schedule_free": "pytorch_optimizer.ScheduleFreeAdamW",
}
_SHORT_HASH_OFFSET, _SHORT_HASH_BYTES = 0x100000, 0x10000


class Learned(NamedTuple):
    """What had been learned when the file was written: after how many steps, at which loss, in how many numbers."""

    step: int
    loss: float
    parameters: int


def describe_lora(
    job: TrainingJob, base: Base, size: tuple[int, int], family: dict[str, str], learned: Learned
) -> dict[str, str]:
    """All metadata of the exported file. `family` is what the family's module says about its architecture."""
    return {
        **_modelspec(job, size),
        **family,
        **_network(job),
        **_training(job, learned),
        **_dataset(job, size),
        "ss_sd_model_name": base.path.name,
        "lora_foundry.base": f"{base.name} [{base.identity}]",
        **_base_hashes(base),
        **job.metadata,
    }


def _base_hashes(base: Base) -> dict[str, str]:
    """A checkpoint file's hashes by which model managers find it: SHA-256, and the short one of old."""
    if base.layout != "file":
        return {}
    stat = base.path.stat()
    short, whole = _file_hashes(base.path, stat.st_size, stat.st_mtime_ns)
    return {"ss_sd_model_hash": short, "ss_new_sd_model_hash": whole}


@lru_cache(maxsize=8)
def _file_hashes(path: Path, size: int, changed: int) -> tuple[str, str]:
    """The short hash and the whole one, remembered while the file stays as it is: several GB are read for them, and
    every export of a training names them."""
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(_SHORT_HASH_OFFSET)
        return hashlib.sha256(file.read(_SHORT_HASH_BYTES)).hexdigest()[:8], whole


def _modelspec(job: TrainingJob, size: tuple[int, int]) -> dict[str, str]:
    tags = [tag for tag, _ in _tag_counts(job).most_common(20) if tag != job.trigger]
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": job.metadata.get("ss_output_name", job.output.stem),
        "modelspec.author": "lora-foundry",
        "modelspec.resolution": f"{size[0]}x{size[1]}",
        "modelspec.trigger_phrase": job.trigger,
        "modelspec.usage_hint": f"Write {job.trigger!r} into the prompt.",
        "modelspec.tags": ", ".join(tags),
    }


def _network(job: TrainingJob) -> dict[str, str]:
    settings = job.settings
    arguments: dict[str, object] = {"targets": list(settings.targets)}
    if settings.conv_rank:
        arguments |= {"conv_dim": settings.conv_rank, "conv_alpha": settings.conv_alpha}
    if settings.network != "lora":
        arguments["algo"] = settings.network
    lycoris = settings.network in {"loha", "lokr"}
    return {
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": str(settings.alpha),
        "ss_network_args": json.dumps(arguments),
        "ss_network_dropout": "None",
    }


def _training(job: TrainingJob, learned: Learned) -> dict[str, str]:
    settings = job.settings
    samples = sum(image.repeats for image in job.images)
    a_step = settings.samples_per_step
    steps = total_steps(settings, job.images)
    return {
        "ss_learning_rate": str(settings.learning_rate),
        "ss_unet_lr": str(settings.learning_rate),
        "ss_text_encoder_lr": str(settings.text_encoder_rate or None),
        "ss_optimizer": f"{_OPTIMIZERS[settings.optimizer]}(weight_decay={settings.weight_decay})",
        "ss_lr_scheduler": settings.lr_schedule,
        "ss_lr_warmup_steps": str(settings.warmup_steps),
        "ss_max_train_steps": str(steps),
        "ss_steps": str(learned.step),
        "ss_epoch": str(-(-learned.step * a_step // samples)),
        "ss_num_epochs": str(-(-steps * a_step // samples)),
        "ss_num_batches_per_epoch": str(-(-samples // settings.batch_size)),
        "ss_batch_size_per_device": str(settings.batch_size),
        "ss_total_batch_size": str(a_step),
        "ss_gradient_accumulation_steps": str(settings.accumulation),
        "ss_gradient_checkpointing": str(settings.gradient_checkpointing),
        "ss_max_grad_norm": str(settings.max_grad_norm),
        "ss_scale_weight_norms": str(settings.max_norm or None),
        "ss_mixed_precision": settings.precision.replace("fp32", "no"),
        "ss_seed": str(settings.seed),
        "ss_min_snr_gamma": str(settings.min_snr_gamma or None),
        "ss_noise_offset": str(settings.noise_offset or None),
        "ss_multires_noise_discount": str(settings.multires_noise or None),
        "ss_multires_noise_iterations": "6" if settings.multires_noise else "None",
        "ss_caption_dropout_rate": str(settings.caption_dropout),
        "ss_shuffle_caption": str(settings.shuffle_tags),
        "ss_keep_tokens": str(settings.keep_tokens),
        "ss_prior_loss_weight": str(settings.regularisation_weight),
        "ss_masked_loss": str(settings.mask != "none"),
        "ss_cache_latents": "True",
        "ss_training_comment": f"lora-foundry {__version__}",
        "lora_foundry.version": __version__,
        "lora_foundry.quantised_base": str(packing_of(settings)),
        "lora_foundry.ema": str(settings.ema or None),
        "lora_foundry.final_loss": f"{learned.loss:.6g}",
        "lora_foundry.parameters": str(learned.parameters),
    }


def _dataset(job: TrainingJob, size: tuple[int, int]) -> dict[str, str]:
    folder = _folder(job)
    own = [image for image in job.images if not image.regular]
    repeats = max((image.repeats for image in own), default=1)
    samples = sum(image.repeats for image in own)
    bucket = {"resolution": list(size), "count": samples}
    return {
        "ss_num_train_images": str(samples),
        "ss_num_reg_images": str(len(job.images) - len(own)),
        "ss_resolution": f"({size[0]}, {size[1]})",
        "ss_enable_bucket": str(job.settings.buckets),
        "ss_bucket_info": json.dumps({"buckets": {"0": bucket}, "mean_img_ar_error": 0.0}),
        "ss_dataset_dirs": json.dumps(
            {folder: {"n_repeats": repeats, "img_count": len(own)}}, ensure_ascii=False
        ),
        "ss_tag_frequency": json.dumps({folder: dict(_tag_counts(job))}, ensure_ascii=False),
    }


def _folder(job: TrainingJob) -> str:
    """The name sd-scripts' folder for this set would have: repeats and trigger."""
    repeats = max((image.repeats for image in job.images if not image.regular), default=1)
    return f"{repeats}_" + re.sub(r"[^\w -]", "_", job.trigger)


def _tag_counts(job: TrainingJob) -> Counter[str]:
    """How many captions hold each tag, the most frequent first."""
    captions = [image.caption for image in job.images if not image.regular]
    tags = Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip())
    return Counter(dict(sorted(tags.items(), key=lambda item: (-item[1], item[0]))))
