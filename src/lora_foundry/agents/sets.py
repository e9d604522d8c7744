"""Tools for a run's training set, and for trying its LoRA: look at pictures, throw some out, write captions, draw a prompt."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from lora_foundry.agents.answers import answer, in_words, picture, pictures
from lora_foundry.agents.runs import ADD, CHANGE, READ, RunId
from lora_foundry.agents.sdk import CallToolResult, MCPServer
from lora_foundry.domain.trial import SIDES
from lora_foundry.web import dataset as sets
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.routes import dataset, use
from lora_foundry.web.routes.dataset import CaptionIn, ChosenIn
from lora_foundry.web.routes.use import TrialIn
from lora_foundry.web.site import Site

Files = Annotated[
    list[Annotated[str, Field(max_length=300)]],
    Field(min_length=1, max_length=2000, description="As list_dataset names them."),
]
Whose = Annotated[str, Field(max_length=200, description="Of a cast: whose set.")]
LONGEST_WAIT = 600.0


def add_tools(server: MCPServer[Any], site: Site) -> None:
    """Registers them all."""
    _add_reading(server, site)
    _add_changing(server, site)
    _add_trying(server, site)


def _add_reading(server: MCPServer[Any], site: Site) -> None:
    @server.tool(annotations=READ)
    @in_words
    async def list_dataset(run: RunId, member: Whose = "") -> CallToolResult:
        """The pictures of a run's set with their captions, which are left out and why, how often each tag stands in the
        captions, and pairs that look alike; of a cast without a member the pictures of all."""
        found = await dataset.read(site, run, member)
        keys = {"file", "member", "status", "caption", "reason", "edited", "own"}
        said = {
            "images": [each.model_dump(mode="json", include=keys) for each in found.images],
            "tags": {each.tag: each.count for each in found.tags},
            "near_duplicates": [[each.a, each.b] for each in found.near_duplicates],
            "counts": found.counts,
        }
        return answer(said)

    @server.tool(annotations=READ)
    @in_words
    async def show_picture(
        run: RunId,
        file: Annotated[str, Field(max_length=300, description="As list_dataset names it.")],
        member: Whose = "",
    ) -> CallToolResult:
        """One picture of a run's set, to look at."""
        path = sets.find_picture((await dataset.member_set(site, run, member)).paths, file)
        return answer({"file": file}, await picture(site, path))


def _add_changing(server: MCPServer[Any], site: Site) -> None:
    @server.tool(annotations=CHANGE)
    @in_words
    async def exclude_pictures(
        run: RunId,
        files: Files,
        reason: Annotated[str, Field(max_length=500)] = "",
        member: Whose = "",
    ) -> CallToolResult:
        """Throw pictures out of a run's set; they stay in their folder, and restore_pictures takes them back. The next
        training is without them."""
        chosen = await dataset.member_set(site, run, member)
        return answer(await dataset.exclude_many(site, chosen, ChosenIn(files=files, reason=reason)))

    @server.tool(annotations=CHANGE)
    @in_words
    async def restore_pictures(run: RunId, files: Files, member: Whose = "") -> CallToolResult:
        """Take pictures back into a run's set that were thrown out."""
        chosen = await dataset.member_set(site, run, member)
        return answer(await dataset.restore_many(site, chosen, ChosenIn(files=files)))

    @server.tool(annotations=CHANGE)
    @in_words
    async def write_caption(
        run: RunId,
        file: Annotated[str, Field(max_length=300)],
        caption: Annotated[str, Field(max_length=20_000)],
        previous: Annotated[
            str | None, Field(max_length=20_000, description="What it was; refused where it no longer is.")
        ] = None,
        member: Whose = "",
    ) -> CallToolResult:
        """Write the caption of a picture; later runs leave it alone. Keep the trigger word first in it."""
        chosen = await dataset.member_set(site, run, member)
        shown = await dataset.edit_caption(site, chosen, file, CaptionIn(caption=caption, previous=previous))
        return answer({"file": shown.file, "caption": shown.caption, "edited": shown.edited})


def _add_trying(server: MCPServer[Any], site: Site) -> None:
    @server.tool(annotations=ADD)
    @in_words
    async def try_prompt(
        run: RunId,
        prompt: Annotated[str, Field(min_length=1, max_length=2000, description="With the trigger word.")],
        strength: Annotated[float | None, Field(ge=-4, le=4, description="Else the measured one.")] = None,
        seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(max_length=3)] = [],  # noqa: B006
        wait_seconds: Annotated[float, Field(ge=0, le=LONGEST_WAIT)] = 300.0,
    ) -> CallToolResult:
        """Draw a prompt on this machine without and with a run's LoRA; the pictures come in that order for each seed. Where
        they are not there in time, call show_trial."""
        begun = await use.try_prompt(
            site, run, TrialIn(prompt=prompt, strength=strength, seeds=seeds, pictures=1)
        )
        await site.trials.wait(begun.id, wait_seconds)
        return await _trial(site, run, begun.id)

    @server.tool(annotations=READ)
    @in_words
    async def show_trial(run: RunId, trial: Annotated[str, Field(max_length=80)]) -> CallToolResult:
        """The pictures of a prompt that was tried."""
        return await _trial(site, run, trial)


async def _trial(site: Site, run: str, wanted: str) -> CallToolResult:
    shown = next((each for each in await use.trials(site, run) if each.id == wanted), None)
    if shown is None:
        raise NotFoundError(f"There is no trial {wanted[:80]!r} of this run.")
    folder = site.folder(await site.pipeline(run)).trial(shown.id)
    files = [folder.picture(side, number) for number, _ in enumerate(shown.seeds) for side in SIDES]
    said = shown.model_dump(mode="json", include={"id", "state", "error", "prompt", "strength", "seeds"})
    return answer(said, *await pictures(site, [file for file in files if file.is_file()]))
