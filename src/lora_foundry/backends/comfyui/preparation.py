"""What is done once with a workflow before its first picture: the server's own names for its models, the LoRA folder, and
every check that can be made, so that nothing is found out after hours of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_foundry.backends.comfyui.bindings import Values, places
from lora_foundry.backends.comfyui.checks import Asked, check_alone, check_nodes, refuse_faults
from lora_foundry.backends.comfyui.client import ComfyUIClient
from lora_foundry.backends.comfyui.locate import (
    KINDS,
    files_of,
    find_listed,
    find_model,
    listed_as,
    seen_from_here,
)
from lora_foundry.backends.comfyui.loras import lora_folder
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.backends.comfyui.protocol import NodeClass
from lora_foundry.backends.comfyui.workflows import Workflow
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.errors import BaseModelError, InputError

Classes = dict[str, NodeClass]


@dataclass(frozen=True)
class Prepared:
    """What is the same for all pictures of a workflow; loras: the server's LoRA folder as this machine sees it, and
    checkpoint: the file that it draws with, None where that is not known."""

    values: Mapping[str, Any]
    loras: Path | None
    checkpoint: Path | None


async def prepare(
    client: ComfyUIClient,
    workflow: Workflow,
    options: ComfyUIOptions,
    request: ImageRequest,
    given: Mapping[str, Any],
    needs_lora: bool,
) -> Prepared:
    """Checks a workflow with the first request that it will draw. given: the values that are known already.

    Raises BaseModelError for a model that the server does not have, InputError for whatever else cannot work.
    """
    asked = Asked(
        request.width, request.height, options.checkpoint, needs_lora, reference="reference" in given
    )
    refuse_faults(workflow, check_alone(workflow, asked))
    classes = await classes_of(client, workflow)
    values, file = await models_for(client, workflow, options, classes, "reference" in given)
    told = request.model_dump(exclude={"key"})
    bound = workflow.bind(Values(**{**told, **given, **values}))
    refuse_faults(workflow, check_nodes(workflow.graph, classes) + check_nodes(bound, classes))
    folder = await lora_folder(client, options.lora_dir, options.paths) if needs_lora else None
    return Prepared(values, folder, file)


async def models_for(
    client: ComfyUIClient, workflow: Workflow, options: ComfyUIOptions, classes: Classes, reference: bool
) -> tuple[dict[str, str], Path | None]:
    """The server's names for the models that a workflow is told, and the checkpoint's file as this machine sees it.

    Raises BaseModelError for a checkpoint that the server does not have.
    """
    values: dict[str, str] = {}
    file = options.checkpoint_file
    if "checkpoint" in workflow.bindings:
        other = options.reference_checkpoint if reference else ""
        folders, listed = await _models(client, workflow, classes, options)
        values["checkpoint"] = _checkpoint(
            other or options.checkpoint, None if other else file, listed, folders
        )
        if other or file is None:
            file = next(files_of(values["checkpoint"], folders), None)
    for name, value in (("text_encoder", options.text_encoder), ("vae", options.vae)):
        if value:
            values[name] = find_listed(value, _choices(workflow, classes, name)) or value
    return values, file


async def classes_of(client: ComfyUIClient, workflow: Workflow) -> Classes:
    """The server's nodes of the kinds that a workflow has; all of them where it lacks one, to name the nearest."""
    kinds = sorted({node["class_type"] for node in workflow.graph.values()})
    classes: Classes = {}
    for kind in kinds:
        classes |= await client.object_info(kind)
    return classes if len(classes) == len(kinds) else await client.object_info()


def _choices(workflow: Workflow, classes: Classes, name: str) -> Sequence[str]:
    """What the server lists for the input that a binding fills; nothing where that is a plain text."""
    for place in places(workflow.graph):
        node_class = classes.get(workflow.graph[place.node]["class_type"])
        spec = node_class.inputs.get(place.input) if node_class and name in place.names else None
        if spec is not None and spec.options is not None:
            return spec.options
    return ()


async def _models(
    client: ComfyUIClient, workflow: Workflow, classes: Classes, options: ComfyUIOptions
) -> tuple[list[Path], Sequence[str]]:
    """The folders that the checkpoint's loader looks in, as this machine sees them, and the names that it lists."""
    input_name = next(
        (place.input for place in places(workflow.graph) if "checkpoint" in place.names), "ckpt_name"
    )
    kinds = KINDS.get(input_name, ("checkpoints", "diffusion_models"))
    found = [folder for kind in kinds for folder in await client.folders(kind)]
    listed = _choices(workflow, classes, "checkpoint")
    if not listed:
        listed = [name for kind in kinds for name in await client.models(kind)]
    return [seen_from_here(str(folder), options.paths) for folder in found], listed


def _checkpoint(name: str, file: Path | None, listed: Sequence[str], folders: Sequence[Path]) -> str:
    """The server's name for the checkpoint: of the very file, where this machine sees it, else of its name."""
    if (known := listed_as(file, listed, folders)) is not None:
        return known
    if (known := find_listed(f"{name}.safetensors", listed)) is not None:
        return known
    try:
        return find_model(name, listed)
    except InputError as error:
        raise BaseModelError(str(error)) from error
