"""Whether this machine draws or trains already: one GPU does one thing at a time."""

from __future__ import annotations

import socket

from lora_foundry.domain.task import TaskStatus
from lora_foundry.errors import BackendError, RetryableError
from lora_foundry.tasks.recovery import workers
from lora_foundry.web.site import Site


async def refuse_while_busy(here: Site) -> None:
    """Call it with `here.drawing` held until the drawing has begun, else two may find the machine free. Raises BackendError
    while a worker of this machine runs a task, RetryableError while this server draws something; what
    other hosts do disturbs nobody."""
    ours = {each.name for each in await workers(here.store) if each.host == socket.gethostname()}
    running = await here.store.recent(status=TaskStatus.RUNNING, limit=500)
    if name := next((task.name for task in running if task.worker in ours), ""):
        raise BackendError(
            f"{name} is under way, and the machine does one thing at a time; try again when it has ended."
        )
    if here.trials.busy:
        raise RetryableError("Another prompt is being tried; wait until its pictures are there.")
    if here.redraws.busy:
        raise RetryableError("Another picture is being drawn; wait until it is there.")
