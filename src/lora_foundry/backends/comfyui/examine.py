"""What the doctor says of ComfyUI: is it there, which version, does it have the model, is its LoRA folder
ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

from lora_foundry.backends.comfyui.checks import Remark, check_bindings, check_nodes
from lora_foundry.backends.comfyui.client import ComfyUIClient, find_model
from lora_foundry.backends.comfyui.workflows import Workflow
from lora_foundry.errors import BackendError, FoundryError


class ServerFinding(NamedTuple):
    """One line of the examination; `mend` says what to do where `ok` is false."""

    subject: str
    ok: bool
    found: str
    mend: str = ""


def examine_comfyui(url: str, checkpoint: str, lora_dir: Path | None = None) -> list[ServerFinding]:
    """Every check of a server, in the order in which a run would need it; never raises."""
    return asyncio.run(_examine(url, checkpoint, lora_dir))


async def _examine(url: str, checkpoint: str, lora_dir: Path | None) -> list[ServerFinding]:
    async with ComfyUIClient(url) as client:
        try:
            stats = await client.stats()
            checkpoints, loras = await client.models("checkpoints"), await client.models("loras")
        except (httpx.HTTPError, FoundryError, ValueError) as error:
            mend = "Start ComfyUI, or set LORA_FOUNDRY_COMFYUI_URL to its address."
            return [ServerFinding("ComfyUI", False, f"{url}: {str(error) or type(error).__name__}", mend)]
    free = f"{stats.free >> 20} MiB free on {stats.devices[0].name}" if stats.devices else "no device named"
    findings = [ServerFinding("ComfyUI", True, f"{url}, version {stats.version}, {free}")]
    findings.append(_checkpoint(checkpoint, checkpoints))
    if lora_dir is not None:
        findings.append(_loras(lora_dir, loras))
    return findings


def _checkpoint(name: str, listed: Sequence[str]) -> ServerFinding:
    try:
        return ServerFinding("ComfyUI's checkpoint", True, find_model(name, listed))
    except FoundryError as error:
        return ServerFinding(
            "ComfyUI's checkpoint",
            False,
            str(error),
            "Install it there, or choose one: --set model.base=NAME.",
        )


def _loras(folder: Path, listed: Sequence[str]) -> ServerFinding:
    """The folder is the server's if the server lists what lies in it."""
    subject, mend = (
        "ComfyUI's LoRA folder",
        "Set LORA_FOUNDRY_COMFYUI to the folder of the server that runs there.",
    )
    if not folder.is_dir():
        return ServerFinding(subject, False, f"{folder} does not exist", mend)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    known = {name.replace("\\", "/") for name in listed}
    if files - known:
        return ServerFinding(
            subject, False, f"the server does not list {min(files - known)} of {folder}", mend
        )
    return ServerFinding(
        subject, True, f"{folder}, {len(files)} of the {len(known)} LoRAs that the server lists"
    )


def check_workflow(workflow: Workflow, url: str) -> list[Remark]:
    """Everything that `workflows check` says of a workflow. Raises BackendError where no server answers."""
    return check_bindings(workflow) + asyncio.run(_check_nodes(workflow, url))


async def _check_nodes(workflow: Workflow, url: str) -> list[Remark]:
    async with ComfyUIClient(url) as client:
        try:
            return check_nodes(workflow, await client.object_info())
        except httpx.HTTPError as error:
            raise BackendError(
                f"ComfyUI does not answer at {url}; start it, or set its address (LORA_FOUNDRY_COMFYUI_URL)."
            ) from error
