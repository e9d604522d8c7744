"""Takes back what a run that was killed has left with a ComfyUI server: its prompts in the queue, and the LoRAs that were
lent to its folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from lora_foundry.backends.comfyui.address import Address, address_of
from lora_foundry.backends.comfyui.client import ComfyUIClient, Patience
from lora_foundry.errors import FoundryError
from lora_foundry.files.leftovers import Leftovers
from lora_foundry.settings import Settings

logger = logging.getLogger(__name__)
ENTRY = "lora_foundry.backends.comfyui.leftovers:clear"
PROMPT, LENT = "prompt", "lent"
LENT_PREFIX = "lora_foundry_tmp_"
_SECONDS = 5.0


def leftovers_of(home: Path, address: Address) -> Leftovers:
    """The record of one run with one server. What opens the server's door is not written down."""
    return Leftovers(home, ENTRY, {"url": address.url})


def clear(facts: Mapping[str, Any], notes: Sequence[Sequence[str]]) -> bool:
    """Takes everything back; whether it could. A server that is gone has no queue any more, but one that only does not
    answer, as while it loads a model, will draw what waits in its queue: it is asked again by the next caller."""
    for kind, value in notes:
        path = Path(value)
        if kind == LENT and path.name.startswith(LENT_PREFIX) and path.suffix == ".safetensors":
            path.unlink(missing_ok=True)
    prompts = [value for kind, value in notes if kind == PROMPT]
    settings = Settings()
    named = address_of(settings.comfyui_address, settings.comfyui_token)
    address = named if named.url == facts["url"] else address_of(str(facts["url"]))
    try:
        asyncio.run(_cancel(address, prompts))
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return True
    except httpx.HTTPError as error:
        logger.info(
            "ComfyUI at %s did not answer (%r); its queue is looked at again later", address.url, error
        )
        return False
    except FoundryError as error:
        logger.warning("The prompts of an ended run may still wait at %s: %s", address.url, error)
    return True


async def _cancel(address: Address, prompts: Sequence[str]) -> None:
    if prompts:
        async with ComfyUIClient(address, Patience(answer=_SECONDS)) as client:
            await client.cancel(*prompts)
