"""Makes pictures in this process with a Stable Diffusion base: no server, any machine with torch. What
decides a picture is in its request alone, so that it does not matter when, how often or beside which others
it is made. The library, which takes seconds to import, is imported with the first picture: a set that is whole already
needs none."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_foundry.backends.diffusers.lora import APPLIED, check_lora, lora_source
from lora_foundry.backends.diffusers.lycoris import is_lycoris, put_on
from lora_foundry.backends.diffusers.merging import Kept, merge, restore
from lora_foundry.context import Context
from lora_foundry.domain.dataset import ImageRequest, ReferenceUse
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.errors import BackendError, VerificationError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.convolutions import use_fast_convolutions
from lora_foundry.families._shared.devices import find_device, give_memory_back, use_available_cores
from lora_foundry.families._shared.drawing import Drawing, Guide, Shot, make_drawing
from lora_foundry.families._shared.loading import load_pipeline, loader_of, quiet_libraries
from lora_foundry.families._shared.placement import place_pipeline
from lora_foundry.families._shared.prompts import Condition, Prompts
from lora_foundry.ports import GeneratedImage

logger = logging.getLogger(__name__)

_MOST_PROMPTS_KEPT = 512
_DECODED_PIXELS = 1 << 20  # at once: what the VAE needs for one picture of 1024 pixels
_DECODED_ON_CPU = 1 << 16  # where more, side by side, are slower than one by one
_BLACK = 8  # a picture without a brighter value than this, of 255, shows nothing


class _Group(NamedTuple):
    """What the pictures that are computed together have in common; `length` is that of their text embeddings, where it
    must be one."""

    shot: Shot
    length: int


class DiffusersGenerator:
    """A Generator on a diffusers pipeline, which is loaded at the first picture and kept until `close`."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.base, context.recipe.generate, context.settings.device)

    def __init__(self, base: Base, section: GenerateSection, device: str = "auto") -> None:
        self._base = base
        self._section = section
        self._device_name = device
        self._loaded: Drawing | None = None
        self._applied: LoraUse | None = None
        self._lycoris: list[Any] = []
        self._merged: list[Kept] = []
        self._known_prompts: Prompts | None = None
        self._embeddings: dict[str, Condition] = {}
        self._seen_good = False
        self._guide: Guide | None = None

    @property
    def model(self) -> str:
        return f"{self._base.name} [{self._base.identity[:12]}]"

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        """See ports.Generator. LoRA and reference are on while batches are made and off again afterwards."""
        try:
            for batch in batches:
                self._use(lora)
                self._follow(reference)
                yield from self._make(batch)
        finally:
            self._follow(None)
            self._use(None)

    def close(self) -> None:
        self._loaded = self._applied = self._known_prompts = None
        for kept in (self._embeddings, self._lycoris, self._merged):
            kept.clear()
        give_memory_back()

    def _drawing(self) -> Drawing:
        """The base's pipeline, loaded once."""
        if self._loaded is None:
            device = find_device(self._device_name)
            use_available_cores()
            pipeline = load_pipeline(self._base, loader_of(self._base).drawing(device), None)
            place_pipeline(pipeline, self._base, self._section, device)
            self._loaded = make_drawing(pipeline, self._base, self._section)
            if device.type == "cpu":
                use_fast_convolutions(self._loaded.network)
                use_fast_convolutions(pipeline.vae)
        return self._loaded

    def _use(self, lora: LoraUse | None) -> None:
        """Puts `lora` on the base, or takes the one that is on it off; the base itself stays as it is."""
        if lora == self._applied:
            return
        drawing = self._drawing()
        pipeline = drawing.pipeline
        if self._applied is not None:
            for module in self._lycoris:
                module.restore()
            self._lycoris.clear()
            restore(self._merged)
            pipeline.unload_lora_weights()  # what was not merged
            self._applied = None
            self._embeddings.clear()
        if lora is None:
            return
        keys = check_lora(lora.path, drawing)
        self._embeddings.clear()
        self._applied = lora
        if lora.strength == 0:
            return  # exactly the base's picture, without adding zeros
        try:
            if is_lycoris(keys):
                self._lycoris = put_on(lora.path, drawing, lora.strength)
                return
            with quiet_libraries():
                pipeline.load_lora_weights(lora_source(lora.path, keys, drawing), adapter_name=APPLIED)
                pipeline.set_adapters([APPLIED], [lora.strength])
            self._merged = merge(drawing)
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"The memory of the device does not hold {self._base.name} with the LoRA {lora.path.name}; close other "
                "programs that use it and run again."
            ) from error
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise VerificationError(
                f"The LoRA {lora.path} does not fit {self._base.name}: {reason}"
            ) from error

    def _follow(self, reference: ReferenceUse | None) -> None:
        """Has the pictures that are made now resemble `reference`, or none."""
        if self._guide is not None and reference is None:
            self._guide.close()
            self._guide = None
        elif reference is not None and (self._guide is None or self._guide.use != reference):
            self._follow(None)
            self._guide = self._drawing().guide(reference)

    def _make(self, batch: Sequence[ImageRequest]) -> list[GeneratedImage]:
        """The pictures of one batch, in its order; those of unlike settings are computed one group after
        another."""
        groups: dict[_Group, list[int]] = {}
        for place, request in enumerate(batch):
            groups.setdefault(self._group_of(request), []).append(place)
        made: dict[int, Image.Image] = {}
        for group, places in groups.items():
            requests = [batch[place] for place in places]
            made.update(zip(places, self._compute(group.shot, requests), strict=True))
        return [GeneratedImage(request, made[place]) for place, request in enumerate(batch)]

    def _group_of(self, request: ImageRequest) -> _Group:
        texts = (request.prompt, request.negative)
        one_length = self._drawing().one_length
        length = max(len(self._embed(text)["text"]) for text in texts) if one_length else 0
        return _Group(
            Shot(
                request.width,
                request.height,
                request.steps,
                request.cfg,
                request.sampler,
                request.scheduler,
            ),
            length,
        )

    def _compute(self, shot: Shot, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        try:
            latents = self._denoise(shot, requests)
            most = _DECODED_ON_CPU if latents.device.type == "cpu" else _DECODED_PIXELS
            pixels = self._decode_all(latents, max(1, most // (shot.width * shot.height)))
            return [self._report(*made) for made in zip(pixels, requests, strict=True)]
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"The memory of the device does not hold {len(requests)} pictures of {shot.width}x"
                f"{shot.height}; set generate.batch_size lower and run again."
            ) from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise BackendError(
                f"The base model {self._base.name} stopped while making pictures: {reason}"
            ) from error

    @torch.no_grad()
    def _denoise(self, shot: Shot, requests: Sequence[ImageRequest]) -> Tensor:
        """The latents of a group. Noise is drawn on the CPU in fp32 from each picture's own seed."""
        drawing = self._drawing()
        arguments: dict[str, Any] = self._prompt_arguments(requests)
        with quiet_libraries():
            arguments |= drawing.options(shot)
            denoise = self._guide.denoise if self._guide else drawing.pipeline
            noises = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
            latents = torch.cat([drawing.noise(shot, noise) for noise in noises])
            result: Tensor = denoise(
                **arguments,
                latents=latents.to(drawing.pipeline._execution_device, drawing.latent_type()),
                generator=noises,
                width=shot.width,
                height=shot.height,
                num_inference_steps=shot.steps,
                output_type="latent",
            ).images
        return drawing.unpacked(result, shot)

    def _decode_all(self, latents: Tensor, count: int) -> list[Tensor]:
        """Pictures as `_decode` gives them, `count` at once; one by one where the memory does not hold so many."""
        try:
            return [picture for part in torch.split(latents, count) for picture in self._decode(part)]
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        return self._decode_all(latents, 1)

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) as pictures (n, 3, H, W) in fp32 on the CPU."""
        drawing = self._drawing()
        pixels = drawing.decode(latents).float()
        if drawing.pipeline.vae.dtype != torch.float32:
            self._redraw_in_fp32(pixels, latents)
        return pixels.cpu()

    def _redraw_in_fp32(self, pixels: Tensor, latents: Tensor) -> None:
        """Decodes in fp32 what came out as NaN: the VAE of Stable Diffusion 1.x overflows fp16 on some pictures.
        Widening and narrowing it loses nothing."""
        damaged = ~pixels.isfinite().flatten(1).all(1) & latents.isfinite().flatten(1).all(1)
        if not damaged.any():
            return
        drawing = self._drawing()
        vae = drawing.pipeline.vae
        narrow = vae.dtype
        try:
            vae.to(torch.float32)
            for place in damaged.nonzero().flatten().tolist():
                pixels[place] = drawing.decode(latents[place : place + 1].float())[0]
        finally:
            vae.to(narrow)

    def _report(self, pixels: Tensor, request: ImageRequest) -> Image.Image:
        """The picture, with a warning where there is nothing to see on it. Raises BackendError where the
        model has made nothing but NaN so far; a single such picture becomes a black one, which curation
        makes again."""
        finite = bool(pixels.isfinite().all())
        if not finite and not self._seen_good:
            raise BackendError(
                f"The base model {self._base.name} gives NaN instead of a picture (picture {request.key}, "
                f"seed {request.seed}); its weights are damaged, or they overflow in half precision."
            )
        values = (pixels.nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5 if finite else torch.zeros_like(pixels)
        array = values.round().to(torch.uint8).permute(1, 2, 0).numpy()
        self._seen_good |= finite
        if array.max() <= _BLACK:
            logger.warning(
                "picture %s (seed %d) came out %s", request.key, request.seed, "black" if finite else "as NaN"
            )
        return Image.fromarray(np.ascontiguousarray(array))

    @torch.no_grad()
    def _embed(self, text: str) -> Condition:
        """What one prompt becomes, computed once for each text."""
        if text not in self._embeddings:
            if len(self._embeddings) >= _MOST_PROMPTS_KEPT:
                self._embeddings.clear()
            (self._embeddings[text],) = self._prompts().encode_all([text], weighted=True)
        return self._embeddings[text]

    def _prompts(self) -> Prompts:
        """The base's way with prompts, as it stands: a LoRA may have changed the text encoders."""
        if self._known_prompts is None or not self._embeddings:
            self._known_prompts = self._drawing().prompts()
        return self._known_prompts

    @torch.no_grad()
    def _prompt_arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """The pipeline's arguments for prompts and negative prompts."""
        return self._prompts().arguments(
            [self._embed(request.prompt) for request in requests],
            [self._embed(request.negative) for request in requests],
        )
