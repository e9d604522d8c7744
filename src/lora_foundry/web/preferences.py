"""What is set on this machine and from where, and whether what the settings name can be reached. Nothing is changed here:
settings come from the environment, so that every process has the same; what is secret is only said to be set."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from lora_foundry.backends.comfyui.address import address_of
from lora_foundry.backends.comfyui.client import ComfyUIClient, Patience
from lora_foundry.backends.kohya.checkout import find_checkout
from lora_foundry.composition import notifier_of
from lora_foundry.domain.news import News
from lora_foundry.errors import FoundryError, InputError
from lora_foundry.settings import Settings
from lora_foundry.tasks.store import TaskStore

Subject = Literal["comfyui", "sd-scripts", "database", "notifications"]
_SECRET = ("token", "comfyui_token", "vlm_key", "notify")
_PATIENCE = 5.0


class SettingView(BaseModel):
    """One setting. `variable`: of the environment, which sets it; source: where its value comes from now."""

    name: str
    variable: str
    value: str
    source: Literal["environment", "command line", "default"]
    description: str
    tested_by: Subject | None = None


class TestResult(BaseModel):
    """Whether what was tried works; `found` says what there is, or what is wrong and what to do."""

    subject: Subject
    ok: bool
    found: str


_TESTS: dict[str, Subject] = {
    "comfyui_url": "comfyui",
    "kohya": "sd-scripts",
    "database_url": "database",
    "notify": "notifications",
}


def shown_settings(settings: Settings) -> list[SettingView]:
    """Every setting, as it is for this server."""
    views = []
    environment = {name.upper() for name in os.environ}
    for name, field in Settings.model_fields.items():
        value, variable = getattr(settings, name), f"LORA_FOUNDRY_{name.upper()}"
        default = (
            field.get_default(call_default_factory=True)
            if field.default_factory is not None
            else field.default
        )
        usual = None if default is PydanticUndefined else default
        source: Literal["environment", "command line", "default"] = "default"
        if value != usual:
            source = "environment" if variable in environment else "command line"
        views.append(
            SettingView(
                name=name,
                variable=variable,
                value=_text(name, value),
                source=source,
                description=field.description or "",
                tested_by=_TESTS.get(name),
            )
        )
    return views


def _text(name: str, value: Any) -> str:
    if value in (None, "", (), {}):
        return ""
    if name in _SECRET or isinstance(value, SecretStr):
        return "set (not shown)"
    if isinstance(value, dict | tuple):
        plain = {key: str(each) for key, each in value.items()} if isinstance(value, dict) else list(value)
        return json.dumps(plain)
    text = str(value)
    return without_password(text) if "://" in text else text


def without_password(address: str) -> str:
    """An address as people may see it."""
    parts = urlsplit(address)
    if not parts.password:
        return address
    name = f"{parts.username}:***" if parts.username else "***"
    return parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}").geturl()


async def try_out(subject: Subject, settings: Settings, store: TaskStore) -> TestResult:
    """Asks the thing itself. A notification is really sent."""
    tests: dict[Subject, Callable[[], Awaitable[str]]] = {
        "comfyui": lambda: _comfyui(settings),
        "sd-scripts": lambda: asyncio.to_thread(_kohya, settings),
        "database": lambda: _database(settings, store),
        "notifications": lambda: asyncio.to_thread(_notify, settings),
    }
    try:
        return TestResult(subject=subject, ok=True, found=await tests[subject]())
    except (FoundryError, httpx.HTTPError, OSError) as error:
        return TestResult(subject=subject, ok=False, found=str(error) or type(error).__name__)


async def _comfyui(settings: Settings) -> str:
    if not settings.names_comfyui:
        raise InputError(
            "No ComfyUI is named; set LORA_FOUNDRY_COMFYUI_URL to its address, such as http://127.0.0.1:8188."
        )
    address = address_of(settings.comfyui_address, settings.comfyui_token)
    async with ComfyUIClient(address, Patience(answer=_PATIENCE, absence=_PATIENCE)) as client:
        stats = await client.stats()
    return f"ComfyUI {stats.version} answers; {stats.free / 2**30:.1f} GiB of its device are free."


def _kohya(settings: Settings) -> str:
    found = find_checkout(settings.kohya, settings.kohya_python)
    return f"{found.folder}, run by {found.python}."


async def _database(settings: Settings, store: TaskStore) -> str:
    counts = await store.counts()
    return f"{without_password(settings.task_database)} answers; it holds {sum(counts.values())} tasks."


def _notify(settings: Settings) -> str:
    notifier = notifier_of(settings)
    if notifier is None:
        raise InputError(
            "No address is named; set LORA_FOUNDRY_NOTIFY, such as ntfy://ntfy.sh/a-topic-of-yours."
        )
    notifier.notify(News(title="lora-foundry", text="This is a test: messages about runs come here."))
    return "A test message was sent."
