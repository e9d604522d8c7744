"""The worker's side of a child process: starting it in a process group of its own, reading its news, feeding
it signs of life, and killing the whole group so that nothing of it, GPU memory included, is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LINE_LIMIT = 16 * 1024 * 1024
TAIL_BYTES = 2000


@dataclass
class Outcome:
    """How a child ended: with a result, or with an error in words."""

    result: dict[str, Any] | None = None
    error: str = ""
    permanent: bool = False
    progressed: bool = False


@dataclass
class Child:
    """One running attempt."""

    log: Path
    on_progress: Callable[[dict[str, Any]], None]
    process: asyncio.subprocess.Process | None = None
    outcome: Outcome = field(default_factory=Outcome)
    killed_for: str = ""
    _first: dict[str, int] = field(default_factory=dict)

    async def run(self, entry: str, work: dict[str, Any], patience: float, timeout: float) -> Outcome:
        """Runs the job to its end, however it ends. Cancelling the coroutine kills the group."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        job = {"entry": entry, "work": work, "patience": patience, "parent": os.getpid()}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "lora_foundry.engine.runner"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=LINE_LIMIT,
            )
        try:
            self.write(json.dumps(job))
            async with asyncio.timeout(timeout):
                await self._read()
                await self.process.wait()
        except TimeoutError:
            self.killed_for = f"The attempt took longer than its timeout of {timeout:g} s."
        finally:
            self.kill()
            await asyncio.shield(self.process.wait())
            if self.process.stdin is not None:
                self.process.stdin.close()
        return self._judge()

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

    async def _read(self) -> None:
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
            elif "error" in message:
                self.outcome.error, self.outcome.permanent = message["error"], message["permanent"]

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
