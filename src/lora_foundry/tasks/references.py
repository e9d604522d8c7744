"""What a person types to name a task or a run: its id, the beginning of one as a narrow table or a log shows it, or the
character's name. Programs give whole ids and need nothing of this."""

from __future__ import annotations

import sqlalchemy as sa

from lora_foundry.errors import InputError, is_storable
from lora_foundry.tasks.admission import take_in
from lora_foundry.tasks.schema import ours
from lora_foundry.tasks.store import TaskStore

SHORTEST = 4  # characters of a beginning
_NAMED = 5  # matches in a message


async def named_task(store: TaskStore, text: str) -> str:
    """The id or uuid of the one task that is meant. Raises InputError, also where a run is meant, with its tasks."""
    reference = await named(store, text)
    rows = await store.where(ours.c.pipeline == reference)
    if rows:
        listed = ", ".join(f"{row.id} ({row.name}, {row.status})" for row in rows)
        raise InputError(f"{text!r} is a run with several tasks; name one of them: {listed}.")
    return reference


async def named(store: TaskStore, text: str) -> str:
    """The whole reference of the one task or pipeline that is meant: `text` itself where it is one already, else the
    only one that begins so, else the only pipeline of the character of that name. Raises InputError."""
    found: dict[str, str] = {}
    if is_storable(text):
        await take_in(store)
        if await store.find(text) is not None or await store.where(ours.c.pipeline == text):
            return text
        found = await _beginning(store, text) or await _of_character(store, text)
    if not found:
        raise InputError(
            f"There is no task or run {text!r}; `lora-foundry tasks pipelines` shows the runs, `lora-foundry tasks "
            "list` the tasks."
        )
    if len(found) > 1:
        listed = "; ".join(f"{what} {each}" for each, what in list(found.items())[:_NAMED])
        more = f"; {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise InputError(
            f"{text!r} may be any of {len(found)}: {listed}{more}. Give more of the one you mean."
        )
    return next(iter(found))


async def _beginning(store: TaskStore, text: str) -> dict[str, str]:
    """The pipelines and tasks whose id or uuid begins so, each with what it is called."""
    if len(text) < SHORTEST:
        return {}
    start = text.lower()
    rows = await store.where(
        ours.c.pipeline.startswith(start, autoescape=True) | ours.c.uuid.startswith(start, autoescape=True)
    )
    found: dict[str, str] = {}
    for row in rows:
        if row.pipeline is not None and row.pipeline.startswith(start):
            found[row.pipeline] = "the run"
        if row.uuid.startswith(start):
            found[row.uuid] = f"the task {row.name}"
    return found


async def _of_character(store: TaskStore, text: str) -> dict[str, str]:
    """The pipelines of a character, the newest first."""
    newest = sa.select(ours.c.pipeline).where(ours.c.pipeline.is_not(None), ours.c.folder == text.lower())
    newest = newest.group_by(ours.c.pipeline).order_by(sa.func.max(ours.c.id).desc())
    async with store.reading() as connection:
        return {str(each): "the run" for each in (await connection.execute(newest)).scalars()}
