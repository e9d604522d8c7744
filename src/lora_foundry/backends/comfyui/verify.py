"""Proves on the server that will use it that a LoRA works: one seed is drawn without and with it, under a name made of
its content, its keys are compared with the checkpoint's, and the server's log is searched for keys that it left out.
A server says nothing else of a LoRA of which it could load nothing, or which turns every picture black."""

from __future__ import annotations

import asyncio
from typing import Self

import httpx
import numpy as np
from PIL import Image

from lora_foundry.backends.comfyui.address import address_of
from lora_foundry.backends.comfyui.client import ComfyUIClient
from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
from lora_foundry.backends.comfyui.keys import check_keys, read_keys
from lora_foundry.backends.comfyui.loras import listed_name
from lora_foundry.backends.comfyui.options import ComfyUIOptions, options_of
from lora_foundry.backends.comfyui.pictures import FlatPictureError
from lora_foundry.context import Context
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.publication import Proof
from lora_foundry.errors import BackendError, FoundryError, VerificationError
from lora_foundry.ports import PublishedFiles

_NOT_LOADED = "lora key not loaded: "


class ComfyUIProver:
    """The Prover port on a ComfyUI server."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(options_of(context))

    def __init__(self, options: ComfyUIOptions) -> None:
        self._options = options
        self._address = address_of(options.url, options.token)

    def prove(self, lora: LoraUse, request: ImageRequest, min_change: float) -> Proof:
        """See ports.Prover."""
        options = self._options
        keys = check_keys(lora.path, options.checkpoint_file)
        generator = ComfyUIGenerator(options)
        try:
            plain = _draw(generator, request, None)
            before = asyncio.run(self._log())
            try:
                changed = _draw(generator, request, lora)
            except FlatPictureError as error:
                raise VerificationError(
                    f"{lora.path.name} spoils the picture, which is sound without it: {error}"
                ) from error
            log = asyncio.run(self._log())
        finally:
            generator.close()
        if log is not None and before is not None:
            _refuse_left_out(lora, log[_overlap(before, log) :])
        change = _difference(plain, changed)
        if change < min_change:
            raise VerificationError(
                f"ComfyUI draws the same picture with {lora.path.name} as without it (mean difference {change:.2f}, "
                f"at least {min_change:.2f} is required); it was not loaded, or it does nothing."
            )
        how = ["the checkpoint's keys" if options.checkpoint_file else "the form of the keys"]
        if log is not None:
            how.append("the server's log")
        return Proof(
            server=asyncio.run(self._server()),
            picture_change=round(change, 3),
            keys=keys,
            checked_by=tuple(how),
        )

    def installed(self, files: PublishedFiles) -> None:
        """See ports.Prover. A server keeps the weights of a replaced file until it is told to free its memory."""
        asyncio.run(self._installed(files))

    async def _installed(self, files: PublishedFiles) -> None:
        async with ComfyUIClient(self._address, self._options.patience) as client:
            try:
                await listed_name(client, files.lora.name, files.lora.parent)
                if files.kept is not None:
                    await client.free()
            except httpx.HTTPError as error:
                raise BackendError(
                    f"ComfyUI at {client.url} stopped answering: {error!r}; run the same command again."
                ) from error

    async def _server(self) -> str:
        async with ComfyUIClient(self._address, self._options.patience) as client:
            return f"ComfyUI {(await client.stats()).version} at {client.url}"

    async def _log(self) -> list[str] | None:
        """The newest lines of the server's log; None where it does not show it."""
        async with ComfyUIClient(self._address, self._options.patience) as client:
            try:
                return await client.log()
            except (httpx.HTTPError, FoundryError):
                return None


def _draw(generator: ComfyUIGenerator, request: ImageRequest, lora: LoraUse | None) -> Image.Image:
    (made,) = generator.generate([[request]], lora)
    return made.image


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of grey levels, 0 to 255."""
    first, second = (np.asarray(image.convert("L"), dtype=np.float32) for image in (one, other))
    return float(np.abs(first - second).mean())


def _overlap(before: list[str], after: list[str]) -> int:
    """How many of the first lines of `after` were there before; the server keeps only so many lines."""
    for start in range(max(0, len(before) - len(after)), len(before)):
        if before[start:] == after[: len(before) - start]:
            return len(before) - start
    return 0


def _refuse_left_out(lora: LoraUse, lines: list[str]) -> None:
    """Raises VerificationError where the log names a key of this file as left out."""
    own = set(read_keys(lora.path))
    named = [line.partition(_NOT_LOADED)[2].split()[0] for line in lines if _NOT_LOADED in line]
    if lost := [key for key in named if key in own]:
        raise VerificationError(
            f"ComfyUI says in its log that it left out {len(lost)} keys of {lora.path.name}, such as {lost[0]}."
        )
