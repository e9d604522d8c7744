"""What goes over the stub server's wire: socket frames, uploaded files, and pictures with the faults they
may have."""

from __future__ import annotations

import io
import math
import random
import re
import struct
import threading
from collections.abc import Iterator
from typing import Any, Literal

from PIL import Image

from lora_foundry.testing.comfyui_loras import Effect

Fault = Literal[
    "none",  # behaves
    "execution_error",  # fails, and its history has outputs all the same
    "interrupted",  # somebody else interrupts it
    "hang",  # runs without ever making progress
    "late_history",  # says success a while before history knows
    "silent",  # sends no event about this prompt
    "lost_answer",  # queues the prompt and closes the connection
    "lost_post",  # closes the connection without queueing
    "forget",  # loses the prompt
    "view_404",  # the file is gone
    "black",
    "wrong_size",
    "damaged",
    "drop_socket",  # cuts the socket with no close frame while the prompt runs
]
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
SHORT, MIDDLE = 126, 1 << 16
_SEEDS, _TEXTS = ("seed", "noise_seed"), ("text", "text_g", "text_l")


class Item:
    """A prompt in the queue."""

    def __init__(self, number: int, body: dict[str, Any], outputs: list[str], fault: Fault) -> None:
        self.number, self.outputs, self.fault = number, outputs, fault
        self.graph: dict[str, Any] = body["prompt"]
        self.client_id = str(body.get("client_id", ""))
        self.prompt_id = str(body.get("prompt_id") or f"prompt-{number}")
        self.interrupted = threading.Event()

    def row(self) -> list[Any]:
        return [self.number, self.prompt_id, self.graph, {"client_id": self.client_id}, self.outputs]


def pictures(graph: dict[str, Any], fault: Fault, loras: list[tuple[Effect, float]]) -> Iterator[bytes]:
    """PNG files of noise that depends on seed, texts, references and LoRAs: image 0 of a batch is the single picture of
    its seed."""

    def all_of(class_type: str) -> list[dict[str, Any]]:
        return [node["inputs"] for node in graph.values() if node["class_type"] == class_type]

    size = (all_of("EmptyLatentImage") or all_of("ImageScale") or [{}])[0]
    factor = math.prod(float(inputs["scale_by"]) for inputs in all_of("LatentUpscaleBy"))
    width, height = (round(int(size.get(side, 64)) // 8 * factor) * 8 for side in ("width", "height"))
    seeds = [node["inputs"][name] for node in graph.values() for name in _SEEDS if name in node["inputs"]]
    texts = [node["inputs"][name] for node in graph.values() for name in _TEXTS if name in node["inputs"]]
    told = [seeds, texts]
    told += [[inputs["image"]] for inputs in all_of("LoadImage")]
    told += [[effect.weights, strength] for effect, strength in loras if effect.weights and strength]
    black = fault == "black" or any(effect.black for effect, _ in loras)
    for index in range(int(size.get("batch_size", 1))):
        source = random.Random(f"{told}{index}")
        shown = (width + 8, height) if fault == "wrong_size" else (width, height)
        data = bytes(shown[0] * shown[1] * 3) if black else source.randbytes(shown[0] * shown[1] * 3)
        file = io.BytesIO()
        Image.frombytes("RGB", shown, data).save(file, "PNG")
        yield file.getvalue()[:200] if fault == "damaged" else file.getvalue()


def frame(opcode: int, data: bytes) -> bytes:
    """A WebSocket frame as a server sends it (RFC 6455, not masked)."""
    if len(data) < SHORT:
        head = struct.pack("!BB", 0x80 | opcode, len(data))
    elif len(data) < MIDDLE:
        head = struct.pack("!BBH", 0x80 | opcode, 126, len(data))
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 127, len(data))
    return head + data


def uploaded_file(raw: bytes) -> tuple[str, bytes]:
    """Name and content of the first file of a multipart body."""
    head, _, rest = raw.partition(b'filename="')
    name, _, rest = rest.partition(b'"')
    boundary = (re.findall(rb"--[^\r\n]+", head) or [b"--"])[0]
    content = rest.partition(b"\r\n\r\n")[2].split(b"\r\n" + boundary, 1)[0]
    return name.decode(), content
