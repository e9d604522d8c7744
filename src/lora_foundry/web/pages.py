"""The dashboard's pages: the address, the words around the matter, and the names of the modules that fill it.

Each page is a shell without data, so that it paints at once whatever the database is doing, and holds no state of a
visitor: what is shown is asked of the REST API, what was chosen stands in the address. A server may therefore be
restarted under an open page. Why no framework: docs/decisions/0070-plain-pages.md."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.exc import DBAPIError
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from lora_foundry.pipeline import STAGE_NAMES
from lora_foundry.web.routes import Page, modules
from lora_foundry.web.site import Here, Site


def pages() -> tuple[Page, ...]:
    """Every page, as the modules of `routes` name them."""
    return tuple(page for module in modules() for page in getattr(module, "PAGES", ()))


_PATIENCE = 0.5  # seconds that a page waits for the database
# Loaded beside the page's own module instead of after it: modules that import one another are a chain of waits.
_SHARED = ("dom", "api", "format", "live", "chrome")


class Static(StaticFiles):
    """The stylesheet and the modules. A browser asks each time whether its copy is still the newest, so that no
    page mixes the files of two versions; the answer is a 304 of a few bytes."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


def static_files() -> Static:
    """To be mounted at /static."""
    return Static(packages=[("lora_foundry.web", "static")])


def render(page: Page, pipeline: str = "", root: str = "") -> str:
    """A page as HTML. `pipeline` is whatever stood in the address; it is escaped like everything else. root: the path in
    front of ours."""
    return (
        _environment()
        .get_template(f"{page.name}.html.jinja")
        .render(
            page=page.name,
            section=page.below or page.name,
            pipeline=pipeline,
            root=root,
            menu=sorted((each for each in pages() if each.words), key=lambda each: each.place),
            stages=STAGE_NAMES,
            modules=(*_SHARED, page.name),
        )
    )


@cache
def _environment() -> Environment:
    loader = PackageLoader("lora_foundry.web", "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def page_router() -> APIRouter:
    """A route for each page, and the icon that browsers ask for at a fixed address."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    for page in pages():
        router.add_api_route(page.address, _route(page), methods=["GET"])
    router.add_api_route("/favicon.ico", _icon, methods=["GET"])
    return router


def render_problem(title: str, text: str, root: str = "") -> str:
    """A page that says what is not there, or went wrong, and where to go on."""
    words = {"page": "problem", "section": "", "pipeline": "", "root": root, "modules": (*_SHARED, "problem")}
    menu = sorted((each for each in pages() if each.words), key=lambda each: each.place)
    template = _environment().get_template("problem.html.jinja")
    return template.render(**words, menu=menu, title=title, text=text)


def _route(page: Page) -> Callable[[Request, Here], Awaitable[HTMLResponse]]:
    async def show(request: Request, here: Here) -> HTMLResponse:
        pipeline = request.path_params.get("pipeline", "")
        if pipeline:
            await _refuse_unknown(here, pipeline)
        return HTMLResponse(render(page, pipeline, here.root))

    return show


async def _refuse_unknown(here: Site, pipeline: str) -> None:
    """Raises NotFoundError for a run that is not there. Where the database takes its time the page is shown at once, and says
    itself what it learns."""
    with suppress(TimeoutError, DBAPIError):
        async with asyncio.timeout(_PATIENCE):
            await here.pipeline(pipeline)


async def _icon() -> Response:
    icon = resources.files("lora_foundry.web").joinpath("static/favicon.svg").read_bytes()
    return Response(icon, media_type="image/svg+xml")
