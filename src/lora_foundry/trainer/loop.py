"""The training loop: step after step, and around it what makes it safe to stop at any moment. It asks the device for its
numbers only now and then, since each question makes a GPU wait."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import torch

from lora_foundry.errors import DivergedError, StopRequested
from lora_foundry.trainer.export import CheckpointExporter
from lora_foundry.trainer.logging import PROGRESS_SECONDS, TrainingLog
from lora_foundry.trainer.memory import StepWatch
from lora_foundry.trainer.previews import Previews
from lora_foundry.trainer.state import Checkpoints
from lora_foundry.trainer.step import OptimizerStep, StepResult

_MOST_PENDING = 25


@dataclass
class Loop:
    """One training, from a step to the last. `progress` hears of the steps done and the mean of the last losses."""

    step: OptimizerStep
    checkpoints: Checkpoints
    exporter: CheckpointExporter
    previews: Previews
    log: TrainingLog
    progress: Callable[[int, float], None]
    clock: Callable[[], float] = monotonic
    watch: StepWatch = field(default_factory=StepWatch)
    _pending: list[StepResult] = field(default_factory=list)

    def run(self, start: int) -> None:
        """Trains steps `start` to the last, with a checkpoint every so often and after the last. Raises DivergedError
        for NaN, leaving the last good checkpoint."""
        self.exporter.begin(start)
        self.previews.begin(start)
        total, every = self.step.total, self.step.settings.checkpoint_every
        reported = self.clock()
        for number in range(start, total):
            self._pending.append(self.step(number))
            done = number + 1
            checkpoint = done == total or done % every == 0
            export = self.exporter.is_due(done)
            late = self.clock() - reported >= PROGRESS_SECONDS
            if checkpoint or export or late or len(self._pending) >= _MOST_PENDING:
                count = len(self._pending)
                self._read_numbers()
                if warning := self.watch.observe(count, self.clock() - reported):
                    self.log.say(done, warning)
                self._report(done, export)
                self._save_what_is_due(done, export, checkpoint)
                reported = self.clock()

    def _report(self, done: int, export: bool) -> None:
        """Reports the steps done. Who hears it may want the training to stop: then nothing of it is lost."""
        try:
            self.progress(done, self.log.mean_loss(20))
        except StopRequested:
            self._save_what_is_due(done, export, checkpoint=True)
            raise

    def _save_what_is_due(self, done: int, export: bool, checkpoint: bool) -> None:
        """An export that is kept with its sample pictures, which can be asked for besides, the validation loss, a
        checkpoint."""
        if export:
            self.exporter.keep(done)
        if self.previews.take_request():
            self.previews.draw_now(done, self.log)
        elif export:
            self.previews.draw(done)
        if export or checkpoint:
            self.previews.validate(done, self.log)
        if checkpoint:
            self._save(done)

    def _read_numbers(self) -> None:
        """Brings the pending steps' numbers into the log. Raises DivergedError at the first that is none."""
        if not self._pending:
            return
        # One transfer for all of them: each question makes the device wait.
        numbers = torch.stack([torch.stack((result.loss, result.norm)) for result in self._pending]).tolist()
        scaled = self.step.state.scaler.is_enabled()
        for result, (loss, norm) in zip(self._pending, numbers, strict=True):
            # With a gradient scaler an infinite norm is normal: that step was skipped and the scale lowered.
            if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
                self.log.flush()
                raise self._diverged(result.step, "gradient" if math.isfinite(loss) else "loss")
            self.log.add(result.step, loss, result.rate)
        self._pending.clear()
        self.log.flush()

    def _save(self, step: int) -> None:
        if not self.step.state.adapter.is_finite():
            raise self._diverged(step, "LoRA")
        self.log.flush(to_disk=True)
        self.checkpoints.save(step, self.step.state)
        self.log.say(step, f"checkpoint, loss {self.log.mean_loss(50):.4f}")

    def _diverged(self, step: int, what: str) -> DivergedError:
        kept = self.checkpoints.newest()
        self.log.say(step, f"stopped: the {what} is not a number")
        where = f"the checkpoint of step {kept} is kept" if kept else "there is no checkpoint yet"
        return DivergedError(
            f"Training stopped at step {step}: the {what} is not a number any more ({where}); lower "
            "train.learning_rate, or set train.precision to bf16 or fp32."
        )
