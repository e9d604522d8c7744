"""A model hub on loopback for tests: files by repository and path, with sizes, SHA-256, ranges, gated repositories, and
downloads that break off or arrive damaged on demand. It knows the requests of the Hugging Face client and of `setup`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_COMMIT = "0" * 39 + "1"


class StubHub:
    """Serves `repositories` ({"owner/name": {"path": bytes}}) at `url` until it is closed; a context manager.

    breaks_after: the next download ends after so many bytes. damaged: paths whose first byte is another than promised.
    gated: repositories that ask for a licence first. requests: every "METHOD path" with its Range, in order.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = repositories
        self.breaks_after: int | None = None
        self.damaged: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(_Handler):
            stub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    stub: StubHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read `requests` instead."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.stub.requests.append((f"{self.command} {path}", self.headers.get("Range", "")))
        for name, files in self.stub.repositories.items():
            if path.startswith(f"{name}/resolve/"):
                file = path.removeprefix(f"{name}/resolve/").partition("/")[2]
                return self._file(name, file, files, body)
            if path.startswith(f"api/models/{name}"):
                return self._api(path.removeprefix(f"api/models/{name}").strip("/"), name, files)
        self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _api(self, path: str, name: str, files: Mapping[str, bytes]) -> None:
        if path.startswith("tree/"):
            answer: Any = [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40, "lfs": _lfs(file, data)}
                for file, data in files.items()
            ]
        else:
            siblings = [{"rfilename": file} for file in files]
            answer = {"id": name, "sha": _COMMIT, "siblings": siblings, "private": False, "tags": []}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

    def _file(self, name: str, file: str, files: Mapping[str, bytes], body: bool) -> None:
        if name in self.stub.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
        if file not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        data = files[file]
        digest = hashlib.sha256(data).hexdigest()
        if file in self.stub.damaged:
            data = bytes([data[0] ^ 255]) + data[1:]
        etag = f'"{digest if _lfs(file, data) else digest[:40]}"'
        headers = {"ETag": etag, "X-Repo-Commit": _COMMIT, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        start = int(asked) if asked else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if start else 200, data[start:], headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        limit, large = self.stub.breaks_after, len(data) > 1000
        if limit is not None and large:
            self.stub.breaks_after = None
            self.wfile.write(data[:limit])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data)


def _lfs(file: str, data: bytes) -> dict[str, Any] | None:
    """Weights lie in large-file storage, whose etags are their SHA-256."""
    if not file.endswith((".safetensors", ".onnx")):
        return None
    return {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
