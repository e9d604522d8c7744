"""What is said of a run that has not begun: a workflow that cannot work is refused when it is handed in, by whichever door.
A server that does not answer then is no fault: it may be started later, and the first picture asks again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx

from lora_foundry.backends.comfyui.address import address_of
from lora_foundry.backends.comfyui.bindings import Values, with_defaults
from lora_foundry.backends.comfyui.checks import Asked, Remark, check_alone, check_nodes, refuse_faults
from lora_foundry.backends.comfyui.client import ComfyUIClient, Patience
from lora_foundry.backends.comfyui.options import ComfyUIOptions, options_for
from lora_foundry.backends.comfyui.preparation import classes_of, models_for
from lora_foundry.backends.comfyui.protocol import NodeClass
from lora_foundry.backends.comfyui.workflows import Workflow, load_workflow
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import Run
from lora_foundry.errors import BackendError, InputError
from lora_foundry.settings import Settings

Answer = TypeVar("Answer")
_SECONDS = 3.0
_SECONDS_TO_ANSWER = 30.0  # where it must: while it draws, it takes its time to list its nodes


def check_run(run: Run, settings: Settings) -> None:
    """Raises InputError for a workflow that cannot work, as far as can be told now, BaseModelError for a checkpoint that
    the server does not have."""
    options = options_for(run.recipe, settings)
    followed = run.character.reference_image is not None
    for name, reference in ((options.workflow, False), (options.reference_workflow, True)):
        if reference and not followed:
            continue
        asked = asked_of(run.recipe, options, reference)
        workflow, remarks = checked(name, options, asked, must_answer=False)
        refuse_faults(workflow, remarks)


def asked_of(recipe: Recipe, options: ComfyUIOptions, reference: bool = False) -> Asked:
    """What a recipe asks of its workflow. The LoRA is drawn with by the workflow for prompts alone."""
    section = recipe.generate
    return Asked(section.width, section.height, options.checkpoint, lora=not reference, reference=reference)


def checked(
    name: str, options: ComfyUIOptions, asked: Asked | None, must_answer: bool = True
) -> tuple[Workflow, list[Remark]]:
    """A workflow and everything that can be said of it. must_answer: raises BackendError where no server answers."""
    address = address_of(options.url, options.token)
    patience = _SECONDS_TO_ANSWER if must_answer else _SECONDS

    async def work() -> tuple[Workflow, list[Remark]]:
        async with ComfyUIClient(address, Patience(answer=patience)) as client:
            classes: dict[str, NodeClass] = {}
            try:
                classes = await client.object_info()
            except (httpx.HTTPError, BackendError, InputError) as error:
                if must_answer:
                    raise client.unreachable() from error
            workflow = load_workflow(name, (lambda: classes) if classes else None)
            remarks = check_alone(workflow, asked)
            if classes:
                graph = with_defaults(workflow.graph) if asked is None else workflow.graph
                remarks += check_nodes(graph, classes)
                if asked is not None and all(remark.level == "note" for remark in remarks):
                    remarks += await _with_models(client, workflow, options, asked)
        return workflow, remarks

    return in_a_thread(work())


async def _with_models(
    client: ComfyUIClient, workflow: Workflow, options: ComfyUIOptions, asked: Asked
) -> list[Remark]:
    """What the server says once the models, and whatever else the recipe names, are filled in."""
    try:
        classes = await classes_of(client, workflow)
        values, _ = await models_for(client, workflow, options, classes, asked.reference)
    except httpx.HTTPError:
        return []
    dummies = dict.fromkeys(("reference", "reference2", "reference3"), "x.png")
    side = {"width": asked.width, "height": asked.height}
    graph = workflow.bind(
        Values(**{"prompt": "", "seed": 0, **side, **options.sampling, **dummies, **values})
    )
    return check_nodes(graph, classes)


def in_a_thread(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Runs a coroutine to its end, also where the caller's thread has an event loop of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
