"""The tools for agents, asked by the SDK's own client: in memory, and over HTTP behind the token. Over standard
input: tests/acceptance/test_agents.py."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import BlobResourceContents, CallToolResult, ImageContent, TextContent
from PIL import Image

from lora_foundry.agents.server import guarded, make_server
from lora_foundry.settings import Settings
from lora_foundry.web.app import make_site, opened
from tests.contract.web.conftest import paint_set
from tests.homes import ELARA, SMALL

TOKEN = "a-token-of-this-test"
READS = {
    "list_recipes",
    "list_runs",
    "run_status",
    "list_dataset",
    "show_picture",
    "scores",
    "results",
    "show_trial",
}
ADDS = {"create_character", "create_cast", "try_prompt"}
CHANGES = {"retry_run", "cancel_run", "exclude_pictures", "restore_pictures", "write_caption"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def asking(settings: Settings) -> AsyncIterator[Client]:
    site = make_site(settings)
    async with opened(site), Client(make_server(site)) as client:
        yield client


def said(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


def words(result: CallToolResult) -> str:
    assert result.is_error, result.structured_content
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


async def begun(client: Client, **more: Any) -> dict[str, Any]:
    given = {"name": "Elara", "description": "1girl, brown hair, red dress", "recipe": "mini"} | more
    return said(await client.call_tool("create_character", given))


@pytest.mark.anyio
async def test_every_tool_says_whether_it_changes_anything(home: Path) -> None:
    async with asking(Settings(home=home)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == READS | ADDS | CHANGES
        for name, tool in tools.items():
            assert tool.annotations is not None
            assert tool.description
            assert tool.annotations.read_only_hint is (name in READS)
            if name not in READS:
                assert tool.annotations.destructive_hint is (name in CHANGES)


@pytest.mark.anyio
async def test_a_run_is_begun_listed_cancelled_and_begun_again(home: Path) -> None:
    async with asking(Settings(home=home)) as client:
        recipes = said(await client.call_tool("list_recipes", {}))["recipes"]
        assert {"mini", "sdxl"} <= {each["name"] for each in recipes}
        made = await begun(client)
        assert made["status"] == "pending"
        assert "lora-foundry worker" in made["waits_for"]
        runs = said(await client.call_tool("list_runs", {"words": "elara"}))
        assert [each["id"] for each in runs["runs"]] == [made["id"]]
        assert said(await client.call_tool("cancel_run", {"run": made["id"]}))["status"] == "cancelled"
        again = await client.call_tool("retry_run", {"run": made["id"], "settings": ["train.rank=8"]})
        assert said(again)["status"] == "pending"
        assert "rnak" in words(
            await client.call_tool("retry_run", {"run": made["id"], "settings": ["train.rnak=8"]})
        )


@pytest.mark.anyio
async def test_a_cast_is_begun_with_its_members_told_one_by_one(home: Path, tmp_path: Path) -> None:
    settings = Settings(home=home)
    mine = settings.datasets_dir / "mine"
    mine.mkdir(parents=True)
    Image.new("RGB", (64, 64), "blue").save(mine / "one.png")
    cast = {
        "name": "Pair",
        "recipe": "mini",
        "members": [
            {"name": "Ada", "description": "1girl, red hair", "trigger": "girl"},
            {"name": "Bo", "pictures": [str(mine)]},
        ],
    }
    async with asking(settings) as client:
        made = said(await client.call_tool("create_cast", cast))
        assert (made["members"], made["trigger"]) == (["Ada", "Bo"], "girl, bo"), "told before a worker began"
        assert "'girl'" in made["cautions"][0]
        assert [each.name for each in settings.datasets_dir.rglob("one*.png")].count("one.png") == 2, "copied"
        outside = {"name": "Bo", "reference": str(tmp_path / "secret.png")}
        cast["members"] = [cast["members"][0], outside]
        assert "no file or folder in" in words(await client.call_tool("create_cast", cast))
        alone = await client.call_tool("create_cast", cast | {"members": cast["members"][:1]})
        assert alone.is_error


@pytest.mark.anyio
async def test_the_set_is_seen_and_changed(home: Path) -> None:
    settings = Settings(home=home)
    async with asking(settings) as client:
        run = (await begun(client))["id"]
        paint_set(settings)
        found = said(await client.call_tool("list_dataset", {"run": run}))
        assert found["counts"] == {"included": 4, "excluded": 0, "rejected": 1}
        file = found["images"][0]["file"]
        shown = await client.call_tool("show_picture", {"run": run, "file": file})
        assert isinstance(shown.content[1], ImageContent)
        assert Image.open(BytesIO(base64.b64decode(shown.content[1].data))).size == (64, 64)
        status = await client.call_tool("run_status", {"run": run})
        assert [each.type for each in status.content] == ["text", "image"], "the newest picture"
        await client.call_tool("exclude_pictures", {"run": run, "files": [file], "reason": "a hand"})
        await client.call_tool(
            "write_caption", {"run": run, "file": found["images"][1]["file"], "caption": "elara, sitting"}
        )
        one, other = said(await client.call_tool("list_dataset", {"run": run}))["images"][:2]
        assert (one["status"], one["reason"], other["caption"]) == ("excluded", "a hand", "elara, sitting")
        await client.call_tool("restore_pictures", {"run": run, "files": [file]})
        assert said(await client.call_tool("list_dataset", {"run": run}))["counts"]["excluded"] == 0


@pytest.mark.anyio
async def test_pictures_are_read_only_below_the_configured_folders(home: Path, tmp_path: Path) -> None:
    settings = Settings(home=home)
    outside = tmp_path / "elsewhere" / "secret.png"
    outside.parent.mkdir()
    Image.new("RGB", (64, 64), "red").save(outside)
    inside = settings.datasets_dir / "mine"
    inside.mkdir(parents=True)
    Image.new("RGB", (64, 64), "blue").save(inside / "one.png")
    (inside / "link.png").symlink_to(outside)
    async with asking(settings) as client:
        given = {"name": "Mira", "recipe": "mini"}
        for path in (
            outside,
            inside / "link.png",
            outside.parent,
            inside / ".." / ".." / ".." / "etc",
            Path("/etc/passwd"),
        ):
            for key, value in (("reference", str(path)), ("pictures", [str(path)])):
                refused = await client.call_tool("create_character", given | {key: value})
                assert "is no file or folder in" in words(refused), path
        assert said(await client.call_tool("list_runs", {}))["total"] == 0
        made = await begun(client, name="Mira", pictures=[str(inside)])
        pictures = said(await client.call_tool("list_dataset", {"run": made["id"]}))["images"]
        assert len(pictures) == 1, "the link that leads out was left behind"
        assert "base64" in words(
            await client.call_tool("create_character", given | {"reference_base64": "%"})
        )


@pytest.mark.anyio
async def test_what_is_not_there_is_a_sentence_and_no_trace(home: Path) -> None:
    async with asking(Settings(home=home)) as client:
        assert "There is no run 'x'" in words(await client.call_tool("run_status", {"run": "x"}))
        run = (await begun(client))["id"]
        assert "Nothing has been measured yet" in words(await client.call_tool("scores", {"run": run}))
        assert said(await client.call_tool("results", {"run": run}))["published"] is False
        for file in ("lora", "report", "..", "run.json"):
            with pytest.raises(MCPError):
                await client.read_resource(f"lora-foundry://runs/{run}/{file}")
        assert "no trial" in words(await client.call_tool("show_trial", {"run": run, "trial": "x"}))


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_finished_run_shows_scores_and_links_to_its_files(homes: Any, tmp_path: Path) -> None:
    home = homes.copy(tmp_path / "home")
    async with asking(Settings(home=home)) as client:
        run = (await begun(client, description=ELARA.description, settings=list(SMALL)))["id"]
        shown = await client.call_tool("scores", {"run": run})
        assert {"identity_before", "identity_after"} <= said(shown)["scores"].keys()
        assert isinstance(shown.content[1], ImageContent)
        made = await client.call_tool("results", {"run": run})
        links = {each.uri.rpartition("/")[2]: each for each in made.content if each.type == "resource_link"}
        assert {"report", "before_after", "lora"} <= set(links)
        read = (await client.read_resource(links["lora"].uri)).contents[0]
        assert isinstance(read, BlobResourceContents)
        assert len(base64.b64decode(read.blob)) == links["lora"].size


@pytest.mark.anyio
async def test_over_http_the_guard_of_the_rest_api_decides(home: Path) -> None:
    settings = Settings(home=home)
    import uvicorn

    from lora_foundry.web.serving import listen

    site = make_site(settings, TOKEN)
    listening = listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
    server = uvicorn.Server(uvicorn.Config(guarded(site), log_level="warning", timeout_graceful_shutdown=1))
    async with opened(site), anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listening])
        async with httpx2.AsyncClient() as stranger:
            for headers in ({}, {"authorization": "Bearer a-guess-of-a-stranger"}):
                assert (await stranger.post(address, json={}, headers=headers)).status_code == 401
            assert (await stranger.get(address)).status_code == 401, "no redirect to a page"
            foreign = {"authorization": f"Bearer {TOKEN}", "origin": "http://elsewhere"}
            assert (await stranger.post(address, json={}, headers=foreign)).status_code == 403
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}) as known,
            Client(streamable_http_client(address, http_client=known)) as client,
        ):
            assert (await begun(client))["status"] == "pending"
        server.should_exit = True
