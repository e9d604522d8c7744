"""The program's commands, each in a process of its own that is forked from one which has imported the program: what a
command says and how it ends, without the second that an interpreter takes to get ready. That the program can be started
as a person starts it is for the tests of whole runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
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


@dataclass(frozen=True)
class Commands:
    """Runs commands. processes: a context of multiprocessing; folder: where their output goes meanwhile."""

    processes: Any
    folder: Path

    def run(self, *words: str, environment: Mapping[str, str]) -> Done:
        self.folder.mkdir(exist_ok=True)
        files = [self.folder / name for name in ("stdout", "stderr")]
        arguments = (words, {**os.environ, **environment}, [str(file) for file in files])
        process = self.processes.Process(target=_main, args=arguments)
        process.start()
        process.join(PATIENCE)
        assert process.exitcode is not None, f"{words} does not end"
        return Done(process.exitcode, *(file.read_text(encoding="utf-8") for file in files))


def _main(words: tuple[str, ...], environment: dict[str, str], files: list[str]) -> None:
    from lora_foundry.cli.app import main

    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["lora-foundry", *words]
    main()
