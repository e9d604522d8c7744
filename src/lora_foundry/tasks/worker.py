"""A worker: queues attempts at the rows that may start, carries out those that the engine gives it, each in a child
process, and writes their ends to the rows. It can be killed at any instruction; what it held is given back by the
workers that remain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from lora_foundry.errors import FolderBusyError, FoundryError, brief, error_of
from lora_foundry.files.leftovers import take_back
from lora_foundry.files.paths import task_log
from lora_foundry.ports import Notifier
from lora_foundry.settings import Settings
from lora_foundry.tasks import recovery, signals
from lora_foundry.tasks.admission import Inbox, admit
from lora_foundry.tasks.announce import announce
from lora_foundry.tasks.attempts import Admitted, Alone, claim, give_back
from lora_foundry.tasks.children import Child, Job, Outcome, start_process
from lora_foundry.tasks.database import database_error, is_lasting
from lora_foundry.tasks.devices import device_for, lanes_for
from lora_foundry.tasks.logs import speak_of
from lora_foundry.tasks.payloads import check_numbers, held_run, place, plain_run, resolve, stage_name
from lora_foundry.tasks.queues import Engine, queue_of
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.redis_hints import RedisHints
from lora_foundry.tasks.schema import ours
from lora_foundry.tasks.spare import Spare
from lora_foundry.tasks.store import Failure, TaskStore

logger = logging.getLogger(__name__)
LOOK = 0.5
PRUNE_EVERY = 3600.0
KEPT = timedelta(days=1)  # the engine's own record of attempts that ended; the rows keep what matters
SPARE_FOR = (
    60.0  # seconds that a process waits for the next stage of its pipeline; it keeps some of the GPU's memory
)


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker works.

    entry: "module:function" that a child calls with the attempt's work. lanes: tasks at once in each; this machine's
    if None. pipeline: take the rows of this pipeline only, one process for all of them, and let nobody count on this
    worker for other rows; somebody waits for it, and is told where the database takes no more writes. preload: modules
    that this process imports ahead. json_log: children log JSON lines. notifier: is told of ends and failures.
    """

    entry: str
    lanes: Mapping[str, int] | None = None
    timing: Timing = field(default_factory=Timing)
    redis_url: str | None = None
    pipeline: str | None = None
    preload: tuple[str, ...] = ()
    json_log: bool = False
    notifier: Notifier | None = None


@dataclass
class Running:
    """A row that this worker holds and the child that works on it."""

    admitted: Admitted
    child: Child
    news: dict[str, Any] | None = None
    last: dict[str, Any] = field(default_factory=dict)
    cancel: bool = False
    starved: bool = False

    def hear(self, event: dict[str, Any]) -> None:
        """Keeps the newest news, with the last picture that was told of in this stage."""
        earlier = self.last if self.last.get("stage") == event.get("stage") else {}
        self.news = self.last = event | {"image": event.get("image") or earlier.get("image")}


class Worker:
    """Runs tasks until its stop event is set. One worker a process."""

    def __init__(self, store: TaskStore, settings: Settings, options: WorkerOptions) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._store, self._settings, self._options = store, settings, options
        self._timing = options.timing
        self._lanes = dict(options.lanes or lanes_for("all"))
        self._running: dict[str, Running] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._spare = Spare(options.pipeline)
        self._wake = asyncio.Event()
        self._inbox = Inbox()
        self._engine = Engine(store.url)
        self._alone = Alone(self.name, options.pipeline) if options.pipeline else None
        self._stopping = False
        self._closed = asyncio.Event()
        self._refusal: FoundryError | None = None
        self._last_heartbeat = time.monotonic()
        # A SQLite file tells of every write, our own heartbeats included; only what other programs write to PostgreSQL
        # must be looked for.
        self._poll = self._timing.poll if store.dialect == "postgresql" else 2 * self._timing.heartbeat
        self.hints = RedisHints(options.redis_url, store) if options.redis_url else None

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then gives running children `grace` seconds and hands the rest back.

        Where somebody waits for its pipeline, a database that takes no more writes ends it, too: it raises what they are
        to be told, which is the error of the attempt whose end could not be written, if there was one.
        """
        helpers: list[asyncio.Task[None]] = []
        try:
            await self._begin()
            helpers += [asyncio.create_task(each) for each in self._helpers(stop)]
            while not stop.is_set() and self._refusal is None:
                self._wake.clear()
                try:
                    if await admit(self._store, self._engine, self._inbox, self._alone):
                        continue
                except (SQLAlchemyError, OSError) as error:
                    if not self._is_refused(error):
                        logger.warning("The task database does not answer: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._poll)
        finally:
            await self._wind_up()
            await self._spare.drop()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await self._engine.stop()
            with contextlib.suppress(SQLAlchemyError, OSError):
                await recovery.sign_off(self._store, self._engine, self.name)
            self._engine.close()
        if self._refusal is not None:
            raise self._refusal

    async def _begin(self) -> None:
        if self._options.pipeline is not None:  # its imports take longer than all that we have to do here
            log = task_log(self._settings.home, 0)
            process = await start_process(
                log, device_for("gpu", self._settings.device), self._options.preload
            )
            await self._spare.keep(process, self._options.pipeline)
        await self._store.upgrade()
        await self._heartbeat_once()  # before the engine can give us anything
        lanes = {queue_of(lane): number for lane, number in self._lanes.items()}
        queues = lanes if self._alone is None else {queue_of("", self.name): 1}
        # Who waits is told what an error means; a service has its log.
        level = "ERROR" if self._alone is None else "CRITICAL"
        await self._engine.launch(self.name, queues, self._timing.queue, self._attempt, level)
        if self._alone is not None:  # what was queued for all is ours now
            await give_back(self._store, ours.c.pipeline == self._alone.pipeline)
        await asyncio.to_thread(take_back, self._settings.home)

    def _helpers(self, stop: asyncio.Event) -> Iterator[Coroutine[Any, Any, None]]:
        """What goes on beside the queueing of rows."""
        yield self._heartbeats()
        yield self._housekeeping()
        yield self._look_for_cancels()
        yield signals.watch(self._store.url, self._wake.set)
        if self.hints is not None:
            yield self.hints.watch(self._wake.set)
        yield _call_after(stop, self._wake.set)

    def _is_refused(self, error: Exception, outcome: Outcome | None = None) -> bool:
        """Whether an error of the database ends this worker, since somebody waits for it and no waiting helps. outcome:
        what could not be written."""
        if self._options.pipeline is None or not isinstance(error, DBAPIError) or not is_lasting(error):
            return False
        if self._refusal is None and outcome is not None and outcome.error:
            said = f"{brief(outcome.error)} Nor could the task database be written ({error.orig})."
            self._refusal = error_of(outcome.kind, said, outcome.permanent)
        self._refusal = self._refusal or database_error(error, self._store.url)
        self._wake.set()
        return True

    async def _attempt(self, number: int, lease: str) -> str:
        """What the engine's workflow does: one attempt at a row, and how it ended. Cancelling it ends the child."""
        if self._stopping:
            await self._closed.wait()  # whatever is left then is given back
            return "not begun"
        admitted = await self._claim(number, lease)
        if admitted is None:
            self._wake.set()
            return "not wanted"
        child = Child(
            task_log(self._settings.home, number),
            lambda event: None,
            device_for(admitted.lane, self._settings.device),
            await self._spare.take(admitted.lane, admitted.task.pipeline),
        )
        if isinstance(earlier := admitted.task.progress, dict) and "done" in earlier:
            child.reached[str(earlier.get("stage"))] = int(earlier["done"])
        running = Running(admitted, child)
        child.on_progress = running.hear
        self._running[lease] = running
        ended = ""
        try:
            ended = await self._carry(running)
            return ended
        finally:
            self._running.pop(lease, None)
            self._wake.set()
            if self._options.notifier is not None:
                telling = announce(self._store, self._settings, self._options.notifier, admitted.task, ended)
                self._telling.add(task := asyncio.create_task(telling))
                task.add_done_callback(self._telling.discard)

    async def _claim(self, number: int, lease: str) -> Admitted | None:
        """Claims the row, trying until the database answers: an attempt that the engine gave us would else be lost."""
        while True:
            try:
                return await claim(self._store, self.name, number, lease, self._alone)
            except (SQLAlchemyError, OSError) as error:
                if self._is_refused(error) or self._stopping:
                    return None
                logger.warning("Task %s cannot be claimed yet: %s", number, error)
                await asyncio.sleep(LOOK)

    async def _carry(self, running: Running) -> str:
        """Carries out one attempt and writes its end."""
        task, lease = running.admitted.task, running.admitted.lease
        number = task.id or 0
        speak_of(
            run=task.pipeline or task.uuid, task=number, stage=stage_name(running.admitted.kind, task.payload)
        )
        try:
            ended = await self._finish(running, await self._outcome(running))
            logger.info("Task %s (%s): %s", number, task.name, ended)
            return ended
        except (
            asyncio.CancelledError
        ):  # somebody asked for it, or the engine ended the attempt for its own reasons
            with contextlib.suppress(SQLAlchemyError, OSError):
                wanted = await self._store.cancel_requests([lease])
                await (self._store.cancelled if wanted else self._store.release)(number, lease)
            raise
        except Exception as error:
            if self._refusal is None:
                logger.exception("Task %s was dropped", number)
            # Where the database was away nobody is to blame; anything else counts, or it would come back for ever.
            failure = Failure(f"The attempt could not be carried out ({type(error).__name__}).")
            with contextlib.suppress(SQLAlchemyError, OSError):
                if isinstance(error, SQLAlchemyError | OSError):
                    await self._store.release(number, lease)
                else:
                    await self._store.fail(task, lease, failure)
            return "dropped"
        finally:
            running.child.kill()
            await asyncio.to_thread(take_back, self._settings.home)  # what a killed child had left elsewhere

    async def _outcome(self, running: Running) -> Outcome:
        """Checks the row and runs its child, whose progress is written to the row meanwhile."""
        task, child = running.admitted.task, running.child
        reporter = asyncio.create_task(self._report(running))
        try:
            check_numbers(task)
            kind, run = running.admitted.kind, held_run(running.admitted.run)
            if run is None:
                run = await asyncio.to_thread(resolve, kind, task.payload, self._settings)
                await self._store.hold(task.id or 0, running.admitted.lease, plain_run(run))
            work = await asyncio.to_thread(place, kind, task.payload, run, self._settings)
            job = Job(
                self._options.entry,
                work.job(settings_for(self._settings, child.environment), _named(running.admitted)),
                self._timing.patience,
                task.timeout,
                self._options.json_log,
                keep=self._spare.suits(running.admitted.lane, task.pipeline),
            )
            return await self._start(running, job)
        except FoundryError as error:
            return Outcome(error=str(error), kind=type(error).__name__, permanent=not error.retryable)
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)

    async def _start(self, running: Running, job: Job) -> Outcome:
        """Runs the child, if the row still is ours: a host that slept since it took the row may find it long done."""
        try:
            gone = await self._store.cancel_requests([running.admitted.lease])
        except (SQLAlchemyError, OSError):
            gone = set()  # a database that restarts must not cost the attempt; settling asks again
        if gone:
            running.cancel = True
            return Outcome(error="The row was cancelled or taken away before its attempt began.")
        outcome = await running.child.run(job)
        # A full pipe has no room for a child's last word, and a heartbeat that waits for the database cannot tell it.
        silent = outcome.result is None and not outcome.kind and self._is_late()
        running.starved = running.starved or outcome.unheard or silent
        if running.child.is_kept(job):
            # Given away: a look for cancelled rows that comes late finds this one's lease gone, and must not end it.
            assert running.child.process is not None
            await self._spare.keep(running.child.process, running.admitted.task.pipeline)
            running.child.process = None
        return outcome

    async def _finish(self, running: Running, outcome: Outcome) -> str:
        """Writes the end of an attempt to its row, trying for as long as the row can still be ours."""
        until = time.monotonic() + self._timing.dead_after
        while True:
            try:
                return await self._write_end(running, outcome)
            except (SQLAlchemyError, OSError) as error:
                if self._is_refused(error, outcome) or time.monotonic() > until:
                    raise
                await asyncio.sleep(LOOK)

    async def _write_end(self, running: Running, outcome: Outcome) -> str:
        task, lease = running.admitted.task, running.admitted.lease
        number = task.id or 0
        if running.news is not None:
            await self._store.report(number, lease, running.news)
        if outcome.result is not None:
            return "completed" if await self._store.complete(number, lease, outcome.result) else "lost"
        if running.cancel:
            return "cancelled" if await self._store.cancelled(number, lease) else "lost"
        if running.starved or (self._stopping and not outcome.permanent):
            return "released" if await self._store.release(number, lease) else "lost"
        waited = outcome.kind == FolderBusyError.__name__  # no attempt: nothing was done or went wrong
        failure = Failure(outcome.error, outcome.permanent, outcome.progressed or waited, outcome.kind)
        return await self._store.fail(task, lease, failure) or "lost"

    async def _report(self, running: Running) -> None:
        """Writes news to the row, which is what everybody reads, at most once per `report` seconds."""
        while True:
            await asyncio.sleep(self._timing.report)
            news = running.news
            if news is None:
                continue
            with contextlib.suppress(SQLAlchemyError, OSError):
                admitted = running.admitted
                if not await self._store.report(admitted.task.id or 0, admitted.lease, news):
                    running.child.kill()
                if running.news is news:
                    running.news = None

    async def _look_for_cancels(self) -> None:
        """Has the engine cancel the attempts at rows that somebody cancelled or that are no longer ours."""
        while True:
            await asyncio.sleep(LOOK)
            if not self._running:
                continue
            with contextlib.suppress(SQLAlchemyError, OSError):
                if unwanted := await self._store.cancel_requests(list(self._running)):
                    await self._engine.cancel(sorted(unwanted))

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._timing.heartbeat)
            try:
                await self._heartbeat_once()
            except (SQLAlchemyError, OSError) as error:
                if self._is_refused(error):
                    return
                logger.warning("No heartbeat: the task database does not answer: %s", error)

    async def _housekeeping(self) -> None:
        """Beside the heartbeats: on a busy machine it takes longer than a child waits for a sign of life."""
        pruned = 0.0
        while True:
            await asyncio.sleep(self._timing.heartbeat)
            try:
                await self._spare.drop_old()
                own = recovery.Own(self.name, frozenset(self._running))
                await recovery.tidy(
                    self._store, self._engine, self._timing.dead_after, own, self._hear_of_lost
                )
                if time.monotonic() - pruned > PRUNE_EVERY:
                    await self._engine.prune(KEPT)
                    pruned = time.monotonic()
            except (SQLAlchemyError, OSError) as error:
                if self._is_refused(error):
                    return
                logger.warning(
                    "Dead workers are not looked after: the task database does not answer: %s", error
                )

    def _hear_of_lost(self, lost: recovery.Lost) -> None:
        logger.warning("Task %s was given back: its worker is dead or dropped it", lost.task_id)
        self._wake.set()

    def _is_late(self) -> bool:
        """Whether children have waited so long for a sign of life that they end themselves."""
        return time.monotonic() - self._last_heartbeat > self._timing.patience * 0.9

    async def _heartbeat_once(self) -> None:
        """Tells the database, and only then the children, that this worker lives."""
        if self._is_late():
            for running in self._running.values():  # we slept or were cut off, so they have killed themselves
                running.starved = True
        lanes = "" if self._options.pipeline else ",".join(self._lanes)
        await recovery.heartbeat(self._store, self.name, lanes)
        self._last_heartbeat = time.monotonic()
        for running in self._running.values():
            running.child.heartbeat()
        self._spare.heartbeat()

    async def _wind_up(self) -> None:
        """Asks children to come to a safe place and end, kills what is left, and hands it all back."""
        self._stopping = True
        for running in self._running.values():
            running.child.write("stop")
        if self._refusal is None:
            await self._until_idle(self._timing.grace)
        for running in self._running.values():
            running.child.kill()
        await self._until_idle(self._timing.dead_after)
        self._closed.set()
        if self._telling:
            await asyncio.wait(self._telling)

    async def _until_idle(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._running and time.monotonic() < until:
            await asyncio.sleep(0.02)


def _named(admitted: Admitted) -> dict[str, str]:
    """An attempt's name, and when it began by the database's clock."""
    begun = admitted.task.started_at or datetime.min
    return {"at": begun.replace(tzinfo=UTC).isoformat(), "lease": admitted.lease}


def settings_for(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """The settings for a child that sees one GPU only, whatever its number is here."""
    if environment and settings.device.startswith("cuda"):
        return settings.model_copy(update={"device": "cuda"})
    return settings


async def _call_after(event: asyncio.Event, function: Callable[[], None]) -> None:
    await event.wait()
    function()
