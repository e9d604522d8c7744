"""The Generator port on a ComfyUI server: each request is a prompt of its own, several of them on their way
at once.

The port is a plain iterator and the wire is asyncio; an event loop in a thread of this object's own joins
the two.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar

import httpx

from lora_foundry.backends.comfyui.client import ComfyUIClient, Drawing, Patience, find_model
from lora_foundry.backends.comfyui.loras import PlacedLoras
from lora_foundry.backends.comfyui.workflows import Values, Workflow, load_workflow
from lora_foundry.context import Context
from lora_foundry.domain.dataset import ImageRequest, ReferenceUse
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import fingerprint
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.errors import BackendError, BaseModelError, FoundryError, InputError
from lora_foundry.families._shared.base import Base
from lora_foundry.ports import GeneratedImage
from lora_foundry.settings import Settings

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ComfyUIOptions:
    """Where the server is and what it draws with.

    checkpoint: the server's name for it, or its bare file name. identity: what tells it from others of that
    name. workflow and reference_workflow: a shipped one's name or a .json file, for prompts alone and for prompts
    with a reference image. lora_dir and checkpoint_file: the server's LoRA folder and the checkpoint itself as this
    machine sees them. merge: requests of a batch that differ in their seeds alone become one prompt; only its first
    picture is then the one that its seed would give alone.
    """

    url: str
    checkpoint: str
    identity: str = ""
    workflow: str = "sd15"
    reference_workflow: str = "img2img"
    lora_dir: Path | None = None
    checkpoint_file: Path | None = None
    in_flight: int = 4
    merge: bool = False
    patience: Patience = field(default_factory=Patience)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="comfyui", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, Answer]) -> Future[Answer]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self.start(work).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_others() -> None:
    """Cancels what still runs in this loop and waits for its end, so that nothing is cut off in the
    middle."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class ComfyUIGenerator:
    """A Generator that lets a ComfyUI server draw."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(options_of(context.base, context.recipe.generate, context.settings))

    def __init__(self, options: ComfyUIOptions) -> None:
        self._options = options
        self._workflow: Workflow = load_workflow(options.workflow)
        self._reference_workflow: Workflow = load_workflow(options.reference_workflow)
        self._loop: _Loop | None = None
        self._client: ComfyUIClient | None = None
        self._loras = PlacedLoras(options.lora_dir, options.checkpoint_file)

    @property
    def model(self) -> str:
        options = self._options
        identity = f" [{options.identity[:12]}]" if options.identity else ""
        name = f"{options.checkpoint}{identity} by ComfyUI workflow {_named(self._workflow)}"
        usual = options.reference_workflow == ComfyUIOptions.reference_workflow
        return name if usual else f"{name}, with a reference {_named(self._reference_workflow)}"

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        """See ports.Generator. Pictures come in the order of the requests, and before an error whatever
        else is made."""
        loop, client = self._connect()
        workflow = self._workflow if reference is None else self._reference_workflow
        constants = loop.call(self._constants(client, workflow, lora, reference))
        waiting: deque[tuple[Sequence[ImageRequest], Future[Drawing]]] = deque()
        try:
            for requests in self._groups(batches, workflow):
                if len(waiting) >= self._options.in_flight:
                    yield from _pictures(*waiting.popleft())
                told = requests[0].model_dump(exclude={"key"})
                values = Values(**{**told, **constants, "batch": len(requests)})
                waiting.append((requests, loop.start(_draw(client, workflow, requests, values))))
            while waiting:
                yield from _pictures(*waiting.popleft())
        except FoundryError:
            for requests, future in waiting:
                if future.done() and not future.cancelled() and future.exception() is None:
                    yield from _pictures(requests, future)  # what is made is not made again
            raise
        finally:
            for _, future in waiting:
                future.cancel()

    def close(self) -> None:
        """Ends the connection; the server's own memory is freed by the hand-over, not here."""
        if self._loop is None or self._client is None:
            return
        loop, client, self._loop, self._client = self._loop, self._client, None, None
        loop.call(_end_others())  # what was given up takes its prompts out of the server's queue
        loop.call(_close(client))
        loop.close()
        self._loras.remove()

    def _connect(self) -> tuple[_Loop, ComfyUIClient]:
        """The loop and the client, made at the first call."""
        if self._loop is None or self._client is None:
            self._loop = _Loop()
            self._client = self._loop.call(_open(self._options))
        return self._loop, self._client

    async def _constants(
        self, client: ComfyUIClient, workflow: Workflow, lora: LoraUse | None, reference: ReferenceUse | None
    ) -> dict[str, Any]:
        """What is the same for every picture. Raises BackendError for no server, BaseModelError for no such
        model, InputError for a reference that the workflow does not use."""
        values: dict[str, Any] = {}
        try:
            await client.stats()
            if "checkpoint" in workflow.bindings:
                values["checkpoint"] = await self._checkpoint(client, workflow)
            if lora is not None:
                values |= {"lora": await self._loras.place(client, lora.path), "strength": lora.strength}
            if reference is not None:
                values |= await _reference_values(client, workflow, reference)
        except httpx.HTTPError as error:
            raise BackendError(
                f"ComfyUI does not answer at {client.url}; start it, or set its address (LORA_FOUNDRY_COMFYUI_URL)."
            ) from error
        return values

    async def _checkpoint(self, client: ComfyUIClient, workflow: Workflow) -> str:
        folders = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models"}
        inputs = [key for node in workflow.graph.values() for key in node["inputs"] if key in folders]
        listed = await client.models(folders[inputs[0]] if inputs else "checkpoints")
        try:
            return find_model(self._options.checkpoint, listed)
        except InputError as error:
            raise BaseModelError(str(error)) from error

    def _groups(
        self, batches: Iterable[Sequence[ImageRequest]], workflow: Workflow
    ) -> Iterator[Sequence[ImageRequest]]:
        """The requests of one prompt each: single ones, or all of a batch that differ in their seeds
        alone."""
        merging = self._options.merge and "batch" in workflow.bindings
        for batch in batches:
            alike: dict[ImageRequest, list[ImageRequest]] = {}
            for request in batch:
                kind = request.model_copy(update={"key": "", "seed": 0}) if merging else request
                alike.setdefault(kind, []).append(request)
            yield from alike.values()


def _named(workflow: Workflow) -> str:
    return f"{workflow.name} [{fingerprint(workflow.graph)[:8]}]"


async def _open(options: ComfyUIOptions) -> ComfyUIClient:
    return ComfyUIClient(options.url, options.patience)


async def _close(client: ComfyUIClient) -> None:
    await client.__aexit__(None, None, None)


async def _reference_values(
    client: ComfyUIClient, workflow: Workflow, reference: ReferenceUse
) -> dict[str, Any]:
    """The reference image, put into the server's input folder under a name of its content, and how closely it is
    followed: image-to-image denoises what its strength leaves."""
    if "reference" not in workflow.bindings:
        raise InputError(
            f"The workflow {workflow.name} uses no reference image; set generate.reference_workflow to img2img, or to "
            "one with {{reference}}."
        )
    try:
        data = await asyncio.to_thread(reference.path.read_bytes)
    except OSError as error:
        raise InputError(f"The reference image {reference.path} cannot be read: {error}.") from error
    name = f"lora_foundry_{hashlib.sha256(data).hexdigest()[:16]}{reference.path.suffix.lower()}"
    return {
        "reference": await client.upload(name, data),
        "reference_strength": reference.strength,
        "denoise": round(1 - reference.strength, 6),
    }


async def _draw(
    client: ComfyUIClient, workflow: Workflow, requests: Sequence[ImageRequest], values: Values
) -> Drawing:
    size = (requests[0].width, requests[0].height)
    return await client.draw(workflow.bind(values), workflow.output, len(requests), size)


def _pictures(requests: Sequence[ImageRequest], future: Future[Drawing]) -> Iterator[GeneratedImage]:
    try:
        drawing = future.result()
    except httpx.HTTPError as error:
        raise BackendError(f"ComfyUI stopped answering: {error}; run the same command to go on.") from error
    for request, image in zip(requests, drawing.images, strict=True):
        yield GeneratedImage(request, image)


def options_of(base: Base, section: GenerateSection, settings: Settings) -> ComfyUIOptions:
    """What a recipe and the settings say of the server and of what it draws with."""
    checkpoint = section.checkpoint or base.path.name
    return ComfyUIOptions(
        url=settings.comfyui_address,
        checkpoint=checkpoint,
        identity=base.identity,
        workflow=section.workflow,
        reference_workflow=section.reference_workflow,
        lora_dir=settings.comfyui_loras_dir,
        checkpoint_file=_checkpoint_file(base, Path(checkpoint.replace("\\", "/")).name, settings),
    )


def _checkpoint_file(base: Base, name: str, settings: Settings) -> Path | None:
    """The file that the server draws with: the base itself, or what ComfyUI's folder has under its name."""
    if base.layout == "file" and base.path.name == name:
        return base.path
    if settings.comfyui is None:
        return None
    return next(
        (
            path
            for kind in ("checkpoints", "diffusion_models", "unet")
            for path in (settings.comfyui.expanduser() / "models" / kind).rglob("*.safetensors")
            if path.name == name
        ),
        None,
    )
