"""Loads a base model for use: from a diffusers folder or from one checkpoint file, without asking any server
for configurations (ours are in `configurations/`), and without the noise that the libraries make while
loading."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_foundry.bases.inspect import Base
from lora_foundry.errors import BaseModelError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

CONFIGURATIONS = Path(__file__).parent / "configurations"
CLIP_VOCABULARY = "openai/clip-vit-large-patch14"
VOCABULARY_VARIABLE = "LORA_FOUNDRY_CLIP_VOCABULARY"
_SMALLEST_VOCABULARY = 256
FAULTS = (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError)


def load_pipeline(
    base: Base, dtype: torch.dtype, device: torch.device | str, without: Sequence[str] = ()
) -> StableDiffusionPipeline:
    """The base as a diffusers pipeline, whole or `without` some of its parts: safety checker off, progress bars off,
    nothing fetched but, for a single file, the CLIP vocabulary once. Raises BaseModelError where the base does not fit
    what it claims to be."""
    with quiet_libraries():
        try:
            pipeline: Any = (
                _from_folder(base, dtype, without)
                if base.layout == "folder"
                else _from_file(base, dtype, without)
            )
        except BaseModelError:
            raise
        except FAULTS as error:
            reason = " ".join(str(error).split())[:200]
            raise BaseModelError(f"The base model {base.path} cannot be loaded: {reason}") from error
        pipeline.set_progress_bar_config(disable=True)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            if part is not None:
                part.requires_grad_(False).eval()
        return pipeline.to(device)  # type: ignore[no-any-return]


def _from_folder(base: Base, dtype: torch.dtype, without: Sequence[str]) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(
        base.path,
        torch_dtype=dtype,
        variant=base.variant or None,
        local_files_only=True,
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        **dict.fromkeys(without),
    )


def _from_file(base: Base, dtype: torch.dtype, without: Sequence[str]) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_single_file(
        str(base.path),
        config=str(CONFIGURATIONS / base.family),
        torch_dtype=dtype,
        local_files_only=True,
        tokenizer=load_clip_vocabulary(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        **dict.fromkeys(without),
    )


def load_clip_vocabulary() -> Any:
    """CLIP's tokenizer, which checkpoint files do not contain: from the folder in
    LORA_FOUNDRY_CLIP_VOCABULARY, from the Hugging Face cache, or fetched into it once. Raises BaseModelError
    where none of them has it."""
    from transformers import CLIPTokenizer

    given = os.environ.get(VOCABULARY_VARIABLE)
    for source, offline in ((given, True),) if given else ((CLIP_VOCABULARY, True), (CLIP_VOCABULARY, False)):
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=offline)
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
