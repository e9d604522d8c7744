"""Log lines that say which run, task and stage they are about, in words or as JSON. The three are kept in context
variables, so that whatever is logged while an attempt is handled carries them without being told."""

from __future__ import annotations

import json
import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime

_about: ContextVar[dict[str, object] | None] = ContextVar("about", default=None)


def speak_of(**parts: object) -> None:
    """From here on, in this context, log lines are about this `run`, `task` or `stage`."""
    _about.set({**(_about.get() or {}), **parts})


def context() -> dict[str, object]:
    """What log lines are about here: run (the pipeline's id), task (the row's id) and stage, None where not known."""
    return {"run": None, "task": None, "stage": None} | (_about.get() or {})


class JsonLines(logging.Formatter):
    """A log line as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        line |= context() | {"message": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class Words(logging.Formatter):
    """A log line for people; the task in brackets where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        known = {name: value for name, value in context().items() if value is not None}
        said = " ".join(f"{name} {value}" for name, value in known.items())
        return super().format(record) + (f" [{said}]" if said else "")


_CALM = re.compile(r"\S+ \S+ (INFO|DEBUG) |\{\"time\": \"[^\"]*\", \"level\": \"(info|debug)\"")


def is_calm(line: str) -> bool:
    """Whether a line is one that `start_log` wrote of something that went as it should."""
    return _CALM.match(line) is not None


def start_log(as_json: bool) -> None:
    """The log to stderr, ours from INFO, others' from WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else Words())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("lora_foundry").setLevel(logging.INFO)
