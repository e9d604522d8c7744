"""The settings page: what is set and from where, whether it works, what lies on the disk and what can be freed."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from lora_foundry.tasks.pipelines import recent_pipelines
from lora_foundry.web import disk_use
from lora_foundry.web.disk_use import Freeable, Freed, Use
from lora_foundry.web.preferences import SettingView, Subject, TestResult, shown_settings, try_out
from lora_foundry.web.routes import Page
from lora_foundry.web.site import Here, Site

router = APIRouter(prefix="/api/v1", tags=["settings"])
PAGES = (
    Page(
        "/settings",
        "settings",
        "Settings",
        "M4 7h9m5 0h2M4 17h3m5 0h8M15 4.5v5M9 14.5v5",
        place=4,
    ),
)
_MOST_RUNS = 5000


@router.get("/settings")
def read(here: Here) -> list[SettingView]:
    """Every setting of this server with its source; secrets are only said to be set."""
    return shown_settings(here.settings)


@router.post("/settings/test/{subject}")
async def test(here: Here, subject: Subject) -> TestResult:
    """Asks ComfyUI, sd-scripts, the database or the notification services; a test message is really sent."""
    return await try_out(subject, here.settings, here.store)


@router.get("/disk")
async def disk(here: Here) -> list[Use]:
    """What lies where and how much room it takes, the largest first; `freeable` is what can go without losing a LoRA."""
    over = await _over(here)
    return await asyncio.to_thread(disk_use.used, here.settings, over)


@router.delete("/disk/{what}")
async def free(here: Here, what: Freeable) -> Freed:
    """Removes what can be made again: what training keeps to go on (of runs that are over), pictures that were sent and not
    used, logs."""
    over = await _over(here)
    return await asyncio.to_thread(disk_use.free, here.settings, what, over)


async def _over(here: Site) -> bool:
    """Whether no run is unfinished, so that nobody needs what a training goes on from."""
    listed = await recent_pipelines(here.store, limit=_MOST_RUNS)
    return all(each.status in ("completed", "failed", "cancelled") for each in listed)
