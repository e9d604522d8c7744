"""Decides which waiting rows may start, and takes them: children after their parents, nothing that is not
ours, each row by one worker only. A row is taken by a conditional update that gives it a new ticket; of two
workers that want the same row, the database lets one through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.task import OUR_TYPES, WAITING, Task, TaskStatus, TaskType
from lora_foundry.errors import InputError
from lora_foundry.tasks.ledger import Ledger, dependency_names, is_due, references_of, refers_to, to_task
from lora_foundry.tasks.payloads import Kind, lane_of, recognise
from lora_foundry.tasks.schema import moment, tasks

PAGE = 200
_TYPE = sa.func.lower(tasks.c.task_type)
_PAYLOAD = sa.cast(tasks.c.payload, sa.Text)
_PARENTS = sa.cast(tasks.c.dependencies, sa.Text)
# The last word on a user_request row is `recognise`; this only keeps a table full of others from being read.
_MAYBE_OURS = _TYPE.in_(OUR_TYPES) | (
    _TYPE.in_([TaskType.USER_REQUEST.value])
    & (_PAYLOAD.like("%character_name%") | sa.func.lower(_PAYLOAD).like("%lora_%"))
)
_HAS_PARENTS = tasks.c.dependencies.is_not(None) & _PARENTS.not_in(["[]", "null", "", '""'])


@dataclass(frozen=True)
class Admitted:
    """A row that this worker has taken."""

    task: Task
    kind: Kind
    lane: str
    ticket: str


@dataclass(frozen=True)
class Verdict:
    """Why a waiting row will never run."""

    status: TaskStatus
    reason: str


async def admit(
    ledger: Ledger, worker: str, free: Mapping[str, int], pipeline: str | None = None
) -> list[Admitted]:
    """Takes as many startable rows as there is room for in each lane, most urgent first; of one pipeline if named."""
    room = {lane: number for lane, number in free.items() if number > 0}
    while await _judge_dependents(ledger):
        pass
    taken: list[Admitted] = []
    after = 0
    while room:
        before = len(taken)
        page, read = await _startable(ledger, after, pipeline)
        for task in page:
            kind = recognise(task.task_type, task.payload)
            lane = lane_of(kind, task.payload) if kind else ""
            if kind is None or not room.get(lane):
                continue
            ticket = uuid4().hex
            if await _take(ledger, task, worker, ticket):
                taken.append(Admitted(task, kind, lane, ticket))
                room[lane] -= 1
                if not room[lane]:
                    del room[lane]
        after += read - (len(taken) - before)
        if read < PAGE:
            break
    return taken


async def anything_waits(ledger: Ledger) -> bool:
    """Whether there is any row that might be ours and has not begun. An idle worker asks often: it costs little."""
    query = sa.select(tasks.c.id).where(tasks.c.status.in_(WAITING), _MAYBE_OURS).limit(1)
    async with ledger.reading() as connection:
        return (await connection.execute(query)).first() is not None


async def _startable(ledger: Ledger, offset: int, pipeline: str | None) -> tuple[list[Task], int]:
    """Of a page of due rows, those whose parents are completed, by priority; and the page's length."""
    async with ledger.reading() as connection:
        now = moment(await ledger.now(connection))
        query = (
            sa.select(tasks)
            .where(tasks.c.status.in_(WAITING), is_due(now), _MAYBE_OURS)
            .order_by(tasks.c.priority, tasks.c.created_at, tasks.c.id)
            .limit(PAGE)
            .offset(offset)
        )
        if pipeline is not None:
            query = query.where(tasks.c.pipeline == pipeline)
        page = [to_task(row) for row in await connection.execute(query)]
        parents = await _parents(connection, page)
    ready = []
    for task in page:
        names = dependency_names(task) if isinstance(task.dependencies, list) else []
        if all(name in parents and parents[name].status == TaskStatus.COMPLETED for name in names):
            ready.append(task)
    return ready, len(page)


async def _take(ledger: Ledger, task: Task, worker: str, ticket: str) -> bool:
    """Makes a waiting row ours; False where another was quicker."""
    async with ledger.writing() as connection:
        stamp = moment(await ledger.now(connection))
        statement = (
            tasks.update()
            .where(tasks.c.id == task.id, tasks.c.status.in_(WAITING))
            .values(
                status=TaskStatus.RUNNING,
                worker=worker,
                ticket=ticket,
                started_at=stamp,
                updated_at=stamp,
                cancel_requested=None,
                uuid=task.uuid or _payload_uuid(task) or str(uuid4()),
            )
        )
        return (await connection.execute(statement)).rowcount == 1


async def _judge_dependents(ledger: Ledger) -> bool:
    """One pass over the waiting rows with parents: ends those that can never run. True if any was ended."""
    async with ledger.reading() as connection:
        query = (
            sa.select(tasks)
            .where(tasks.c.status.in_(WAITING), _HAS_PARENTS, _MAYBE_OURS)
            .order_by(tasks.c.id)
        )
        waiting = [task for row in await connection.execute(query) if _is_ours(task := to_task(row))]
        if not waiting:
            return False
        parents = await _parents(connection, waiting)
    await _name_foreign(ledger, parents)
    verdicts = {task.id: verdict for task in waiting if (verdict := _verdict(task, parents))}
    circle = {task.id for task in waiting if task.id not in verdicts and _in_circle(task, parents)}
    verdicts |= {
        number: Verdict(
            TaskStatus.FAILED, "The task's dependencies form a circle, so none of them can ever start."
        )
        for number in circle
    }
    if not verdicts:
        return False
    async with ledger.writing() as connection:
        stamp = moment(await ledger.now(connection))
        for number, verdict in verdicts.items():
            values = {
                "status": verdict.status,
                "error": verdict.reason,
                "completed_at": stamp,
                "updated_at": stamp,
            }
            still = (tasks.c.id == number) & tasks.c.status.in_(WAITING)
            await connection.execute(tasks.update().where(still).values(**values))
    return True


def _is_ours(task: Task) -> bool:
    return recognise(task.task_type, task.payload) is not None


def _payload_uuid(task: Task) -> str | None:
    """The uuid that our factories put into the payload, for queues that store nothing but payloads."""
    value = task.payload.get("task_uuid") if isinstance(task.payload, dict) else None
    return value if isinstance(value, str) else None


async def _parents(connection: AsyncConnection, children: list[Task]) -> dict[str, Task]:
    """Every row that one of the children depends on, under each of its names."""
    wanted: set[str] = set()
    for child in children:
        if isinstance(child.dependencies, list):
            wanted |= {str(each) for each in child.dependencies}
    found: dict[str, Task] = {}
    names = sorted(wanted)
    for start in range(0, len(names), PAGE):
        part = names[start : start + PAGE]
        rows = await connection.execute(sa.select(tasks).where(refers_to(part)))
        known = [to_task(row) for row in rows]
        found |= {name: task for task in known for name in references_of(task)}
        lacking = [name for name in part if name not in found]
        if lacking:
            unnamed = sa.select(tasks).where(tasks.c.uuid.is_(None), _PAYLOAD.like("%task_uuid%"))
            for row in await connection.execute(unnamed):
                task = to_task(row)
                name = _payload_uuid(task)
                if name in lacking:
                    found[name] = task
    return found


async def _name_foreign(ledger: Ledger, parents: Mapping[str, Task]) -> None:
    """Moves a uuid from the payload to its column, so that it is found by index from now on."""
    for name, task in parents.items():
        if not task.uuid and name == _payload_uuid(task):
            async with ledger.writing() as connection:
                await connection.execute(tasks.update().where(tasks.c.id == task.id).values(uuid=name))


def _verdict(task: Task, parents: Mapping[str, Task]) -> Verdict | None:
    try:
        names = dependency_names(task)
    except InputError as error:
        return Verdict(TaskStatus.FAILED, str(error))
    for name in names:
        parent = parents.get(name)
        if parent is None:
            return Verdict(
                TaskStatus.FAILED, f"The task depends on task {name[:80]!r}, which does not exist."
            )
        if parent.status in (TaskStatus.FAILED, TaskStatus.CANCELLED):
            why = f": {parent.error}" if parent.error else "."
            reason = (
                f"Cancelled because its parent, task {parent.id} ({parent.name}), is {parent.status}{why}"
            )
            return Verdict(TaskStatus.CANCELLED, reason[:1000])
    return None


def _in_circle(task: Task, parents: Mapping[str, Task]) -> bool:
    """Whether following the parents upwards leads back to the task."""
    seen: set[int | None] = set()
    todo = [task]
    while todo:
        current = todo.pop()
        names = current.dependencies if isinstance(current.dependencies, list) else []
        for name in names:
            parent = parents.get(str(name))
            if parent is not None and parent.id == task.id:
                return True
            if parent is not None and parent.id not in seen:
                seen.add(parent.id)
                todo.append(parent)
    return False
