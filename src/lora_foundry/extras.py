"""What to say where a package is missing: the one command that installs it, fitting how lora-foundry itself got here.
A checkout, a wheel at hand and a repository have no index that knows the name `lora-foundry`."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lora_foundry.errors import MissingExtraError

DISTRIBUTION = "lora-foundry"
# Optional packages, as they are imported, and the extra of pyproject.toml that brings each.
EXTRAS = {
    "apprise": "apprise",
    "bitsandbytes": "cuda",
    "lycoris": "lycoris",
    "mcp": "mcp",
    "obstore": "storage",
    "pillow_heif": "heic",
    "pynvml": "cuda",
    "pytorch_optimizer": "optimizers",
    "redis": "redis",
}


def missing_package(what: str, error: ImportError) -> MissingExtraError:
    """The error for `what` ("The optimizer 'prodigy'"), which needs a package that could not be imported."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        return MissingExtraError(f"{what} needs a package that cannot be loaded ({error}); install it anew.")
    extra = EXTRAS.get(package, "")
    return MissingExtraError(
        f"{what} needs the package {package!r}; install it with: {install_command(extra)}"
    )


def install_command(extra: str = "") -> str:
    """The command that installs lora-foundry in this environment again, with an extra. Double quotes suit every shell."""
    chosen = f"[{extra}]" if extra else ""
    try:
        found = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from its source, without being installed
        found = json.dumps({"url": Path(__file__).parents[2].as_uri(), "dir_info": {"editable": True}})
    origin = json.loads(found or "{}")
    url = str(origin.get("url", ""))
    edit = "-e " if origin.get("dir_info", {}).get("editable") else ""
    if "vcs_info" in origin:
        place = f"{DISTRIBUTION}{chosen} @ {origin['vcs_info']['vcs']}+{url}"
    elif url.startswith("file:") and (path := Path(url2pathname(urlsplit(url).path))).exists():
        place = f"{_near(path)}{chosen}"
    else:
        place = f"{DISTRIBUTION}{chosen}"
    return f'{_near(Path(sys.executable))} -m pip install {edit}"{place}"'


def _near(path: Path) -> str:
    """A path as one would type it here: relative if it lies in the current folder."""
    here = Path(os.path.abspath(os.curdir))
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
