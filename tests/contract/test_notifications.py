"""News arrive: a real worker, real Apprise, and a receiver that keeps what it is sent."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from lora_foundry.announcements import of_failure, of_finish
from lora_foundry.backends.apprise import AppriseNotifier
from lora_foundry.composition import notifier_of
from lora_foundry.domain.character import Character
from lora_foundry.domain.evaluation import Evaluation, ScoreRow
from lora_foundry.domain.publication import Publication
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.storage import write_model
from lora_foundry.settings import Settings
from lora_foundry.tasks.announce import announce
from lora_foundry.tasks.pipelines import PipelineRequest, get_pipeline, submit
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions
from tests.contract.web.conftest import paint_set

pytestmark = pytest.mark.usefixtures("forked_children")


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address as Apprise writes it, and the messages that came."""
    got: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


def test_news_of_a_failure_carry_the_reason_and_the_newest_picture(
    receiver: tuple[str, list[dict[str, Any]]], home: Path
) -> None:
    address, got = receiver
    paths = paint_set(Settings(home=home))
    AppriseNotifier(address).notify(of_failure("Elara", "train", "<b>the loss is NaN</b>", paths))
    assert got[0]["title"] == "Elara: train failed"
    assert got[0]["message"] == "<b>the loss is NaN</b>"
    assert got[0]["type"] == "failure"
    picture = max(paths.images.glob("*.png"), key=lambda path: path.stat().st_mtime)
    assert base64.b64decode(got[0]["attachments"][0]["base64"]) == picture.read_bytes()


def test_news_of_a_finish_say_what_the_scores_mean(home: Path) -> None:
    paths = paint_set(Settings(home=home))
    write_model(
        paths.publication, Publication(published=True, verdict="good", lora=home / "elara.safetensors")
    )
    row = ScoreRow(identity=0.9)
    scores = Evaluation(
        character="Elara", trigger="elara", model="mini", before=ScoreRow(identity=0.2), after=row,
        without_trigger=row, strength=1.0, lora_sha256="", shots=1, held_out=1, fingerprint="", seconds=1.0,
    )  # fmt: skip
    write_model(paths.evaluation_result, scores)
    text = of_finish("Elara", paths).text
    assert "Weak: identity 0.90" in text
    assert "Appears without the trigger: 0.90 (lower is better)" in text
    assert "Next: set train.regularisation" in text


@pytest.mark.parametrize("name", ["newest.jpg", "newest.webp"])
def test_the_newest_picture_may_be_of_any_kind(home: Path, name: str) -> None:
    paths = paint_set(Settings(home=home))
    Image.new("RGB", (64, 64)).save(paths.images / name)
    os.utime(paths.images / name, (2**31, 2**31))
    assert of_failure("Elara", "train", "", paths).picture == paths.images / name


def test_a_message_that_nobody_took_is_an_error_that_shows_no_address() -> None:
    notifier = AppriseNotifier("json://user:secret@127.0.0.1:9")
    with pytest.raises(BackendError) as caught:
        notifier.notify(of_finish("Elara", paint_nothing()))
    assert "secret" not in str(caught.value)


def paint_nothing() -> Any:
    from lora_foundry.files.paths import RunPaths

    return RunPaths(Path("/nonexistent"), "elara")


def test_an_unknown_address_is_refused_by_its_number() -> None:
    with pytest.raises(InputError, match="Address 2 of LORA_FOUNDRY_NOTIFY"):
        AppriseNotifier("json://localhost nonsense://secret")


def test_no_address_means_no_notifier(home: Path) -> None:
    assert notifier_of(Settings(home=home)) is None
    assert notifier_of(Settings(home=home, notify=SecretStr("json://localhost"))) is not None


@pytest.mark.parametrize(("ended", "titles"), [
    ("completed", ["Elara: the LoRA is ready"]),
    ("failed", ["Elara: generate failed"]),
    ("retrying", []),
    ("pending", []),
    ("lost", []),
])  # fmt: skip
def test_only_the_end_of_a_pipeline_is_news(
    receiver: tuple[str, list[dict[str, Any]]], home: Path, ended: str, titles: list[str]
) -> None:
    address, got = receiver
    settings = Settings(home=home)

    async def scenario() -> None:
        store = TaskStore(settings.task_database)
        await store.upgrade()
        made = await submit(
            store, settings, PipelineRequest(character=Character(name="Elara", description="x"))
        )
        tasks = await store.recent(pipeline=made.id)
        notifier = AppriseNotifier(address)
        first, last = tasks[-1], tasks[0]
        await announce(store, settings, notifier, first, "completed")
        assert got == [], "one stage of six is no news"
        if ended == "completed":
            await force(store, "completed")
        await announce(store, settings, notifier, last if ended == "completed" else first, ended)
        await store.close()

    asyncio.run(scenario())
    assert [each["title"] for each in got] == titles


@pytest.mark.parametrize(("words", "title"), [
    ("sleep 0", "Elara: the LoRA is ready"), ("permanent fault", "Elara: generate failed"),
])  # fmt: skip
def test_a_worker_tells_of_the_end_of_a_pipeline_once(
    receiver: tuple[str, list[dict[str, Any]]], home: Path, words: str, title: str
) -> None:
    address, got = receiver
    settings = Settings(home=home)

    async def scenario() -> None:
        store = TaskStore(settings.task_database)
        await store.upgrade()
        request = PipelineRequest(character=Character(name="Elara", description=words), recipe="mini")
        made = await submit(store, settings, request)
        options = WorkerOptions(
            "tests.contract.engine_jobs:run", {"gpu": 1, "cpu": 1},
            Timing(heartbeat=0.5, patience=20, dead_after=25, poll=1, queue=0.1, report=0.1, grace=10),
            notifier=AppriseNotifier(address),
        )  # fmt: skip
        stop = asyncio.Event()
        worker = asyncio.create_task(Worker(store, settings, options).run(stop))
        while (await get_pipeline(store, made.id)).status not in ("completed", "failed"):
            await asyncio.sleep(0.1)
        stop.set()
        await worker  # which sends what it has to before it ends
        await store.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert [each["title"] for each in got] == [title]


async def force(store: TaskStore, status: str) -> None:
    from sqlalchemy import text

    async with store.writing() as connection:
        await connection.execute(text("UPDATE echo_tasks SET status = :status"), {"status": status})


def test_what_goes_wrong_in_telling_is_logged_without_addresses(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(home=home)

    async def scenario() -> None:
        store = TaskStore(settings.task_database)
        await store.upgrade()
        made = await submit(
            store, settings, PipelineRequest(character=Character(name="Elara", description="x"))
        )
        task = (await store.recent(pipeline=made.id))[-1]
        await announce(store, settings, AppriseNotifier("json://u:secret@127.0.0.1:9"), task, "failed")
        await store.close()

    asyncio.run(scenario())
    assert "Not everybody was told" in caplog.text
    assert "secret" not in caplog.text.replace("json://", "")
