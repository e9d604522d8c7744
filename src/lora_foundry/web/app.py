"""Puts the server together: one function that makes the app, so that tests, `serve` and others' servers get the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from starlette.routing import BaseRoute

from lora_foundry import __version__
from lora_foundry.files.storage import make_folder
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import Pipeline
from lora_foundry.tasks.store import TaskStore
from lora_foundry.web import pages, problems, routes
from lora_foundry.web.deleting import empty_outdated
from lora_foundry.web.guard import Guard
from lora_foundry.web.hub import Hub
from lora_foundry.web.metrics import Traffic, TrafficMiddleware
from lora_foundry.web.proxied import Network, Proxied
from lora_foundry.web.routes import pipelines
from lora_foundry.web.sessions import GuessLimit, Sessions
from lora_foundry.web.site import Site
from lora_foundry.web.told_paths import teller


def create_app(
    settings: Settings, token: str | None = None, root: str = "", trusted: Sequence[Network] = ()
) -> FastAPI:
    """The API and the dashboard. Without a token it answers only under a loopback name. root: the path under which a proxy
    shows it, such as "/foundry"; trusted: the proxies whose headers are believed."""
    site = make_site(settings, token, root)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(site):
            yield

    app = FastAPI(
        title="lora-foundry",
        version=__version__,
        summary="Describe a character; get a LoRA that draws it.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        servers=[{"url": root}] if root else None,
    )
    app.state.site = site
    app.router.routes.extend(_routes())
    app.mount("/static", pages.static_files())
    problems.install(
        app, lambda title, text: pages.render_problem(title, text, root), site.store.url, teller(settings)
    )
    app.add_middleware(Guard, sessions=site.sessions, limit=site.limit, root=root)
    app.add_middleware(TrafficMiddleware, traffic=Traffic(site.registry))
    app.add_middleware(Proxied, root=root, trusted=trusted)
    return app


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """Of every app of this process: what FastAPI works out about a route, it works out at the first request of the first."""
    router = APIRouter(responses=problems.RESPONSES)
    for module in routes.modules():
        router.include_router(module.router)
    router.include_router(pages.page_router())
    return tuple(router.routes)


@asynccontextmanager
async def opened(site: Site) -> AsyncIterator[None]:
    """The site while it serves: its folder and tables are there, and at the end what it began is ended."""
    make_folder(site.settings.home.expanduser())
    await site.store.upgrade()
    await empty_outdated(site)
    try:
        yield
    finally:
        await site.hub.finish()
        await site.trials.finish()
        await site.setups.finish()
        await site.redraws.finish()
        await site.store.close()


def make_site(settings: Settings, token: str | None = None, root: str = "") -> Site:
    """What the routes share; other doors to the same runs, such as the one for agents, are given one of their own."""
    store = TaskStore(settings.task_database)

    async def show(pipeline: Pipeline) -> BaseModel:
        return await pipelines.show(site, pipeline)

    site = Site(settings, store, Sessions(token), GuessLimit(), Hub(store, show), CollectorRegistry(), root)
    return site
