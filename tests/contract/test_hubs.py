"""Publishing to a hub that records what the Hugging Face client sends, and into a zip file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from lora_foundry.cli.app import app
from lora_foundry.domain.run import Run
from lora_foundry.errors import BackendError, FoundryError, InputError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, write_model
from lora_foundry.hubs import archive, card, huggingface
from lora_foundry.hubs.release import Release, gather
from lora_foundry.settings import Settings
from tests.homes import ELARA, Homes

REPOSITORY = "somebody/elara"
# The client uploads large files by an argument that its own HTTP library has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Hub:
    """Answers what publishing asks. status: of the answer to the making of a repository. breaks:
    large files are not taken."""

    def __init__(self) -> None:
        self.status = 200
        self.breaks = False
        self.made: list[dict[str, Any]] = []
        self.stored: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.message = ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

            def do_PUT(self) -> None:
                data = self._body()
                if hub.breaks:
                    return self._say({}, 400)
                hub.stored[hashlib.sha256(data).hexdigest()] = data
                return self._say({})

            def do_POST(self) -> None:
                data = self._body()
                hub.tokens.add(self.headers.get("authorization", ""))
                if self.path == "/api/repos/create":
                    hub.made.append(json.loads(data))
                    return self._say({"url": f"{hub.url}/{REPOSITORY}", "error": "no"}, hub.status)
                if "/preupload/" in self.path:
                    files = [
                        {"path": each["path"], "shouldIgnore": False,
                         "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                        for each in json.loads(data)["files"]
                    ]  # fmt: skip
                    return self._say({"files": files})
                if self.path.endswith("/info/lfs/objects/batch"):
                    objects = [
                        {**each, "actions": {"upload": {"href": f"{hub.url}/store/{each['oid']}"}}}
                        for each in json.loads(data)["objects"]
                    ]
                    return self._say({"transfer": "basic", "objects": objects})
                if "/commit/" in self.path:
                    hub.commit([json.loads(line) for line in data.splitlines()])
                    url = f"{hub.url}/{REPOSITORY}/commit/1"
                    return self._say({"commitUrl": url, "commitOid": "1" * 40, "success": True})
                return self._say({"errors": [], "warnings": []})

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("content-length", 0)))

            def _say(self, answer: Any, status: int = 200) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.message = value["summary"]
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            else:
                self.files[value["path"]] = self.stored[value["oid"]]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield hub
    hub.close()


@pytest.fixture
def settings(homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home in which the small pipeline has published Elara; the copy's LoRA lies where the copy is."""
    home = homes.copy(tmp_path / "home")
    settings = Settings(home=home)
    file = RunPaths(settings.datasets_dir / ELARA.name, ELARA.slug).publication
    said = json.loads(file.read_text())
    said["lora"] = str(next(settings.loras_dir.glob("*.safetensors")))
    file.write_text(json.dumps(said))
    return settings


def with_metadata(settings: Settings, kind: str) -> None:
    """As if the run had been asked for with a reference picture and that kind of metadata."""
    paths = RunPaths(settings.datasets_dir / ELARA.name, ELARA.slug)
    run = read_model(paths.run_file, Run)
    assert run is not None
    publish = run.recipe.publish.model_copy(update={"metadata": kind})
    generate = run.recipe.generate.model_copy(update={"references": ("/home/zoe/private/aunt.png",)})
    recipe = run.recipe.model_copy(update={"publish": publish, "generate": generate})
    character = run.character.model_copy(update={"reference_image": Path("/home/zoe/private/aunt.png")})
    write_model(paths.run_file, run.model_copy(update={"recipe": recipe, "character": character}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "minimal"])
def test_a_hub_gets_file_pictures_and_card_and_nothing_personal(
    settings: Settings, hub: Hub, kind: str
) -> None:
    with_metadata(settings, kind)
    release = gather(settings, ELARA.name)
    address = huggingface.upload(release, REPOSITORY)
    assert address.endswith(REPOSITORY)
    assert hub.made[0]["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_of_this_test"}
    assert hub.files["elara_mini.safetensors"] == release.lora.read_bytes()
    text = hub.files["README.md"].decode()
    fields = yaml.safe_load(text.split("---")[1])
    assert fields["instance_prompt"] == "elara"
    assert fields["pipeline_tag"] == "text-to-image"
    shown = [each["output"]["url"] for each in fields["widget"]]
    assert shown
    assert set(shown) < set(hub.files), "every picture of the card is sent"
    assert ("brown hair" in text, "## Scores" in text, "[train]" in text) == ((kind == "full"),) * 3
    for name, data in hub.files.items():
        for secret in (str(settings.home), "aunt", "/home/"):
            assert secret.encode() not in data, f"{name} says {secret}"
        if name.endswith(".png"):
            texts = Image.open(BytesIO(data)).info
            assert set(texts) == ({"parameters"} if kind == "full" else set())


@pytest.mark.slow
def test_a_zip_file_holds_what_an_upload_page_asks_for(settings: Settings, tmp_path: Path) -> None:
    release = gather(settings, ELARA.name)
    file = archive.write(release, tmp_path / "elara.zip")
    with zipfile.ZipFile(file) as packed:
        assert packed.testzip() is None
        names = set(packed.namelist())
        assert {
            "elara_mini.safetensors",
            "description.md",
            "trigger_words.txt",
            "pictures/01.png",
            "pictures/01.txt",
        } <= names
        assert packed.read("trigger_words.txt").decode().strip() == "elara"
        data = Image.open(BytesIO(packed.read("pictures/01.png"))).info["parameters"]
        assert data.strip() == packed.read("pictures/01.txt").decode().strip()
        assert "Seed: " in data
    with pytest.raises(InputError, match="there already"):
        archive.write(release, file)


@pytest.mark.slow
def test_refusals_are_one_sentence_with_the_next_step(
    settings: Settings, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = gather(settings, ELARA.name)

    def refusal(kind: type[FoundryError]) -> str:
        with pytest.raises(kind) as caught:
            huggingface.upload(release, REPOSITORY)
        return str(caught.value)

    hub.breaks = True
    with pytest.raises(BackendError, match="with --update"):
        huggingface.upload(release, REPOSITORY, public=True)
    assert hub.made[-1]["visibility"] == "public"
    assert "--update" in refusal(BackendError)
    hub.status = 409
    assert "--update" in refusal(InputError)
    hub.status = 403
    assert "HF_TOKEN" in refusal(InputError)
    hub.status = 400
    assert "refused" in refusal(InputError)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(BackendError)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(InputError)
    monkeypatch.setattr(huggingface, "get_token", lambda: None)
    assert "hf auth login" in refusal(InputError)


def test_what_was_never_made_or_is_no_place_is_said(home: Path) -> None:
    with pytest.raises(InputError, match="lora-foundry create 'Nobody'"):
        gather(Settings(home=home), "Nobody")
    with pytest.raises(InputError):
        gather(Settings(home=home), "../elsewhere")
    for place in ("elsewhere", "hf:", "hf:elara", "hf:a/b/c", "ftp:x", "zip:"):
        done = CliRunner().invoke(app, ["publish", "Elara", "--to", place, "--home", str(home)])
        assert isinstance(done.exception, InputError), place


@pytest.mark.slow
def test_a_dry_run_prints_the_card_and_sends_nothing(settings: Settings, hub: Hub) -> None:
    words = ["publish", "Elara", "--to", f"hf:{REPOSITORY}", "--dry-run", "--home", str(settings.home)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert card.readme(gather(settings, "Elara")) in done.output
    assert not hub.made
    assert os.listdir(settings.loras_dir)


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("", {}),
        ("My Terms 2", {"license": "other", "license_name": "my-terms-2"}),
    ],
)
def test_a_licence_is_one_that_the_hub_knows_or_named(
    said: str, fields: dict[str, str], tmp_path: Path
) -> None:
    release = Release("x", tmp_path, "X", "x", 1.0, "b", "o/b", said, "", None, "", ())
    head = yaml.safe_load(card.readme(release).split("---")[1])
    assert {key: value for key, value in head.items() if key.startswith("license")} == fields
    assert head["base_model"] == "o/b"
