"""The GPU where no other program of this project's concern computes on it: what is free must be enough, by the
driver's count, or the training does not start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from lora_foundry.context import Context
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import BackendError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.memory import MIB, driver_free, needed_memory
from lora_foundry.settings import Settings


class LocalGpu:
    """The Gpu port. `free` asks the driver (None: no such GPU)."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.base, context.settings)

    def __init__(
        self, base: Base, settings: Settings, free: Callable[[str], int | None] = driver_free
    ) -> None:
        self._base, self._device, self._free = base, settings.device, free

    @contextmanager
    def room(self, settings: TrainSection) -> Iterator[None]:
        """See ports.Gpu."""
        needed, free = needed_memory(self._base, settings, self._device), self._free(self._device)
        if free is not None and free < needed:
            raise BackendError(
                f"Training needs about {needed // MIB} MiB of GPU memory and {free // MIB} MiB are free; close other "
                "programs on this GPU, lower train.batch_size or train.resolution, or set train.gradient_checkpointing "
                "(train.needs_mib replaces the estimate)."
            )
        yield
