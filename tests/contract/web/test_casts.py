"""A cast by way of the REST API: started from words, a picture and own pictures, and each member's set by itself."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from lora_foundry.domain.run import MEMBERS
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_model
from lora_foundry.settings import Settings
from lora_foundry.tasks.payloads import prepare
from tests.contract.web.conftest import paint_set
from tests.contract.web.test_uploads import files, picture_bytes
from tests.painted import tree

WORDS = {"name": "Elara", "description": "1girl, brown hair, red dress"}
KAI = {"name": "Kai", "description": "1boy, white hair, blue hoodie"}


def cast(*members: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "Trio", "recipe": "mini", "members": list(members), **more}


def sent(client: TestClient, *named: tuple[str, bytes]) -> str:
    return str(client.post("/api/v1/uploads", files=files(*named)).json()["id"])


def test_a_cast_begins_with_words_a_picture_and_own_pictures(client: TestClient, settings: Settings) -> None:
    reference = client.post("/api/v1/references", files={"file": ("kai.png", picture_bytes(1))}).json()[
        "name"
    ]
    upload = sent(client, ("zo.png", picture_bytes(2)), ("zo.txt", b"zo, smiling"))
    made = client.post(
        "/api/v1/pipelines",
        json=cast(WORDS, KAI | {"reference": reference}, {"name": "Zo", "trigger": "zozo", "upload": upload}),
    )
    assert made.status_code == 201, made.text
    assert made.json()["members"] == ["Elara", "Kai", "Zo"]
    task = client.get(f"/api/v1/tasks/{made.json()['stages'][0]['task_id']}").json()
    run = prepare("stage", task["payload"], settings).run
    assert run.triggers == ("elara", "kai", "zozo")
    assert [each.source for each in run.member_runs] == ["described", "reference", "own"]
    images = settings.datasets_dir / "Trio" / MEMBERS / "Zo" / "images"
    assert {path.name for path in images.iterdir()} == {"zo.png", "zo.txt"}
    assert client.get(f"/api/v1/uploads/{upload}").status_code == 404

    address = f"/api/v1/pipelines/{made.json()['id']}"
    shown = client.get(f"{address}/dataset").json()["images"]
    assert [(each["member"], each["file"], each["caption"]) for each in shown] == [
        ("Zo", "zo.png", "zo, smiling")
    ]
    assert client.get(shown[0]["url"]).content == picture_bytes(2)
    assert client.get(client.get(address).json()["thumbnail"]).status_code == 200


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (cast(WORDS), "2 to 6 characters"),
        (cast(WORDS, WORDS), "Two characters of the cast"),
        (cast(WORDS, {"name": "Kai"}), "Kai has neither a description"),
        (cast(WORDS, KAI | {"trigger": "elara"}), "set other triggers"),
        (cast(WORDS, KAI, description="1girl"), "say description of a member"),
        (cast(WORDS, KAI, reference="x.png", tags=["a"]), "say tags, reference of a member"),
        (cast(WORDS, {"name": "..", "description": "1boy"}), "name"),
    ],
)
def test_what_is_no_cast_is_refused_in_a_sentence(
    client: TestClient, settings: Settings, asked: dict[str, Any], said: str
) -> None:
    refused = client.post("/api/v1/pipelines", json=asked)
    assert refused.status_code == 422
    assert said in refused.json()["detail"]
    assert client.get("/api/v1/pipelines").json()["total"] == 0
    assert not list(settings.datasets_dir.glob("*"))


@pytest.fixture
def trio(client: TestClient, settings: Settings) -> str:
    """A cast whose sets are there: its address."""
    made = client.post("/api/v1/pipelines", json=cast(WORDS, KAI)).json()
    task = client.get(f"/api/v1/tasks/{made['stages'][0]['task_id']}").json()
    run = prepare("stage", task["payload"], settings).run
    for member in ("Elara", "Kai"):
        painted = paint_set(settings, name=member)
        target = run.dataset_dir / MEMBERS / member
        target.parent.mkdir(parents=True, exist_ok=True)
        painted.root.rename(target)
        RunPaths(target, "").run_file.unlink()  # the cast's is the one of all
    write_model(RunPaths(run.dataset_dir, "").run_file, run)
    return f"/api/v1/pipelines/{made['id']}"


def folder(settings: Settings, member: str) -> RunPaths:
    return RunPaths(settings.datasets_dir / "Trio" / MEMBERS / member, member.lower())


def test_each_member_has_a_set_of_its_own(client: TestClient, settings: Settings, trio: str) -> None:
    everything = client.get(f"{trio}/dataset").json()
    assert {each["member"] for each in everything["images"]} == {"Elara", "Kai"}
    kai = client.get(f"{trio}/dataset", params={"member": "Kai"}).json()
    assert {each["member"] for each in kai["images"]} == {"Kai"}
    assert everything["counts"]["included"] == 2 * kai["counts"]["included"]
    assert "kai" in {each["tag"] for each in kai["tags"]}
    assert kai["near_duplicates"]
    for each in everything["images"]:
        assert client.get(each["url"]).status_code == client.get(each["thumbnail"]).status_code == 200

    before = tree(folder(settings, "Elara").root)
    changed = client.post(f"{trio}/dataset/tags", params={"member": "Kai"}, json={"add": ["forest"]})
    assert changed.json()["changed"] == kai["counts"]["included"]
    assert client.get(f"{trio}/dataset", params={"member": "Kai"}).json()["undo"] == "added forest"
    assert client.get(f"{trio}/dataset", params={"member": "Elara"}).json()["undo"] is None
    assert tree(folder(settings, "Elara").root) == before
    trigger = client.post(f"{trio}/dataset/tags", params={"member": "Kai"}, json={"remove": ["kai"]})
    assert trigger.status_code == 422
    assert client.post(f"{trio}/dataset/undo", params={"member": "Kai"}).json()["words"] == "added forest"


def test_each_character_of_a_cast_is_used_by_its_own_word(
    client: TestClient, settings: Settings, trio: str
) -> None:
    lora = RunPaths(settings.datasets_dir / "Trio", "trio").trained_lora
    lora.parent.mkdir(parents=True, exist_ok=True)
    lora.write_bytes(b"weights")
    said = client.get(f"{trio}/use").json()
    assert said["trigger"] == "elara, kai"
    assert [(each["name"], each["trigger"]) for each in said["characters"]] == [
        ("Elara", "elara"),
        ("Kai", "kai"),
    ]
    for each in said["characters"]:
        assert each["prompt"].startswith(f"{each['trigger']}, ")
        assert each["prompt"] in each["diffusers"]
    assert said["prompt"] == said["characters"][0]["prompt"]


def test_a_change_without_a_member_and_an_unknown_one_are_refused(client: TestClient, trio: str) -> None:
    refused = client.post(f"{trio}/dataset/tags", json={"add": ["forest"]})
    assert refused.status_code == 422
    assert "say with `member` whose set: Elara, Kai" in refused.json()["detail"]
    for member in ("Nyx", "..", "Kai/../Elara"):
        assert client.get(f"{trio}/dataset", params={"member": member}).status_code == 404


def test_the_sets_of_a_cast_go_to_the_bin_together_and_come_back(
    client: TestClient, settings: Settings, trio: str
) -> None:
    before = {member: tree(folder(settings, member).images) for member in ("Elara", "Kai")}
    client.post(f"{trio}/cancel")
    entry = client.delete(f"{trio}/dataset").json()
    assert not any(folder(settings, member).images.exists() for member in before)
    assert client.post(f"/api/v1/bin/{entry['id']}/restore").status_code == 200
    assert {member: tree(folder(settings, member).images) for member in before} == before
