"""The commands around the task table: workers, the table itself, and what is in it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lora_foundry.domain.recipe import setting_values
from lora_foundry.domain.task import Task
from lora_foundry.errors import InputError, is_storable
from lora_foundry.files.paths import task_log
from lora_foundry.settings import Settings

if TYPE_CHECKING:
    from lora_foundry.tasks.pipelines import Pipeline, StageState
    from lora_foundry.tasks.store import TaskStore

Answer = TypeVar("Answer")
Home = Annotated[
    Path | None, typer.Option("--home", help="Folder for everything made here; else LORA_FOUNDRY_HOME.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reference = Annotated[str, typer.Argument(help="A task's id or uuid, or the beginning of its uuid.")]
AnyReference = Annotated[
    str,
    typer.Argument(
        help="A pipeline's id, a task's id or uuid, the first four or more characters of either, or the name of a character "
        "with one pipeline."
    ),
]

tasks = typer.Typer(
    help="The task table: list, show, logs, pipelines, retry, cancel, prune.", no_args_is_help=True
)
db = typer.Typer(help="The database that holds the task table.", no_args_is_help=True)
_out = Console(highlight=False)


def settings_of(home: Path | None) -> Settings:
    """The settings, with --home where it was given."""
    return Settings() if home is None else Settings(home=home)


def with_store(settings: Settings, work: Callable[[TaskStore], Awaitable[Answer]]) -> Answer:
    """Runs `work` on the store, whose table is made or brought up to date first. Raises StorageError and BackendError
    where the database cannot be used."""
    from lora_foundry.tasks.database import database_errors
    from lora_foundry.tasks.store import TaskStore

    async def run() -> Answer:
        store = TaskStore(settings.task_database)
        try:
            with database_errors(store.url):
                await store.upgrade()
                return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def worker(
    lane: Annotated[str, typer.Option(help="Which tasks to run: gpu, cpu or all.")] = "all",
    until_idle: Annotated[
        float | None,
        typer.Option(
            help="End when the table has had nothing to do for so many minutes.", min=0.1, metavar="MINUTES"
        ),
    ] = None,
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Log lines as JSON.")] = False,
) -> None:
    """Run tasks from the table until stopped; as many workers as you like may share a database."""
    settings = settings_of(home)
    with_store(settings, _nothing)
    from lora_foundry.composition import notifier_of
    from lora_foundry.stage_job import ENTRY
    from lora_foundry.tasks.devices import lanes_for, visible_devices
    from lora_foundry.tasks.logs import start_log
    from lora_foundry.tasks.service import serve, serve_each
    from lora_foundry.tasks.worker import WorkerOptions

    lanes = lanes_for(lane)
    start_log(as_json)
    devices = visible_devices(settings.device)
    if "gpu" in lanes and len(devices) > 1:
        words = [sys.executable, "-m", "lora_foundry", "worker", "--home", str(settings.home)]
        words += ["--json"] if as_json else []
        words += [] if until_idle is None else ["--until-idle", str(until_idle)]
        choices = [lane] + ["gpu"] * (len(devices) - 1)
        serve_each(
            [
                ([*words, "--lane", choice], {"CUDA_VISIBLE_DEVICES": device})
                for choice, device in zip(choices, devices, strict=True)
            ],
            may_end=until_idle is not None,
        )
        return
    options = WorkerOptions(
        ENTRY, lanes, redis_url=settings.redis_url, json_log=as_json, notifier=notifier_of(settings)
    )
    serve(settings.task_database, settings, options, None if until_idle is None else 60 * until_idle)


async def _nothing(store: TaskStore) -> None:
    """Only the upgrade is wanted."""


@db.command()
def upgrade(home: Home = None) -> None:
    """Create the task table, or adopt an existing echo_tasks with an integer id; no row is lost."""
    settings = settings_of(home)
    with_store(settings, _nothing)
    _out.print(f"The task table is up to date in {escape(settings.task_database)}.", soft_wrap=True)


def stats(home: Home = None, as_json: JsonOption = False) -> None:
    """How many tasks there are of each status."""
    counts = with_store(settings_of(home), lambda store: store.counts())
    if as_json:
        _print_json(counts)
        return
    for status, count in counts.items():
        _out.print(f"{status:<10} {count}")


def _print_json(value: object) -> None:
    """As JSON that any terminal and pipe takes: what is no whole character is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    _out.print_json(text, ensure_ascii=not is_storable(text))


def table_of(first: str, *others: str) -> Table:
    """A table whose first column is what other commands take: it stays whole however narrow the terminal is, and the others
    go on in further lines."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True, overflow="ignore")
    for each in others:
        table.add_column(each, overflow="fold")
    return table


def _found(settings: Settings, reference: str) -> Task:
    """The task that is meant. Raises InputError."""

    async def find(store: TaskStore) -> Task:
        from lora_foundry.tasks.references import named_task

        return await store.get(await named_task(store, reference))

    return with_store(settings, find)


def plain(task: Task) -> dict[str, object]:
    """A task as JSON-like values."""
    return {
        name: value if isinstance(value, int | list | dict | None) else str(value)
        for name, value in vars(task).items()
    }


@tasks.command("list")
def list_tasks(
    status: Annotated[str | None, typer.Option(help="Only tasks of this status.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many, the newest first.")] = 50,
    home: Home = None,
    as_json: JsonOption = False,
) -> None:
    """List tasks, the newest first."""
    found = with_store(settings_of(home), lambda store: store.recent(status=status, limit=limit))
    if as_json:
        _print_json([plain(task) for task in found])
        return
    table = table_of("id", "status", "type", "name", "retries", "error")
    for task in found:
        cells = (
            task.id,
            task.status,
            task.task_type,
            task.name,
            f"{task.retries}/{task.max_retries}",
            task.error or "",
        )
        table.add_row(*(escape(str(cell)) for cell in cells))
    _out.print(table)


@tasks.command()
def show(task: Reference, home: Home = None, as_json: JsonOption = False) -> None:
    """Show everything about one task."""
    values = plain(_found(settings_of(home), task))
    if as_json:
        _print_json(values)
        return
    for name, value in values.items():
        _out.print(
            f"{name:<16} {escape(json.dumps(value) if isinstance(value, list | dict) else str(value))}",
            soft_wrap=True,
        )


@tasks.command()
def logs(task: Reference, home: Home = None) -> None:
    """Print the log of a task's attempts."""
    settings = settings_of(home)
    found = _found(settings, task)
    file = task_log(settings.home, found.id or 0)
    if not file.is_file():
        raise InputError(f"Task {found.id} has no log at {file}; it has not run on this machine yet.")
    _out.print(escape(file.read_text(encoding="utf-8", errors="replace")), soft_wrap=True, end="")


@tasks.command()
def pipelines(
    limit: Annotated[int, typer.Option(help="At most this many, the newest first.")] = 20,
    home: Home = None,
    as_json: JsonOption = False,
) -> None:
    """List pipelines with the state of each stage."""

    async def read(store: TaskStore) -> list[Pipeline]:
        from lora_foundry.tasks.pipelines import recent_pipelines

        return await recent_pipelines(store, limit=limit)

    found = with_store(settings_of(home), read)
    if as_json:
        _print_json([pipeline.model_dump(mode="json") for pipeline in found])
        return
    table = table_of("pipeline", "character", "status", "stages")
    for pipeline in found:
        stages = "  ".join(_stage_words(stage) for stage in pipeline.stages)
        table.add_row(pipeline.id, escape(pipeline.character), pipeline.status, escape(stages))
    _out.print(table)


def _stage_words(stage: StageState) -> str:
    """A stage's state, with how far it is while it runs."""
    done = stage.progress or {}
    share = f" {done['done']}/{done['total']}" if stage.status == "running" and "total" in done else ""
    return f"{stage.stage} {stage.status}{share}"


@tasks.command()
def retry(
    task: AnyReference,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Change a recipe value, as in train.steps=800, and start at the first stage that it concerns.",
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="The first stage to run again, in a pipeline.")
    ] = None,
    home: Home = None,
    as_json: JsonOption = False,
) -> None:
    """Run a failed or cancelled pipeline again from the stage that failed, or a task with those that depend on it. Each
    stage keeps what still fits: changed training settings train anew on the same pictures."""
    from lora_foundry.files.safe_paths import remember

    chosen = settings_of(home)
    given = settings or []
    changes = setting_values([*given, *remember(setting_values(given), chosen)])

    async def again(store: TaskStore) -> list[Task]:
        from lora_foundry.tasks.pipelines import retry as run_again
        from lora_foundry.tasks.references import named

        return await run_again(store, chosen, await named(store, task), changes=changes, start=start)

    _say(with_store(chosen, again), as_json, "Pending again")


@tasks.command()
def cancel(task: AnyReference, home: Home = None, as_json: JsonOption = False) -> None:
    """Cancel a task or a whole pipeline; a running attempt is killed by its worker."""

    async def end(store: TaskStore) -> list[Task]:
        from lora_foundry.tasks.pipelines import cancel as cancel_all
        from lora_foundry.tasks.references import named

        return await cancel_all(store, await named(store, task))

    found = with_store(settings_of(home), end)
    running = [each for each in found if each.status == "running"]
    if not as_json and running:
        _out.print(f"Being killed by their worker: {', '.join(str(each.id) for each in running)}.")
    rest = [each for each in found if each.status != "running"]
    if as_json or rest or not found:
        _say(found if as_json else rest, as_json, "Cancelled" if rest else "Nothing was left to cancel")


def _say(found: list[Task], as_json: bool, words: str) -> None:
    if as_json:
        _print_json([plain(each) for each in found])
    else:
        listed = ", ".join(f"{each.id} ({each.name}, {each.status})" for each in found)
        _out.print(escape(f"{words}: {listed}." if found else f"{words}."), soft_wrap=True)


@tasks.command()
def prune(
    older_than: Annotated[str, typer.Option(help="Age, as 7d or 12h.")] = "7d",
    home: Home = None,
) -> None:
    """Delete rows of ours that ended longer ago than this; other programs' rows are never touched."""
    age = parse_age(older_than)

    async def delete(store: TaskStore) -> int:
        from lora_foundry.tasks.pipelines import is_ours

        return await store.prune(age, is_ours)

    count = with_store(settings_of(home), delete)
    _out.print(f"Deleted {count} tasks.")


def parse_age(text: str) -> timedelta:
    """A number of days (7d) or hours (12h). Raises InputError."""
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in ("d", "h"):
        raise InputError(f"--older-than {text!r} is not an age; write days as 7d or hours as 12h.")
    return timedelta(days=int(number)) if unit == "d" else timedelta(hours=int(number))
