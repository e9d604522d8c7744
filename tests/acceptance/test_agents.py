"""An agent makes a LoRA: the SDK's own client starts `lora-foundry mcp` and comes from words to a published LoRA."""

from __future__ import annotations

import base64
import os
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from PIL import Image

from tests.homes import ELARA, SMALL

ROOT = Path(__file__).parents[2]
# The program as `lora-foundry` starts it, but that its worker and their children are forked.
PRELOADED = "import tests.preloaded; from lora_foundry.cli.app import main; main()"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Conversation:
    """Calls tools and keeps what was asked and answered, as docs/guide/agents.md shows it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.lines: list[str] = []

    async def ask(self, tool: str, **given: Any) -> tuple[dict[str, Any], list[Any]]:
        result = await self._client.call_tool(tool, given)
        assert not result.is_error, result.content
        assert result.structured_content is not None
        kinds = [each.type for each in result.content[1:]]
        self.lines.append(f"> {tool} {given}\n{result.structured_content} {kinds}")
        return result.structured_content, result.content[1:]


@pytest.mark.slow
@pytest.mark.anyio
async def test_words_become_a_published_lora_in_a_conversation(home: Path) -> None:
    words = ["-c", PRELOADED, "mcp", "--with-worker", "--home", str(home)]
    program = StdioServerParameters(command=sys.executable, args=words, env=dict(os.environ), cwd=ROOT)
    async with Client(program) as client:
        talk = Conversation(client)
        begun, _ = await talk.ask("create_character", name=ELARA.name, description=ELARA.description,
                                  recipe="mini", settings=list(SMALL))  # fmt: skip
        run = begun["id"]
        with anyio.fail_after(240):
            while (status := (await talk.ask("run_status", run=run)))[0]["status"] != "completed":
                assert status[0]["status"] != "failed", status[0]["error"]
                await anyio.sleep(1)
        assert [each.type for each in status[1]] == ["image"]
        scores, (grid,) = await talk.ask("scores", run=run)
        assert scores["scores"]["identity_after"] is not None
        assert Image.open(BytesIO(base64.b64decode(grid.data))).format == "WEBP"
        made, links = await talk.ask("results", run=run)
        assert made["published"]
        assert Path(made["lora_path"]).is_file()
        assert {each.uri.rpartition("/")[2] for each in links} == {
            "report",
            "before_after",
            "preview",
            "lora",
        }
        tried, drawn = await talk.ask("try_prompt", run=run, prompt=f"{made['trigger']}, smile", seeds=[7])
        assert tried["state"] == "completed", tried["error"]
        assert len(drawn) == 2, "without and with the LoRA"
    if keep := os.environ.get("AGENTS_TRANSCRIPT"):
        Path(keep).write_text("\n".join(talk.lines), encoding="utf-8")
