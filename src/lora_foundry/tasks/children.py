"""The worker's side of a child process: starting it in a process group of its own, reading its news, feeding
it signs of life, and killing the whole group so that nothing of it, GPU memory included, is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_foundry.domain.run import ProgressEvent
from lora_foundry.files.storage import make_folder, storage_errors
from lora_foundry.processes import cause_of_death, has_ended, kill_group, own_group
from lora_foundry.tasks.logs import context, is_calm

LINE_LIMIT = 16 * 1024 * 1024
TAIL_BYTES = 2000
LOOK = 0.2  # seconds between looks whether a child whose pipe stays open has ended
LAST_WORDS = (
    0.5  # seconds in which a process that closed its pipe ends, or the pipe of one that ended is read
)
# Seconds without a line from a child after which it counts as frozen. It writes every other second, but not while a
# library holds the interpreter: importing torch from a slow disk takes long.
SILENCE = 120.0
LONGEST_DEATH = 5.0  # seconds; one who waits for a disk that does not answer cannot even be killed


class Message(BaseModel):
    """One line from a child. `alive` says only that it is not frozen, `unheard` that it ends itself, since it heard no sign
    of life from us for as long as its patience lasts."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    alive: bool = False
    unheard: bool = False
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    kind: str = ""
    permanent: bool = False


@dataclass(frozen=True)
class Job:
    """What a child is to do: call `entry` ("module:function") with `work`, within `timeout` seconds.

    patience: seconds without a sign of life from us after which it ends itself. keep: leave the process for another
    job, if this one ends well.
    """

    entry: str
    work: dict[str, Any]
    patience: float
    timeout: float
    json_log: bool = False
    keep: bool = False


@dataclass
class Outcome:
    """How a child ended: with a result, or with an error in words and its kind (an exception's name). unheard: it ended
    itself, having waited too long for a sign of life from us."""

    result: dict[str, Any] | None = None
    error: str = ""
    kind: str = ""
    permanent: bool = False
    progressed: bool = False
    unheard: bool = False


@dataclass
class Child:
    """One running attempt. `process` may be one that an earlier attempt left; `environment` is for a new one; `reached`
    has the units, by stage, that earlier attempts got to."""

    log: Path
    on_progress: Callable[[dict[str, Any]], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: Process | None = None
    outcome: Outcome = field(default_factory=Outcome)
    killed_for: str = ""
    reached: dict[str, int] = field(default_factory=dict)
    _heard: float = 0.0

    async def run(self, job: Job) -> Outcome:
        """Runs the job to its end, however it ends. Cancelling the coroutine kills the group. Raises StorageError where its
        log cannot be written."""
        order = {"entry": job.entry, "work": job.work, "patience": job.patience, "log": str(self.log)}
        order |= {"json_log": job.json_log, "keep": job.keep, "context": context()}
        try:
            if self.process is None or self.process.returncode is not None:
                self.process = await start_process(self.log, self.environment)
        except OSError as error:
            self.outcome.error = f"No process for the attempt could be started: {error}."
            return self.outcome
        try:
            self.write(json.dumps(order | {"sent": monotonic()}))
            async with asyncio.timeout(job.timeout):
                await self._hear_out(job.keep)
        except TimeoutError:
            self.killed_for = f"The attempt took longer than its timeout of {job.timeout:g} s."
        finally:
            if not self.is_kept(job):
                await self.end()
        return self._judge()

    def is_kept(self, job: Job) -> bool:
        """Whether the process did its work and waits for more."""
        return (
            job.keep
            and self.outcome.result is not None
            and self.process is not None
            and self.process.returncode is None
        )

    def write(self, line: str) -> None:
        """A line to the child; one that has ended does not mind."""
        if (
            self.process is not None
            and self.process.stdin is not None
            and not self.process.stdin.is_closing()
        ):
            with contextlib.suppress(OSError, RuntimeError):
                self.process.stdin.write(line.encode() + b"\n")

    def heartbeat(self) -> None:
        """A sign of life to the child, with its time by the clock that all processes of a machine share."""
        self.write(f"heartbeat {monotonic()}")

    def kill(self) -> None:
        """Ends the whole group at once; it may outlive its leader."""
        if self.process is not None:
            kill_group(self.process.pid)

    async def end(self) -> None:
        """Kills the group and waits until the process is gone. Not with `process.wait()`, which also waits for whoever
        else may hold the child's pipe."""
        self.kill()
        until = monotonic() + LONGEST_DEATH
        while self.process is not None and self.process.returncode is None and monotonic() < until:
            await asyncio.sleep(0.01)
        if self.process is not None:
            # asyncio closes a child's pipes when their other ends are closed, and has no public way to do it sooner. A
            # process that left the group may hold them for ever, and each would cost this worker two descriptors.
            self.process._transport.close()  # type: ignore[attr-defined]

    async def _hear_out(self, keep: bool) -> None:
        """Reads until the child has answered, closed its pipe, ended, or been silent for too long."""
        assert self.process is not None
        reading = asyncio.create_task(self._read())
        self._heard = monotonic()
        try:
            while not reading.done() and self.process.returncode is None:
                await asyncio.wait({reading}, timeout=LOOK)
                if monotonic() - self._heard > SILENCE:
                    self.killed_for = f"The attempt's process gave no sign of life for {SILENCE:g} s."
                    return
            if self._answered and keep:
                return
            # One who has answered ends by itself; one who closed its pipe may be about to end, and its exit code tells
            # why; and the pipe of one who has ended may hold its last words.
            begun = monotonic()
            while not (reading.done() and self.process.returncode is not None):
                unsaid = reading.done() and has_ended(self.process.pid)  # the code is on its way, and comes
                if monotonic() - begun > (LONGEST_DEATH if unsaid else LAST_WORDS):
                    break
                await asyncio.sleep(0.01)
            if not self._answered and self.process.returncode is None and not self.killed_for:
                self.killed_for = "The attempt's process closed its output without an answer."
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    @property
    def _answered(self) -> bool:
        return self.outcome.result is not None or bool(self.outcome.error)

    async def _read(self) -> None:
        """Takes the child's lines until one is its answer. A line that is no message ends it as well: who writes one
        will not answer either."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = b""
        try:
            async for line in self.process.stdout:
                self._heard = monotonic()
                message = Message.model_validate_json(line)
                if message.progress is not None:
                    self._note(message.progress)
                self.outcome.unheard = message.unheard
                if message.unheard:
                    return
                if message.result is not None or message.error is not None:
                    self.outcome.result, self.outcome.error = message.result, message.error or ""
                    self.outcome.kind, self.outcome.permanent = message.kind, message.permanent
                    return
        except ValueError:  # no JSON, no message, or a line without an end
            self.killed_for = f"The attempt's process wrote what is no message of ours: {line[:80]!r}."

    def _note(self, event: dict[str, Any]) -> None:
        """Passes progress on. This attempt's own work are the units beyond the first that was heard of, if no earlier
        attempt got as far: one that dies at the same place each time makes no progress."""
        checked = ProgressEvent.model_validate(event)
        first = self.reached.setdefault(checked.stage, checked.done)
        self.outcome.progressed = self.outcome.progressed or checked.done > first
        self.on_progress(event)

    def _judge(self) -> Outcome:
        if self.outcome.error:
            # An error in words was an answer, not an interruption: it counts as an attempt.
            self.outcome.progressed = False
        elif self.outcome.result is None:
            code = self.process.returncode if self.process is not None else None
            said = self.killed_for or f"The attempt's process died ({cause_of_death(code)})."
            if self.outcome.unheard:
                said = "The attempt's process ended itself: this program gave no sign of life, as on a machine that sleeps "
                said += "or has too much to do."
            elif not self.killed_for and cause_of_death(code) == "signal SIGKILL":
                said += " The system does that where memory runs out: close other programs, or ask for less."
            tail = _tail(self.log)
            ends = f" and ends with: {tail}" if tail else "; run the same command to go on."
            self.outcome.error = f"{said} Its log is {self.log}{ends}"
        return self.outcome


async def run_alone(child: Child, job: Job, every: float) -> Outcome:
    """Runs a job for one who has no worker: it gives the child its signs of life, one `every` seconds."""

    async def heartbeat() -> None:
        while True:
            await asyncio.sleep(every)
            child.heartbeat()

    heartbeats = asyncio.create_task(heartbeat())
    try:
        return await child.run(job)
    finally:
        heartbeats.cancel()


async def start_process(log: Path, environment: Mapping[str, str], preload: Sequence[str] = ()) -> Process:
    """A child that imports `preload` and waits for its first job, in a group of its own. Raises StorageError where its log
    cannot be written, OSError."""
    make_folder(log.parent)
    with storage_errors(log):
        file = log.open("ab")
    with file:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lora_foundry.tasks.runner", str(os.getpid()), *preload),
            stdin=PIPE,
            stdout=PIPE,
            stderr=file,
            limit=LINE_LIMIT,
            env={**os.environ, **environment},
            **own_group(),
        )


def _tail(log: Path) -> str:
    """What the log says last, in one line; without what tells only how far the work had come."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        begin = file.seek(max(0, file.tell() - TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()[bool(begin) :]
        return " / ".join([line for line in lines if not is_calm(line)][-3:])[-600:]
    return ""
