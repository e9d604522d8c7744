"""A training's state on disk: LoRA, optimizer and position, as safetensors and JSON (no pickle, which could
run code). The JSON is written last and names the tensors' hash, so a checkpoint either is whole or does not
count; the newest two are kept, so that one that turns out damaged costs little."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lora_foundry.files import storage
from lora_foundry.trainer.lora import Adapter
from lora_foundry.trainer.optimizers import exported_state

KEPT = 2
_log = logging.getLogger(__name__)


class CheckpointRecord(BaseModel):
    """The JSON beside a checkpoint's tensors.

    fingerprint: of everything that decides the training but its length. total: how many steps it was to take.
    optimizer: its state, whose tensors stand in the other file under the names that are here.
    """

    # Optimizers hold infinities (Prodigy's growth rate), which JSON as pydantic writes it would turn into null.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    step: int
    total: int
    fingerprint: str
    sha256: str
    optimizer: dict[str, Any]
    scaler: dict[str, float] = {}


class EMA:
    """An exponential moving average of the weights: w' = decay w' + (1 - decay) w after each step, the decay
    rising with the steps at first so that the start weighs little."""

    def __init__(self, adapter: Adapter, decay: float) -> None:
        self._adapter, self._decay = adapter, decay
        self.values = {name: tensor.detach().clone() for name, tensor in adapter.named().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step `step` (counted from 1)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        weights: list[Tensor] = [*self._adapter.named().values()]
        torch._foreach_lerp_(list(self.values.values()), weights, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Copies on the CPU, named as `Adapter.state` names them."""
        return {name: value.to("cpu", copy=True).contiguous() for name, value in self.values.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        for name, value in self.values.items():
            value.copy_(state[name])


class TrainState(NamedTuple):
    """What learns, and so what a checkpoint must hold."""

    adapter: Adapter
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: EMA | None = None

    def exported_state(self) -> dict[str, Tensor]:
        """The weights that a file gets: the moving average, or what the optimizer answers with."""
        return self.ema.state() if self.ema else exported_state(self.optimizer, self.adapter)

    @contextmanager
    def as_exported(self) -> Iterator[None]:
        """The adapter with the weights that a file gets, for a look at them; afterwards bit for bit as before."""
        kept = self.adapter.state()
        self.adapter.load(self.exported_state())
        try:
            yield
        finally:
            self.adapter.load(kept)


class Checkpoints:
    """The checkpoints of one training of `total` steps, in one folder."""

    def __init__(self, folder: Path, fingerprint: str, total: int) -> None:
        self._folder = folder
        self._fingerprint, self._total = fingerprint, total

    def save(self, step: int, state: TrainState) -> Path:
        """Writes the state after `step` steps and removes all but the newest two. Raises StorageError."""
        tensors = {f"lora.{name}": tensor for name, tensor in state.adapter.state().items()}
        if state.ema:
            tensors |= {f"ema.{name}": tensor for name, tensor in state.ema.state().items()}
        optimizer = _without_tensors(state.optimizer.state_dict(), tensors)
        data = save(tensors)
        storage.write_bytes(self._tensors(step), data)
        record = CheckpointRecord(
            step=step,
            total=self._total,
            fingerprint=self._fingerprint,
            sha256=hashlib.sha256(data).hexdigest(),
            optimizer=optimizer,
            scaler=state.scaler.state_dict(),
        )
        storage.write_model(self._record(step), record)
        self._remove_old()
        return self._record(step)

    def restore(self, state: TrainState) -> int:
        """Puts the newest whole checkpoint of this training into `state`; returns its step, 0 where there
        is none.

        Checkpoints of another training (other pictures, captions or settings) are removed. One of a training that was
        shorter counts where that was finished: more steps are added to it, along the longer schedule.
        """
        for step in sorted(self._steps(), reverse=True):
            record = storage.read_model(self._record(step), CheckpointRecord)
            if record is None or not self._goes_on(record):
                _log.info("checkpoint %d belongs to another training and is removed", step)
                self._remove(step)
                continue
            try:
                data = self._tensors(step).read_bytes()
                if hashlib.sha256(data).hexdigest() == record.sha256:
                    _put_back(record, load(data), state)
                    return step
            except (OSError, SafetensorError, KeyError, ValueError):
                _log.debug("checkpoint %d cannot be read", step, exc_info=True)
            _log.warning("the checkpoint of step %d is damaged and is left out", step)
            self._remove(step)
        return 0

    def _goes_on(self, record: CheckpointRecord) -> bool:
        finished = record.step == record.total < self._total
        return record.fingerprint == self._fingerprint and (record.total == self._total or finished)

    def newest(self) -> int:
        """The step of the newest checkpoint, 0 where there is none."""
        return max(self._steps(), default=0)

    def _steps(self) -> list[int]:
        names = [path.stem.removeprefix("step-") for path in self._folder.glob("step-*.json")]
        return [int(name) for name in names if name.isdigit()]

    def _tensors(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.safetensors"

    def _record(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.json"

    def _remove_old(self) -> None:
        """Keeps the newest two, and clears away what kills left behind."""
        keep = set(sorted(self._steps())[-KEPT:])
        for path in [*self._folder.glob("step-*"), *self._folder.glob(".step-*.part*")]:
            name = path.stem.removeprefix("step-")
            if not (name.isdigit() and int(name) in keep):
                path.unlink(missing_ok=True)

    def _remove(self, step: int) -> None:
        self._record(step).unlink(missing_ok=True)
        self._tensors(step).unlink(missing_ok=True)


_TENSOR = "tensor"  # the key of a tensor's place; keys of a state are in quotes or numbers


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """An optimizer's state as JSON can hold it, however deep it is nested; its tensors are put into `tensors`, and their
    names where they stood. Keys keep their type: optimizers number their parameters."""
    if isinstance(value, Tensor):
        name = f"optimizer.{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {json.dumps(key): _without_tensors(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner, tensors) for inner in value]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_without_tensors` was given; tuples come back as lists. Raises KeyError for a tensor that is not there."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {json.loads(key): _with_tensors(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_tensors(inner, tensors) for inner in value]
    return value


def _put_back(record: CheckpointRecord, tensors: dict[str, Tensor], state: TrainState) -> None:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = tensor
    state.adapter.load(parts["lora"])
    if state.ema:
        state.ema.load(parts["ema"])
    state.optimizer.load_state_dict(_with_tensors(record.optimizer, tensors))
    if record.scaler:
        state.scaler.load_state_dict(dict(record.scaler))
