"""Measures what our client adds to ComfyUI's own time for a picture, beside a client that asks every two
seconds.

Needs a running server: COMFYUI_URL and COMFYUI_CHECKPOINT name it, or the options. The pictures are as
small as they can be, so that what is measured is the client. On a machine that computes other things as well,
the server waits for the processor between two pictures, and that counts as added: the machine's load stands
beside every round, and our own processor time, which other programs change little.
"""

from __future__ import annotations

import argparse
import os
import time
import uuid
from dataclasses import dataclass

import httpx
from common import finish, table

from lora_foundry.backends.comfyui.bindings import Values
from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.backends.comfyui.protocol import parse_history, parse_stats
from lora_foundry.backends.comfyui.workflows import load_workflow
from lora_foundry.domain.dataset import ImageRequest

IMAGES, BATCH, POLL_SECONDS = 40, 4, 2.0


def request(number: int, prompt: str, side: int, steps: int) -> ImageRequest:
    return ImageRequest(
        key=str(number), prompt=prompt, negative="", seed=time.time_ns() % 2**32 + number, width=side, height=side,
        steps=steps, cfg=7.0, sampler="euler", scheduler="normal",
    )  # fmt: skip


def ours(options: argparse.Namespace, merge: bool) -> tuple[float, float]:
    """Seconds for all images, singly or in batches of four; and this process's own processor seconds of them."""
    generator = ComfyUIGenerator(ComfyUIOptions(options.url, options.checkpoint, merge=merge))
    list(generator.generate([[request(0, "warm", options.side, options.steps)]]))
    batches = [
        [request(start + n, "a cat", options.side, options.steps) for n in range(BATCH)]
        for start in range(0, IMAGES, BATCH)
    ]
    started, busy = time.perf_counter(), time.process_time()
    made = sum(1 for _ in generator.generate(batches))
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    generator.close()
    assert made == IMAGES
    return seconds, busy


@dataclass(frozen=True)
class Round:
    """40 single pictures, in seconds: of the client, its own processor time, and the server's execution. load: the machine's
    average of the last minute, when the round began."""

    seconds: float
    processor: float
    server: float
    load: float

    @property
    def added_ms(self) -> float:
        """Milliseconds an image beside the server's own time."""
        return 1000 * (self.seconds - self.server) / IMAGES


def round_of(options: argparse.Namespace, http: httpx.Client) -> Round:
    load = os.getloadavg()[0]
    seconds, processor = ours(options, merge=False)
    return Round(seconds, processor, server_seconds(http), load)


def server_seconds(http: httpx.Client) -> float:
    """The server's own execution time of the newest IMAGES prompts."""
    history = http.get("/history", params={"max_items": IMAGES}).json()
    return sum((entry.seconds or 0.0) for key in history if (entry := parse_history(history, key)))


def poller(http: httpx.Client, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds an image, whole and the server's own, of a client that looks every two seconds."""
    whole = own = 0.0
    for number in range(options.polled):
        told = request(number, "a cat", options.side, options.steps).model_dump(exclude={"key"})
        graph = load_workflow("sd15").bind(Values(**told, checkpoint=options.checkpoint))
        graph["save"]["inputs"]["filename_prefix"] = f"lora-foundry/{uuid.uuid4()}"
        started = time.perf_counter()
        prompt_id = http.post("/prompt", json={"prompt": graph}).json()["prompt_id"]
        while (entry := parse_history(http.get(f"/history/{prompt_id}").json(), prompt_id)) is None:
            time.sleep(POLL_SECONDS)
        (ref,) = entry.images["save"]
        http.get("/view", params={"filename": ref.filename, "subfolder": ref.subfolder, "type": ref.type})
        whole += time.perf_counter() - started
        own += entry.seconds or 0.0
    return whole / options.polled, own / options.polled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=os.environ.get("COMFYUI_URL", "http://127.0.0.1:8188"))
    parser.add_argument("--checkpoint", default=os.environ.get("COMFYUI_CHECKPOINT", "tiny.safetensors"))
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--polled", type=int, default=10, help="pictures that the poller makes")
    parser.add_argument("--rounds", type=int, default=3, help="of 40 x 1; the median is told, all are stored")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    with httpx.Client(base_url=options.url, trust_env=False, timeout=120) as http:
        rounds = [round_of(options, http) for _ in range(options.rounds)]
        middle = sorted(rounds, key=lambda measured: measured.added_ms)[len(rounds) // 2]
        batched, _ = ours(options, merge=True)
        polled, polled_own = poller(http, options)
        version = parse_stats(http.get("/system_stats").json()).version
    rows = [
        ["ours, 40 x 1", middle.seconds / IMAGES, middle.server / IMAGES, middle.added_ms / 1000],
        ["ours, 10 x 4", batched / IMAGES, "", ""],
        ["poll every 2 s", polled, polled_own, polled - polled_own],
    ]
    table(["client", "seconds an image", "the server's own", "added"], rows)
    figures = {
        "overhead_ms": round(middle.added_ms, 1),
        "own_processor_ms": round(1000 * middle.processor / IMAGES, 1),
        "poller_overhead_ms": round(1000 * (polled - polled_own), 1),
        "seconds_40x1": round(middle.seconds, 2),
        "seconds_10x4": round(batched, 2),
    }
    finish(
        "comfyui",
        figures,
        {
            "comfyui": version,
            "side": options.side,
            "steps": options.steps,
            "rounds": [
                {
                    "overhead_ms": round(measured.added_ms, 1),
                    "own_processor_ms": round(1000 * measured.processor / IMAGES, 1),
                    "server_ms": round(1000 * measured.server / IMAGES, 1),
                    "load": round(measured.load, 1),
                }
                for measured in rounds
            ],
        },
        not options.no_save,
    )


if __name__ == "__main__":
    main()
