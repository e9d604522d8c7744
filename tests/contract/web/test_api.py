"""The API as a client sees it, on a real table and real files."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from lora_foundry.backends.plan_captions import PlanCaptioner
from lora_foundry.domain.curation import CurationResult, Measures, Verdict
from lora_foundry.domain.dataset import TaggingResults
from lora_foundry.domain.evaluation import Scores
from lora_foundry.domain.exclusion import Exclusions
from lora_foundry.domain.publication import LoraCard, Publication
from lora_foundry.domain.run import Run
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, require_model, write_model, write_text
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.stages.caption import step as caption
from lora_foundry.stages.train.step import collect_images
from lora_foundry.web.app import create_app
from tests.contract.test_store import execute
from tests.contract.web.conftest import ELARA, IMAGES, paint_set

HOSTILE = '<img src=x onerror="alert(1)">'
TOKEN = "a-token-of-this-test"


def problem(answer: Any, status: int) -> str:
    """The detail of a problem, which must be one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    return str(answer.json()["detail"])


# Recipes and plans ------------------------------------------------------------------------------------------------


def test_a_recipe_has_every_field_with_its_help(client: TestClient) -> None:
    from lora_foundry.domain.recipe import field_paths

    recipe = client.get("/api/v1/recipes/mini").json()
    fields = {each["path"]: each for section in recipe["sections"] for each in section["fields"]}
    assert set(fields) == set(field_paths()) - {"name", "description"}
    assert all(each["description"] for each in fields.values())
    rank = fields["train.rank"]
    assert (rank["type"], rank["minimum"], rank["maximum"], rank["default"]) == ("integer", 1, 1024, 32)
    assert fields["generate.reference_method"]["choices"][0] == "img2img"
    assert fields["train.targets"]["type"] == "choices"
    assert problem(client.get("/api/v1/recipes/nope"), 404)


def test_a_plan_shows_every_shot_and_writes_nothing(client: TestClient, settings: Settings) -> None:
    before = sorted(settings.home.rglob("*"))
    plan = client.post("/api/v1/plan", json=ELARA | {"settings": ["generate.images=7"], "seed": 3}).json()
    assert len(plan["shots"]) == 7
    assert plan["shots"][0]["file"] == "elara_001.png"
    assert len({shot["seed"] for shot in plan["shots"]}) == 7
    assert all("brown hair" in shot["prompt"] for shot in plan["shots"])
    assert sorted(settings.home.rglob("*")) == before


@pytest.mark.parametrize("change", [
    {"name": "../etc"}, {"name": ""}, {"description": " "}, {"settings": ["train.rank"]}, {"settings": ["train.rnk=8"]},
    {"settings": ["train.rank=no"]}, {"recipe": "/etc/passwd"}, {"recipe": "../mini"}, {"recipe": "none"}, {"seed": -1},
    {"settings": ["model.base=/etc/passwd"]}, {"settings": ["generate.workflow=/etc/passwd"]}, {"unknown": 1},
    {"settings": ["model.base=../../etc/passwd"]}, {"name": "a\0b"}, {"trigger": "a, b"}, {"output_name": "../x"},
    {"reference": "../../secret.png"}, {"reference": "none.png"},
], ids=str)  # fmt: skip
def test_what_no_worker_could_run_is_refused_and_leaves_nothing(
    client: TestClient, change: dict[str, object]
) -> None:
    answer = client.post("/api/v1/pipelines", json=ELARA | change)
    assert answer.status_code in (404, 422), answer.text
    assert answer.json()["detail"]
    assert client.get("/api/v1/tasks").json()["tasks"] == []


# Pipelines and tasks ----------------------------------------------------------------------------------------------


def test_a_pipeline_is_started_read_cancelled_and_done_again(client: TestClient) -> None:
    made = client.post("/api/v1/pipelines", json=ELARA | {"settings": ["train.rank=8"]})
    assert made.status_code == 201
    where = made.headers["location"]
    run = client.get(where).json()
    assert (run["status"], run["stage"], len(run["stages"])) == ("pending", "generate", 6)
    assert run["settings"] == {"train": {"rank": 8}}
    assert client.post(f"{where}/cancel").json()["status"] == "cancelled"
    again = client.post(f"{where}/retry", json={"settings": ["train.rank=4"]}).json()
    assert again["status"] == "pending"
    assert again["settings"] == {"train": {"rank": 4}}
    assert problem(client.post(f"{where}/retry", json={"settings": ["train.rnk=4"]}), 422)
    assert problem(client.post(f"{where}/retry", json={"from_stage": "dance"}), 422)
    assert problem(client.get("/api/v1/pipelines/none"), 404)


def test_a_trigger_that_the_base_knows_already_is_warned_of(client: TestClient) -> None:
    made = client.post("/api/v1/pipelines", json=ELARA | {"trigger": "girl"})
    assert made.status_code == 201, "no reason to refuse it"
    shown = client.get(made.headers["location"]).json()
    assert shown["trigger"] == "girl", "told before a worker began"
    assert "would change every girl" in shown["cautions"][0]


def test_a_recipe_for_own_pictures_is_refused_without_any(client: TestClient) -> None:
    refused = client.post(
        "/api/v1/pipelines", json={"name": "Ink", "description": "", "recipe": "mini-style"}
    )
    assert refused.status_code == 422
    assert "the door My pictures" in refused.json()["detail"]


def test_pipelines_are_found_by_words_and_state_page_by_page(client: TestClient) -> None:
    for number in range(5):
        made = client.post("/api/v1/pipelines", json=ELARA | {"name": f"Elara {number}"}).json()
    client.post(f"/api/v1/pipelines/{made['id']}/cancel")

    def ask(**query: object) -> Any:
        return client.get("/api/v1/pipelines", params=query).json()

    first = ask(limit=2)
    assert [each["character"]["name"] for each in first["pipelines"]] == ["Elara 4", "Elara 3"]
    assert first["total"] == 5
    second = ask(limit=3, cursor=first["next_cursor"])
    assert [each["character"]["name"] for each in second["pipelines"]] == ["Elara 2", "Elara 1", "Elara 0"]
    assert second["next_cursor"] is None
    assert ask(status="cancelled")["total"] == 1
    assert ask(q="elara 3")["total"] == 1
    assert ask(q="no such words")["total"] == 0


def test_a_task_is_found_by_id_and_uuid_with_its_log_in_parts(
    client: TestClient, pipeline: str, settings: Settings
) -> None:
    number = client.get(pipeline).json()["stages"][0]["task_id"]
    task = client.get(f"/api/v1/tasks/{number}").json()
    assert client.get(f"/api/v1/tasks/{task['uuid']}").json()["id"] == number
    assert client.get(f"/api/v1/tasks/{number}/log").json() == {"text": "", "start": 0, "next": 0, "size": 0}
    log = settings.home / "logs" / "tasks" / f"{number}.log"
    write_text(log, "x" + "ä" * 40_000 + HOSTILE)
    first = client.get(f"/api/v1/tasks/{number}/log", params={"after": 0}).json()
    rest = client.get(f"/api/v1/tasks/{number}/log", params={"after": first["next"]}).json()
    assert first["text"] + rest["text"] == "x" + "ä" * 40_000 + HOSTILE
    assert client.get(f"/api/v1/tasks/{number}/log").json()["text"].endswith(HOSTILE)
    assert client.post(f"/api/v1/tasks/{number}/cancel").json()["status"] == "cancelled"
    assert client.post(f"/api/v1/tasks/{number}/retry").json()[0]["status"] == "pending"
    assert problem(client.get("/api/v1/tasks/99999"), 404)
    assert problem(client.get("/api/v1/tasks/..%2f1/log"), 404)


RUBBISH = [
    {}, {"payload": "no json"}, {"payload": "[1]"}, {"result": "[1]", "progress": '"x"', "dependencies": "5"},
    {"payload": '{"recipe": 5, "settings": [], "output_name": {}, "character_name": "../../etc", "stage": ["x"]}'},
    {"payload": '{"recipe": {"name": 7}, "character_name": "a\\u0000b"}', "progress": '{"done": "x", "total": -1,"loss": NaN}'},
    {"result": '{"stages": 5, "kind": 7}', "status": "dancing"}, {"result": '{"stages": {"train": {"seconds": "x"}}}'},
    {"created_at": "yesterday", "started_at": "rubbish", "priority": "high"}, {"task_type": "<b>", "status": "completed"},
    {"progress": '{"done": 5, "total": 3, "unit": 1, "message": []}', "status": "running"},
]  # fmt: skip


@pytest.mark.parametrize("columns", RUBBISH, ids=str)
def test_a_row_that_somebody_wrote_by_hand_breaks_no_list(
    client: TestClient, pipeline: str, settings: Settings, columns: dict[str, str]
) -> None:
    row = {"id": 99, "name": HOSTILE, "task_type": "LORA_STAGE", "status": "retrying"} | columns
    beside = {"id": 99, "pipeline": "by-hand", "uuid": "by-hand-1", "kind": "stage", "lane": "gpu"}
    beside |= {"priority": 3, "status": "pending", "progress": row.pop("progress", None)}
    with sqlite3.connect(settings.task_database.removeprefix("sqlite:///")) as table:
        for name, values in (("echo_tasks", row), ("lora_foundry_tasks", beside)):
            names, marks = ", ".join(values), ", ".join("?" * len(values))
            table.execute(f"INSERT INTO {name} ({names}) VALUES ({marks})", tuple(values.values()))
    table.close()
    found = client.get("/api/v1/pipelines").json()
    assert {each["id"] for each in found["pipelines"]} == {"by-hand", pipeline.rsplit("/", maxsplit=1)[-1]}
    assert client.get("/api/v1/tasks").json()["tasks"][0]["name"] == HOSTILE
    for path in (
        "tasks/by-hand-1",
        "pipelines/by-hand",
        "pipelines/by-hand/dataset",
        "pipelines/by-hand/results",
    ):
        assert client.get(f"/api/v1/{path}").status_code in (200, 404), path
    for path in ("pipelines/by-hand/retry", "pipelines/by-hand/cancel", "pipelines/by-hand/publish"):
        assert client.post(f"/api/v1/{path}").status_code < 500, path


def test_another_checkpoint_is_taken_by_a_change_of_the_recipe(client: TestClient, pipeline: str) -> None:
    client.post(f"{pipeline}/cancel")
    taken = client.post(f"{pipeline}/publish", json={"step": 200, "strength": 0.8}).json()
    assert taken["settings"]["evaluate"] == {"step": 200, "strength": 0.8}
    assert taken["status"] == "pending"
    client.post(f"{pipeline}/cancel")
    assert client.post(f"{pipeline}/publish").json()["settings"]["evaluate"] == {"step": 0, "strength": 1.0}
    problem(client.post(f"{pipeline}/publish", json={"step": 0}), 422)


# The dataset ------------------------------------------------------------------------------------------------------


def test_a_set_is_shown_as_it_stands_in_its_folder(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    Image.new("RGB", (64, 64)).save(paths.images / "mine.png")
    (paths.images / "notes.txt").write_text("no picture")
    (paths.images / "broken.png").write_text("no picture either")
    found = client.get(f"{pipeline}/dataset").json()
    assert found["counts"] == {"included": IMAGES + 1, "excluded": 0, "rejected": 1}
    by_name = {each["file"]: each for each in found["images"]}
    assert by_name["mine.png"]["own"]
    assert by_name["mine.png"]["caption"] is None
    first = by_name["elara_001.png"]
    assert not first["own"]
    assert not first["edited"]
    assert len(first["shot"]) == 5
    refused = next(each for each in found["images"] if each["status"] == "rejected")
    assert refused["reason"] == "<b>blank</b>"
    assert {"tag": "high quality", "count": IMAGES} in found["tags"]
    assert next((each["a"], each["b"], each["distance"]) for each in found["near_duplicates"]) == (
        "elara_001.png", "elara_002.png", 0)  # fmt: skip


def test_pictures_are_served_whole_and_small_and_known_again(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    first = client.get(f"{pipeline}/dataset").json()["images"][0]
    whole = client.get(first["url"])
    assert whole.content == paths.image(0).read_bytes()
    assert "immutable" in whole.headers["cache-control"]
    small = client.get(first["thumbnail"])
    assert small.headers["content-type"] == "image/webp"
    for address, answer in ((first["url"], whole), (first["thumbnail"], small)):
        again = client.get(address, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get(f"{pipeline}/thumbnail").status_code == 200
    refused = f"{pipeline}/dataset/{paths.attempt(paths.rejected, IMAGES - 1, 0).name}"
    assert client.get(refused).status_code == 200


def test_a_caption_reaches_the_file_and_a_second_tab_is_told(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    address = f"{pipeline}/dataset/elara_001.png/caption"
    before = client.get(f"{pipeline}/dataset").json()["images"][0]["caption"]
    text = f"elara, {HOSTILE}"
    answer = client.put(address, json={"caption": f"  {text}\n", "previous": before}).json()
    assert (answer["caption"], answer["edited"]) == (text, True)
    assert paths.caption(paths.image(0)).read_text() == text + "\n"
    assert HOSTILE in problem(client.put(address, json={"caption": "elara, x", "previous": before}), 409)
    assert paths.caption(paths.image(0)).read_text() == text + "\n"
    for bad in ("", " , ", "a" * 5000, "a\0b"):
        problem(client.put(address, json={"caption": bad}), 422)
    problem(client.put(f"{pipeline}/dataset/none.png/caption", json={"caption": "elara"}), 404)
    problem(client.put(f"{pipeline}/dataset/..%2Frun.json/caption", json={"caption": "elara"}), 404)


def test_the_caption_stage_leaves_a_persons_caption_alone_and_renews_its_own(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    client.put(f"{pipeline}/dataset/elara_001.png/caption", json={"caption": "elara, by hand"})
    ports = SimpleNamespace(captioner=PlanCaptioner(), captioners=())
    result = caption.run(require_model(paths.run_file, Run, "any"), ports, lambda event: None)  # type: ignore[arg-type]
    assert [each.source for each in result.captions] == ["edited", *["plan"] * (IMAGES - 1)]
    assert paths.caption(paths.image(0)).read_text() == "elara, by hand\n"
    found = client.get(f"{pipeline}/dataset").json()["images"]
    assert [each["edited"] for each in found if each["status"] == "included"] == [
        True,
        *[False] * (IMAGES - 1),
    ]


def test_a_caption_that_is_a_link_is_not_replaced(client: TestClient, pipeline: str, paths: RunPaths) -> None:
    target = paths.root / "elsewhere.txt"
    target.write_text("elara, elsewhere")
    caption = paths.caption(paths.image(0))
    caption.unlink()
    caption.symlink_to(target)
    problem(client.put(f"{pipeline}/dataset/elara_001.png/caption", json={"caption": "elara, here"}), 409)
    assert target.read_text() == "elara, elsewhere"


def test_tags_change_in_many_captions_at_once_or_in_none(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    address = f"{pipeline}/dataset/tags"
    changed = client.post(address, json={"add": ["smile"], "remove": ["HIGH quality"]}).json()
    assert changed["changed"] == IMAGES
    captions = [paths.caption(paths.image(index)).read_text() for index in range(IMAGES)]
    assert all(text.endswith(", smile\n") and "high quality" not in text for text in captions)
    assert client.post(address, json={"add": ["Smile"]}).json()["changed"] == 0
    assert client.post(address, json={"add": ["two"], "files": ["elara_002.png"]}).json()["files"] == [
        "elara_002.png"
    ]
    for bad in ({"remove": ["elara"]}, {"add": ["a,b"]}, {"add": ["\0"]}):
        problem(client.post(address, json=bad), 422)
    problem(client.post(address, json={"add": ["x"], "files": ["elara_001.png", "none.png"]}), 404)
    assert "x" not in paths.caption(paths.image(0)).read_text().split(", ")


def test_an_excluded_picture_is_not_trained_on_until_it_is_restored(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    run = require_model(paths.run_file, Run, "any")

    def trained_on() -> list[str]:
        tagging = require_model(paths.tagging_results, TaggingResults, "caption")
        return [image.path.name for image in collect_images(run, paths, tagging)]

    whole = trained_on()
    answer = client.post(f"{pipeline}/dataset/elara_002.png/exclude", json={"reason": HOSTILE}).json()
    assert (answer["status"], answer["reason"]) == ("excluded", HOSTILE)
    assert trained_on() == [name for name in whole if name != "elara_002.png"]
    assert client.get(f"{pipeline}/dataset").json()["counts"]["excluded"] == 1
    assert client.post(f"{pipeline}/dataset/elara_002.png/restore").json()["status"] == "included"
    assert trained_on() == whole
    problem(client.post(f"{pipeline}/dataset/none.png/exclude"), 404)


def test_an_exclusion_is_of_a_picture_not_of_its_name(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    client.post(f"{pipeline}/dataset/elara_001.png/exclude")
    Image.new("RGB", (64, 64), "green").save(paths.image(0))
    assert client.get(f"{pipeline}/dataset").json()["images"][0]["status"] == "included"
    known = read_model(paths.exclusions, Exclusions)
    assert known is not None
    assert list(known.files) == ["elara_001.png"]


def hidden_text(text: str) -> PngInfo:
    notes = PngInfo()
    notes.add_text("comment", text)
    return notes


def test_links_that_lead_out_of_the_set_are_served_as_pictures_only(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    secret = paths.root.parent / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    note = paths.root.parent / "note.png"
    note.write_text("a secret that is no picture")
    (paths.images / "note.png").symlink_to(note)
    assert "note.png" not in [each["file"] for each in client.get(f"{pipeline}/dataset").json()["images"]]
    problem(client.get(f"{pipeline}/dataset/note.png/thumbnail"), 404)
    problem(client.get(f"{pipeline}/dataset/note.png"), 404)
    # A picture that its owner has linked into the set is trained on, so it is shown; only what is seen in it goes out.
    Image.new("RGB", (64, 64), "red").save(secret, pnginfo=hidden_text("where I live"))
    (paths.images / "link.png").symlink_to(secret)
    assert "link.png" in [each["file"] for each in client.get(f"{pipeline}/dataset").json()["images"]]
    shown = client.get(f"{pipeline}/dataset/link.png")
    assert shown.headers["content-type"] == "image/webp"
    assert b"where I live" not in shown.content
    problem(client.get(f"{pipeline}/dataset/..%2F..%2Fsecret.png"), 404)
    problem(client.get(f"{pipeline}/evaluation/..%2Frun.json"), 404)
    problem(client.get(f"{pipeline}/evaluation/..%2F../run.json"), 404)
    problem(client.get("/api/v1/references/..%2Ftasks.db"), 404)
    problem(client.get("/api/v1/loras/..%2Fx/preview"), 404)


def test_a_whole_set_that_links_away_is_not_served(
    client: TestClient, pipeline: str, settings: Settings
) -> None:
    outside = settings.home.parent / "outside"
    paint_set(Settings(home=outside))
    settings.datasets_dir.mkdir(parents=True, exist_ok=True)
    os.symlink(outside / "datasets" / "Elara", settings.datasets_dir / "Elara")
    problem(client.get(f"{pipeline}/dataset"), 404)
    problem(client.get(f"{pipeline}/dataset/elara_001.png"), 404)


# Uploads, results, figures ----------------------------------------------------------------------------------------


def test_a_reference_is_uploaded_and_named_by_a_pipeline(client: TestClient) -> None:
    out = io.BytesIO()
    Image.new("RGB", (100, 80), "blue").save(out, "JPEG")
    kept = client.post("/api/v1/references", files={"file": ("../../x.jpg", out.getvalue())})
    assert kept.status_code == 201
    assert client.get(kept.json()["url"]).headers["content-type"] == "image/png"
    made = client.post("/api/v1/pipelines", json=ELARA | {"reference": kept.json()["name"]})
    assert made.status_code == 201, made.text
    payload = client.get(f"/api/v1/tasks/{made.json()['stages'][0]['task_id']}").json()["payload"]
    assert payload["reference_image"].endswith(kept.json()["name"])
    problem(client.post("/api/v1/references", files={"file": ("x.png", b"<svg/>")}), 422)
    problem(client.post("/api/v1/references", files={"file": ("x.png", b"x" * (21 * 1024 * 1024))}), 413)
    problem(client.post("/api/v1/references", json={}), 422)


def test_a_body_without_length_is_cut_off(client: TestClient) -> None:
    parts = (b" " * 100_000 for _ in range(30))
    problem(client.post("/api/v1/plan", content=parts, headers={"content-type": "application/json"}), 413)


def test_results_say_what_is_there(client: TestClient, pipeline: str, paths: RunPaths) -> None:
    found = client.get(f"{pipeline}/results").json()
    assert found["evaluation"] is None
    assert found["pairs"] == []
    assert client.get(f"{pipeline}/loss").json() == {"points": [[1, 0.5], [2, 0.4]], "next": 2}
    assert client.get(f"{pipeline}/loss?after=1").json()["points"] == [[2, 0.4]]
    samples = client.get(f"{pipeline}/samples").json()
    assert (samples["samples"], samples["asked"]) == ([], False)
    assert samples["refusal"].startswith("No training runs")
    problem(client.get(f"{pipeline}/report.html"), 404)
    problem(client.get(f"{pipeline}/lora"), 404)
    write_text(paths.report, f"<p>{HOSTILE}</p>")
    report = client.get(f"{pipeline}/report.html")
    assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_only_loras_with_a_card_of_ours_are_listed(client: TestClient, settings: Settings) -> None:
    folder = settings.loras_dir
    card = {"character": "Elara", "trigger": "elara", "scores": {"identity_after": 0.9}}
    write_text(folder / "elara.metadata.json", json.dumps(card))
    write_text(folder / "elara.safetensors", "x")
    Image.new("RGB", (64, 64)).save(folder / "elara.preview.png")
    write_text(folder / "others.metadata.json", "[]")
    write_text(folder / "others.safetensors", "x")
    (found,) = client.get("/api/v1/loras").json()
    assert (found["name"], found["scores"]["identity_after"], found["bytes"]) == ("elara", 0.9, 1)
    assert client.get(found["preview"]).status_code == 200
    for name in ("strength", "recommended_strength"):  # the second as earlier versions wrote it
        write_text(folder / "elara.metadata.json", json.dumps(card | {name: 0.8}))
        assert client.get("/api/v1/loras").json()[0]["strength"] == 0.8


def test_what_publishing_writes_is_listed_with_every_score(client: TestClient, settings: Settings) -> None:
    scores = Scores(
        identity_after=0.9, identity_without_trigger=0.2, identity_uncertainty=0.05, likeness_after=0.7
    )
    card = LoraCard(
        character="Elara", trigger="elara", description="", tags=(), strength=0.8, sha256="ab", base_model="mini",
        base_version="", steps=10, scores=scores, recipe={}, made_by="lora-foundry",
    )  # fmt: skip
    lora = settings.loras_dir / "elara.safetensors"
    write_text(lora, "x")
    form = card.manager_form(lora, lora.with_name("elara.preview.png"), 1, 0.0)
    write_text(lora.with_name("elara.metadata.json"), json.dumps(form))
    (found,) = client.get("/api/v1/loras").json()
    assert Scores.model_validate(found["scores"]) == scores
    assert found["strength"] == 0.8


def test_a_lora_that_was_not_installed_is_not_called_published(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    for published in (False, True):
        write_model(paths.publication, Publication(published=published, verdict="identity 0.30"))
        assert client.get(pipeline).json()["published"] is published


@pytest.mark.parametrize(
    ("name", "kind"), [("x.tiff", "image/webp"), ("x.avif", "image/avif"), ("x.gif", "image/gif")]
)
def test_an_own_picture_of_any_kind_is_shown(
    client: TestClient, pipeline: str, paths: RunPaths, name: str, kind: str
) -> None:
    Image.new("RGB", (64, 64), "red").save(paths.images / name)
    shown = client.get(f"{pipeline}/dataset/{name}")
    assert shown.headers["content-type"] == kind
    assert Image.open(io.BytesIO(shown.content)).size == (64, 64)


def test_own_pictures_that_are_nearly_the_same_are_shown_beside_each_other(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    curation = read_model(paths.curation, CurationResult)
    assert curation is not None
    own = []
    for name in ("mine.png", "10_me/mine too.png"):
        (paths.images / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(paths.images / name)
        own.append(Verdict(file=f"images/{name}", index=0, attempt=0, seed=0, accepted=True,
                           measures=Measures(hash="ffff0000ffff0000")))  # fmt: skip
    write_model(paths.curation, curation.model_copy(update={"own": tuple(own)}))
    near = client.get(f"{pipeline}/dataset").json()["near_duplicates"]
    assert {"mine.png", "10_me/mine too.png"} in [{each["a"], each["b"]} for each in near]


def test_the_machine_and_its_figures(client: TestClient, pipeline: str) -> None:
    system = client.get("/api/v1/system").json()
    assert system["counts"]["pending"] == 6
    assert system["workers"] == []
    assert system["disks"][0]["free_bytes"] > 0
    text = client.get("/metrics").text
    assert 'lora_foundry_tasks{status="pending"} 6.0' in text
    assert "lora_foundry_workers 0.0" in text
    assert 'route="/api/v1/system"' in text
    problem(client.get("/api/v1/system/doctor?recipe=none"), 404)


# Who may come in --------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(settings: Settings) -> TestClient:
    return TestClient(
        create_app(settings, TOKEN), base_url="http://lora.example:8189", follow_redirects=False
    )


def test_with_a_token_nothing_is_open_but_health_and_login(locked: TestClient) -> None:
    with locked as client:
        schema = client.app.openapi()  # type: ignore[attr-defined]
        paths = [path for path in schema["paths"] if path != "/api/v1/health"]
        for path in (*paths, "/api/v1/openapi.json"):
            assert client.get(path.replace("{", "").replace("}", "")).status_code == 401, path
        for path in ("/", "/new", "/pipelines/x", "/system"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login")
        assert client.get("/api/v1/health").status_code == 200
        assert client.get("/login").status_code == 200
        good = {"authorization": f"Bearer {TOKEN}"}
        assert client.get("/api/v1/pipelines", headers=good).status_code == 200
        assert client.get("/metrics", headers=good).status_code == 200


def test_a_token_becomes_a_cookie_that_scripts_cannot_read(locked: TestClient) -> None:
    with locked as client:
        problem(client.post("/login", data={"token": "wrong"}), 401)
        answer = client.post("/login", data={"token": TOKEN, "next": "/system"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/system")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert TOKEN not in cookie
        assert client.get("/api/v1/pipelines").status_code == 200
        client.post("/logout")
        assert client.get("/api/v1/pipelines").status_code == 401


def test_guessing_is_slowed_down(locked: TestClient) -> None:
    with locked as client:
        for _ in range(5):
            problem(client.post("/login", data={"token": "wrong"}), 401)
        answer = client.post("/login", data={"token": TOKEN})
        problem(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
        problem(client.get("/api/v1/tasks", headers={"authorization": f"Bearer {TOKEN}"}), 429)


def test_a_page_elsewhere_can_neither_write_nor_reach_us_by_a_name_of_its_own(client: TestClient) -> None:
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        problem(client.post("/api/v1/pipelines", json=ELARA, headers=headers), 403)
    problem(client.get("/api/v1/pipelines", headers={"host": "evil.example"}), 421)
    problem(client.post("/api/v1/pipelines", json=ELARA, headers={"host": "evil.example"}), 421)
    assert (
        client.post("/api/v1/pipelines", json=ELARA, headers={"origin": "http://localhost"}).status_code
        == 201
    )


def test_every_answer_carries_the_headers_that_bind_a_browser(
    client: TestClient, pipeline: str, paths: RunPaths
) -> None:
    for address in (
        "/",
        "/api/v1/pipelines",
        "/api/v1/none",
        f"{pipeline}/dataset/elara_001.png",
        "/static/style.css",
    ):
        headers = client.get(address).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers


def test_samples_are_asked_of_a_training_that_runs_in_this_program(
    client: TestClient, pipeline: str, paths: RunPaths, settings: Settings
) -> None:
    assert client.post(f"{pipeline}/samples").status_code == 409
    train = client.get(pipeline).json()["stages"][3]
    database = f"sqlite:///{settings.home / 'tasks.db'}"
    execute(database, f"UPDATE echo_tasks SET status = 'running' WHERE id = {train['task_id']}")
    run = read_model(paths.run_file, Run)
    assert run is not None
    elsewhere = load_recipe("mini", ["train.backend=kohya"])
    write_model(paths.run_file, run.model_copy(update={"recipe": elsewhere}))
    refused = client.post(f"{pipeline}/samples")
    assert refused.status_code == 409
    assert "another program" in refused.json()["detail"]
    write_model(paths.run_file, run)
    assert client.post(f"{pipeline}/samples").json() == {"samples": [], "asked": True, "refusal": ""}
    assert paths.sample_request.is_file()
