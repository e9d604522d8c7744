"""The worker's side of a child process: starting it in a process group of its own, reading its news, feeding
it signs of life, and killing the whole group so that nothing of it, GPU memory included, is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_foundry.tasks.logs import context

LINE_LIMIT = 16 * 1024 * 1024
TAIL_BYTES = 2000


@dataclass(frozen=True)
class Job:
    """What a child is to do: call `entry` ("module:function") with `work`, within `timeout` seconds.

    patience: seconds without a sign of life after which it ends itself. keep: leave the process for another job.
    """

    entry: str
    work: dict[str, Any]
    patience: float
    timeout: float
    json_log: bool = False
    keep: bool = False


@dataclass
class Outcome:
    """How a child ended: with a result, or with an error in words and its kind (an exception's name)."""

    result: dict[str, Any] | None = None
    error: str = ""
    kind: str = ""
    permanent: bool = False
    progressed: bool = False


@dataclass
class Child:
    """One running attempt. `process` may be one that an earlier attempt left; `environment` is for a new one."""

    log: Path
    on_progress: Callable[[dict[str, Any]], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: Process | None = None
    outcome: Outcome = field(default_factory=Outcome)
    killed_for: str = ""
    _first: dict[str, int] = field(default_factory=dict)

    async def run(self, job: Job) -> Outcome:
        """Runs the job to its end, however it ends. Cancelling the coroutine kills the group."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        order = {"entry": job.entry, "work": job.work, "patience": job.patience, "log": str(self.log)}
        order |= {"json_log": job.json_log, "keep": job.keep, "context": context()}
        if self.process is None or self.process.returncode is not None:
            self.process = await start_process(self.log, self.environment)
        try:
            self.write(json.dumps(order))
            async with asyncio.timeout(job.timeout):
                await self._read(job.keep)
                if not self.is_kept(job):
                    await self.process.wait()
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

    def kill(self) -> None:
        """SIGKILL to the whole group, which may outlive its leader."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Kills the group and waits until the process is gone."""
        self.kill()
        if self.process is not None:
            await asyncio.shield(self.process.wait())
            if self.process.stdin is not None:
                self.process.stdin.close()

    async def _read(self, keep: bool) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if "progress" in message:
                self._note(message["progress"])
            elif "result" in message:
                self.outcome.result = message["result"] if isinstance(message["result"], dict) else {}
                if keep:
                    return
            elif "error" in message:
                self.outcome.error, self.outcome.permanent = message["error"], message["permanent"]
                self.outcome.kind = message["kind"]
                if keep:
                    return

    def _note(self, event: dict[str, Any]) -> None:
        """Passes news on; units beyond the first that was heard of are this attempt's own work."""
        first = self._first.setdefault(str(event["stage"]), int(event["done"]))
        self.outcome.progressed = self.outcome.progressed or int(event["done"]) > first
        self.on_progress(event)

    def _judge(self) -> Outcome:
        if self.outcome.result is None and not self.outcome.error:
            code = self.process.returncode if self.process is not None else None
            said = self.killed_for or f"The attempt's process died ({_cause(code)})."
            self.outcome.error = f"{said} End of its log: {_tail(self.log)}" if _tail(self.log) else said
        elif self.outcome.error:
            # An error in words was an answer, not an interruption: it counts as an attempt.
            self.outcome.progressed = False
        return self.outcome


async def start_process(log: Path, environment: Mapping[str, str], preload: Sequence[str] = ()) -> Process:
    """A child that imports `preload` and waits for its first job, in a session and process group of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lora_foundry.tasks.runner", str(os.getpid()), *preload),
            stdin=PIPE,
            stdout=PIPE,
            stderr=file,
            start_new_session=True,
            limit=LINE_LIMIT,
            env={**os.environ, **environment},
        )


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()[-600:]
    return ""
