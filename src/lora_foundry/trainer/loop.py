"""The training loop: batch, loss, backward, step; and around it what makes it safe to stop at any moment. It
asks the device for its numbers only now and then, since each question makes a GPU wait."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import DivergedError, StopRequested
from lora_foundry.trainer.checkpoints import Checkpoints, Learner
from lora_foundry.trainer.journal import Journal
from lora_foundry.trainer.keeping import Keeper
from lora_foundry.trainer.material import Material
from lora_foundry.trainer.memory import StepWatch
from lora_foundry.trainer.optimizers import set_rate
from lora_foundry.trainer.passes import Part
from lora_foundry.trainer.schedule import rate_factor

NEWS_SECONDS = 0.4
_MOST_PENDING = 25


class Pending(NamedTuple):
    """A step whose numbers are still on the device."""

    step: int
    loss: Tensor
    norm: Tensor
    rate: float


@dataclass
class Loop:
    """One training, from a step to the last."""

    settings: TrainSection
    total: int
    passes: Callable[[Part], Tensor]
    learner: Learner
    material: Material
    checkpoints: Checkpoints
    journal: Journal
    keeper: Keeper
    news: Callable[[int, float], None]
    examine: Callable[[int], None]
    clock: Callable[[], float] = monotonic
    watch: StepWatch = field(default_factory=StepWatch)
    _pending: list[Pending] = field(default_factory=list)

    def run(self, start: int) -> None:
        """Trains steps `start` to `total`, with a checkpoint every so often and after the last. Raises
        DivergedError for NaN, leaving the last good checkpoint."""
        self.keeper.begin(start)
        told = self.clock()
        for step in range(start, self.total):
            self._pending.append(self._step(step))
            done = step + 1
            checkpoint = done == self.total or done % self.settings.checkpoint_every == 0
            keep = self.keeper.is_due(done)
            if (
                checkpoint
                or keep
                or len(self._pending) >= _MOST_PENDING
                or self.clock() - told >= NEWS_SECONDS
            ):
                count = len(self._pending)
                self._settle()
                if warning := self.watch.observe(count, self.clock() - told):
                    self.journal.say(done, warning)
                self._tell(done, keep)
                self._put_away(done, keep, checkpoint)
                told = self.clock()

    def _tell(self, done: int, keep: bool) -> None:
        """News of a step. Who hears it may want the training to stop: then nothing of it is lost."""
        try:
            self.news(done, self.journal.mean_loss(20))
        except StopRequested:
            self._put_away(done, keep, checkpoint=True)
            raise

    def _put_away(self, done: int, keep: bool, checkpoint: bool) -> None:
        """What is due after a step: a kept export, a look at it, a checkpoint."""
        if keep:
            self.keeper.keep(done)
        if keep or checkpoint:
            self.examine(done)
        if checkpoint:
            self._save(done)

    def _step(self, step: int) -> Pending:
        optimizer, scaler = self.learner.optimizer, self.learner.scaler
        factor = rate_factor(self.settings, step, self.total)
        set_rate(optimizer, factor)
        loss = self._learn(step)
        scaler.unscale_(optimizer)
        limit = self.settings.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.learner.adapter.buffers.values(), limit)
        scaler.step(optimizer)
        scaler.update()
        self.learner.adapter.forget_gradients()
        if self.settings.max_norm > 0:
            self.learner.adapter.limit_norms(self.settings.max_norm)
        if self.learner.mean:
            self.learner.mean.update(step + 1)
        return Pending(step + 1, loss, norm.detach(), self.settings.learning_rate * factor)

    def _learn(self, step: int) -> Tensor:
        """Adds up the gradients of step `step`, one batch of `batch_size` after another; returns the mean loss."""
        whole, size = self.material.batch(step), self.settings.batch_size
        losses = []
        for first in range(0, len(whole.samples), size):
            part = slice(first, first + size)
            losses.append(
                self.passes(
                    Part(
                        whole.latents[part],
                        self.material.captions.batch([sample.caption for sample in whole.samples[part]]),
                        whole.noise[part],
                        whole.positions[part],
                        None if whole.masks is None else whole.masks[part],
                        None if whole.weights is None else whole.weights[part],
                    )
                )
            )
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _settle(self) -> None:
        """Brings the pending numbers into the journal. Raises DivergedError at the first that is none."""
        if not self._pending:
            return
        # One transfer for all of them: each question makes the device wait.
        numbers = torch.stack(
            [torch.stack((pending.loss, pending.norm)) for pending in self._pending]
        ).tolist()
        for pending, (loss, norm) in zip(self._pending, numbers, strict=True):
            # With a gradient scaler an infinite norm is normal: that step was skipped and the scale lowered.
            sound = math.isfinite(norm) or self.learner.scaler.is_enabled()
            if loss - loss != 0 or not sound:
                self.journal.flush()
                raise self._diverged(pending.step, "loss" if loss - loss != 0 else "gradient")
            self.journal.add(pending.step, loss, pending.rate)
        self._pending.clear()
        self.journal.flush()

    def _save(self, step: int) -> None:
        if not self.learner.adapter.is_finite():
            raise self._diverged(step, "LoRA")
        self.journal.flush(to_disk=True)
        self.checkpoints.save(step, self.learner)
        self.journal.say(step, f"checkpoint, loss {self.journal.mean_loss(50):.4f}")

    def _diverged(self, step: int, what: str) -> DivergedError:
        kept = self.checkpoints.newest()
        self.journal.say(step, f"stopped: the {what} is not a number")
        where = f"the checkpoint of step {kept} is kept" if kept else "there is no checkpoint yet"
        return DivergedError(
            f"Training stopped at step {step}: the {what} is not a number any more ({where}); lower "
            "train.learning_rate, or set train.precision to bf16 or fp32."
        )
