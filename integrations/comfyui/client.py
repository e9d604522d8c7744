"""The wire to a lora-foundry server: its REST API and nothing else. Where the server is, and the token that opens it, come
from the environment alone, since whatever stands in a workflow is saved into every picture that it makes."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, Request, build_opener

SERVER, TOKEN = "LORA_FOUNDRY_SERVER", "LORA_FOUNDRY_TOKEN"
DEFAULT = "http://127.0.0.1:8189"
SECONDS = 60.0
_CHUNK = 1 << 20


class FoundryError(RuntimeError):
    """What the server says, as one sentence; ComfyUI shows it at the node."""


class Foundry:
    """A lora-foundry server."""

    def __init__(self, address: str = "", token: str = "") -> None:
        self.address = (address or os.environ.get(SERVER) or DEFAULT).rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            self.address = f"http://{self.address}"
        self._token = token or os.environ.get(TOKEN, "")
        self._opener = build_opener(ProxyHandler({}))

    def send_picture(self, png: bytes) -> str:
        """Uploads a picture; returns the name by which a run may use it."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="picture.png"\r\n'
        body = f"{head}Content-Type: image/png\r\n\r\n".encode() + png + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return str(self._json("POST", "/api/v1/references", body, kind)["name"])

    def start(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Starts a run; returns it as the server describes it."""
        body = json.dumps(wanted).encode()
        return dict(self._json("POST", "/api/v1/pipelines", body, "application/json"))

    def run(self, run: str) -> dict[str, Any]:
        return dict(self._json("GET", f"/api/v1/pipelines/{quote(run, safe='')}"))

    def cancel(self, run: str) -> None:
        self._json("POST", f"/api/v1/pipelines/{quote(run, safe='')}/cancel", b"{}", "application/json")

    def recipe_value(self, recipe: str, path: str) -> Any:
        """One value of a recipe, such as generate.backend."""
        sections = self._json("GET", f"/api/v1/recipes/{quote(recipe, safe='')}")["sections"]
        fields = (field for section in sections for field in section["fields"])
        return next((field["value"] for field in fields if field["path"] == path), None)

    def recipes(self) -> list[str]:
        return [str(recipe["name"]) for recipe in self._json("GET", "/api/v1/recipes")]

    def comfyui_is_named(self) -> bool:
        """Whether the server knows of a ComfyUI, which it then asks for an empty queue before it trains."""
        return bool(self._json("GET", "/api/v1/system")["comfyui"]["reachable"])

    def newest_lora(self, character: str) -> dict[str, Any] | None:
        """The newest installed LoRA of a character, or the newest of all where none is named."""
        wanted = character.strip().casefold()
        found = self._json("GET", "/api/v1/loras")
        fitting = [each for each in found if not wanted or str(each["character"]).casefold() == wanted]
        return max(fitting, key=lambda each: str(each["installed_at"]), default=None)

    def download_lora(self, lora: Mapping[str, Any], target: Path) -> Path:
        """Fetches an installed LoRA into a file that appears whole or not at all."""
        query = urlencode({"q": lora["character"], "limit": 50})
        runs = self._json("GET", f"/api/v1/pipelines?{query}")["pipelines"]
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            for run in runs:
                if run["status"] == "completed" and self._fetch(run["id"], aside) == lora["sha256"]:
                    os.replace(aside, target)
                    return target
        finally:
            aside.unlink(missing_ok=True)
        raise FoundryError(f"No run at {self.address} gives away the file of {lora['name']} any more.")

    def _fetch(self, run: str, aside: Path) -> str:
        """Writes a run's LoRA into a file; its SHA-256, or "" where the run has none."""
        digest = hashlib.sha256()
        try:
            with (
                self._open("GET", f"/api/v1/pipelines/{quote(run, safe='')}/lora") as answer,
                aside.open("wb") as file,
            ):
                while chunk := answer.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
        except FoundryError:
            return ""
        return digest.hexdigest()

    def _json(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> Any:
        with self._open(method, path, body, kind) as answer:
            return json.load(answer)

    def _open(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> Any:
        headers = {"Accept": "*/*"}
        if kind:
            headers["Content-Type"] = kind
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            return self._opener.open(
                Request(self.address + path, body, headers, method=method), timeout=SECONDS
            )
        except HTTPError as error:
            raise FoundryError(_said(error)) from error
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise FoundryError(
                f"lora-foundry does not answer at {self.address} ({reason}); start it with `lora-foundry serve "
                f"--with-worker`, or set {SERVER}."
            ) from error


def _said(error: HTTPError) -> str:
    """The sentence in a refusal of the server's."""
    try:
        told = json.loads(error.read())
        text = told.get("detail") or told.get("title")
    except (ValueError, AttributeError):
        text = None
    if error.code == 401:
        return f"lora-foundry asks for its token; set {TOKEN} where ComfyUI is started."
    return f"lora-foundry: {text or error.reason} ({error.code})"
