"""Every trap of the wire, against the stub; what a real server can show too, against the one of
COMFYUI_URL."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from lora_foundry.backends.comfyui.client import ComfyUIClient, Drawing, Patience
from lora_foundry.backends.comfyui.graphs import Graph
from lora_foundry.backends.comfyui.locate import find_model
from lora_foundry.errors import BackendError, BaseModelError, InputError
from lora_foundry.testing.comfyui_stub import Fault, StubServer
from tests.contract.comfyui_fixtures import CHECKPOINT, PATIENT, QUICK, REAL, REAL_LORAS, Server, sd15

Answer = TypeVar("Answer")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The stub, or the real server of COMFYUI_URL."""
    if REAL:
        yield Server(REAL, None, Path(REAL_LORAS) if REAL_LORAS else None, PATIENT)
        return
    loras = tmp_path / "loras"
    loras.mkdir()
    with StubServer(("tiny.safetensors", "tiny_fullvae.safetensors"), loras) as stub:
        yield Server(stub.url, stub, loras, QUICK)


@pytest.fixture
def stub(server: Server) -> StubServer:
    if server.stub is None:
        pytest.skip("a real server does not misbehave on demand")
    return server.stub


def use(
    server: Server, work: Callable[[ComfyUIClient], Awaitable[Answer]], patience: Patience | None = None
) -> Answer:
    async def run() -> Answer:
        async with ComfyUIClient(server.url, patience or server.patience) as client:
            return await work(client)

    return asyncio.run(run())


def draw(server: Server, graph: Graph, count: int = 1, side: int = 64) -> Drawing:
    return use(server, lambda client: client.draw(graph, "save", count, (side, side)))


def test_a_picture_comes_with_the_server_s_own_seconds(server: Server) -> None:
    drawing = draw(server, sd15())
    assert [image.size for image in drawing.images] == [(64, 64)]
    assert drawing.seconds is not None


def test_an_equal_prompt_is_drawn_again_and_not_taken_from_an_old_file(server: Server) -> None:
    first, second = draw(server, sd15()), draw(server, sd15())
    assert first.images[0].tobytes() == second.images[0].tobytes()


def test_a_batch_has_all_its_pictures_and_the_first_is_the_seed_s_own(server: Server) -> None:
    single, batch = draw(server, sd15(5)), draw(server, sd15(5, batch=3), 3)
    assert len({image.tobytes() for image in batch.images}) == 3
    if server.stub is not None:
        assert batch.images[0].tobytes() == single.images[0].tobytes()


def test_many_at_once_keep_apart(server: Server) -> None:
    async def work(client: ComfyUIClient) -> list[Drawing]:
        return list(
            await asyncio.gather(*(client.draw(sd15(seed), "save", 1, (64, 64)) for seed in range(8)))
        )

    together = use(server, work)
    assert len({drawing.images[0].tobytes() for drawing in together}) == 8
    assert together[3].images[0].tobytes() == draw(server, sd15(3)).images[0].tobytes()


def test_a_missing_checkpoint_is_permanent_and_the_nearest_is_named(server: Server) -> None:
    graph = sd15()
    graph["model"]["inputs"]["ckpt_name"] = CHECKPOINT.replace(".safe", "_8.safe")
    with pytest.raises(
        BaseModelError, match=f"is not installed, says 'Checkpoint'.*did you mean {CHECKPOINT}"
    ):
        draw(server, graph)


def test_choices_left_out_of_the_refusal_are_looked_up(server: Server) -> None:
    graph = sd15()
    graph["sampler"]["inputs"]["sampler_name"] = "eulr"
    with pytest.raises(InputError, match=r"sampler eulr is not a choice.*did you mean euler"):
        draw(server, graph)


def test_an_output_that_would_be_dropped_is_refused_and_nothing_stays_queued(server: Server) -> None:
    graph = sd15()
    graph["other"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nope.safetensors"}}
    graph["bad"] = {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["other", 2]}}
    graph["extra"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["bad", 0]}}

    async def work(client: ComfyUIClient) -> bool:
        with pytest.raises(BaseModelError, match="leave out an output"):
            await client.draw(graph, "save", 1, (64, 64))
        return await idle(client)

    assert use(server, work)


async def idle(client: ComfyUIClient) -> bool:
    """Waits up to ten seconds for an empty queue."""
    for _ in range(100):
        if (await client.queue()).idle:
            return True
        await asyncio.sleep(0.1)
    return False


def test_a_graph_the_server_cannot_run_is_the_user_s_to_mend(server: Server) -> None:
    unknown, nothing = sd15(), sd15()
    unknown["sampler"]["class_type"] = "NoSuchNode"
    del nothing["save"]
    with pytest.raises(InputError, match=r"'Sampler' .node sampler. is of the kind NoSuchNode.*custom node"):
        draw(server, unknown)
    with pytest.raises(InputError, match="Save Image"):
        draw(server, nothing)


def test_a_size_that_the_server_changes_silently_is_noticed(server: Server) -> None:
    with pytest.raises(BackendError, match="56x56 where 60x60"):
        draw(server, sd15(side=60), side=60)


def slow(server: Server) -> Graph:
    """A prompt that takes about half a second on the stub and some seconds on a processor."""
    if server.stub is not None:
        server.stub.seconds = 0.4
        return sd15()
    return sd15(seed=int(time.time()), steps=30, side=128)


async def running(client: ComfyUIClient) -> None:
    while not (await client.queue()).running:
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("path", "body"), [("/interrupt", {}), ("/queue", {"clear": True})])
def test_what_others_interrupt_or_clear_is_sent_again(
    server: Server, path: str, body: dict[str, object]
) -> None:
    async def work(client: ComfyUIClient) -> list[Drawing]:
        graph = slow(server)
        side = graph["latent"]["inputs"]["width"]
        tasks = [
            asyncio.create_task(client.draw(changed, "save", 1, (side, side)))
            for changed in (graph, {**graph, "prompt": sd15(prompt="a dog")["prompt"]})
        ]
        await running(client)
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as somebody:
            await somebody.post(path, json=body)
        return list(await asyncio.gather(*tasks))

    assert len(use(server, work)) == 2


def test_a_draw_that_is_given_up_leaves_nothing_in_the_queue(server: Server) -> None:
    async def work(client: ComfyUIClient) -> bool:
        task = asyncio.create_task(client.draw(slow(server), "save", 1, None))
        await running(client)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await idle(client)

    assert use(server, work)


@pytest.mark.parametrize(
    ("fault", "executions"),
    [
        ("interrupted", 1),
        ("hang", 1),
        ("late_history", 1),
        ("silent", 1),
        ("lost_answer", 1),
        ("lost_post", 1),
        ("forget", 1),
        ("view_404", 2),
        ("drop_socket", 1),
    ],
)
def test_a_fault_that_passes_costs_no_picture(
    server: Server, stub: StubServer, fault: Fault, executions: int
) -> None:
    stub.misbehave(fault)
    expected = sd15(9)
    drawing = draw(server, expected)
    assert drawing.images[0].tobytes() == draw(server, expected).images[0].tobytes()
    assert len(stub.executed) == executions + 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("execution_error", "stopped at 'unknown' .node 8.: it broke"),
        ("black", "is black"),
        ("wrong_size", "72x64 where 64x64"),
        ("damaged", "is damaged"),
    ],
)
def test_a_picture_that_is_none_is_an_error(
    server: Server, stub: StubServer, fault: Fault, words: str
) -> None:
    stub.misbehave(fault)
    with pytest.raises(BackendError, match=words):
        draw(server, sd15())


def test_faults_without_end_are_given_up(server: Server, stub: StubServer) -> None:
    stub.misbehave(*["interrupted"] * 5)
    with pytest.raises(BackendError, match="failed 5 times"):
        draw(server, sd15())


def test_a_queue_lost_in_a_restart_is_sent_again(server: Server, stub: StubServer) -> None:
    stub.seconds = 0.3
    restart = threading.Timer(0.45, stub.restart)
    restart.start()

    async def work(client: ComfyUIClient) -> list[Drawing]:
        return list(
            await asyncio.gather(*(client.draw(sd15(seed), "save", 1, (64, 64)) for seed in range(4)))
        )

    drawings = use(server, work)
    restart.join()
    assert len({drawing.images[0].tobytes() for drawing in drawings}) == 4
    assert 4 <= len(stub.executed) <= 5


def test_a_server_that_stays_away_ends_in_an_error_that_may_pass(server: Server, stub: StubServer) -> None:
    stub.stop()
    with pytest.raises(BackendError, match="has not answered for 0 s; start it") as caught:
        use(server, lambda client: client.draw(sd15(), "save", 1, None), Patience(1.0, 0.3, 1.0, 0.2))
    assert caught.value.retryable


def test_a_model_is_found_by_its_bare_name() -> None:
    assert find_model("a.safetensors", ("sd15\\a.safetensors", "b")) == "sd15\\a.safetensors"
    with pytest.raises(InputError, match=r"did you mean a\.safetensors"):
        find_model("aa.safetensors", ("a.safetensors",))


def test_an_uploaded_picture_has_the_name_the_server_gave_it(server: Server) -> None:
    async def work(client: ComfyUIClient) -> tuple[str, str, str]:
        name, stamp = f"test_{time.time_ns()}.png", b"\x89PNG"
        first = await client.upload(name, stamp)
        return first, await client.upload(name, stamp), await client.upload(name, stamp + b"other")

    first, same, other = use(server, work)
    assert first == same
    assert other == first.replace(".png", " (1).png")
