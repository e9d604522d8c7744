"""A training job in sd-scripts' terms: the folder layout it expects, and its configuration. What of the recipe it
cannot do is refused by name, since an option that is silently left out costs a training.

Two of its habits decide the layout. Without `caption_extension` it reads no captions. And when it goes on from a
saved state it counts the steps of the present epoch only, so that from the second epoch on it trains too long and
numbers its files wrongly; the whole training is therefore one epoch, in which every picture is repeated as often as
all the epochs would show it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.diffusion import PREDICTIONS
from lora_foundry.families._shared.parts import Parts
from lora_foundry.families._shared.registry import family_part
from lora_foundry.files.storage import make_folder, remove_tree, storage_errors, write_json, write_text
from lora_foundry.ports import TrainingImage, TrainingJob

OUTPUT_NAME = "lora"
VOCABULARY_VARIABLE = "LORA_FOUNDRY_CLIP_VOCABULARY"
_VOCABULARIES = ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
_VOCABULARY_FILES = ("vocab.json", "merges.txt")
# Other programs ship CLIP's vocabulary with a window of their own, which sd-scripts would believe.
_VOCABULARY_CONFIG = {
    "model_max_length": 77,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "do_lower_case": True,
    "tokenizer_class": "CLIPTokenizer",
}
_LONG_CAPTION = 220  # characters; about the 75 tokens of one window
_SMALLEST_BUCKET = 64

# Handed on, or without meaning for another program. Every other field must have its default.
_HANDED_ON = {
    "rank", "alpha", "steps", "epochs", "repeats", "batch_size", "learning_rate", "lr_schedule", "restarts",
    "warmup_steps", "weight_decay", "max_grad_norm", "min_snr_gamma", "noise_offset", "caption_dropout",
    "shuffle_tags", "keep_tokens", "resolution", "precision", "gradient_checkpointing", "checkpoint_every", "seed",
    "text_encoder_rate", "conv_rank", "conv_alpha", "max_norm", "buckets", "export_precision", "image_repeats",
    "flip", "start_from",
}  # fmt: skip
# How our own trainer keeps, fits and computes; the file at the end is the same without them.
_MEANINGLESS = {"backend", "saves", "memory", "cuda_graphs", "compile_blocks"}


def refuse_what_it_cannot_do(settings: TrainSection) -> None:
    """Raises InputError for the first setting that sd-scripts would not be told of."""
    for name, field in type(settings).model_fields.items():
        if name in _HANDED_ON | _MEANINGLESS:
            continue
        default = field.get_default(call_default_factory=True)
        if getattr(settings, name) != default:
            raise InputError(
                f"train.{name} is not handed on to sd-scripts; leave it at {default!r}, or set train.backend to "
                "'inprocess'."
            )


def total_steps(job: TrainingJob) -> int:
    """Optimizer steps of the whole training."""
    settings = job.settings
    return settings.steps or -(-_samples(job.images) * settings.epochs // settings.batch_size)


def lay_out(job: TrainingJob, folder: Path) -> Path:
    """Writes `folder/<repeats>_<trigger>/`, one for each number of repeats, with every picture and its caption;
    returns `folder`. Raises StorageError, InputError for a picture that has gone."""
    remove_tree(folder)
    passes = -(-total_steps(job) * job.settings.batch_size // _samples(job.images))
    trigger = re.sub(r"[^\w -]", "_", job.trigger)
    for number, image in enumerate(job.images, start=1):
        place = make_folder(folder / f"{image.repeats * passes}_{trigger}")
        picture = place / f"{number:05d}{image.path.suffix.lower()}"
        if not image.path.is_file():
            raise InputError(f"The picture {image.path} has gone; run the generate stage again.")
        with storage_errors(picture):
            _link(image.path, picture)
        write_text(picture.with_suffix(".txt"), " ".join(image.caption.split()) + "\n")
    return folder


def configuration(job: TrainingJob, base: Base, images: Path, output: Path) -> dict[str, Any]:
    """The settings, under sd-scripts' names."""
    settings, total = job.settings, total_steps(job)
    warmup = min(settings.warmup_steps, total // 4)
    schedule: str = settings.lr_schedule
    if schedule == "constant" and warmup:
        schedule = "constant_with_warmup"
    long = any(len(image.caption) > _LONG_CAPTION for image in job.images)
    chosen: dict[str, Any] = {
        "pretrained_model_name_or_path": str(base.path),
        "train_data_dir": str(images),
        "output_dir": str(output),
        "output_name": OUTPUT_NAME,
        "save_model_as": "safetensors",
        "save_precision": settings.export_precision,
        "save_state": True,
        "save_every_n_steps": settings.checkpoint_every,
        "save_last_n_steps": settings.checkpoint_every,  # which keeps the newest two
        "caption_extension": ".txt",
        "network_module": "networks.lora",
        "network_dim": settings.rank,
        "network_alpha": settings.alpha,
        "network_args": _network_arguments(settings) or None,
        "network_weights": str(Path(settings.start_from).expanduser()) if settings.start_from else None,
        "flip_aug": settings.flip,
        "network_train_unet_only": settings.text_encoder_rate == 0,
        "text_encoder_lr": settings.text_encoder_rate or None,
        "scale_weight_norms": settings.max_norm or None,
        "resolution": f"{settings.resolution},{settings.resolution}",
        "enable_bucket": True,
        "min_bucket_reso": max(_SMALLEST_BUCKET, settings.resolution // 2),
        "max_bucket_reso": settings.resolution * 2,
        "train_batch_size": settings.batch_size,
        "max_train_steps": total,
        "learning_rate": settings.learning_rate,
        "unet_lr": settings.learning_rate,
        "lr_scheduler": schedule,
        "lr_scheduler_num_cycles": settings.restarts,
        "lr_warmup_steps": warmup,
        "optimizer_type": "AdamW",
        "optimizer_args": [f"weight_decay={settings.weight_decay}"],
        "max_grad_norm": settings.max_grad_norm,
        "min_snr_gamma": settings.min_snr_gamma or None,
        "noise_offset": settings.noise_offset or None,
        "caption_dropout_rate": settings.caption_dropout,
        "shuffle_caption": settings.shuffle_tags,
        "keep_tokens": settings.keep_tokens,
        "mixed_precision": settings.precision.replace("fp32", "no"),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "max_token_length": 225 if long else None,
        "seed": settings.seed,
        "cache_latents": True,
        "sdpa": True,
        "max_data_loader_n_workers": 0,
        **_base_options(base),
    }
    return {name: value for name, value in chosen.items() if value is not None and value is not False}


def _network_arguments(settings: TrainSection) -> list[str]:
    """networks.lora's own options: LoRA on the 3x3 convolutions too."""
    if settings.conv_rank == 0:
        return []
    return [f"conv_dim={settings.conv_rank}", f"conv_alpha={settings.conv_alpha}"]


def to_toml(values: Mapping[str, Any]) -> str:
    """Flat TOML of texts, numbers, truth values and lists of texts."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def provide_vocabulary(folder: Path) -> Path | None:
    """A tokenizer cache in the layout that sd-scripts looks for, from LORA_FOUNDRY_CLIP_VOCABULARY; None where
    that is not set, and sd-scripts then asks the hub."""
    given = os.environ.get(VOCABULARY_VARIABLE)
    if not given:
        return None
    for name in _VOCABULARIES:
        place = make_folder(folder / name.replace("/", "_"))
        for file in _VOCABULARY_FILES:
            source = Path(given) / file
            if source.is_file():
                with storage_errors(place / file):
                    shutil.copyfile(source, place / file)
        write_json(place / "tokenizer_config.json", _VOCABULARY_CONFIG)
    return folder


def _samples(images: Sequence[TrainingImage]) -> int:
    return sum(image.repeats for image in images)


def _link(source: Path, target: Path) -> None:
    """A second name for the same file where the file system has such, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _base_options(base: Base) -> dict[str, Any]:
    """What sd-scripts must be told of a base that it does not find out itself: read where our own trainer reads it, so
    that a recipe's `prediction` and `zero_terminal_snr` count here too. Raises InputError for a base that answers with
    anything else."""
    parts = Parts(base, torch.float32)
    scheduler = parts.scheduler_config
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise InputError(
            f"The base predicts {prediction!r}, which sd-scripts does not train; it trains {' and '.join(PREDICTIONS)}."
        )
    return {
        **family_part(base.family, "kohya").options(parts.denoiser_config),
        "v_parameterization": prediction == "v_prediction",
        "clip_skip": base.clip_skip if base.clip_skip > 1 else None,
        "zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr")),
    }


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
