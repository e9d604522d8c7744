"""What a ComfyUI server answers, as typed values. Every shape here was recorded from a real server, with
its traps: outputs that do not mean success, option lists in two forms, errors hidden in an answer of status
200.

Nothing here talks to a network, so each parser is tested with the recorded answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_foundry.errors import BackendError, InputError

BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, OK = 400, 401, 403, 200
LINK_LENGTH = 2
MILLISECONDS = 1000
_CONTROLS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass(frozen=True)
class NodeFault:
    """One thing the server finds wrong with one node; `allowed` is empty where it sent no list."""

    node: str
    class_type: str
    kind: str
    message: str
    details: str
    input_name: str = ""
    received: str = ""
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptAccepted:
    """The prompt is queued; `faults` are those of outputs that were dropped from it all the same."""

    prompt_id: str
    faults: tuple[NodeFault, ...] = ()


@dataclass(frozen=True)
class PromptRefused:
    """Nothing was queued; the useful text is in `faults`, where there are any."""

    kind: str
    message: str
    details: str
    faults: tuple[NodeFault, ...] = ()


@dataclass(frozen=True)
class ImageRef:
    """Where the server keeps a picture."""

    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class Failure:
    """What stopped a run."""

    node: str
    class_type: str
    exception: str
    message: str


@dataclass(frozen=True)
class HistoryEntry:
    """The record of a run that is over, which alone says how it ended."""

    prompt_id: str
    outcome: Literal["success", "error", "interrupted"]
    images: dict[str, tuple[ImageRef, ...]]
    failure: Failure | None = None
    cached: frozenset[str] = frozenset()
    seconds: float | None = None


@dataclass(frozen=True)
class Queue:
    """The ids of what runs and what waits."""

    running: frozenset[str]
    pending: frozenset[str]

    @property
    def idle(self) -> bool:
        return not self.running and not self.pending


@dataclass(frozen=True)
class SocketEvent:
    """A message of the WebSocket: its kind and, where it has them, the run and the node it tells of."""

    kind: str
    prompt_id: str = ""
    node: str | None = None


@dataclass(frozen=True)
class Device:
    """A device's name and its memory in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class ServerStats:
    """Version and memory of a server."""

    version: str
    devices: tuple[Device, ...]

    @property
    def free(self) -> int:
        """Free bytes of the first device, the one that ComfyUI computes on."""
        return self.devices[0].free if self.devices else 0


@dataclass(frozen=True)
class InputSpec:
    """What a node's input takes: a type's name, the values of a list, and the bounds of a number. widget: it is a control
    of the node's own in the editor; control: one that a control for the next value follows; upload: one that a button
    follows."""

    kind: str
    required: bool
    options: tuple[str, ...] | None = None
    least: float | None = None
    most: float | None = None
    widget: bool = False
    control: bool = False
    upload: bool = False


@dataclass(frozen=True)
class NodeClass:
    """A kind of node the server knows."""

    name: str
    inputs: dict[str, InputSpec] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    is_output: bool = False
    title: str = ""


def parse_prompt_answer(status: int, body: bytes) -> PromptAccepted | PromptRefused:
    """The answer to POST /prompt. Raises InputError for a server that refuses us, BackendError for
    nonsense."""
    if status == FORBIDDEN:
        raise InputError(
            "ComfyUI refuses requests from this host (403); check its address and any proxy before it."
        )
    if status not in (OK, BAD_REQUEST):
        raise BackendError(
            f"ComfyUI answered a prompt with status {status}: {body[:200].decode(errors='replace')}"
        )
    data = read_object(body)
    faults = _faults(data.get("node_errors"))
    if status == OK:
        return PromptAccepted(str(data.get("prompt_id", "")), faults)
    error = data.get("error")
    if not isinstance(error, Mapping):
        return PromptRefused("unknown", str(error), "", faults)
    return PromptRefused(
        str(error.get("type", "unknown")),
        str(error.get("message", "")),
        str(error.get("details", "")),
        faults,
    )


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises BackendError for anything else."""
    try:
        data = json.loads(body)
    except ValueError as error:
        raise BackendError(
            "ComfyUI's answer is not JSON; is the address really a ComfyUI server's?"
        ) from error
    if not isinstance(data, dict):
        raise BackendError("ComfyUI's answer is not an object; is the address really a ComfyUI server's?")
    return data


def _faults(data: object) -> tuple[NodeFault, ...]:
    """`node_errors` of either answer; an accepted prompt without errors has {} or nothing."""
    if not isinstance(data, Mapping):
        return ()
    return tuple(
        _fault(str(node), str(entry.get("class_type", "")), error)
        for node, entry in data.items()
        for error in entry.get("errors", ())
    )


def _fault(node: str, class_type: str, error: Mapping[str, Any]) -> NodeFault:
    extra = error.get("extra_info") or {}
    options = parse_options(extra.get("input_config"))
    return NodeFault(
        node=node,
        class_type=class_type,
        kind=str(error.get("type", "")),
        message=str(error.get("message", "")),
        details=str(error.get("details", "")),
        input_name=str(extra.get("input_name", "")),
        received=str(extra.get("received_value", "")),
        allowed=options or (),
    )


def parse_options(config: object) -> tuple[str, ...] | None:
    """The values of a list input, in the old form [[...], {}] or the newer ["COMBO", {"options": [...]}]."""
    if not isinstance(config, list) or not config:
        return None
    if isinstance(config[0], list):
        return tuple(str(option) for option in config[0])
    if config[0] == "COMBO" and len(config) > 1 and isinstance(config[1], dict):
        return tuple(str(option) for option in config[1].get("options", ()))
    return None


def parse_history(data: Mapping[str, Any], prompt_id: str) -> HistoryEntry | None:
    """The record of one run out of GET /history/{id}; None while there is none (waiting, running, unknown,
    lost)."""
    entry = data.get(prompt_id)
    if not isinstance(entry, Mapping):
        return None
    status = entry.get("status") or {}
    messages = [(str(kind), detail) for kind, detail in status.get("messages", ())]
    last_kind, last = messages[-1] if messages else ("", {})
    outcome: Literal["success", "error", "interrupted"] = "error"
    if status.get("status_str") == "success":
        outcome = "success"
    elif last_kind == "execution_interrupted":
        outcome = "interrupted"
    return HistoryEntry(
        prompt_id=prompt_id,
        outcome=outcome,
        images={str(node): _images(output) for node, output in (entry.get("outputs") or {}).items()},
        failure=_failure(last) if last_kind == "execution_error" else None,
        cached=frozenset(
            str(node)
            for kind, detail in messages
            if kind == "execution_cached"
            for node in detail.get("nodes", ())
        ),
        seconds=_seconds(messages),
    )


def _images(output: Mapping[str, Any]) -> tuple[ImageRef, ...]:
    return tuple(
        ImageRef(str(image["filename"]), str(image.get("subfolder", "")), str(image.get("type", "output")))
        for image in output.get("images") or ()
        if isinstance(image, Mapping) and "filename" in image
    )


def _failure(detail: Mapping[str, Any]) -> Failure:
    return Failure(
        node=str(detail.get("node_id", "")),
        class_type=str(detail.get("node_type", "")),
        exception=str(detail.get("exception_type", "")),
        message=" ".join(str(detail.get("exception_message", "")).split()),
    )


def _seconds(messages: list[tuple[str, Any]]) -> float | None:
    """How long ComfyUI itself says the run took, from the first message's time to the last one's."""
    times = [
        detail["timestamp"] for _, detail in messages if isinstance(detail, Mapping) and "timestamp" in detail
    ]
    return (times[-1] - times[0]) / MILLISECONDS if len(times) > 1 else None


def parse_queue(data: Mapping[str, Any]) -> Queue:
    """GET /queue: arrays whose second item is the id."""

    def ids(name: str) -> frozenset[str]:
        return frozenset(str(item[1]) for item in data.get(name) or ())

    return Queue(ids("queue_running"), ids("queue_pending"))


def parse_event(message: str | bytes) -> SocketEvent | None:
    """A message of the WebSocket; None for preview pictures and whatever cannot be read."""
    if isinstance(message, bytes):
        return None
    try:
        data = json.loads(message)
    except ValueError:
        return None
    detail = data.get("data") if isinstance(data, dict) else None
    if not isinstance(detail, dict):
        return None
    node = detail.get("node")
    return SocketEvent(
        str(data.get("type", "")), str(detail.get("prompt_id", "")), None if node is None else str(node)
    )


def parse_stats(data: Mapping[str, Any]) -> ServerStats:
    """GET /system_stats. Raises BackendError for what no ComfyUI answers."""
    if not isinstance(data.get("system"), Mapping) or not isinstance(data.get("devices") or [], list):
        raise BackendError("The answer is not a ComfyUI's; is another program at this address?")
    devices = tuple(
        Device(str(device.get("name", "")), int(device.get("vram_total", 0)), int(device.get("vram_free", 0)))
        for device in data.get("devices") or ()
    )
    return ServerStats(str((data.get("system") or {}).get("comfyui_version", "unknown")), devices)


def parse_object_info(data: Mapping[str, Any]) -> dict[str, NodeClass]:
    """GET /object_info, or the part of it that is about one class."""
    return {str(name): _node_class(str(name), entry) for name, entry in data.items()}


def _node_class(name: str, entry: Mapping[str, Any]) -> NodeClass:
    inputs: dict[str, InputSpec] = {}
    for group in ("required", "optional"):
        for key, config in ((entry.get("input") or {}).get(group) or {}).items():
            inputs[str(key)] = _input_spec(str(key), config, required=group == "required")
    return NodeClass(
        name,
        inputs,
        tuple(str(output) for output in entry.get("output") or ()),
        bool(entry.get("output_node")),
        str(entry.get("display_name") or ""),
    )


def _input_spec(name: str, config: object, required: bool) -> InputSpec:
    options = parse_options(config)
    if not isinstance(config, list) or not config:
        return InputSpec("*", required)
    limits = config[1] if len(config) > 1 and isinstance(config[1], dict) else {}
    kind = "COMBO" if options is not None else str(config[0])
    upload = any(limits.get(f"{medium}_upload") for medium in ("image", "video", "audio"))
    seed = kind == "INT" and name in ("seed", "noise_seed")
    return InputSpec(
        kind,
        required,
        None if upload else options,
        limits.get("min"),
        limits.get("max"),
        widget=kind in _CONTROLS and not limits.get("forceInput"),
        control=bool(limits.get("control_after_generate", seed)),
        upload=upload,
    )


def is_link(value: object) -> bool:
    """Whether an input's value is a link to another node's output, [node, slot]."""
    return isinstance(value, list) and len(value) == LINK_LENGTH and isinstance(value[1], int)
