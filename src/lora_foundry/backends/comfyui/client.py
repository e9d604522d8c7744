"""The wire to a ComfyUI server: prompts out, checked pictures in, over HTTP and one WebSocket.

The socket only wakes us up; the record of what happened is the server's history. A prompt carries an id of
our own and a file prefix of its own, so an answer that never came, a cached result, a queue lost in a
restart and somebody else's interrupt can all be told apart, and the prompt is sent again where that helps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from lora_foundry.backends.comfyui.address import Address, address_of
from lora_foundry.backends.comfyui.faults import dropped, execution_error, refusal
from lora_foundry.backends.comfyui.graphs import Graph
from lora_foundry.backends.comfyui.pictures import check_picture, with_prefix
from lora_foundry.backends.comfyui.protocol import (
    OK,
    UNAUTHORIZED,
    HistoryEntry,
    ImageRef,
    NodeClass,
    NodeFault,
    PromptAccepted,
    Queue,
    ServerStats,
    parse_event,
    parse_history,
    parse_object_info,
    parse_prompt_answer,
    parse_queue,
    parse_stats,
    read_object,
)
from lora_foundry.errors import BackendError, InputError

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")
OUTPUT_FOLDER = "lora-foundry"
_PAUSE = 0.2


@dataclass(frozen=True)
class Patience:
    """How many seconds each thing may take, and how often a prompt is sent before we give up.

    answer: an HTTP answer. absence: a server that does not answer at all, as in a restart. stall: a running
    prompt without any sign of progress. tick: how often we look without having been woken.
    """

    answer: float = 20.0
    absence: float = 180.0
    stall: float = 300.0
    tick: float = 5.0
    attempts: int = 5


@dataclass(frozen=True)
class Drawing:
    """The pictures of one prompt, and the seconds that ComfyUI itself took for it."""

    images: tuple[Image.Image, ...]
    seconds: float | None


@dataclass
class _Job:
    """A prompt on its way."""

    prompt_id: str
    client_id: str = ""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    progress_at: float = field(default_factory=monotonic)


class _TryAgainError(Exception):
    """The run was lost, interrupted by others, stuck, or its file is gone: the prompt may be sent again."""


class ComfyUIClient:
    """A connection to one server. Use as an async context manager; any number of `draw` calls may run at
    once."""

    def __init__(
        self,
        address: str | Address,
        patience: Patience | None = None,
        sent: Callable[[str], None] = lambda prompt_id: None,
    ) -> None:
        """sent: is told the id of every prompt before it goes out."""
        self._address = address_of(address)
        self.url = self._address.url
        self._patience, self._sent = patience or Patience(), sent
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=self._address.headers,
            timeout=self._patience.answer,
            trust_env=False,
            verify=self._address.certificates or False,
        )
        self._jobs: dict[str, _Job] = {}
        self._client_id = ""
        self._connected = asyncio.Event()
        self._submitting = asyncio.Lock()
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ComfyUIClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        await self._http.aclose()

    # What the server is and has

    async def stats(self) -> ServerStats:
        return parse_stats(await self._get("/system_stats"))

    async def queue(self) -> Queue:
        return parse_queue(await self._get("/queue"))

    async def history(self, prompt_id: str) -> HistoryEntry | None:
        return parse_history(await self._get(f"/history/{quote(prompt_id, safe='')}"), prompt_id)

    async def object_info(self, class_type: str = "") -> dict[str, NodeClass]:
        """All node classes, or one of them (nothing where the server does not know it)."""
        path = f"/object_info/{quote(class_type, safe='')}" if class_type else "/object_info"
        return parse_object_info(await self._get(path))

    async def models(self, folder: str) -> tuple[str, ...]:
        """The files the server lists in a folder of models ("checkpoints", "loras")."""
        response = await self._http.get(f"/models/{folder}")
        if response.status_code != OK or not isinstance(names := response.json(), list):
            return ()
        return tuple(str(name) for name in names)

    async def log(self) -> list[str]:
        """The newest lines of the server's log, oldest first. The route is meant for ComfyUI's own pages: some versions
        and proxies do not have it (BackendError)."""
        entries = (await self._get("/internal/logs/raw")).get("entries")
        if not isinstance(entries, list):
            raise BackendError("ComfyUI shows its log in a form that is not known.")
        return [f"{entry.get('t', '')} {entry.get('m', '')}" for entry in entries if isinstance(entry, dict)]

    async def folders(self, kind: str) -> tuple[Path, ...]:
        """Where the server itself looks for a kind of model ("loras"), as it sees the disk; () where it does not say."""
        try:
            found = (await self._get("/internal/folder_paths")).get(kind)
        except (httpx.HTTPError, BackendError):
            return ()
        return tuple(Path(str(folder)) for folder in found) if isinstance(found, list) else ()

    async def free(self) -> None:
        """Asks the server to give back its memory; it does so when the current prompt is over."""
        await self._http.post("/free", json={"unload_models": True, "free_memory": True})

    async def upload(self, name: str, data: bytes) -> str:
        """Puts a picture into the server's input folder; returns the name it got, which need not be
        `name`."""
        response = await self._http.post(
            "/upload/image", files={"image": (name, data)}, data={"type": "input"}
        )
        if response.status_code != OK:
            raise BackendError(f"ComfyUI did not take the picture {name} (status {response.status_code}).")
        answer = read_object(response.content)
        folder = str(answer.get("subfolder", ""))
        return f"{folder}/{answer['name']}" if folder else str(answer["name"])

    async def cancel(self, *prompt_ids: str) -> None:
        """Takes prompts of ours out of the queue, or breaks off their run; other prompts are left alone. The older
        servers know no interruption of one prompt, so that only one that runs is ever interrupted."""
        await self._http.post("/queue", json={"delete": list(prompt_ids)})
        for prompt_id in (await self.queue()).running & set(prompt_ids):
            await self._http.post("/interrupt", json={"prompt_id": prompt_id})

    async def _get(self, path: str) -> dict[str, object]:
        response = await self._http.get(path)
        if response.status_code == UNAUTHORIZED:
            raise InputError(
                f"The server at {self.url} asks who we are (401); put name:password@ before the host in "
                "LORA_FOUNDRY_COMFYUI_URL, or set LORA_FOUNDRY_COMFYUI_TOKEN."
            )
        if response.status_code != OK:
            raise BackendError(f"ComfyUI answered {path} with status {response.status_code}.")
        return read_object(response.content)

    # Drawing

    async def draw(self, graph: Graph, output: str, count: int, size: tuple[int, int] | None) -> Drawing:
        """Runs a workflow and returns the `count` pictures of the node `output`, each downloaded and
        checked.

        Raises BaseModelError or InputError for a workflow that the server refuses, BackendError for what
        may pass.
        """
        trouble = ""
        for attempt in range(self._patience.attempts):
            if attempt:
                logger.warning("sending a prompt to ComfyUI again: %s", trouble)
            try:
                return await self._draw_once(graph, output, count, size)
            except _TryAgainError as error:
                trouble = str(error)
        raise BackendError(f"ComfyUI failed {self._patience.attempts} times at the same picture: {trouble}.")

    async def _draw_once(
        self, graph: Graph, output: str, count: int, size: tuple[int, int] | None
    ) -> Drawing:
        job = _Job(str(uuid4()))
        graph = with_prefix(graph, f"{OUTPUT_FOLDER}/{job.prompt_id}")
        self._jobs[job.prompt_id] = job
        self._sent(job.prompt_id)
        try:
            await self._submit(graph, job)
            entry = await self._wait(job)
            return await self._collect(entry, graph, output, count, size)
        except asyncio.CancelledError:
            with suppress(httpx.HTTPError, TimeoutError):
                await asyncio.wait_for(self.cancel(job.prompt_id), self._patience.answer)
            raise
        finally:
            del self._jobs[job.prompt_id]

    async def _submit(self, graph: Graph, job: _Job) -> None:
        """Queues the prompt, once, whatever happens to the answer. Prompts keep the order of the calls."""
        async with self._submitting:
            started = monotonic()
            while True:
                job.client_id = await self._socket()
                body = {"prompt": graph, "prompt_id": job.prompt_id, "client_id": job.client_id}
                try:
                    response = await self._http.post("/prompt", json=body)
                    break
                except httpx.TransportError as error:
                    logger.info("ComfyUI gave no answer to a prompt (%r)", error)
                    if await self._persist(lambda: self._knows(job.prompt_id)):
                        return
                    if monotonic() - started > self._patience.absence:
                        raise self._absent() from error
        answer = parse_prompt_answer(response.status_code, response.content)
        if not isinstance(answer, PromptAccepted):
            faults = await self._with_choices(answer.faults)
            raise refusal(type(answer)(answer.kind, answer.message, answer.details, faults), graph)
        if answer.faults:
            await self.cancel(job.prompt_id)
            raise dropped(
                await self._with_choices(answer.faults),
                graph,
                "ComfyUI would leave out an output of the workflow",
            )
        if answer.prompt_id != job.prompt_id:
            raise BackendError(
                "This ComfyUI does not accept prompt ids of ours; update it to 0.3.50 or newer."
            )
        job.progress_at = monotonic()

    async def _with_choices(self, faults: Sequence[NodeFault]) -> tuple[NodeFault, ...]:
        """The faults with the values allowed, which the server leaves out where they are many."""
        complete = []
        for fault in faults:
            allowed = fault.allowed
            if fault.kind == "value_not_in_list" and not allowed:
                node_class = (await self.object_info(fault.class_type)).get(fault.class_type, NodeClass(""))
                spec = node_class.inputs.get(fault.input_name)
                allowed = (spec.options if spec else None) or ()
            complete.append(NodeFault(**{**fault.__dict__, "allowed": allowed}))
        return tuple(complete)

    async def _knows(self, prompt_id: str) -> bool:
        """Whether a prompt is queued, running or over. Looked up twice: it may move between the two looks."""
        for pause in (0.0, _PAUSE):
            await asyncio.sleep(pause)
            queue = await self.queue()
            if prompt_id in queue.pending | queue.running or await self.history(prompt_id) is not None:
                return True
        return False

    async def _wait(self, job: _Job) -> HistoryEntry:
        """The record of the run once it is over. Raises _TryAgainError for a run that is lost or stuck."""
        absences = 0
        while True:
            own = bool(job.client_id) and job.client_id == self._client_id
            with suppress(TimeoutError):
                tick = self._patience.tick if own else min(1.0, self._patience.tick)
                await asyncio.wait_for(job.wake.wait(), tick)
            job.wake.clear()
            if entry := await self._persist(lambda: self.history(job.prompt_id)):
                return entry
            queue = await self._persist(self.queue)
            if job.prompt_id in queue.running:
                absences = 0
                if monotonic() - job.progress_at > self._patience.stall:
                    await self._persist(lambda: self.cancel(job.prompt_id))
                    raise _TryAgainError(f"it made no progress for {self._patience.stall:.0f} s")
            elif job.prompt_id in queue.pending:
                absences, job.progress_at = 0, monotonic()
            else:
                absences += 1
                if absences > 1:
                    raise _TryAgainError(
                        "it is neither queued nor finished, as after a restart or a cleared queue"
                    )
                await asyncio.sleep(_PAUSE)
                job.wake.set()

    async def _collect(
        self, entry: HistoryEntry, graph: Graph, output: str, count: int, size: tuple[int, int] | None
    ) -> Drawing:
        if entry.outcome == "interrupted":
            raise _TryAgainError("it was interrupted by somebody else")
        if entry.outcome == "error":
            raise execution_error(entry.failure, graph)
        refs = entry.images.get(output, ())
        if len(refs) != count:
            raise BackendError(
                f"ComfyUI reports success with {len(refs)} of {count} pictures; look at its log."
            )
        images = [await self._download(ref, size) for ref in refs]
        return Drawing(tuple(images), entry.seconds)

    async def _download(self, ref: ImageRef, size: tuple[int, int] | None) -> Image.Image:
        query = {"filename": ref.filename, "subfolder": ref.subfolder, "type": ref.type}
        response = await self._persist(lambda: self._http.get("/view", params=query))
        if response.status_code != OK:
            raise _TryAgainError(f"its file {ref.filename} is gone (status {response.status_code})")
        return await asyncio.to_thread(check_picture, response.content, ref.filename, size)

    # Staying in touch

    async def _persist(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The call's answer, waiting out a server that is away. Raises BackendError when it stays away."""
        started = monotonic()
        while True:
            try:
                return await call()
            except httpx.TransportError as error:
                if monotonic() - started > self._patience.absence:
                    raise self._absent() from error
                await asyncio.sleep(_PAUSE)

    def unreachable(self) -> BackendError:
        """The error for a server that does not answer at all."""
        return BackendError(
            f"ComfyUI does not answer at {self.url}; start it, or set its address (LORA_FOUNDRY_COMFYUI_URL)."
        )

    def _absent(self) -> BackendError:
        return BackendError(
            f"ComfyUI at {self.url} has not answered for {self._patience.absence:.0f} s; start it and run this again."
        )

    async def _socket(self) -> str:
        """The client id of the open socket, or "" where none can be had: then we look by the clock."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), min(self._patience.tick, self._patience.answer))
        return self._client_id

    async def _listen(self) -> None:
        """Keeps a socket open, under a fresh id each time, since closing an old one would evict a reused
        id."""
        while True:
            client_id = uuid4().hex
            place = f"{self._address.socket}/ws?clientId={client_id}"
            headers = self._address.headers
            try:
                async with connect(
                    place,
                    additional_headers=headers,
                    max_size=None,
                    proxy=None,
                    ssl=self._address.certificates,
                    ping_timeout=60,
                    close_timeout=1,
                ) as socket:
                    self._client_id = client_id
                    self._connected.set()
                    self._wake_all()
                    async for message in socket:
                        self._hear(message)
            except (OSError, TimeoutError, WebSocketException) as error:
                logger.debug("no socket to ComfyUI: %r", error)
            self._client_id = ""
            self._connected.clear()
            self._wake_all()
            await asyncio.sleep(_PAUSE)

    def _hear(self, message: str | bytes) -> None:
        event = parse_event(message)
        if event is None:
            return
        if job := self._jobs.get(event.prompt_id):
            job.progress_at = monotonic()
            if event.kind == "executing" and event.node is None:
                job.wake.set()
        elif event.kind == "status":
            for other in self._jobs.values():
                if other.client_id != self._client_id:
                    other.wake.set()

    def _wake_all(self) -> None:
        for job in self._jobs.values():
            job.wake.set()
