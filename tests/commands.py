"""The program's commands, each in a process of its own that is forked from one which has imported the program: what a
command says and how it ends, without the second that an interpreter takes to get ready. That the program can be started
as a person starts it is for the tests of whole runs."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 200.0  # seconds


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def fork_server() -> Any:
    """A context of multiprocessing whose processes are forked from one that has imported what a pipeline needs: each costs
    a moment instead of ten seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    return context


class Running:
    """A command at work, with what a test of `subprocess.Popen` would ask of it. words: those after the program's name, or a
    program of Python (`*.py`) and its words; environment: what differs from ours, None for what is not there; stdout, stderr:
    files that it writes at the end of."""

    def __init__(
        self,
        processes: Any,
        words: Sequence[str],
        environment: Mapping[str, str | None],
        stdout: Path,
        stderr: Path,
    ) -> None:
        self.stdout, self.stderr = stdout, stderr
        given = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
        arguments = (tuple(words), given, (str(stdout), str(stderr)))
        for file in (stdout, stderr):
            file.touch()  # whoever looks before the command has written finds nothing yet
        self._process = processes.Process(target=_main, args=arguments)
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, patience: float = PATIENCE) -> int:
        self._process.join(patience)
        assert self.returncode is not None, f"it does not end: {self.stderr.read_text(encoding='utf-8')}"
        return self.returncode

    def done(self, patience: float = PATIENCE) -> Done:
        """How it ended, when it has."""
        code = self.wait(patience)
        return Done(code, *(file.read_text(encoding="utf-8") for file in (self.stdout, self.stderr)))


@dataclass(frozen=True)
class Commands:
    """Runs commands. processes: a context of multiprocessing; folder: where their output goes meanwhile."""

    processes: Any
    folder: Path

    def run(self, *words: str, environment: Mapping[str, str | None]) -> Done:
        return self.start(*words, environment=environment).done()

    def start(self, *words: str, environment: Mapping[str, str | None]) -> Running:
        self.folder.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return Running(self.processes, words, environment, folder / "stdout", folder / "stderr")


def start_code(code: str, folder: Path) -> Running:
    """A program of Python that is given as its text; what it writes is in files beside it, in a new folder below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=folder))
    program = own / "program.py"
    program.write_text(code, encoding="utf-8")
    return Running(fork_server(), [str(program)], {}, own / "stdout", own / "stderr")


def _main(words: tuple[str, ...], environment: dict[str, str], files: tuple[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files, 1):
        descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if words[0].endswith(".py"):
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
        return
    from lora_foundry.cli.app import main

    sys.argv = ["lora-foundry", *words]
    main()
