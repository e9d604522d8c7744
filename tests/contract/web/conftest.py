"""A home that looks as if a pipeline had run, painted in milliseconds, and servers on it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from lora_foundry.domain.character import Character
from lora_foundry.domain.curation import CurationResult, Measures, Reason, Verdict
from lora_foundry.domain.dataset import Caption, GenerationMetadata, TaggingResults
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.run import Run
from lora_foundry.files.images import save_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_model, write_text
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.stages.caption.step import hash_of
from lora_foundry.web.app import create_app

ELARA = {"name": "Elara", "description": "1girl, brown hair, red dress", "recipe": "mini"}
IMAGES = 4


def paint_set(settings: Settings, name: str = "Elara", images: int = IMAGES) -> RunPaths:
    """A finished set of plain-coloured pictures with captions; the last shot was once rejected."""
    character = Character(name=name, description="1girl, brown hair, red dress")
    recipe = load_recipe("mini", [f"generate.images={images}"])
    paths = RunPaths(settings.datasets_dir / name, character.slug)
    plan = plan_pictures(character, recipe, "painted")
    records, captions, accepted = [], [], []
    for index in range(images):
        record = plan.record(index)
        picture = Image.new("RGB", (64, 64), (index * 37 % 256, 90, 160))
        records.append(save_picture(paths.image(index), picture, record))
        text = f"{character.trigger}, {', '.join(record.shot.words())}, high quality"
        write_text(paths.caption(paths.image(index)), text + "\n")
        captions.append(Caption(file=record.file, text=text, source="plan", written=hash_of(text)))
        accepted.append(
            Verdict(
                file=f"images/{record.file}",
                index=index,
                attempt=0,
                seed=record.request.seed,
                accepted=True,
                measures=Measures(hash=f"{index // 2:016x}"),
            )
        )
    save_picture(
        paths.attempt(paths.rejected, images - 1, 0), Image.new("RGB", (64, 64)), plan.record(images - 1)
    )
    refused = Verdict(
        file=f"rejected/{paths.attempt(paths.rejected, images - 1, 0).name}", index=images - 1, attempt=0, seed=1,
        accepted=False, reasons=(Reason(code="blank", text="<b>blank</b>"),),
    )  # fmt: skip
    shared = {"character": name, "fingerprint": "x"}
    write_model(paths.generation_metadata, GenerationMetadata(
        **shared, trigger=character.trigger, description=character.description, recipe="mini", seed=1,
        model="painted", pictures=tuple(records), seconds=1.0,
    ))  # fmt: skip
    write_model(paths.curation, CurationResult(
        **shared, wanted=images, made=images, budget=images, accepted=tuple(accepted), rejected=(refused,),
        coverage=(), seconds=1.0,
    ))  # fmt: skip
    write_model(paths.tagging_results, TaggingResults(
        **shared, trigger=character.trigger, captioner="plan", pruned=(), captions=tuple(captions)
    ))  # fmt: skip
    run = Run(character=character, recipe=recipe, dataset_dir=paths.root, lora_dir=settings.loras_dir,
              output_name=f"{character.slug}_mini")  # fmt: skip
    write_model(paths.run_file, run)
    loss = paths.training / "loss.csv"
    write_text(loss, "step,loss,learning_rate\n1,0.5,0.0001\n2,0.4,0.0001\n")
    return paths


@contextlib.contextmanager
def serving(settings: Settings, token: str | None = None) -> Iterator[str]:
    """A real server in a thread; its address."""
    config = uvicorn.Config(create_app(settings, token), host="127.0.0.1", port=0, log_level="warning",
                            timeout_graceful_shutdown=1)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home)


@pytest.fixture
def paths(settings: Settings) -> RunPaths:
    return paint_set(settings)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def pipeline(client: TestClient) -> str:
    """The address of a pipeline that waits."""
    made = client.post("/api/v1/pipelines", json=ELARA)
    assert made.status_code == 201, made.text
    return "/api/v1/pipelines/" + json.loads(made.text)["id"]
