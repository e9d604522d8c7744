"""Tools for whole runs: begin one, see how it goes, read what came of it, do it again with changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field

from lora_foundry.agents import sources
from lora_foundry.agents.answers import GRID_EDGE, answer, in_words, or_missing, picture, pictures
from lora_foundry.agents.sdk import CallToolResult, ContentBlock, MCPServer, ResourceLink, ToolAnnotations
from lora_foundry.domain.cast import MOST
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.publication import Publication
from lora_foundry.errors import InputError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model
from lora_foundry.files.training_set import list_set
from lora_foundry.pipeline import StageName
from lora_foundry.settings import Settings
from lora_foundry.web.models import MemberIn, PipelineDetail, PipelineIn, PipelineView, RequestModel, RetryIn
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.routes import pipelines, recipes
from lora_foundry.web.safe_files import safe_file
from lora_foundry.web.site import Site
from lora_foundry.web.trials import lora_file

READ = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADD = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)
CHANGE = ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
)
REDO = ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False
)
RunId = Annotated[
    str, Field(max_length=80, description="The run's id, as create_character and list_runs say it.")
]
Changes = Annotated[
    list[Annotated[str, Field(max_length=2000)]],
    Field(
        max_length=200, description='Changes to the recipe, each "section.key=value", such as "train.rank=8".'
    ),
]
# What a run's files are called in addresses, and their media types.
FILES = {
    "report": "text/html",
    "before_after": "image/png",
    "preview": "image/png",
    "lora": "application/octet-stream",
}


def add_tools(server: MCPServer[Any], site: Site) -> None:
    """Registers them all."""
    _add_lists(server, site)
    _add_beginning(server, site)
    _add_doing(server, site)
    _add_results(server, site)


def _add_lists(server: MCPServer[Any], site: Site) -> None:
    @server.tool(annotations=READ)
    @in_words
    async def list_recipes() -> CallToolResult:
        """The recipes that a character can be made with: name, what for, base model, pictures, steps."""
        found = await asyncio.to_thread(recipes.list_recipes, site)
        return answer({"recipes": [each.model_dump(mode="json") for each in found]})

    @server.tool(annotations=READ)
    @in_words
    async def list_runs(
        words: Annotated[str, Field(max_length=200, description="Part of a name or a description.")] = "",
        limit: Annotated[int, Field(ge=1, le=200)] = 20,
    ) -> CallToolResult:
        """The characters that were asked for, the newest first, each with its run's id and how far it is."""
        page = await pipelines.list_pipelines(site, None, words, limit, None)
        return answer({"runs": [_brief(each) for each in page.pipelines], "total": page.total})


class CastMember(RequestModel):
    """A character of a cast, from words, one picture (reference) or own pictures."""

    name: str = Field(max_length=200)
    description: str = Field(default="", max_length=4000, description="Looks; own pictures need none.")
    trigger: str = Field(default="", max_length=200, description="Else the name.")
    tags: list[Annotated[str, Field(max_length=100)]] = Field(default=[], max_length=100)
    reference: str | None = Field(default=None, max_length=4000, description="Path of a picture of it.")
    reference_base64: str | None = None
    pictures: list[str] = Field(default=[], max_length=1000, description="Paths of own pictures.")

    def sent(self, settings: Settings) -> MemberIn:
        """The same for the REST API, its pictures kept. Raises InputError."""
        reference = sources.keep_reference(settings, self.reference, self.reference_base64)
        upload = sources.keep_pictures(settings, self.pictures)
        told = self.model_dump(include={"name", "description", "trigger", "tags"})
        return MemberIn(**told, reference=reference, upload=upload)


def _add_beginning(server: MCPServer[Any], site: Site) -> None:
    @server.tool(annotations=ADD)
    @in_words
    async def create_character(  # noqa: PLR0913, PLR0917 - its arguments are what an agent is offered
        name: Annotated[str, Field(max_length=200, description="Becomes the folder and the trigger word.")],
        description: Annotated[
            str, Field(max_length=4000, description="Looks, as tags or a sentence; own pictures need none.")
        ] = "",
        recipe: Annotated[str | None, Field(max_length=200, description="As list_recipes names it.")] = None,
        settings: Changes = [],  # noqa: B006 - pydantic copies defaults
        reference: Annotated[
            str | None,
            Field(max_length=4000, description="Path of a picture of the character, on this machine."),
        ] = None,
        reference_base64: Annotated[
            str | None, Field(description="The same picture as base64, from elsewhere.")
        ] = None,
        pictures: Annotated[
            list[str],
            Field(
                max_length=1000,
                description="Own pictures to train on: paths of folders, zip files or pictures.",
            ),
        ] = [],  # noqa: B006
        trigger: Annotated[str, Field(max_length=200, description="Else the name.")] = "",
        tags: Annotated[list[str], Field(max_length=100, description="Identity tags for captions.")] = [],  # noqa: B006
        seed: Annotated[int | None, Field(ge=0, lt=2**32)] = None,
        output_name: Annotated[str | None, Field(max_length=200, description="The LoRA's file name.")] = None,
    ) -> CallToolResult:
        """Begin a run that makes a LoRA of a character: from words, from one picture (reference) or from own pictures.

        Returns at once with the run's id; a worker does it, which takes minutes to hours. Ask run_status meanwhile.
        """
        kept = await asyncio.to_thread(sources.keep_reference, site.settings, reference, reference_base64)
        upload = await asyncio.to_thread(sources.keep_pictures, site.settings, pictures)
        asked = PipelineIn(
            name=name, description=description, recipe=recipe, settings=settings, reference=kept, upload=upload,
            trigger=trigger, tags=tags, seed=seed, output_name=output_name,
        )  # fmt: skip
        made = await pipelines.start(site, asked, "mcp")
        return answer(_brief(await pipelines.read(site, made.id)))

    @server.tool(annotations=ADD)
    @in_words
    async def create_cast(
        name: Annotated[str, Field(max_length=200, description="Becomes the folder and the LoRA's name.")],
        members: Annotated[list[CastMember], Field(min_length=2, max_length=MOST)],
        recipe: Annotated[str | None, Field(max_length=200, description="As list_recipes names it.")] = None,
        settings: Changes = [],  # noqa: B006
        seed: Annotated[int | None, Field(ge=0, lt=2**32)] = None,
        output_name: Annotated[str | None, Field(max_length=200, description="The LoRA's file name.")] = None,
    ) -> CallToolResult:
        """Begin a run that makes one LoRA of two to six characters, each with a trigger word of its own.

        Returns at once with the run's id, as create_character does.
        """
        told = await asyncio.to_thread(lambda: [each.sent(site.settings) for each in members])
        asked = PipelineIn(
            name=name, members=told, recipe=recipe, settings=settings, seed=seed, output_name=output_name
        )
        made = await pipelines.start(site, asked, "mcp")
        return answer(_brief(await pipelines.read(site, made.id)))

    @server.tool(annotations=READ)
    @in_words
    async def run_status(run: RunId) -> CallToolResult:
        """How far a run is, stage by stage, what it waits for or why it failed, and its newest picture."""
        shown = await pipelines.read(site, run)
        newest = await asyncio.to_thread(_newest, site.folder(await site.pipeline(run)))
        return answer(_brief(shown), *await pictures(site, newest))


def _add_doing(server: MCPServer[Any], site: Site) -> None:
    @server.tool(annotations=REDO)
    @in_words
    async def retry_run(
        run: RunId,
        settings: Changes = [],  # noqa: B006
        from_stage: StageName | None = None,
    ) -> CallToolResult:
        """Run again, with changed settings if given, from the first stage that has to. What still fits is kept; the
        results of the stages that run again are replaced. After changes to the set: from_stage "train"."""
        return answer(
            _brief(await pipelines.retry(site, run, RetryIn(settings=settings, from_stage=from_stage)))
        )

    @server.tool(annotations=CHANGE)
    @in_words
    async def cancel_run(run: RunId) -> CallToolResult:
        """Stop a run. What it has made stays; retry_run goes on from there."""
        return answer(_brief(await pipelines.cancel(site, run)))


def _add_results(server: MCPServer[Any], site: Site) -> None:
    @server.tool(annotations=READ)
    @in_words
    async def scores(run: RunId) -> CallToolResult:
        """The scores without and with the LoRA, what was made of them, and the same prompts and seeds drawn without the
        LoRA (left) and with it (right)."""
        paths = site.folder(await site.pipeline(run))
        found = await asyncio.to_thread(read_model, paths.evaluation_result, Evaluation)
        if found is None:
            raise NotFoundError("Nothing has been measured yet; run_status says how far the run is.")
        said = {
            "scores": found.scores.model_dump(mode="json"),
            "assessment": found.assessment.model_dump(mode="json"),
            "step": found.step,
            "strength": found.strength,
        }
        grid = [await picture(site, paths.before_after, GRID_EDGE)] if paths.before_after.is_file() else []
        return answer(said, *grid)

    @server.tool(annotations=READ)
    @in_words
    async def results(run: RunId) -> CallToolResult:
        """What a run has made: whether it was published and why, where the LoRA lies, its trigger word, and links to the
        report, the pictures and the LoRA, which can be read as resources."""
        shown = await pipelines.read(site, run)
        paths = site.folder(await site.pipeline(run))
        publication = await asyncio.to_thread(read_model, paths.publication, Publication)
        said = {
            "id": shown.id,
            "status": shown.status,
            "published": shown.published,
            "verdict": publication.verdict if publication else "",
            "lora_path": str(publication.lora) if publication and publication.lora else None,
            "trigger": shown.trigger,
        }
        return answer(said, *_links(site, shown, paths))

    @server.resource("lora-foundry://runs/{run}/{file}", mime_type="application/octet-stream")
    @or_missing
    async def run_file(run: str, file: str) -> bytes:
        """A file that a run has made: report, before_after, preview or lora."""
        paths = site.folder(await site.pipeline(run))
        return await asyncio.to_thread(lambda: file_of(site, paths, file).read_bytes())


def file_of(site: Site, paths: RunPaths, file: str) -> Path:
    """The file that an address means. Raises NotFoundError."""
    if file == "lora":
        return lora_file(site.settings, paths)
    places = {each.stem: each for each in (paths.report, paths.before_after, paths.preview)}
    if file not in places:
        raise NotFoundError(f"A run has no file {file[:80]!r}; it has {', '.join(FILES)}.")
    return safe_file(paths.root, paths.evaluation.name, places[file].name)


def _links(site: Site, shown: PipelineDetail, paths: RunPaths) -> list[ContentBlock]:
    links: list[ContentBlock] = []
    for file, kind in FILES.items():
        try:
            path = file_of(site, paths, file)
        except NotFoundError:
            continue
        uri = f"lora-foundry://runs/{quote(shown.id)}/{file}"
        size = path.stat().st_size
        links.append(ResourceLink(type="resource_link", name=path.name, uri=uri, mime_type=kind, size=size))
    return links


def _brief(view: PipelineView) -> dict[str, Any]:
    """What a model needs of a run, without addresses of pages."""
    said: dict[str, Any] = {
        "id": view.id,
        "character": view.character.name,
        "recipe": view.recipe,
        "status": view.status,
        "stage": view.stage,
        "progress": view.progress,
        "eta_seconds": view.eta_seconds,
        "error": view.error,
        "stages": {each.stage: each.status for each in view.stages},
    }
    now = next((each for each in view.stages if each.stage == view.stage), None)
    if now is not None and now.total:
        said["now"] = {"done": now.done, "total": now.total, "unit": now.unit, "message": now.message}
    if isinstance(view, PipelineDetail):
        said |= view.model_dump(include={"members", "published", "trigger", "waits_for", "cautions"})
    return said


def _newest(paths: RunPaths) -> list[Path]:
    """The picture that was made last: a sample of the training, else one of the set."""
    try:
        found = [each.path for each in list_set(paths).pictures]
    except InputError:
        found = []
    samples = sorted(paths.samples.glob("*.png")) if paths.samples.is_dir() else []
    every = [path for path in (*found, *samples) if path.is_file() and not path.is_symlink()]
    return [max(every, key=lambda path: path.stat().st_mtime_ns)] if every else []
