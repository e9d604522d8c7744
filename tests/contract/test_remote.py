"""Hosts that share a storage and no folder: every content lies there once, a folder's manifest changes in one step, and no
attempt whose time is over writes to it. On a real S3 server where the protocol matters, on a folder elsewhere."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lora_foundry.domain.run import Run
from lora_foundry.errors import BackendError, FoundryError, InputError, StorageError, TakenOverError
from lora_foundry.files.paths import RunPaths
from lora_foundry.recipe_files import load_recipe
from lora_foundry.remote import keeper as keeping
from lora_foundry.remote.keeper import Keeper, RunStorage
from lora_foundry.remote.manifests import Chain, Fence, Manifest
from lora_foundry.remote.objects import IN_MEMORY, Blob, ObjectStore, blob_key
from lora_foundry.settings import Settings
from tests.contract.storage_server import StorageServer, environment, served
from tests.homes import ELARA

SHORT = timedelta(seconds=1)


@pytest.fixture(scope="session")
def s3() -> Iterator[StorageServer]:
    with served() as server:
        yield server


@pytest.fixture
def in_s3(s3: StorageServer) -> Iterator[StorageServer]:
    with environment(s3.environment):
        yield s3


@pytest.fixture
def place_of_storage(tmp_path: Path) -> str:
    """A storage in a folder: the same library, without a server."""
    (tmp_path / "storage").mkdir()
    return (tmp_path / "storage").as_uri()


class Machine:
    """A host with a home of its own."""

    def __init__(self, home: Path, place: str) -> None:
        self.settings = Settings(home=home, storage=place)
        self.store = ObjectStore(place)

    def run(self, version: int = 1) -> Run:
        return Run(
            character=ELARA,
            recipe=load_recipe("mini"),
            dataset_dir=self.settings.datasets_dir / ELARA.name,
            lora_dir=self.settings.loras_dir,
            output_name="elara",
            version=version,
        )

    def storage(self, version: int = 1) -> RunStorage:
        self.paths.root.mkdir(parents=True, exist_ok=True)
        return RunStorage(self.store, self.run(version), self.settings)

    def keeper(self, minute: int, version: int = 1) -> Keeper:
        at = datetime(2026, 1, 1, 12, minute, tzinfo=UTC)
        return Keeper(self.storage(version), Fence(at=at, lease=f"task-{minute}"))

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.settings.datasets_dir / ELARA.name, ELARA.slug)

    def write(self, path: str, text: str) -> Path:
        target = self.paths.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def files(self) -> dict[str, str]:
        hidden = {".lock", ".stored.json", "run.json"}
        found = (path for path in self.paths.root.rglob("*") if path.is_file() and path.name not in hidden)
        return {path.relative_to(self.paths.root).as_posix(): path.read_text() for path in found}


@pytest.fixture
def two(tmp_path: Path, place_of_storage: str) -> tuple[Machine, Machine]:
    return Machine(tmp_path / "one", place_of_storage), Machine(tmp_path / "other", place_of_storage)


# The store -------------------------------------------------------------------------------------------------------


def test_a_content_is_sent_once_and_comes_back_whole(in_s3: StorageServer, tmp_path: Path) -> None:
    store = ObjectStore("s3://tests/contents")
    small, twin, large = (tmp_path / name for name in ("small", "twin", "large"))
    small.write_bytes(b"elara")
    twin.write_bytes(b"elara")
    large.write_bytes(os.urandom(IN_MEMORY + 1))
    blobs = [store.put_file(path) for path in (small, twin, large, large)]
    assert store.traffic.stored_files == 2
    assert store.traffic.stored_bytes == 5 + IN_MEMORY + 1
    assert blobs[0] == blobs[1]
    store.get_file(blobs[2], tmp_path / "deep" / "back")
    assert (tmp_path / "deep" / "back").read_bytes() == large.read_bytes()
    assert store.blobs().keys() == {blobs[0].sha256, blobs[2].sha256}


def test_of_many_who_write_an_object_one_succeeds(in_s3: StorageServer) -> None:
    store = ObjectStore("s3://tests/race")
    won: list[int] = []

    def write(number: int) -> None:
        if store.create("manifest", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("manifest") == str(won[0]).encode()
    assert store.read("nothing") is None


def test_what_goes_wrong_is_one_sentence_that_says_what_to_do(in_s3: StorageServer) -> None:
    def said(address: str, kind: type[FoundryError], **variables: str) -> str:
        with environment(variables), pytest.raises(kind) as caught:
            ObjectStore(address, patience=SHORT).write("x", b"x")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "credentials" in said("s3://tests/x", StorageError, AWS_SECRET_ACCESS_KEY="another")
    assert "does not answer" in said("s3://tests/x", BackendError, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    with pytest.raises(StorageError, match="no bucket at s3://there-is-none"):
        ObjectStore("s3://there-is-none").keys("runs/")
    for wrong in ("bucket/prefix", "ftp://bucket", "s3://", "s3://key:secret@bucket"):
        with pytest.raises(InputError, match="LORA_FOUNDRY_STORAGE"):
            ObjectStore(wrong)


def test_what_was_damaged_there_is_not_taken_for_the_file(place_of_storage: str, tmp_path: Path) -> None:
    store = ObjectStore(place_of_storage)
    (tmp_path / "file").write_bytes(b"elara")
    blob = store.put_file(tmp_path / "file")
    store.write(blob_key(blob.sha256), b"another")
    with pytest.raises(StorageError, match="damaged"):
        store.get_file(blob, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    absent = Blob(sha256=hashlib.sha256(b"nobody").hexdigest(), size=6)
    with pytest.raises(StorageError, match="no longer holds"):
        store.get_file(absent, tmp_path / "back")


def test_a_chain_s_next_number_is_written_once_and_old_ones_are_cleared_away(in_s3: StorageServer) -> None:
    store = ObjectStore("s3://tests/chain")
    chain = Chain(store, "Zoë van Dijk's", "00001")
    assert chain.newest() is None
    for number in range(1, 6):
        assert chain.append(Manifest(number=number))
        assert not chain.append(Manifest(number=number, deleted=True))
    newest = chain.newest()
    assert newest is not None
    assert (newest.number, newest.deleted) == (5, False)
    assert len(store.keys(chain.prefix)) == 3


# Two hosts -------------------------------------------------------------------------------------------------------


def test_another_host_goes_on_with_what_was_stored(two: tuple[Machine, Machine]) -> None:
    one, other = two
    with one.keeper(1):
        one.write("images/elara_001.png", "first")
        one.write("training/cache/latents.safetensors", "is made again")
        one.write("images/.elara_002.123.part.png", "half")
        one.write("training/recording", "")  # of a death by this host's GPU
    with other.keeper(2):
        assert other.files() == {"images/elara_001.png": "first"}
        other.write("images/elara_002.png", "second")
        (other.paths.root / "images/elara_001.png").unlink()
    with one.keeper(3) as kept:
        files = one.files()
        assert files.pop("training/cache/latents.safetensors") == "is made again"
        files.pop("images/.elara_002.123.part.png", None)
        assert "training/recording" in files
        del files["training/recording"]
        assert files == {"images/elara_002.png": "second"}
        assert kept.traffic.fetched_files == 1


def test_what_a_stage_made_is_stored_while_it_works(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "EVERY", 0.0)
    one, other = two
    dying = one.keeper(1)
    dying.__enter__()
    one.write("training/checkpoints/step-4.json", "4")
    dying.look()
    assert dying._storing is not None
    dying._storing.join()
    one.write("training/checkpoints/step-8.json", "8")  # the host dies before the next look
    with other.keeper(2):
        assert other.files() == {"training/checkpoints/step-4.json": "4"}


def test_an_attempt_that_was_taken_over_writes_nothing_more(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "EVERY", 0.0)
    one, other = two
    frozen = one.keeper(1)
    frozen.__enter__()
    with other.keeper(2):
        other.write("curation.json", "the later one's")
        one.write("curation.json", "the frozen one's")
        frozen.look()
        assert frozen._storing is not None
        frozen._storing.join()
        with pytest.raises(TakenOverError, match="begun this stage anew"):
            frozen.look()
    with pytest.raises(TakenOverError):
        frozen.__exit__(None, None, None)
    late = one.keeper(1)  # woken before its first look
    with pytest.raises(TakenOverError):
        late.__enter__()
    newest = other.storage().chain.newest()
    assert newest is not None
    assert newest.files["curation.json"].sha256 == hashlib.sha256(b"the later one's").hexdigest()
    with one.keeper(3):
        assert one.files() == {"curation.json": "the later one's"}, "what was not stored is gone"


def test_a_person_s_change_during_a_stage_is_kept_beside_its_own(two: tuple[Machine, Machine]) -> None:
    one, other = two
    with one.keeper(1):
        one.write("images/elara_001.txt", "drawn")
        one.write("images/elara_002.txt", "drawn")
    with one.keeper(2):
        storage = other.storage()
        folder = storage.folder()
        newest = storage.chain.newest()
        assert newest is not None
        folder.fetch(newest, storage.places, keep=lambda path: True)
        other.write("images/elara_001.txt", "a person's")
        storage.write(folder, folder.upload(folder.snapshot()), None)
        one.write("images/elara_002.txt", "the stage's")
    with other.keeper(3):
        assert other.files() == {
            "images/elara_001.txt": "a person's",
            "images/elara_002.txt": "the stage's",
        }


def test_a_new_version_begins_with_what_the_one_before_left(two: tuple[Machine, Machine]) -> None:
    one, other = two
    with one.keeper(1):
        one.write("images/elara_001.png", "first")
    with other.keeper(2, version=2):
        assert other.files() == {
            "images/elara_001.png": "first",
            "versions/01/images/elara_001.png": "first",
        }
        other.write("images/elara_001.png", "second")
    with one.keeper(3, version=2):
        assert one.files() == {
            "images/elara_001.png": "second",
            "versions/01/images/elara_001.png": "first",
        }
    first = one.storage().chain.newest()
    assert first is not None
    assert first.files["images/elara_001.png"].sha256 == hashlib.sha256(b"first").hexdigest()


def test_paths_in_result_files_lead_to_this_host_s_folders(two: tuple[Machine, Machine]) -> None:
    one, other = two
    with one.keeper(1):
        place = one.paths.saved_loras / "step-4.safetensors"
        one.write("training/result.json", f'{{"path": "{place}", "lora": "{one.settings.loras_dir}/x"}}')
    with other.keeper(2) as kept:
        text = other.files()["training/result.json"]
        assert str(other.paths.saved_loras / "step-4.safetensors") in text
        assert str(other.settings.loras_dir / "x") in text
        assert str(one.settings.home) not in text
    assert kept.traffic.stored_files == 0, "the same file with other folders in it is no change"
    with one.keeper(3) as back:
        assert str(one.paths.saved_loras) in one.files()["training/result.json"]
    assert back.traffic.fetched_files == 0


def test_the_end_of_a_stage_waits_for_a_storage_that_is_away_and_then_says_so(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "PATIENCE", 0.2)
    monkeypatch.setattr(keeping, "PAUSE", 0.0)
    one, other = two

    def fail(path: Path) -> Blob:
        raise BackendError("The storage does not answer.")

    kept = one.keeper(1)
    kept.__enter__()
    monkeypatch.setattr(one.store, "put_file", fail)
    one.write("curation.json", "made")
    with pytest.raises(BackendError, match=r"waited 0 s.*is stored when the task is tried again"):
        kept.__exit__(None, None, None)
    monkeypatch.undo()
    with one.keeper(2):
        pass  # the same host tries again, and has it all
    with other.keeper(3):
        assert other.files() == {"curation.json": "made"}


def test_a_full_disk_here_is_said_as_such(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    with one.keeper(1):
        one.write("images/elara_001.png", "first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="is full"):
        other.keeper(2).__enter__()
