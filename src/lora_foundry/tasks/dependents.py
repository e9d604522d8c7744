"""Who waits for whom. A row's dependencies are looked up once, when it is first seen, and kept as pairs of ids; after
that the end of a parent lets its children start, or stops them, in the parent's own transaction. So nobody ever reads
all that waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.task import HELD, WAITING, Task, TaskStatus
from lora_foundry.errors import InputError, brief
from lora_foundry.tasks.schema import NEW, both, dependencies, dropped, ours, shown_status, tasks

CIRCLE = "The task's dependencies form a circle, so none of them can ever start."
LONGEST_NAME = 64
_BECAUSE = "Cancelled because"
PART = 500
_PAYLOAD = sa.cast(tasks.c.payload, sa.Text)


@dataclass(frozen=True)
class Parent:
    """What a child must know of a row that it depends on."""

    id: int
    name: str
    status: str
    error: str | None
    outside: bool
    root: int | None

    def reason(self) -> str:
        """Why a child of a parent that failed or was cancelled is cancelled; where the parent was cancelled for another row's
        sake, that row is the reason, and is said once."""
        if self.status == TaskStatus.CANCELLED and (self.error or "").startswith(_BECAUSE):
            return self.error or ""
        why = f": {self.error}" if self.error else "."
        return brief(f"{_BECAUSE} an earlier task, {self.id} ({self.name[:120]}), is {self.status}{why}")


def dependency_names(task: Task) -> list[str]:
    """The dependencies as text, uuids in small letters. Raises InputError for what is no list of ids and uuids."""
    if task.dependencies in (None, ""):
        return []
    if not isinstance(task.dependencies, list) or any(
        isinstance(each, bool) or not isinstance(each, int | str) for each in task.dependencies
    ):
        shown = ascii(task.dependencies)[:80]
        raise InputError(f"The dependencies {shown} are no JSON list of task ids or uuids.")
    return [str(each).lower() for each in task.dependencies]


async def let_children_start(connection: AsyncConnection, parent: int) -> None:
    """Of the children of a row that has completed, those that wait for no other go into their lane's queue."""
    waiting = (
        sa.select(ours.c.id)
        .join(dependencies, dependencies.c.child == ours.c.id)
        .where(dependencies.c.parent == parent, ours.c.status.in_(WAITING), ours.c.queue.is_(None))
        .order_by(ours.c.id)
        .with_for_update(of=ours)  # two parents that end at once must not each wait for the other
    )
    children = (await connection.execute(waiting)).scalars().all()
    for start in range(0, len(children), PART):
        await queue(connection, children[start : start + PART])


async def queue(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Puts those of these waiting rows whose parents have all completed into their lane's queue."""
    unfinished = (
        sa.select(dependencies.c.child)
        .join(tasks, tasks.c.id == dependencies.c.parent)
        .where(dependencies.c.child == ours.c.id, tasks.c.status != TaskStatus.COMPLETED)
    )
    ready = ours.c.id.in_(ids) & ours.c.status.in_(WAITING) & ~unfinished.exists()
    await connection.execute(ours.update().where(ready).values(queue=ours.c.lane))


async def stop_children(connection: AsyncConnection, ended: Iterable[int], stamp: datetime) -> None:
    """Cancels all that waits for rows which failed or were cancelled, and what waits for those, and so on."""
    parents = list(ended)
    while parents:
        pairs: dict[int, int] = {}
        for start in range(0, len(parents), PART):
            part = parents[start : start + PART]
            query = (
                sa.select(dependencies.c.child, dependencies.c.parent)
                .join(ours, ours.c.id == dependencies.c.child)
                .where(dependencies.c.parent.in_(part), ours.c.status.in_(WAITING))
            )
            pairs |= {row.child: row.parent for row in await connection.execute(query)}
        found = await _parents_by_id(connection, sorted(set(pairs.values())))
        for number, parent in found.items():
            children = [child for child, of in pairs.items() if of == number]
            await end(connection, children, TaskStatus.CANCELLED, parent.reason(), stamp)
        parents = list(pairs)


async def end(
    connection: AsyncConnection, ids: Sequence[int], status: TaskStatus, error: str, stamp: datetime
) -> None:
    """Ends waiting rows that will never run."""
    for start in range(0, len(ids), PART):
        part = ids[start : start + PART]
        values: dict[str, str | datetime] = {"status": status.value, "error": brief(error)}
        values |= {"completed_at": stamp, "updated_at": stamp}
        await connection.execute(
            tasks.update().where(tasks.c.id.in_(part), tasks.c.status == HELD).values(**values)
        )
        await drop_attempts(connection, ours.c.id.in_(part))
        await connection.execute(
            ours.update().where(ours.c.id.in_(part)).values(status=status.value, queue=None, lease=None)
        )


async def drop_attempts(connection: AsyncConnection, rows: sa.ColumnElement[bool]) -> None:
    """Notes the attempts at rows that no longer want them, for a worker to take them out of the engine's queues. Called
    before the leases are taken from the rows, in the same transaction."""
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(dropped)
    leases = sa.select(ours.c.lease).where(rows, ours.c.lease.is_not(None))
    await connection.execute(insert.from_select(["lease"], leases).on_conflict_do_nothing())


async def link(connection: AsyncConnection, rows: Sequence[Task], stamp: datetime) -> None:
    """Looks up the dependencies of rows that were just seen: each is queued, waits for its parents, or ends here."""
    names: dict[int, list[str]] = {}
    for row in rows:
        try:
            names[row.id or 0] = dependency_names(row)
        except InputError as error:
            await end(connection, [row.id or 0], TaskStatus.FAILED, str(error), stamp)
    parents = await _parents(connection, {name for wanted in names.values() for name in wanted})
    ties = {child: _tied(parents, wanted) for child, wanted in names.items()}
    await _tie(connection, ties)
    backwards: list[int] = []
    for child, wanted in names.items():
        lacking = next((name for name in wanted if name not in parents), None)
        if lacking is not None:
            said = f"The task depends on task {lacking[:80]!a}, which does not exist."
            await end(connection, [child], TaskStatus.FAILED, said, stamp)
            continue
        broken = next((each for each in ties[child] if each.status in ("failed", "cancelled")), None)
        if broken is not None:
            await end(connection, [child], TaskStatus.CANCELLED, broken.reason(), stamp)
        backwards += [child] if any(each.id >= child for each in ties[child]) else []
    for child in backwards:  # only a pair that leads to a later row can close a circle
        if await _in_circle(connection, child):
            await end(connection, [child], TaskStatus.FAILED, CIRCLE, stamp)
            await stop_children(connection, [child], stamp)
    roots = _roots(ties)
    alone = [root for root, children in roots.items() if children == [root]]
    await connection.execute(ours.update().where(ours.c.id.in_(alone)).values(root=ours.c.id))
    for root, children in roots.items():
        if children != [root]:
            await connection.execute(ours.update().where(ours.c.id.in_(children)).values(root=root))
    fresh = ours.c.id.in_(list(names)) & (ours.c.queue == NEW)
    await connection.execute(ours.update().where(fresh).values(queue=None))
    await queue(connection, list(names))


async def follow_outside(connection: AsyncConnection, stamp: datetime) -> None:
    """Looks at the parents that other programs run, since nobody tells us of their end."""
    query = (
        sa.select(dependencies.c.parent, tasks.c.status)
        .outerjoin(tasks, tasks.c.id == dependencies.c.parent)
        .where(dependencies.c.outside == 1)
        .distinct()
    )
    for row in (await connection.execute(query)).all():
        if row.status is not None and row.status not in ("completed", "failed", "cancelled"):
            continue
        if row.status == TaskStatus.COMPLETED:
            await let_children_start(connection, row.parent)
        else:
            await stop_children(connection, [row.parent], stamp)
        seen = dependencies.c.parent == row.parent
        await connection.execute(dependencies.update().where(seen).values(outside=0))


def _tied(parents: Mapping[str, Parent], names: Iterable[str]) -> list[Parent]:
    """The rows that a row's names mean, each once."""
    return list({parents[name].id: parents[name] for name in names if name in parents}.values())


def _roots(ties: Mapping[int, Sequence[Parent]]) -> dict[int, list[int]]:
    """The rows that belong together, by the first of them: a row's first parent says what it belongs to."""
    known: dict[int, int] = {}
    found: dict[int, list[int]] = {}
    for child in sorted(ties):
        inside = [each for each in ties[child] if not each.outside]
        first = inside[0] if inside else None
        known[child] = child if first is None else known.get(first.id, first.root or first.id)
        found.setdefault(known[child], []).append(child)
    return found


async def _tie(connection: AsyncConnection, ties: Mapping[int, Sequence[Parent]]) -> None:
    """Keeps the pairs, in place of what was kept for these children before."""
    await connection.execute(dependencies.delete().where(dependencies.c.child.in_(list(ties))))
    pairs = [
        {"parent": each.id, "child": child, "outside": int(each.outside)}
        for child, parents in ties.items()
        for each in parents
    ]
    if pairs:
        await connection.execute(dependencies.insert(), pairs)


async def _parents(connection: AsyncConnection, names: Iterable[str]) -> dict[str, Parent]:
    """The rows that names mean, held until the transaction ends: one that ends meanwhile sees its new children."""
    wanted = sorted(
        name for name in names if len(name) <= LONGEST_NAME and name.isascii() and name.isprintable()
    )
    numbers = {name: int(name) for name in wanted if name.isdigit() and len(name) < 19}
    found: dict[str, int] = {}
    for start in range(0, len(wanted), PART):
        part = wanted[start : start + PART]
        known = sa.select(ours.c.id, ours.c.uuid).where(ours.c.uuid.in_(part))
        found |= {row.uuid: row.id for row in await connection.execute(known)}
    lacking = [name for name in wanted if name not in found and name not in numbers]
    if lacking:
        found |= await _in_payloads(connection, lacking)
    rows = await _parents_by_id(connection, sorted({*numbers.values(), *found.values()}))
    meant: Mapping[str, int] = numbers | found
    return {name: rows[number] for name, number in meant.items() if number in rows}


async def _in_payloads(connection: AsyncConnection, names: Sequence[str]) -> dict[str, int]:
    """Other programs' rows by the uuid that our factories put into a payload; their queues store nothing else of it."""
    query = sa.select(tasks.c.id, tasks.c.payload).where(_PAYLOAD.like('%"task_uuid"%'))
    found: dict[str, int] = {}
    for row in await connection.execute(query):
        name = row.payload.get("task_uuid") if isinstance(row.payload, dict) else None
        if isinstance(name, str) and name.lower() in names:
            found[name.lower()] = row.id
    return found


async def _parents_by_id(connection: AsyncConnection, ids: Sequence[int]) -> dict[int, Parent]:
    found: dict[int, Parent] = {}
    for start in range(0, len(ids), PART):
        part = ids[start : start + PART]
        held = sa.select(ours.c.id).where(ours.c.id.in_(part)).order_by(ours.c.id).with_for_update(read=True)
        known = set((await connection.execute(held)).scalars().all())
        columns = (tasks.c.id, tasks.c.name, shown_status.label("status"), tasks.c.error, ours.c.root)
        query = sa.select(*columns).select_from(both).where(tasks.c.id.in_(part))
        for row in await connection.execute(query):
            outside = row.id not in known
            found[row.id] = Parent(row.id, str(row.name), row.status, row.error, outside, row.root)
    return found


async def _in_circle(connection: AsyncConnection, child: int) -> bool:
    """Whether following the parents upwards leads back to the row."""
    above = sa.select(dependencies.c.parent).where(dependencies.c.child == child).cte("above", recursive=True)
    above = above.union(sa.select(dependencies.c.parent).join(above, dependencies.c.child == above.c.parent))
    query = sa.select(above.c.parent).where(above.c.parent == child).limit(1)
    return (await connection.execute(query)).first() is not None
