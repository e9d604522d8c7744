"""Loads a base model for use: from a diffusers folder or from one checkpoint file, without asking any server
for configurations (ours are in `configurations/`), and without the noise that the libraries make while
loading."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared.devices import choose_dtype
from lora_foundry.families._shared.inspect import Base
from lora_foundry.families._shared.kinds import SD, SDXL, Z_IMAGE

CONFIGURATIONS = Path(__file__).parent / "configurations"
CLIP_VOCABULARY = "openai/clip-vit-large-patch14"
VOCABULARY_VARIABLE = "LORA_FOUNDRY_CLIP_VOCABULARY"
_SMALLEST_VOCABULARY = 256
FAULTS = (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError)


def load_pipeline(
    base: Base, dtype: torch.dtype, device: torch.device | str | None, parts: Mapping[str, Any] | None = None
) -> Any:
    """The base as its family's diffusers pipeline: safety checker off, progress bars off, nothing fetched but, for a
    single file, the CLIP vocabulary once. `parts` are taken as they are given and not loaded, or left out where they
    are None. Everything is on `device`; without one, where it was loaded. Raises BaseModelError where the base does not
    fit what it claims to be."""
    given = parts or {}
    with quiet_libraries():
        try:
            pipeline: Any = (
                _from_folder(base, dtype, given)
                if base.layout == "folder"
                else _from_file(base, dtype, given)
            )
        except BaseModelError:
            raise
        except FAULTS as error:
            reason = " ".join(str(error).split())[:200]
            raise BaseModelError(f"The base model {base.path} cannot be loaded: {reason}") from error
        _set_training(pipeline, base)
        pipeline.set_progress_bar_config(disable=True)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        return pipeline if device is None else pipeline.to(device)


def drawing_dtype(base: Base, device: torch.device) -> torch.dtype:
    """The type in which pictures are made: half precision on a GPU. Z-Image's activations overflow fp16 to black
    pictures, so that it is drawn in bf16, or in fp32 on a GPU that does not know bf16."""
    if base.family != Z_IMAGE:
        return choose_dtype("fp16", device)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return torch.bfloat16 if device.type != "cpu" else torch.float32


def denoiser_name(base: Base) -> str:
    """What the network that learns is called in the family's pipeline."""
    return "transformer" if base.family == Z_IMAGE else "unet"


def denoiser(pipeline: Any) -> Any:
    """The network that learns: a pipeline's UNet or transformer."""
    return pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet


def _set_training(pipeline: Any, base: Base) -> None:
    """Puts what is known about the base's training into its scheduler, from which the generator reads it."""
    if told := told_training(base):
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **told)


def told_training(base: Base) -> dict[str, Any]:
    """What stands in the place of the scheduler's own configuration, since checkpoint or recipe say so."""
    if base.family == Z_IMAGE:
        return {}
    told: dict[str, Any] = {"prediction_type": base.prediction} if base.prediction else {}
    if base.zero_terminal is not None:
        told["rescale_betas_zero_snr"] = base.zero_terminal
        # Where no signal is left at the end, sampling must start there.
        told |= {"timestep_spacing": "trailing"} if base.zero_terminal else {}
    return told


def _pipeline_class(base: Base) -> Any:
    import diffusers

    names = {SD: "StableDiffusionPipeline", SDXL: "StableDiffusionXLPipeline", Z_IMAGE: "ZImagePipeline"}
    return getattr(diffusers, names[base.family])


def _left_out(base: Base) -> dict[str, Any]:
    """The parts of a pipeline that nobody here needs."""
    if base.family == Z_IMAGE:
        return {}
    nothing: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if base.family == SDXL:
        return {**nothing, "add_watermarker": False}
    return {**nothing, "safety_checker": None, "requires_safety_checker": False}


def _from_folder(base: Base, dtype: torch.dtype, given: Mapping[str, Any]) -> Any:
    return _pipeline_class(base).from_pretrained(
        base.path,
        torch_dtype=dtype,
        variant=base.variant or None,
        local_files_only=True,
        use_safetensors=True,
        **_left_out(base),
        **given,
    )


def _from_file(base: Base, dtype: torch.dtype, given: Mapping[str, Any]) -> Any:
    tokenizers = {"tokenizer": load_clip_vocabulary()}
    if base.configuration == "sd2":
        tokenizers = {"tokenizer": load_clip_vocabulary(pad="!")}
    elif base.family == SDXL:
        tokenizers["tokenizer_2"] = load_clip_vocabulary(pad="!")
    return _pipeline_class(base).from_single_file(
        str(base.path),
        config=str(CONFIGURATIONS / (base.configuration)),
        torch_dtype=dtype,
        local_files_only=True,
        **tokenizers,
        **_left_out(base),
        **given,
    )


def load_clip_vocabulary(pad: str = "") -> Any:
    """CLIP's tokenizer, which checkpoint files do not contain: from the folder in
    LORA_FOUNDRY_CLIP_VOCABULARY, from the Hugging Face cache, or fetched into it once. `pad` is the token that fills
    up a window where it is not the closing one (OpenCLIP's is "!"). Raises BaseModelError where none of them has
    it."""
    from transformers import CLIPTokenizer

    given = os.environ.get(VOCABULARY_VARIABLE)
    for source, offline in ((given, True),) if given else ((CLIP_VOCABULARY, True), (CLIP_VOCABULARY, False)):
        try:
            given_pad: dict[str, Any] = {"pad_token": pad} if pad else {}
            tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=offline, **given_pad)
            if len(tokenizer) >= _SMALLEST_VOCABULARY:  # a folder without its files gives an empty one
                return tokenizer
        except Exception:  # the hub's client raises a different type for every way of being offline
            logging.getLogger(__name__).debug("no CLIP vocabulary from %s", source, exc_info=True)
    if given:
        raise BaseModelError(
            f"{VOCABULARY_VARIABLE}={given} holds no CLIP vocabulary (vocab.json and merges.txt)."
        )
    raise BaseModelError(
        f"A checkpoint file needs CLIP's vocabulary ({CLIP_VOCABULARY}), which could not be fetched; "
        f"go online once, or set {VOCABULARY_VARIABLE} to a folder that holds its vocab.json and merges.txt."
    )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences progress bars, notices and warnings of diffusers and transformers, and restores them
    afterwards."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    kept = [(module, module.get_verbosity()) for module in (diffusers_logging, transformers_logging)]
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    try:
        for module, _ in kept:
            module.set_verbosity_error()
            module.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for (module, level), bar in zip(kept, bars, strict=True):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()
