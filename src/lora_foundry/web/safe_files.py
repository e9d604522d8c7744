"""Which file an address may mean: one below a folder that is ours, links followed. Everything that is served
from the disk goes through here."""

from __future__ import annotations

import stat
from pathlib import Path

from lora_foundry.web.problems import NotFoundError


def safe_file(root: Path, *parts: str) -> Path:
    """The regular file `parts` below `root`, all links resolved.

    Raises NotFoundError, with the same words for each reason, where a part is no plain name, where a link leads out
    of `root`, or where there is no such file.
    """
    shown = "/".join(parts)[:120]
    refusal = NotFoundError(f"There is no file {shown!r}.")
    if not parts or any(not is_plain_name(part) for part in parts):
        raise refusal
    try:
        home = root.resolve(strict=True)
        path = home.joinpath(*parts).resolve(strict=True)
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, RuntimeError, ValueError):
        raise refusal from None
    if home not in path.parents or not regular:
        raise refusal
    return path


def is_plain_name(name: str) -> bool:
    """Whether it is a single name of a file that is not hidden, on every system."""
    return bool(name) and name[0] != "." and not set(name) & set("/\\:\0") and name.strip() == name
