"""What a client is told of this machine's paths. The folders of the settings stand on the pages anyway; of anything else only
the name is told, and of what a client has sent the name that it gave it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lora_foundry.settings import Settings

UPLOADS = "uploads"  # below the home
_ENDS = r"(?=[/\\\s'\"`,;:.()]|$)"
_ANY = r"(?<![\w.:/\\-])(?:[A-Za-z]:[\\/]|/)[^\s'\"`,;()]+"


def teller(settings: Settings) -> Callable[[str], str]:
    """What makes a sentence fit for a client."""
    sent = re.escape(str(settings.home.expanduser().absolute() / UPLOADS)) + r"[/\\][0-9a-f]{32}"
    inside, itself = re.compile(sent + r"[/\\]"), re.compile(sent)
    roots = sorted(map(re.escape, _known(settings)), key=len, reverse=True)
    paths = re.compile(f"(?P<known>(?:{'|'.join(roots)}){_ENDS})|{_ANY}")

    def tell(text: str) -> str:
        text = itself.sub("what was sent", inside.sub("", text))
        return paths.sub(lambda found: found[0] if found["known"] else _name(found[0]), text)

    return tell


def _known(settings: Settings) -> set[str]:
    """The folders that the settings name, as they are written and as they are."""
    values = [getattr(settings, name) for name in Settings.model_fields]
    named = [each for each in values if isinstance(each, Path)]
    named += [*settings.comfyui_paths.values(), *settings.model_folders]
    named += [settings.datasets_dir, settings.loras_dir]
    absolute = [each.expanduser().absolute() for each in named]
    return {str(each) for folder in absolute for each in (folder, folder.resolve())}


def _name(path: str) -> str:
    """The last part of what is a path of this machine; an address such as /api/v1 is none."""
    whole = Path(path)
    top = Path(*whole.parts[:2])
    return whole.name if len(whole.parts) > 2 and top.exists() else path
