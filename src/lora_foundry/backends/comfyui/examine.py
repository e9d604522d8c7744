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
from lora_foundry.backends.comfyui.protocol import NodeClass, ServerStats
from lora_foundry.backends.comfyui.workflows import Workflow, load_workflow
from lora_foundry.errors import BackendError, FoundryError
from lora_foundry.settings import is_local


class ServerFinding(NamedTuple):
    """One line of the examination; `mend` says what to do where `ok` is false."""

    subject: str
    ok: bool
    found: str
    mend: str = ""


def examine_comfyui(
    url: str, checkpoint: str = "", lora_dir: Path | None = None, workflow: str = ""
) -> list[ServerFinding]:
    """Every check of a server, in the order in which a run would need it; never raises. An empty `checkpoint` or
    `workflow` is not looked for."""
    return asyncio.run(_examine(url, checkpoint, lora_dir, workflow))


async def _examine(url: str, checkpoint: str, lora_dir: Path | None, workflow: str) -> list[ServerFinding]:
    async with ComfyUIClient(url) as client:
        try:
            stats = await client.stats()
            listed = {
                kind: await client.models(kind) for kind in ("checkpoints", "diffusion_models", "loras")
            }
            own = await client.folders("loras")
            findings = [_server(url, stats, listed["checkpoints"])]
            if checkpoint:
                findings.append(
                    _checkpoint(checkpoint, (*listed["checkpoints"], *listed["diffusion_models"]))
                )
            findings.append(_loras(lora_dir, listed["loras"], own, is_local(url)))
            if workflow:
                findings.append(_workflow(workflow, await client.object_info()))
        except (httpx.HTTPError, FoundryError, ValueError) as error:
            mend = "Start ComfyUI, or set LORA_FOUNDRY_COMFYUI_URL to its address."
            return [ServerFinding("ComfyUI", False, f"{url}: {str(error) or type(error).__name__}", mend)]
    return findings


def _server(url: str, stats: ServerStats, checkpoints: Sequence[str]) -> ServerFinding:
    free = f"{stats.free >> 20} MiB free on {stats.devices[0].name}" if stats.devices else "no device named"
    names = ", ".join(checkpoints[:4]) + (f" and {len(checkpoints) - 4} more" if len(checkpoints) > 4 else "")
    found = f"{url}, version {stats.version}, {free}; checkpoints: {names or 'none'}"
    return ServerFinding("ComfyUI", True, found)


def _checkpoint(name: str, listed: Sequence[str]) -> ServerFinding:
    try:
        return ServerFinding("ComfyUI's checkpoint", True, find_model(name, listed))
    except FoundryError as error:
        mend = "Install it there, or name the one to draw with: --set generate.checkpoint=NAME."
        return ServerFinding("ComfyUI's checkpoint", False, str(error), mend)


def _loras(folder: Path | None, listed: Sequence[str], own: Sequence[Path], local: bool) -> ServerFinding:
    """The folder is the server's if the server says so, or, on another machine, if it lists what lies in it."""
    subject = "ComfyUI's LoRA folder"
    named = f" (it looks in {', '.join(str(path) for path in own)})" if own else ""
    mend = f"Set LORA_FOUNDRY_COMFYUI to ComfyUI's folder, or LORA_FOUNDRY_LORAS to its LoRA folder{named}."
    if folder is None:
        return ServerFinding(subject, False, "not known, so LoRAs cannot be tried there", mend)
    if not folder.is_dir():
        return ServerFinding(subject, False, f"{folder} does not exist", mend)
    if local and own:
        same = any(path.exists() and path.samefile(folder) for path in own)
        return ServerFinding(
            subject, same, str(folder) if same else f"the server does not look in {folder}", mend
        )
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    known = {name.replace("\\", "/") for name in listed}
    if files - known:
        return ServerFinding(
            subject, False, f"the server does not list {min(files - known)} of {folder}", mend
        )
    return ServerFinding(
        subject, True, f"{folder}, {len(files)} of the {len(known)} LoRAs that the server lists"
    )


def _workflow(name: str, classes: dict[str, NodeClass]) -> ServerFinding:
    """The first fault of the recipe's workflow, its placeholders aside."""
    subject = "ComfyUI workflow"
    try:
        workflow = load_workflow(name)
    except FoundryError as error:
        return ServerFinding(subject, False, str(error), "Name another: --set generate.workflow=NAME.")
    remarks = check_bindings(workflow) + check_nodes(workflow, classes)
    faults = [remark.text for remark in remarks if remark.level == "fault"]
    if faults:
        mend = f"`lora-foundry workflows check {name}` says all."
        return ServerFinding(subject, False, f"{name}: {faults[0]}", mend)
    return ServerFinding(subject, True, f"{name}, every node is there")


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
