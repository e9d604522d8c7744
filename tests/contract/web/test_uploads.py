"""Own pictures by way of the REST API: sent in parts, named by a pipeline, copied into its set."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from tempfile import gettempdir

import pytest
from starlette.testclient import TestClient

from lora_foundry.files import importing, storage
from lora_foundry.files.locks import FolderLock
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import DiskSpace, make_folder
from lora_foundry.settings import Settings
from lora_foundry.web import uploads
from tests.contract.web.conftest import paint_set
from tests.painted import paint, tree


def picture_bytes(seed: int) -> bytes:
    out = io.BytesIO()
    paint(seed, (64, 64)).save(out, "PNG")
    return out.getvalue()


Files = list[tuple[str, tuple[str, bytes]]]


def files(*named: tuple[str, bytes]) -> Files:
    return [("files", (name, data)) for name, data in named]


def zipped(**named: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in named.items():
            archive.writestr(f"{name}.png", data)
    return out.getvalue()


def test_pictures_are_sent_in_parts_and_become_a_pipelines_set(
    client: TestClient, settings: Settings
) -> None:
    first = client.post("/api/v1/uploads", files=files(
        ("front.png", picture_bytes(1)), ("front.txt", b"elara, smiling"), ("10_side/left.png", picture_bytes(2)),
        (".DS_Store", b"x"), ("photo.cr2", b"no picture"),
    ))  # fmt: skip
    assert first.status_code == 201, first.text
    upload = first.json()["id"]
    assert first.json()["pictures"] == 2
    assert [each["name"] for each in first.json()["left_out"]] == ["photo.cr2"]
    more = client.post("/api/v1/uploads", data={"upload": upload},
                       files=files(("more.zip", zipped(back=picture_bytes(3)))))  # fmt: skip
    assert (more.json()["id"], more.json()["pictures"], more.json()["zips"]) == (upload, 2, 1)

    made = client.post("/api/v1/pipelines", json={"name": "Elara", "recipe": "mini", "upload": upload})
    assert made.status_code == 201, made.text
    images = settings.datasets_dir / "Elara" / "images"
    found = sorted(str(path.relative_to(images)) for path in images.rglob("*") if path.is_file())
    assert found == ["10_side/left.png", "back.png", "front.png", "front.txt"]
    assert (images / "front.png").read_bytes() == picture_bytes(1)

    again = client.post("/api/v1/pipelines", json={"name": "Nyx", "recipe": "mini", "upload": upload})
    assert again.status_code == 404
    assert "send them again" in again.json()["detail"]


def test_what_was_sent_is_kept_until_a_pipeline_has_it(client: TestClient, settings: Settings) -> None:
    upload = client.post("/api/v1/uploads", files=files(("a.png", picture_bytes(1)))).json()["id"]
    asked = {"name": "Elara", "recipe": "mini", "upload": upload}
    paths = RunPaths(settings.datasets_dir / "Elara", "elara")
    make_folder(paths.root)
    with FolderLock(paths.lock):
        assert client.post("/api/v1/pipelines", json=asked).status_code == 422
    assert client.post("/api/v1/pipelines", json=asked).status_code == 201
    assert [path.name for path in paths.images.iterdir()] == ["a.png"]


def test_pictures_that_were_sent_one_by_one_come_beside_an_upload(
    client: TestClient, settings: Settings
) -> None:
    one = client.post("/api/v1/references", files={"file": ("a.png", picture_bytes(1))}).json()["name"]
    upload = client.post("/api/v1/uploads", files=files(("a.png", picture_bytes(2)))).json()["id"]
    asked = {"name": "Elara", "recipe": "mini", "upload": upload, "pictures": [one, one]}
    made = client.post("/api/v1/pipelines", json=asked)
    assert made.status_code == 201, made.text
    images = settings.datasets_dir / "Elara" / "images"
    assert {path.name for path in images.iterdir()} == {"a.png", one}
    problem = client.post(
        "/api/v1/pipelines", json=asked | {"name": "Nyx", "upload": None, "pictures": ["no.png"]}
    )
    assert problem.status_code == 404


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "a\0b.png"]
)
def test_no_name_leads_out_of_the_upload(client: TestClient, settings: Settings, name: str) -> None:
    before = set(Path(settings.home).rglob("*evil*"))
    answer = client.post("/api/v1/uploads", files=files((name, picture_bytes(1))))
    assert answer.status_code in (201, 400, 422)
    outside = [
        path for path in Path(settings.home).rglob("*evil*") if settings.home / "uploads" not in path.parents
    ]
    assert set(outside) <= before


def test_an_upload_without_pictures_starts_nothing(client: TestClient) -> None:
    upload = client.post("/api/v1/uploads", files=files(("only.txt", b"words"))).json()["id"]
    made = client.post("/api/v1/pipelines", json={"name": "Elara", "recipe": "mini", "upload": upload})
    assert made.status_code == 422, made.text
    assert client.get("/api/v1/pipelines").json()["total"] == 0
    assert client.delete(f"/api/v1/uploads/{upload}").status_code == 204
    assert client.get(f"/api/v1/uploads/{upload}").status_code == 404


def test_an_earlier_version_is_kept_without_the_pictures_of_the_next(
    client: TestClient, settings: Settings
) -> None:
    paths = paint_set(settings)
    before = tree(paths.images)
    upload = client.post("/api/v1/uploads", files=files(("new.png", picture_bytes(1)))).json()["id"]
    asked = {"name": "Elara", "recipe": "mini"}
    made = client.post("/api/v1/pipelines", json=asked | {"upload": upload})
    assert made.status_code == 201, made.text
    assert [stage["label"] for stage in made.json()["stages"]][:2] == ["import", "curate"]
    assert tree(paths.version(1) / "images") == before
    assert (paths.images / "new.png").is_file()

    other = client.post("/api/v1/uploads", files=files(("other.png", picture_bytes(2)))).json()["id"]
    refused = client.post("/api/v1/pipelines", json=asked | {"upload": other})
    assert refused.status_code == 409
    assert "waits to begin" in refused.json()["detail"]
    assert not (paths.images / "other.png").exists()
    client.post(f"/api/v1/pipelines/{made.json()['id']}/cancel")
    assert client.post("/api/v1/pipelines", json=asked | {"upload": other}).status_code == 201


def test_what_is_only_called_a_picture_is_told_before_the_run(client: TestClient) -> None:
    sent = files(("a.png", picture_bytes(1)), ("b.png", b"<html>"), ("c.png", picture_bytes(2)[:12]))
    looked = client.post("/api/v1/uploads", files=sent).json()
    assert looked["pictures"] == 1
    assert [each["name"] for each in looked["left_out"]] == ["b.png", "c.png"]
    assert all("/" not in each["reason"] for each in looked["left_out"])


def test_what_is_no_picture_is_told_but_for_zip_files_which_are_opened(client: TestClient) -> None:
    sent = files(("in/a.png", picture_bytes(1)), ("in/a.txt", b"words"), ("in/b.zip", zipped(b=picture_bytes(2))),
                 ("in/notes.docx", b"x"), ("in/Thumbs.db", b"x"))  # fmt: skip
    looked = client.post("/api/v1/uploads", files=sent).json()
    assert looked["left_out"] == [{"name": "in/notes.docx", "reason": "it is no picture"}]
    assert looked["zips"] == 1


def refused_at_the_start(client: TestClient, sent: Files) -> str:
    upload = client.post("/api/v1/uploads", files=sent).json()["id"]
    made = client.post("/api/v1/pipelines", json={"name": "Elara", "recipe": "mini", "upload": upload})
    assert made.status_code in (422, 507), made.text
    return str(made.json()["detail"])


@pytest.mark.parametrize(
    "sent",
    [
        files(("a.zip", b"PK broken")),
        files(("a.zip", zipped(**{"../../evil": picture_bytes(1)}))),
        files(("a.zip", zipped()[:-4] + b"\0\0\0\0")),
        files(("only.txt", b"words")),
    ],
)
def test_a_refusal_names_what_was_sent_and_no_place_of_the_server(
    client: TestClient, settings: Settings, sent: Files
) -> None:
    said = refused_at_the_start(client, sent)
    assert str(settings.home) not in said
    assert gettempdir() not in said


def test_what_has_no_room_is_told_before_it_is_written(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = files(("a.zip", zipped(a=picture_bytes(1), b=picture_bytes(2))))
    upload = client.post("/api/v1/uploads", files=sent).json()["id"]
    asked = {"name": "Elara", "recipe": "mini", "upload": upload}
    monkeypatch.setattr(importing, "MOST_BYTES", 10)
    assert "a.zip unpacks to" in client.post("/api/v1/pipelines", json=asked).json()["detail"]
    monkeypatch.undo()
    monkeypatch.setattr(storage, "disk_space", lambda folder: DiskSpace(10**12, 10**12 - 100, 100))
    refused = client.post("/api/v1/pipelines", json=asked)
    assert refused.status_code == 507
    assert "0.0 GB are free" in refused.json()["detail"]
    assert client.post("/api/v1/uploads", files=sent).status_code == 507
    monkeypatch.undo()
    assert not list((settings.datasets_dir / "Elara" / "images").iterdir())
    assert len(list((settings.home / "uploads").iterdir())) == 1
    monkeypatch.setattr(uploads, "MOST_BYTES", 10)
    assert client.post("/api/v1/uploads", files=sent).status_code == 422


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["d"] * 100)])
def test_a_name_in_a_zip_that_no_file_system_takes_is_refused_in_a_sentence(
    client: TestClient, name: str
) -> None:
    upload = client.post("/api/v1/uploads", files=files(("a.zip", zipped(**{name: picture_bytes(1)}))))
    asked = {"name": "Elara", "recipe": "mini", "upload": upload.json()["id"]}
    refused = client.post("/api/v1/pipelines", json=asked)
    assert refused.status_code == 422
    assert "too long for a file system" in refused.json()["detail"]
