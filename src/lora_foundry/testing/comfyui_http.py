"""The stub server's side of HTTP and of the WebSocket's handshake; and a web server that is no ComfyUI at all."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from lora_foundry.testing.comfyui_frames import CLOSE, PING, PONG, SHORT, frame, uploaded_file

if TYPE_CHECKING:
    from lora_foundry.testing.comfyui_stub import StubServer

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class StubHttp(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    stub: StubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that a test cuts is no news."""


class OtherServer:
    """Some other program's web server: it answers whatever it is asked with a page. A context manager."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(f"{self.command} {self.path}")
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<html>Hello</html>")

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> OtherServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubHttp

    def setup(self) -> None:
        super().setup()
        self.server.stub._connections.add(self.connection)

    def finish(self) -> None:
        self.server.stub._connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def parse_request(self) -> bool:
        """Notes the request, and refuses whoever does not show what the proxy before the server wants."""
        if not super().parse_request():
            return False
        stub = self.server.stub
        stub.requests.append(f"{self.command} {urlsplit(self.path).path}")
        if stub.authorization and self.headers.get("Authorization") != stub.authorization:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(401, b"")
            return False
        return True

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        path = address.path.removeprefix("/api")
        if path == "/ws":
            self._talk(query.get("clientId", "nobody"))
        elif path == "/view":
            data = self.server.stub.view(query)
            self._answer(404 if data is None else 200, data or b"", "image/png")
        else:
            found = self.server.stub.get(path)
            self._answer(404 if found is None else 200, b"" if found is None else json.dumps(found).encode())

    def do_POST(self) -> None:
        stub, raw = self.server.stub, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path.removeprefix("/api")
        if path == "/upload/image":
            self._answer(200, json.dumps(stub.upload(*uploaded_file(raw))).encode())
            return
        body = json.loads(raw or b"{}")
        if path == "/prompt":
            status, answer = stub.post_prompt(body)
            if answer is None:
                self.close_connection = True
                return
            self._answer(status, json.dumps(answer).encode())
            return
        actions: dict[str, Callable[[dict[str, Any]], None]] = {
            "/queue": stub.change_queue,
            "/interrupt": stub.interrupt,
            "/free": lambda _: stub.free(),
        }
        if path in actions:
            actions[path](body)
        self._answer(200 if path in actions else 404, b"")

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def _talk(self, client_id: str) -> None:
        """The WebSocket: its handshake, then pongs for pings until the client goes."""
        digest = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + _MAGIC).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        self.server.stub.open_socket(client_id, self.connection)
        with suppress(OSError, struct.error):
            while (received := self._receive()) is not None:
                opcode, data = received
                if opcode in (PING, CLOSE):
                    self.connection.sendall(frame(PONG if opcode == PING else CLOSE, data))
                if opcode == CLOSE:
                    break
        self.server.stub.close_socket(client_id)

    def _receive(self) -> tuple[int, bytes] | None:
        head = self.rfile.read(2)
        if len(head) < 2:
            return None
        length = head[1] & 0x7F
        if length == SHORT:
            (length,) = struct.unpack("!H", self.rfile.read(2))
        mask = self.rfile.read(4)
        return head[0] & 0x0F, bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(length)))
