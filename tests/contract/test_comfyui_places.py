"""Where things are, as people have them: addresses without a scheme or behind a proxy, checkpoints behind links, folders
that another machine or a container calls otherwise."""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from lora_foundry.backends.comfyui.address import address_of
from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
from lora_foundry.backends.comfyui.handover import Waits, take_gpu
from lora_foundry.backends.comfyui.locate import find_listed, listed_as, seen_from_here
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.errors import BackendError, FoundryError, InputError
from lora_foundry.families._shared import loading
from lora_foundry.families._shared.inspect import models_below
from lora_foundry.families._shared.vocabularies import CLIP
from lora_foundry.settings import Settings, is_local
from lora_foundry.testing.comfyui_stub import StubServer
from tests.contract.comfyui_fixtures import CHECKPOINT, QUICK, request


@pytest.mark.parametrize(
    ("written", "url", "local"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188", True),
        ("localhost", "http://localhost", True),
        ("0.0.0.0:8188", "http://0.0.0.0:8188", True),
        ("gpu-box:8188/", "http://gpu-box:8188", False),
        ("https://gpu.example/comfy/", "https://gpu.example/comfy", False),
        ("[::1]:8188", "http://[::1]:8188", True),
        ("http://me:se%20cret@gpu-box:8188", "http://gpu-box:8188", False),
    ],
)
def test_an_address_is_understood_as_people_write_it(written: str, url: str, local: bool) -> None:
    assert address_of(written).url == url
    assert is_local(written) is local
    assert Settings(comfyui_url=written).comfyui_shares_gpu(used=True) is local


@pytest.mark.parametrize("written", ["ftp://x", "http://", "host:99999", "http://[::1"])
def test_what_is_no_address_is_one_sentence(written: str) -> None:
    with pytest.raises(InputError, match="no address of a server"):
        address_of(written)


def draw(url: str, **changes: Any) -> None:
    generator = ComfyUIGenerator(ComfyUIOptions(url, CHECKPOINT, patience=QUICK, **changes))
    try:
        assert len(list(generator.generate([[request(1)], [request(2)]]))) == 2
    finally:
        generator.close()


def test_a_server_behind_a_proxy_is_drawn_with_by_name_or_by_token() -> None:
    with StubServer((CHECKPOINT,)) as stub:
        place = stub.url.removeprefix("http://")
        stub.authorization = "Basic " + base64.b64encode(b"me:se cret").decode()
        with pytest.raises(InputError, match=r"asks who we are \(401\)"):
            draw(stub.url)
        draw(f"http://me:se%20cret@{place}")
        stub.authorization = "Bearer abc"
        draw(place, token="abc")
        assert "GET /ws" in stub.requests
        assert take_gpu(address_of(place, "abc"), 1, lambda: None, Waits(queue=1.0)).before is not None


@contextmanager
def behind_tls(port: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """A proxy that speaks TLS before a server on this machine: its port, and the certificate that vouches for it."""
    authority, certificate = trustme.CA(), folder / "certificate.pem"
    authority.cert_pem.write_to_path(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, back), pump(there, writer))
        finally:
            writer.transport.abort()
            back.transport.abort()

    async def end() -> None:
        serving.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed at the next turn

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    serving = asyncio.run_coroutine_threadsafe(
        asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context), loop
    ).result()
    try:
        yield serving.sockets[0].getsockname()[1], certificate
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_server_behind_tls_is_drawn_with_where_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests and the socket alike: a certificate of one's own is named as everywhere, by SSL_CERT_FILE."""
    with StubServer((CHECKPOINT,)) as stub, behind_tls(stub.port, tmp_path) as (port, certificate):
        with pytest.raises(BackendError, match="does not answer at https://"):
            draw(f"https://127.0.0.1:{port}")
        assert stub.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        draw(f"https://127.0.0.1:{port}")
        assert "GET /ws" in stub.requests


def test_no_password_is_in_what_is_said() -> None:
    with pytest.raises(FoundryError) as error:
        draw("http://me:secret@127.0.0.1:9")
    assert "secret" not in str(error.value)
    assert "secret" not in repr(ComfyUIOptions("x", "y", token="secret"))
    assert "secret" not in repr(Settings(comfyui_token="secret"))


@pytest.mark.parametrize("how", ["itself", "link to the file", "linked folder", "hub's cache"])
def test_a_checkpoint_is_asked_for_by_the_name_that_the_server_lists(how: str, tmp_path: Path) -> None:
    """Whatever the file is called where our link leads, it is the server's name of it that counts."""
    server, ours = tmp_path / "comfy" / "checkpoints", tmp_path / "ours"
    ours.mkdir()
    listed = {
        "itself": "dream.safetensors",
        "link to the file": "dream.safetensors",
        "linked folder": "mine/dream.safetensors",
        "hub's cache": "dream.safetensors",
    }[how]
    blob = ours / ("2f3c" if how == "hub's cache" else "real name.safetensors")
    blob.write_bytes(b"weights")
    server.mkdir(parents=True)
    if how == "linked folder":
        (ours / "sub").mkdir()
        (ours / "sub" / "dream.safetensors").symlink_to(blob)
        (server / "mine").symlink_to(ours / "sub")
    elif how == "itself":
        blob = server / "dream.safetensors"
        blob.write_bytes(b"weights")
    else:
        (server / "dream.safetensors").symlink_to(blob)
    assert listed_as(blob, ["other.safetensors", listed], [server]) == listed
    with StubServer(("other.safetensors", listed)) as stub:
        stub.checkpoints_dir = server
        draw(stub.url, checkpoint_file=blob)
        (made,) = {item["prompt"][2]["model"]["inputs"]["ckpt_name"] for item in stub._history.values()}
        assert made == listed


def test_names_of_a_windows_server_are_found_with_slashes_of_either_kind() -> None:
    listed = ["sd15\\dream.safetensors", "xl\\other.safetensors"]
    for name in ("dream.safetensors", "sd15/dream.safetensors", "sd15\\dream.safetensors"):
        assert find_listed(name, listed) == "sd15\\dream.safetensors"
    assert find_listed("sd15/other.safetensors", listed) is None


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("/app/ComfyUI/models/loras", "/srv/comfy/models/loras"),
        ("/app/ComfyUI/output", "/data/out"),
        ("/app/ComfyUIs/models", "/app/ComfyUIs/models"),
        ("C:\\ComfyUI\\models\\loras", "/mnt/c/ComfyUI/models/loras"),
        ("c:\\comfyui\\models", "/mnt/c/ComfyUI/models"),
    ],
)
def test_a_folder_of_another_machine_is_seen_from_here(there: str, here: str) -> None:
    pairs = {
        "/app/ComfyUI": Path("/srv/comfy"),
        "/app/ComfyUI/output": Path("/data/out"),
        "C:\\ComfyUI": Path("/mnt/c/ComfyUI"),
    }
    assert seen_from_here(there, pairs) == Path(here)


def test_models_in_linked_folders_are_found_and_a_ring_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.safetensors").touch()
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "ring").symlink_to(folder)
    assert [path.name for path in models_below(folder)] == ["a.safetensors"]


def test_clip_s_vocabulary_is_found_in_comfyui_s_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CLIP.own_folder(tmp_path) is None
    place = tmp_path / "comfy" / "sd1_tokenizer"
    place.mkdir(parents=True)
    (place / "vocab.json").touch()
    assert CLIP.own_folder(tmp_path) == place


def test_a_hub_that_cannot_be_reached_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Kind:
        @staticmethod
        def from_pretrained(source: str, local_files_only: bool) -> None:
            asked.append(local_files_only)
            raise OSError

    monkeypatch.setattr(loading, "hub_answers", lambda: False)
    with pytest.raises(FoundryError, match="could not be fetched"):
        loading.load_vocabulary(
            Kind, CLIP._replace(repository="no-one/has-this", variable="LORA_FOUNDRY_NONE")
        )
    assert asked == [True], "only the cache was looked into"
