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
from functools import cached_property
from itertools import chain
from threading import Thread
from typing import Any, Self, TypeVar

import httpx

from lora_foundry.backends.comfyui.address import address_of
from lora_foundry.backends.comfyui.bindings import Values
from lora_foundry.backends.comfyui.client import ComfyUIClient, Drawing
from lora_foundry.backends.comfyui.graphs import Graph
from lora_foundry.backends.comfyui.leftovers import PROMPT, leftovers_of
from lora_foundry.backends.comfyui.loras import PlacedLoras
from lora_foundry.backends.comfyui.options import ComfyUIOptions, options_of
from lora_foundry.backends.comfyui.preparation import Prepared, prepare
from lora_foundry.backends.comfyui.protocol import NodeClass
from lora_foundry.backends.comfyui.workflows import Workflow, load_workflow
from lora_foundry.context import Context
from lora_foundry.domain.dataset import ImageRequest, ReferenceUse
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import fingerprint
from lora_foundry.errors import BackendError, FoundryError, InputError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.leftovers import take_back
from lora_foundry.ports import GeneratedImage

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


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
        return cls(options_of(context))

    def __init__(self, options: ComfyUIOptions) -> None:
        self._options = options
        self._address = address_of(options.url, options.token)
        self._loop: _Loop | None = None
        self._client: ComfyUIClient | None = None
        self._leftovers = leftovers_of(options.home, self._address) if options.home else None
        self._loras = PlacedLoras(self._note)
        self._prepared: dict[tuple[bool, bool], Prepared] = {}

    @cached_property
    def _workflow(self) -> Workflow:
        return load_workflow(self._options.workflow, self._node_list)

    @cached_property
    def _reference_workflow(self) -> Workflow:
        return load_workflow(self._options.reference_workflow, self._node_list)

    @property
    def model(self) -> str:
        """See ports.Generator. Whatever changes a picture is in it."""
        options = self._options
        identity = f" [{options.identity[:12]}]" if options.identity else ""
        name = f"{options.checkpoint}{identity} by ComfyUI workflow {_named(self._workflow)}"
        for what, value in (("text encoder", options.text_encoder), ("VAE", options.vae)):
            name += f", {what} {value}" if value else ""
        if options.reference_workflow != ComfyUIOptions.reference_workflow:
            name += f", with a reference {_named(self._reference_workflow)}"
        if options.reference_checkpoint:
            name += f" on {options.reference_checkpoint}"
        if options.references:
            try:
                name += f" and {fingerprint(*map(file_hash, options.references))[:8]}"
            except OSError as error:
                raise InputError(f"A picture of generate.references cannot be read: {error}.") from error
        return name

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        """See ports.Generator. Pictures come in the order of the requests, and before an error whatever
        else is made. A workflow that cannot work is refused before the first of them."""
        coming = iter(batches)
        if not (first := next(coming, ())):
            return
        loop, client = self._connect()
        workflow = self._workflow if reference is None else self._reference_workflow
        constants = loop.call(self._constants(client, workflow, first[0], lora, reference))
        waiting: deque[tuple[Sequence[ImageRequest], Future[Drawing]]] = deque()
        try:
            for requests in self._groups(chain([first], coming), workflow):
                if len(waiting) >= self._options.in_flight:
                    yield from _pictures(*waiting.popleft())
                told = requests[0].model_dump(exclude={"key"})
                values = Values(**{**told, **constants, "batch": len(requests)})
                graph = workflow.bind(values, self._options.checkpoint)
                waiting.append((requests, loop.start(_draw(client, graph, workflow.output, requests))))
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
        """Ends the connection, and takes back what was left with the server: prompts and lent LoRAs. The server's own
        memory is freed by the hand-over, not here."""
        if self._loop is None or self._client is None:
            return
        loop, client, self._loop, self._client = self._loop, self._client, None, None
        loop.call(_end_others())  # what was given up takes its prompts out of the server's queue
        loop.call(_close(client))
        loop.close()
        self._prepared.clear()
        self._loras.remove()
        if self._leftovers is not None:
            self._leftovers.settle()

    def _connect(self) -> tuple[_Loop, ComfyUIClient]:
        """The loop and the client, made at the first call."""
        if self._loop is None or self._client is None:
            if self._options.home is not None:
                take_back(self._options.home)  # what a run that was killed could not
            self._loop = _Loop()
            self._client = self._loop.call(self._open())
        return self._loop, self._client

    async def _open(self) -> ComfyUIClient:
        return ComfyUIClient(self._address, self._options.patience, lambda prompt: self._note(PROMPT, prompt))

    def _note(self, kind: str, value: str) -> None:
        """Writes down what the server is given, so that somebody else can take it back."""
        if self._leftovers is not None:
            self._leftovers.note(kind, value)

    def _node_list(self) -> dict[str, NodeClass]:
        """Every node that the server has. Raises BackendError where it does not answer."""
        loop, client = self._connect()
        try:
            return loop.call(client.object_info())
        except httpx.HTTPError as error:
            raise client.unreachable() from error

    async def _constants(
        self,
        client: ComfyUIClient,
        workflow: Workflow,
        request: ImageRequest,
        lora: LoraUse | None,
        reference: ReferenceUse | None,
    ) -> dict[str, Any]:
        """What is the same for every picture. Raises BackendError for no server, BaseModelError for no such
        model, InputError for a workflow that cannot work or a reference that it does not use."""
        options, needs_lora = self._options, lora is not None or (self._options.lends and reference is None)
        drawn = (reference is not None, needs_lora)
        try:
            await client.stats()
            values = (
                {} if reference is None else await _reference_values(client, workflow, options, reference)
            )
            if drawn not in self._prepared:
                self._prepared[drawn] = await prepare(client, workflow, options, request, values, needs_lora)
            prepared = self._prepared[drawn]
            values |= prepared.values
            if lora is not None and prepared.loras is not None:
                name = await self._loras.place(client, lora.path, prepared.loras, prepared.checkpoint)
                values |= {"lora": name, "strength": lora.strength}
        except httpx.HTTPError as error:
            raise client.unreachable() from error
        return values

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


async def _close(client: ComfyUIClient) -> None:
    await client.__aexit__(None, None, None)


async def _reference_values(
    client: ComfyUIClient, workflow: Workflow, options: ComfyUIOptions, reference: ReferenceUse
) -> dict[str, Any]:
    """The reference images, put into the server's input folder under names of their content, and how closely they are
    followed: image-to-image denoises what their strength leaves."""
    if "reference" not in workflow.bindings:
        raise InputError(
            f"The workflow {workflow.name} uses no reference image; set generate.reference_workflow to img2img, or to "
            "one with {{reference}}."
        )
    values: dict[str, Any] = {
        "reference_strength": reference.strength,
        "denoise": round(1 - reference.strength, 6),
    }
    for name, path in zip(
        ("reference", "reference2", "reference3"), (reference.path, *options.references), strict=False
    ):
        if name not in workflow.bindings:
            raise InputError(
                f"The workflow {workflow.name} takes no further reference image ({{{{{name}}}}}); empty generate.references."
            )
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise InputError(f"The reference image {path} cannot be read: {error}.") from error
        file = f"lora_foundry_{hashlib.sha256(data).hexdigest()[:16]}{path.suffix.lower()}"
        values[name] = await client.upload(file, data)
    return values


async def _draw(
    client: ComfyUIClient, graph: Graph, output: str, requests: Sequence[ImageRequest]
) -> Drawing:
    size = (requests[0].width, requests[0].height)
    return await client.draw(graph, output, len(requests), size)


def _pictures(requests: Sequence[ImageRequest], future: Future[Drawing]) -> Iterator[GeneratedImage]:
    try:
        drawing = future.result()
    except httpx.HTTPError as error:
        raise BackendError(f"ComfyUI stopped answering: {error}; run the same command to go on.") from error
    for request, image in zip(requests, drawing.images, strict=True):
        yield GeneratedImage(request, image)
