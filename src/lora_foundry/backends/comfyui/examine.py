"""What the doctor says of ComfyUI: is it there, which version, does it have the model, is its LoRA folder
ours, can it run the recipe's workflow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import httpx

from lora_foundry.backends.comfyui.address import address_of
from lora_foundry.backends.comfyui.ahead import checked
from lora_foundry.backends.comfyui.checks import Asked
from lora_foundry.backends.comfyui.client import ComfyUIClient
from lora_foundry.backends.comfyui.loras import lora_folder
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.backends.comfyui.preparation import classes_of, models_for
from lora_foundry.backends.comfyui.protocol import ServerStats
from lora_foundry.backends.comfyui.workflows import load_workflow
from lora_foundry.errors import FoundryError


class ServerFinding(NamedTuple):
    """One line of the examination; `fix` says what to do where `ok` is false."""

    subject: str
    ok: bool
    found: str
    fix: str = ""


def examine_comfyui(options: ComfyUIOptions, asked: Asked | None = None) -> list[ServerFinding]:
    """Every check of a server, in the order in which a run would need it; never raises. asked: what the recipe asks of its
    workflow; None where it does not draw with ComfyUI, so that only the server and its LoRA folder are looked at."""
    try:
        found = asyncio.run(_examine(options, asked))
    except (httpx.HTTPError, FoundryError, ValueError) as error:
        fix = "Start ComfyUI, or set LORA_FOUNDRY_COMFYUI_URL to its address."
        return [
            ServerFinding("ComfyUI", False, f"{_shown(options)}: {str(error) or type(error).__name__}", fix)
        ]
    return [*found, *_workflow(options, asked)] if asked is not None else found


def _shown(options: ComfyUIOptions) -> str:
    """The address without a password, or whatever was written if it is none."""
    try:
        return address_of(options.url).url
    except FoundryError:
        return options.url


async def _examine(options: ComfyUIOptions, asked: Asked | None) -> list[ServerFinding]:
    async with ComfyUIClient(address_of(options.url, options.token)) as client:
        stats = await client.stats()
        findings = [_server(client.url, stats, await client.models("checkpoints"))]
        if asked is not None:
            findings.append(await _checkpoint(client, options))
        findings.append(await _loras(client, options))
    return findings


def _server(url: str, stats: ServerStats, checkpoints: Sequence[str]) -> ServerFinding:
    free = f"{stats.free >> 20} MiB free on {stats.devices[0].name}" if stats.devices else "no device named"
    names = ", ".join(checkpoints[:4]) + (f" and {len(checkpoints) - 4} more" if len(checkpoints) > 4 else "")
    found = f"{url}, version {stats.version}, {free}; checkpoints: {names or 'none'}"
    return ServerFinding("ComfyUI", True, found)


async def _checkpoint(client: ComfyUIClient, options: ComfyUIOptions) -> ServerFinding:
    subject = "ComfyUI's checkpoint"
    try:
        workflow = load_workflow(options.workflow, (await client.object_info()).copy)
        classes = await classes_of(client, workflow)
        values, file = await models_for(client, workflow, options, classes, reference=False)
    except FoundryError as error:
        fix = "Install it there, or name the one to draw with: --set generate.checkpoint=NAME."
        return ServerFinding(subject, False, str(error), fix)
    name = values.get("checkpoint", "the workflow's own")
    return ServerFinding(subject, True, f"{name} ({file})" if file else name)


async def _loras(client: ComfyUIClient, options: ComfyUIOptions) -> ServerFinding:
    subject = "ComfyUI's LoRA folder"
    try:
        folder = await lora_folder(client, options.lora_dir, options.paths)
    except FoundryError as error:
        found, _, fix = str(error).rpartition("; ")
        return ServerFinding(subject, False, found, fix[:1].upper() + fix[1:])
    return ServerFinding(subject, True, str(folder))


def _workflow(options: ComfyUIOptions, asked: Asked | None) -> list[ServerFinding]:
    """The first fault of the recipe's workflow."""
    subject = "ComfyUI workflow"
    try:
        workflow, remarks = checked(options.workflow, options, asked)
    except FoundryError as error:
        return [ServerFinding(subject, False, str(error), "Name another: --set generate.workflow=NAME.")]
    faults = [remark.text for remark in remarks if remark.level == "fault"]
    if faults:
        fix = f"`lora-foundry workflows check {options.workflow}` says all."
        return [ServerFinding(subject, False, f"{workflow.name}: {faults[0]}", fix)]
    return [ServerFinding(subject, True, f"{workflow.name}, every node is there")]
