"""What hosts that do not work at a run do with its files: give, show, change and delete. The storage is a folder here."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from lora_foundry.doctor import examine
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.run import fingerprint
from lora_foundry.errors import InputError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.paths import RunPaths
from lora_foundry.recipe_files import load_recipe
from lora_foundry.remote import access
from lora_foundry.remote.manifests import version_chain
from lora_foundry.remote.objects import ObjectStore
from lora_foundry.settings import Settings
from lora_foundry.tasks import service
from lora_foundry.tasks.payloads import held_run, place
from lora_foundry.tasks.pipelines import PipelineRequest, retry, submit
from lora_foundry.tasks.store import TaskStore
from tests.contract.taking import admit
from tests.contract.test_remote import Machine, place_of_storage, two
from tests.contract.test_store import generation
from tests.homes import ELARA

__all__ = ["place_of_storage", "two"]  # fixtures


def picture(path: Path, colour: str) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path)
    return path.read_bytes()


async def asked(machine: Machine, url: str, **options: Any) -> TaskStore:
    store = TaskStore(url)
    await store.upgrade()
    await submit(store, machine.settings, PipelineRequest(character=ELARA, **options))
    return store


def test_own_pictures_are_there_for_the_host_that_works(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, other = two
    content = picture(one.paths.images / "holiday.png", "red")
    one.write("images/holiday.txt", "elara at the sea")

    async def scenario() -> None:
        store = await asked(one, f"sqlite:///{tmp_path / 'tasks.db'}", settings={"dataset.source": "own"})
        await store.close()

    asyncio.run(scenario())
    with other.keeper(1):
        assert (other.paths.images / "holiday.png").read_bytes() == content
        assert (other.paths.images / "holiday.txt").read_text() == "elara at the sea"
        (other.paths.images / "holiday.txt").write_text("changed there")
    with other.keeper(2):
        assert (other.paths.images / "holiday.txt").read_text() == "changed there"


def test_a_reference_picture_is_found_on_every_host_and_is_the_same_to_all(
    two: tuple[Machine, Machine], tmp_path: Path
) -> None:
    one, other = two
    content = picture(one.settings.home / "pictures" / "her.png", "blue")

    async def scenario() -> None:
        given = str(one.settings.home / "pictures" / "her.png")
        store = await asked(one, f"sqlite:///{tmp_path / 'tasks.db'}", reference_image=given)
        (row,) = await admit(store, "worker", {"gpu": 1})
        held = held_run(row.run)
        assert held is not None
        runs = [place(row.kind, row.task.payload, held, each.settings).run for each in (one, other)]
        for run, machine in zip(runs, two, strict=True):
            assert run.character.reference_image is not None
            assert run.character.reference_image.parent == machine.settings.home / "references"
            assert run.character.reference_image.read_bytes() == content
        assert fingerprint(runs[0].character) == fingerprint(runs[1].character)
        await store.close()

    asyncio.run(scenario())


def test_a_reference_that_no_storage_knows_is_refused_as_ever(two: tuple[Machine, Machine]) -> None:
    given = f"/home/somebody/references/{'a' * 24}.png"
    assert access.find_reference(two[1].settings, given) == given
    two[0].store.write(f"references/{'a' * 24}.png", b"not of that hash")
    assert access.find_reference(two[1].settings, given) == given


def lora_of(character: str, value: float) -> bytes:
    said = {"lora_foundry.character": json.dumps({"name": character})}
    return save({"weight": np.full(2, value, np.float32)}, metadata=said)


def installed(machine: Machine, content: bytes) -> None:
    """A finished run: its LoRA chosen, installed and published."""
    lora = machine.settings.loras_dir / "elara.safetensors"
    for path in (machine.paths.chosen_lora, lora):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    beside = {"metadata": lora.with_name("elara.metadata.json"), "card": lora.with_name("elara.json")}
    beside["metadata"].write_text(json.dumps({"character": ELARA.name, "file_path": str(lora)}))
    beside["card"].write_text("{}")
    made = Publication(
        published=True, verdict="published", sha256=file_hash(lora), picture_change=1.0, fingerprint="x"
    )
    text = made.model_copy(update={"lora": lora, **beside}).model_dump_json()
    machine.write("publication.json", text)


def test_a_lora_comes_to_the_host_that_asked_and_an_older_one_is_kept(two: tuple[Machine, Machine]) -> None:
    one, laptop = two
    assert not access.bring(laptop.settings, ELARA.name, 1)
    first, second, third = (lora_of(ELARA.name, value) for value in (1.0, 2.0, 3.0))
    for minute, content in enumerate((first, second), 1):
        with one.keeper(minute):
            installed(one, content)
        assert access.bring(laptop.settings, ELARA.name, 1)
        lora = laptop.settings.loras_dir / "elara.safetensors"
        assert lora.read_bytes() == content
    assert (lora.parent / "elara.v1.safetensors").read_bytes() == first
    assert json.loads((lora.parent / "elara.metadata.json").read_text())["file_path"] == str(lora)
    said = Publication.model_validate_json(laptop.paths.publication.read_bytes())
    assert said.lora == lora

    lora.write_bytes(anothers := lora_of("Somebody else", 4.0))
    with one.keeper(3):
        installed(one, third)
    assert access.bring(laptop.settings, ELARA.name, 1)
    assert lora.read_bytes() == anothers, "another character's LoRA is not touched"


def test_what_a_person_changes_where_nobody_works_reaches_the_worker(two: tuple[Machine, Machine]) -> None:
    one, laptop = two
    with one.keeper(1):
        one.write("images/elara_001.txt", "drawn")
        one.write("images/elara_002.txt", "drawn")
        one.write("training/checkpoints/step-4.json", "{}")
    assert access.bring(laptop.settings, ELARA.name, 1)
    assert sorted(laptop.files()) == ["images/elara_001.txt", "images/elara_002.txt"]
    laptop.write("images/elara_001.txt", "a person's")
    (laptop.paths.images / "elara_002.txt").unlink()
    laptop.write("exclusions.json", "{}")
    access.store_changes(laptop.settings, ELARA.name, 1)
    with one.keeper(2):
        assert one.files() == {
            "images/elara_001.txt": "a person's",
            "exclusions.json": "{}",
            "training/checkpoints/step-4.json": "{}",
        }


def test_what_was_deleted_stays_so_until_it_is_put_back_and_is_cleared_away_later(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, laptop = two
    with one.keeper(1):
        one.write("images/elara_001.txt", "drawn")
        one.write("training/checkpoints/step-4.json", "4")
    with one.keeper(2):
        (one.paths.root / "training/checkpoints/step-4.json").unlink()
    access.mark_deleted(one.settings, ELARA.name, 1)
    assert not access.bring(laptop.settings, ELARA.name, 1)
    access.mark_deleted(one.settings, ELARA.name, 1, deleted=False)
    assert access.bring(laptop.settings, ELARA.name, 1)
    assert laptop.files() == {"images/elara_001.txt": "drawn"}

    drawn, old = (hashlib.sha256(text).hexdigest() for text in (b"drawn", b"4"))
    assert access.clean(one.store) == (0, 0), "an attempt at work may not have named its contents yet"
    monkeypatch.setattr(access, "UNUSED", timedelta(0))
    for minute in range(3, 6):  # until no manifest that readers may hold names the old checkpoint
        with one.keeper(minute):
            pass
    assert access.clean(one.store)[1] == 1
    assert drawn in one.store.blobs()
    assert old not in one.store.blobs()
    access.mark_deleted(one.settings, ELARA.name, 1)
    monkeypatch.setattr(access, "DELETED", timedelta(0))
    for _ in range(2):
        access.clean(one.store)
    chain = version_chain(one.store, ELARA.name, 1)
    newest = chain.newest()
    assert newest is None or newest.number > 0


def test_a_retry_stores_what_was_changed_here_first(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, laptop = two
    with one.keeper(1):
        one.write("images/elara_001.txt", "drawn")

    async def scenario() -> None:
        store = await asked(laptop, f"sqlite:///{tmp_path / 'tasks.db'}")
        rows = await store.recent()
        assert access.bring(laptop.settings, ELARA.name, 1)
        laptop.write("images/elara_001.txt", "a person's")
        await store.cancel(*(row.id or 0 for row in rows))
        await retry(store, laptop.settings, rows[0].pipeline or "")
        await store.close()

    asyncio.run(scenario())
    with one.keeper(2):
        assert one.files() == {"images/elara_001.txt": "a person's"}


def test_nothing_is_asked_of_a_storage_that_is_not_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a storage was opened")

    monkeypatch.setattr(ObjectStore, "__init__", refuse)
    settings, paths = Settings(home=home), RunPaths(home / "datasets" / "Elara", "elara")
    access.give(settings, paths)
    access.store_changes(settings, "Elara", 1)
    access.mark_deleted(settings, "Elara", 1)
    assert access.share_reference(settings, "x.png") == "x.png"
    assert access.find_reference(settings, "x.png") == "x.png"
    assert access.newest_version(settings, paths.root) == 1
    assert not access.bring(settings, "Elara", 1)
    assert not [found for found in examine(settings, load_recipe("mini")) if "storage" in found.subject]


def test_doctor_tries_the_storage_and_finds_a_server_that_overwrites(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = two[0].settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:9/none"})

    def found() -> tuple[bool, str]:
        (line,) = (each for each in examine(settings, load_recipe("mini")) if each.subject == "storage")
        return line.ok, line.found + line.fix

    assert found() == (True, found()[1])
    assert not two[0].store.keys("doctor/"), "nothing is left"

    def overwrites(self: ObjectStore, key: str, data: bytes) -> bool:
        self.write(key, data)
        return True

    monkeypatch.setattr(ObjectStore, "create", overwrites)
    ok, words = found()
    assert not ok
    assert "If-None-Match" in words
    monkeypatch.setattr("lora_foundry.remote.objects.SCHEMES", ("s3",))
    ok, words = found()
    assert not ok
    assert "LORA_FOUNDRY_STORAGE" in words


def test_a_worker_ends_when_nothing_has_waited_for_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        store = TaskStore(f"sqlite:///{tmp_path / 'tasks.db'}")
        await store.upgrade()
        await store.add(generation("waits"))
        (row,) = await admit(store, "worker", {"gpu": 1})
        stop = asyncio.Event()
        watch = asyncio.create_task(service._end_when_idle(store, 0.2, stop))
        await asyncio.sleep(0.8)
        assert not stop.is_set(), "a task runs"
        await store.complete(row.task.id or 0, row.lease, {})
        await asyncio.wait_for(stop.wait(), 30)
        await watch
        await store.close()

    asyncio.run(scenario())


def test_the_command_says_what_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_foundry.cli import storage as commands

    monkeypatch.delenv("LORA_FOUNDRY_STORAGE", raising=False)
    with pytest.raises(InputError, match="No storage is set"):
        commands.clean(home=home)
