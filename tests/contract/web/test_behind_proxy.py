"""Behind another server: a path in front, headers that are believed from trusted addresses alone; and what a person sees where
something is not there or broken."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from lora_foundry.errors import InputError
from lora_foundry.settings import Settings
from lora_foundry.web.app import create_app
from lora_foundry.web.proxied import check_proxies, check_root
from tests.contract.web.conftest import ELARA

TOKEN = "0123456789abcdef"
PAGE = {"accept": "text/html"}


def behind(settings: Settings, client: str = "10.0.0.7", **options: Any) -> TestClient:
    app = create_app(settings, root="/foundry", trusted=check_proxies(["10.0.0.0/8"]), **options)
    return TestClient(app, base_url="http://localhost", client=(client, 5000), follow_redirects=False)


@pytest.mark.parametrize("front", ["", "/foundry"])
def test_a_proxy_may_take_its_path_off_or_leave_it(settings: Settings, front: str) -> None:
    with behind(settings) as client:
        page = client.get(f"{front}/", headers=PAGE).text
        assert 'href="/foundry/static/style.css"' in page
        assert 'href="/foundry/new"' in page
        assert 'data-root="/foundry"' in page
        made = client.post(f"{front}/api/v1/pipelines", json=ELARA)
        assert made.headers["location"].startswith("/foundry/api/v1/pipelines/")
        assert client.get(f"{front}/static/style.css").status_code == 200
        assert client.get("/foundryelse", headers=PAGE).status_code == 404
        assert client.get("/api/v1/openapi.json").json()["servers"] == [{"url": "/foundry"}]


@pytest.mark.parametrize(("client", "believed"), [("10.0.0.7", True), ("192.0.2.1", False)])
def test_only_a_trusted_proxy_is_believed(settings: Settings, client: str, believed: bool) -> None:
    said = {
        "x-forwarded-host": "foundry.example",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "198.51.100.9",
    }
    with behind(settings, client, token=TOKEN) as outside:
        form = {"token": TOKEN, "next": "/foundry/new"}
        answer = outside.post(
            "/foundry/login", data=form, headers=said | {"origin": "https://foundry.example"}
        )
        assert answer.status_code == (303 if believed else 403)
        if believed:
            assert answer.headers["location"] == "/foundry/new"
            assert "secure" in answer.headers["set-cookie"].lower()
        asked = outside.get("/foundry/new", headers=PAGE)
        assert asked.headers["location"] == "/foundry/login?next=/foundry/new"


@pytest.mark.parametrize(("given", "root"), [("", ""), ("/", ""), ("foundry/", "/foundry"), ("/a/b", "/a/b")])
def test_a_path_in_front_is_understood(given: str, root: str) -> None:
    assert check_root(given) == root


@pytest.mark.parametrize("given", ["/a b", "/a//b", '/"><script>', "//host"])
def test_what_is_no_path_is_refused(given: str) -> None:
    if given == "//host":  # one path, whatever stands before it
        assert check_root(given) == "/host"
        return
    with pytest.raises(InputError, match="--root-path"):
        check_root(given)


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(InputError, match="--trusted-proxy"):
        check_proxies(["proxy.example"])


def test_a_page_that_is_not_there_is_a_page_and_data_that_is_not_there_is_data(client: TestClient) -> None:
    for address in ("/nothing", "/pipelines/nobody", "/pipelines/nobody/results"):
        answer = client.get(address, headers=PAGE)
        assert answer.status_code == 404
        assert "All runs" in answer.text
        assert client.get(address).headers["content-type"].startswith("application/problem+json")
    assert "<script>alert" not in client.get("/pipelines/<script>alert(1)<", headers=PAGE).text
    data = client.get("/api/v1/pipelines/nobody", headers=PAGE)
    assert data.json()["detail"] == "There is no run 'nobody'."


def test_a_broken_database_is_one_sentence_with_the_next_step(settings: Settings) -> None:
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        client.post("/api/v1/pipelines", json=ELARA)
        for file in settings.home.glob("tasks.db*"):
            file.write_bytes(b"no database at all" * 500)
        answer = client.get("/api/v1/pipelines")
        assert answer.status_code == 503
        assert "cannot be used" in answer.json()["detail"]
        assert "LORA_FOUNDRY_DATABASE_URL" in answer.json()["detail"]
        assert (
            client.get("/pipelines/x/results", headers=PAGE).status_code == 200
        )  # which says the same itself
