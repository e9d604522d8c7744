"""The Generator port on a ComfyUI server: each request is a prompt of its own, several of them on their way
at once.

The port is a plain iterator and the wire is asyncio; an event loop in a thread of this object's own joins
the two.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import httpx

from lora_foundry.backends.comfyui.client import ComfyUIClient, Drawing, Patience, find_model
from lora_foundry.backends.comfyui.loras import PlacedLoras
from lora_foundry.backends.comfyui.workflows import Values, Workflow, load_workflow
from lora_foundry.domain.dataset import ImageRequest, ReferenceUse
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import fingerprint
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.errors import BackendError, BaseModelError, FoundryError, InputError
from lora_foundry.ports import GeneratedImage

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ComfyUIOptions:
    """Where the server is and what it draws with.

    checkpoint: the server's name for it, or its bare file name. identity: what tells it from others of that
    name. workflow: a shipped one's name or a .json file. lora_dir: the server's LoRA folder as this machine
    sees it. merge: requests of a batch that differ in their seeds alone become one prompt; only its first
    picture is then the one that its seed would give alone.
    """

    url: str
    checkpoint: str
    identity: str = ""
    workflow: str = "sd15"
    lora_dir: Path | None = None
    reference: Path | None = None
    denoise: float = 0.7
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

    def __init__(self, options: ComfyUIOptions) -> None:
        self._options = options
        self._workflow: Workflow = load_workflow(options.workflow)
        self._loop: _Loop | None = None
        self._client: ComfyUIClient | None = None
        self._values: dict[str, Any] = {}
        self._loras = PlacedLoras(options.lora_dir)

    @property
    def model(self) -> str:
        graph = fingerprint(self._workflow.graph)[:8]
        identity = f" [{self._options.identity[:12]}]" if self._options.identity else ""
        return f"{self._options.checkpoint}{identity} by ComfyUI workflow {self._workflow.name} [{graph}]"

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        """See ports.Generator. Pictures come in the order of the requests, and before an error whatever
        else is made."""
        if reference is not None:
            raise InputError("Reference images are not handed to ComfyUI yet; leave reference_image out.")
        loop, client = self._connect()
        used = loop.call(self._loras.place(client, lora.path)) if lora is not None else None
        waiting: deque[tuple[Sequence[ImageRequest], Future[Drawing]]] = deque()
        try:
            for requests in self._groups(batches):
                if len(waiting) >= self._options.in_flight:
                    yield from _pictures(*waiting.popleft())
                values = self._values_of(requests)
                if lora is not None:
                    values |= {"lora": used, "strength": lora.strength}
                waiting.append((requests, loop.start(self._draw(client, requests, values))))
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
        """The loop and the client, made at the first call, when the server is asked what it has."""
        if self._loop is None or self._client is None:
            loop = _Loop()
            client = loop.call(_open(self._options))
            try:
                self._values = loop.call(self._constants(client))
            except BaseException:
                loop.call(_close(client))
                loop.close()
                raise
            self._loop, self._client = loop, client
        return self._loop, self._client

    async def _constants(self, client: ComfyUIClient) -> dict[str, Any]:
        """What is the same for every picture. Raises BackendError for no server, BaseModelError for no such
        model."""
        options = self._options
        try:
            await client.stats()
            values: dict[str, Any] = {"denoise": options.denoise}
            if "checkpoint" in self._workflow.bindings:
                values["checkpoint"] = await self._checkpoint(client)
            if options.reference is not None:
                if "reference" not in self._workflow.bindings:
                    raise InputError(
                        f"The workflow {self._workflow.name} uses no reference image; "
                        "choose img2img, or one with {{reference}}."
                    )
                data = await asyncio.to_thread(options.reference.read_bytes)
                values["reference"] = await client.upload(options.reference.name, data)
        except httpx.HTTPError as error:
            raise BackendError(
                f"ComfyUI does not answer at {options.url}; start it, or set its address (LORA_FOUNDRY_COMFYUI_URL)."
            ) from error
        except OSError as error:
            raise InputError(f"The reference image {options.reference} cannot be read: {error}.") from error
        return values

    async def _checkpoint(self, client: ComfyUIClient) -> str:
        folders = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models"}
        inputs = [key for node in self._workflow.graph.values() for key in node["inputs"] if key in folders]
        listed = await client.models(folders[inputs[0]] if inputs else "checkpoints")
        try:
            return find_model(self._options.checkpoint, listed)
        except InputError as error:
            raise BaseModelError(str(error)) from error

    def _groups(self, batches: Iterable[Sequence[ImageRequest]]) -> Iterator[Sequence[ImageRequest]]:
        """The requests of one prompt each: single ones, or all of a batch that differ in their seeds
        alone."""
        merging = self._options.merge and "batch" in self._workflow.bindings
        for batch in batches:
            alike: dict[ImageRequest, list[ImageRequest]] = {}
            for request in batch:
                kind = request.model_copy(update={"key": "", "seed": 0}) if merging else request
                alike.setdefault(kind, []).append(request)
            yield from alike.values()

    def _values_of(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        told = requests[0].model_dump(exclude={"key"})
        return {**told, **self._values, "batch": len(requests)}

    async def _draw(
        self, client: ComfyUIClient, requests: Sequence[ImageRequest], values: dict[str, Any]
    ) -> Drawing:
        graph = self._workflow.bind(Values(**values))
        size = (requests[0].width, requests[0].height)
        return await client.draw(graph, self._workflow.output, len(requests), size)


async def _open(options: ComfyUIOptions) -> ComfyUIClient:
    return ComfyUIClient(options.url, options.patience)


async def _close(client: ComfyUIClient) -> None:
    await client.__aexit__(None, None, None)


def _pictures(requests: Sequence[ImageRequest], future: Future[Drawing]) -> Iterator[GeneratedImage]:
    try:
        drawing = future.result()
    except httpx.HTTPError as error:
        raise BackendError(f"ComfyUI stopped answering: {error}; run the same command to go on.") from error
    for request, image in zip(requests, drawing.images, strict=True):
        yield GeneratedImage(request, image)


def comfyui_generator(
    url: str, checkpoint: str, identity: str, section: GenerateSection, lora_dir: Path | None
) -> ComfyUIGenerator:
    """The generator that a recipe's [generate] asks for, on the server at `url`."""
    options = ComfyUIOptions(url, checkpoint, identity, section.workflow, lora_dir)
    return ComfyUIGenerator(options)
