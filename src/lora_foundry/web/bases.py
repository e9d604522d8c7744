"""The base models that can be chosen: what lies in the folders where they are looked for, and what ComfyUI lists. Each file's
header is read once, and again only when the file changes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import httpx
from pydantic import BaseModel

from lora_foundry.backends.comfyui.address import Address, address_of
from lora_foundry.backends.comfyui.client import ComfyUIClient, Patience
from lora_foundry.errors import FoundryError
from lora_foundry.families._shared.inspect import BUNDLED, family_of_file, family_of_folder, models_below
from lora_foundry.families._shared.split import index_of
from lora_foundry.settings import Settings

MOST = 500
_FOLDERS = ("checkpoints", "diffusion_models")
_PATIENCE = 3.0


class BaseView(BaseModel):
    """A base model. `name`: what `model.base` calls it; family: "" for what is no base; `here`: its file is on this
    machine, so that a LoRA can be trained on it."""

    name: str
    family: str
    bytes: int
    folder: str
    here: bool


class _Stamp(NamedTuple):
    modified: int
    size: int


class Bases:
    """The bases of this machine, with what their headers said."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[_Stamp, str]] = {}

    def found(self, settings: Settings) -> list[BaseView]:
        """The bundled one, then what lies in the model folders, by family and name."""
        views: dict[str, BaseView] = {}
        for folder in settings.model_folders:
            for path in sorted(models_below(folder))[:MOST]:
                try:
                    family, size = self._family(path), _size(path)
                except (OSError, FoundryError):
                    continue
                if family and path.name not in views:
                    views[path.name] = BaseView(
                        name=path.name, family=family, bytes=size, folder=str(path.parent), here=True
                    )
        bundled = BaseView(name=BUNDLED, family=BUNDLED, bytes=0, folder="bundled", here=True)
        return [bundled, *sorted(views.values(), key=lambda each: (each.family, each.name.lower()))]

    def _family(self, path: Path) -> str:
        mark = index_of(path) if path.is_dir() else path
        stat = mark.stat()
        stamp = _Stamp(stat.st_mtime_ns, stat.st_size)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = (stamp, family_of_folder(path) if path.is_dir() else family_of_file(path))
            self._known[path] = known
        return known[1]


def _size(path: Path) -> int:
    files = path.rglob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


async def listed_by_comfyui(settings: Settings, here: set[str]) -> list[BaseView]:
    """What a ComfyUI that was named lists beside those that are `here`; nothing where it does not answer."""
    if not settings.names_comfyui:
        return []
    try:
        async with ComfyUIClient(_address(settings), Patience(answer=_PATIENCE)) as client:
            names = [name for folder in _FOLDERS for name in await client.models(folder)]
    except (FoundryError, httpx.HTTPError, OSError, ValueError):
        return []
    return [
        BaseView(name=name, family="", bytes=0, folder="ComfyUI", here=False)
        for name in dict.fromkeys(names)
        if name.replace("\\", "/").rpartition("/")[2] not in here
    ]


def _address(settings: Settings) -> Address:
    return address_of(settings.comfyui_address, settings.comfyui_token)
