"""A ComfyUI server for tests, without ComfyUI: the same requests, answers and socket messages as were
recorded from a real one, pictures made of noise, and faults on demand. It lives on a loopback port and
needs the standard library and Pillow only. Validation, the cache of equal prompts and the lists of models
behave as the real ones do."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from socket import SHUT_RDWR, socket
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote

from lora_foundry.testing.comfyui_frames import TEXT, Fault, Item, frame, pictures
from lora_foundry.testing.comfyui_http import Handler, StubHttp
from lora_foundry.testing.comfyui_loras import LoraShelf
from lora_foundry.testing.comfyui_nodes import (
    CHECKPOINT_INPUT,
    LORA_INPUT,
    Node,
    node_shapes,
    problems,
    refused,
)


class StubServer:
    """A server from `start` to `stop`; also a context manager. `restart` loses queue and history, files
    survive."""

    def __init__(
        self, checkpoints: tuple[str, ...] = ("tiny.safetensors",), loras_dir: Path | None = None
    ) -> None:
        self.checkpoints, self.loras_dir = checkpoints, loras_dir
        self._shelf = LoraShelf(loras_dir)
        self.checkpoints_dir: Path | None = None  # where it says that they lie
        self.authorization = ""  # the header that a proxy before it wants
        self.requests: list[str] = []  # "GET /queue", in the order of their coming
        self.seconds = 0.0  # that each picture takes
        self.vram_total = self.vram_free = self.vram_after_free = 8 << 30
        self.executed: list[str] = []  # ids of prompts whose pictures were really made
        self.stop_after: int | None = None  # dies when this many prompts were executed
        self.port = 0
        self.dead = threading.Event()
        self._faults: deque[Fault] = deque()
        self._files: dict[str, bytes] = {}
        self._inputs: dict[str, bytes] = {}
        self._number = 0
        self._http: StubHttp | None = None

    def __enter__(self) -> StubServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def misbehave(self, *faults: Fault) -> None:
        """Each fault befalls one of the prompts to come, in order."""
        self._faults.extend(faults)

    def start(self) -> None:
        """Listens, at the port of the last time if there was one, with an empty queue."""
        self._pending: deque[Item] = deque()
        self._running: Item | None = None
        self._history: dict[str, Any] = {}
        self._cache: dict[str, dict[str, Any]] = {}
        self._shelf.forget()
        self._sockets: dict[str, socket] = {}
        self._connections: set[socket] = set()
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._alive = True
        self.dead.clear()
        self._http = StubHttp(("127.0.0.1", self.port), Handler)
        self._http.stub = self
        self.port = self._http.server_address[1]
        self._threads = [
            threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True),
            threading.Thread(target=self._execute_all, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Dies as under SIGKILL: connections are cut, queue and history are lost."""
        if self._http is None:
            return
        self._alive = False
        with self._lock:
            self._work.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._cut(list(self._connections))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5)
        self._http = None
        self.dead.set()

    def restart(self) -> None:
        self.stop()
        self.start()

    def clear_history(self) -> None:
        with self._lock:
            self._history.clear()

    # What the HTTP side asks for

    def post_prompt(self, body: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        """Status and answer to POST /prompt; None as answer cuts the connection."""
        graph = body.get("prompt")
        if not isinstance(graph, dict):
            return 400, refused("no_prompt", "No prompt provided", "No prompt provided")
        for key, node in graph.items():
            if not isinstance(node, dict) or "class_type" not in node:
                text = "Cannot execute because a node is missing the class_type property."
                return 400, refused("invalid_prompt", text, f"Node ID '#{key}'")
            if node["class_type"] not in self.nodes():
                text = f"Cannot execute because node {node['class_type']} does not exist."
                return 400, refused("invalid_prompt", text, f"Node ID '#{key}'")
        outputs = [key for key, node in graph.items() if self.nodes()[node["class_type"]].get("output_node")]
        if not outputs:
            return 400, refused("prompt_no_outputs", "Prompt has no outputs", "")
        good, errors = problems(graph, outputs, self.nodes())
        if not good:
            whole = refused("prompt_outputs_failed_validation", "Prompt outputs failed validation", "")
            return 400, whole | {"node_errors": errors}
        fault: Fault = self._faults.popleft() if self._faults else "none"
        if fault == "lost_post":
            return 0, None
        with self._lock:
            item = Item(self._number, body, good, fault)
            self._number += 1
            if fault != "forget":
                self._pending.append(item)
                self._work.notify_all()
        self._tell_status()
        answer = {"prompt_id": item.prompt_id, "number": item.number, "node_errors": errors}
        return 200, None if fault == "lost_answer" else answer

    def nodes(self) -> dict[str, Node]:
        """What /object_info says, with the lists of models as they are now."""
        shapes = node_shapes()
        shapes["CheckpointLoaderSimple"]["input"]["required"][CHECKPOINT_INPUT][0] = list(self.checkpoints)
        shapes["UNETLoader"]["input"]["required"]["unet_name"][0] = list(self.checkpoints)
        for loader in ("LoraLoader", "LoraLoaderModelOnly"):
            shapes[loader]["input"]["required"][LORA_INPUT][0] = self._shelf.names()
        return shapes

    def get(self, path: str) -> Any:
        """The JSON that a GET of `path` gives; None for 404."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        with self._lock:
            match parts:
                case ["system_stats"]:
                    return self._stats()
                case ["queue"]:
                    running = [self._running.row()] if self._running else []
                    return {"queue_running": running, "queue_pending": [item.row() for item in self._pending]}
                case ["history", prompt_id]:
                    return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}
                case ["object_info"]:
                    return self.nodes()
                case ["object_info", name]:
                    return {name: self.nodes()[name]} if name in self.nodes() else {}
                case ["models", kind]:
                    return {"checkpoints": list(self.checkpoints), "loras": self._shelf.names()}.get(kind)
                case ["internal", *rest]:
                    entries = [{"t": "", "m": line} for line in self._shelf.log]
                    places = {"loras": self.loras_dir, "checkpoints": self.checkpoints_dir}
                    folders = {kind: [str(place)] if place else [] for kind, place in places.items()}
                    return {"logs/raw": {"entries": entries}, "folder_paths": folders}.get("/".join(rest))
        return None

    def _stats(self) -> dict[str, Any]:
        device = {"name": "stub", "type": "cuda", "index": 0, "vram_total": self.vram_total}
        system = {"os": "posix", "comfyui_version": "0.3.64", "argv": ["main.py"]}
        return {"system": system, "devices": [device | {"vram_free": self.vram_free}]}

    def view(self, query: dict[str, str]) -> bytes | None:
        return self._files.get(f"{query.get('subfolder', '')}/{query.get('filename', '')}")

    def upload(self, name: str, data: bytes) -> dict[str, str]:
        """Keeps a file; another one of the same name gets a number, as the real server does."""
        stem, dot, suffix = name.rpartition(".")
        taken, number = name, 0
        while self._inputs.get(taken, data) != data:
            number += 1
            taken = f"{stem} ({number}){dot}{suffix}"
        self._inputs[taken] = data
        return {"name": taken, "subfolder": "", "type": "input"}

    def change_queue(self, body: dict[str, Any]) -> None:
        with self._lock:
            gone = set(body.get("delete", ()))
            kept = [item for item in self._pending if not body.get("clear") and item.prompt_id not in gone]
            self._pending = deque(kept)

    def interrupt(self, body: dict[str, Any]) -> None:
        with self._lock:
            if self._running and body.get("prompt_id", self._running.prompt_id) == self._running.prompt_id:
                self._running.interrupted.set()

    def free(self) -> None:
        self.vram_free = self.vram_after_free
        self._shelf.forget()
        self._cache.clear()

    # The socket

    def open_socket(self, client_id: str, connection: socket) -> None:
        with self._lock:
            self._sockets[client_id] = connection
        self._send(client_id, "status", {"status": self._status(), "sid": client_id})

    def close_socket(self, client_id: str) -> None:
        with self._lock:
            self._sockets.pop(client_id, None)

    def _status(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": len(self._pending) + (self._running is not None)}}

    def _tell_status(self) -> None:
        for client_id in list(self._sockets):
            self._send(client_id, "status", {"status": self._status()})

    def _send(self, client_id: str, kind: str, data: dict[str, Any]) -> None:
        with self._lock:
            connection = self._sockets.get(client_id)
            if connection is not None:
                with suppress(OSError):
                    connection.sendall(frame(TEXT, json.dumps({"type": kind, "data": data}).encode()))

    @staticmethod
    def _cut(connections: list[socket]) -> None:
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)

    # The executing thread

    def _is_alive(self) -> bool:
        return self._alive

    def _execute_all(self) -> None:
        while self._is_alive():
            with self._lock:
                while self._is_alive() and not self._pending:
                    self._work.wait(0.1)
                if not self._is_alive():
                    return
                item = self._running = self._pending.popleft()
            self._execute(item)
            if self.stop_after is not None and len(self.executed) >= self.stop_after:
                self.stop_after = None
                threading.Thread(target=self.stop, daemon=True).start()
                return

    def _execute(self, item: Item) -> None:
        def tell(kind: str, **data: Any) -> None:
            messages.append(
                [kind, {"prompt_id": item.prompt_id, "timestamp": int(time.time() * 1000), **data}]
            )
            if item.fault != "silent":
                self._send(item.client_id, kind, messages[-1][1])

        messages: list[Any] = []
        key = json.dumps(item.graph, sort_keys=True)
        tell("execution_start")
        tell("execution_cached", nodes=list(item.graph) if key in self._cache else [])
        ended = self._run(item)
        if not self._alive:
            return
        outputs: dict[str, Any] = {}
        if ended != "interrupted":
            outputs = self._cache.get(key) or self._outputs(item)
        if ended == "success":
            self._cache[key] = outputs
            tell("execution_success")
        elif ended == "interrupted":
            tell("execution_interrupted", node_id="3", node_type="KSampler", executed=[])
        else:
            tell("execution_error", node_id="8", node_type="VAEDecode", exception_message="it broke\n",
                 exception_type="RuntimeError", executed=[])  # fmt: skip
        if item.fault == "late_history":
            time.sleep(0.3)
        good = ended == "success"
        status = {"status_str": "success" if good else "error", "completed": good, "messages": messages}
        with self._lock:
            self._history[item.prompt_id] = {"prompt": item.row(), "outputs": outputs, "status": status}
            self._running = None
        self._tell_status()
        if item.fault != "silent":
            self._send(item.client_id, "executing", {"node": None, "prompt_id": item.prompt_id})

    def _run(self, item: Item) -> Literal["success", "error", "interrupted"]:
        """Lets the time of a picture pass and says how the run ends."""
        if item.fault == "drop_socket":
            self._cut(list(self._sockets.values()))
        ends = time.monotonic() + (3600 if item.fault == "hang" else self.seconds)
        while self._alive and not item.interrupted.is_set() and time.monotonic() < ends:
            item.interrupted.wait(min(0.02, max(0.0, ends - time.monotonic())))
        if item.interrupted.is_set() or item.fault == "interrupted":
            return "interrupted"
        return "error" if item.fault == "execution_error" else "success"

    def _outputs(self, item: Item) -> dict[str, Any]:
        """Makes the pictures and keeps them as files."""
        self.executed.append(item.prompt_id)
        outputs = {}
        for node in item.outputs:
            prefix = str(item.graph[node]["inputs"].get("filename_prefix", "temp"))
            folder, _, stem = prefix.rpartition("/")
            images = []
            for data in pictures(item.graph, item.fault, self._shelf.effects(item.graph)):
                name = f"{stem}_{len(self._files) + 1:05d}_.png"
                if item.fault != "view_404":
                    self._files[f"{folder}/{name}"] = data
                images.append({"filename": name, "subfolder": folder, "type": "output"})
            outputs[node] = {"images": images}
        return outputs
