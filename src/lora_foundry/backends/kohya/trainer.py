"""The Trainer that is sd-scripts: lays the job out for it, runs it, follows its progress and believes it only when
its exit code AND a sound LoRA file say so. A training that was stopped goes on from the last whole state."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, perf_counter
from typing import Self

from lora_foundry.backends.kohya.checkout import Checkout, find_checkout
from lora_foundry.backends.kohya.faults import translate
from lora_foundry.backends.kohya.output import Output, Step
from lora_foundry.backends.kohya.plan import (
    OUTPUT_NAME,
    configuration,
    lay_out,
    provide_vocabulary,
    refuse_what_it_cannot_do,
    to_toml,
    total_steps,
)
from lora_foundry.backends.kohya.process import command, run
from lora_foundry.context import Context
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import ProgressEvent, fingerprint
from lora_foundry.errors import (
    BackendError,
    BaseModelError,
    DivergedError,
    FoundryError,
    InputError,
    VerificationError,
)
from lora_foundry.families._shared.base import Base
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.paths import TRAINING_CONFIG, TRAINING_LOG, TRAINING_LOSS
from lora_foundry.files.safetensors import read_header
from lora_foundry.files.storage import (
    make_folder,
    remove_file,
    remove_tree,
    write_bytes,
    write_json,
    write_text,
)
from lora_foundry.ports import ProgressCallback, TrainingJob
from lora_foundry.stages.publish.soundness import check_numbers

_PROGRESS_SECONDS = 0.4
_KEYS = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_STATE_FILES = ("optimizer.bin", "random_states_0.pkl")


class KohyaTrainer:
    """Trains with the sd-scripts checkout in `folder`, run by `python`."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(
            context.base, context.settings.kohya, context.settings.kohya_python, context.settings.device
        )

    def __init__(self, base: Base, folder: Path | None, python: Path | None, device: str = "auto") -> None:
        self._base, self._device = base, device
        self._folder, self._python = folder, python

    @property
    def model(self) -> str:
        """See `ports.Trainer`."""
        return f"{self._base.name} [{self._base.identity[:12]}]"

    def train(self, job: TrainingJob, progress: ProgressCallback) -> TrainedLora:
        """See `ports.Trainer`. Raises InputError where no sd-scripts is set, and its failures in our words."""
        started = perf_counter()
        checkout = find_checkout(self._folder, self._python)
        checkout.script(self._base.family)
        _check(job)
        training = _Training(job, self._base, checkout, self._device, progress)
        start, loss = training.run()
        data = _with_metadata(training.product, {**job.metadata, **training.metadata()})
        write_bytes(job.output, data)
        shutil.rmtree(
            training.folder, ignore_errors=True
        )  # the states are large, and nothing goes on from them
        return TrainedLora(
            path=job.output,
            sha256=hashlib.sha256(data).hexdigest(),
            steps=training.total,
            final_loss=loss,
            seconds=round(perf_counter() - started, 3),
            resumed_from=start,
            parameters=_count(job.output),
        )


class _Training:
    """One job, in `training/kohya`."""

    def __init__(
        self, job: TrainingJob, base: Base, checkout: Checkout, device: str, progress: ProgressCallback
    ) -> None:
        self._job, self._base, self._checkout, self._device = job, base, checkout, device
        self._progress, self._reported = progress, -math.inf
        self.total = total_steps(job)
        self.folder = job.workdir / "kohya"
        self.output = self.folder / "output"
        self.product = self.output / f"{OUTPUT_NAME}.safetensors"
        self._log, self._losses = job.workdir / TRAINING_LOG, job.workdir / TRAINING_LOSS
        self._loss, self._reached = 0.0, 0

    def run(self) -> tuple[int, float]:
        """Trains what is left; returns the step it went on from and the last mean loss. `product` is sound then."""
        settings = configuration(self._job, self._base, self.folder / "images", self.output)
        self._begin_or_go_on(settings)
        state = newest_state(self.output, self.total)
        start = 0 if state is None else state[1]
        if self._is_finished():
            losses = _cut_losses(self._losses, self.total)
            return self.total, losses[-1] if losses else 0.0
        _cut_losses(self._losses, start)
        remove_file(self.product)
        lay_out(self._job, self.folder / "images")
        if state is not None:
            settings |= {"resume": str(state[0]), "skip_until_initial_step": True}
        if (vocabulary := provide_vocabulary(self.folder / "tokenizers")) is not None:
            settings["tokenizer_cache_dir"] = str(vocabulary)
        config = write_text(self.folder / "config.toml", to_toml(settings))
        write_json(self._job.workdir / TRAINING_CONFIG, {"trainer": "sd-scripts", "settings": settings})
        self._say(start, "starting sd-scripts")
        with self._losses.open("a", encoding="utf-8", newline="\n") as rows_file:

            def heard(step: Step) -> None:
                number = start + step.done
                self._check_count(step, start)
                if not math.isfinite(step.mean_loss):
                    raise DivergedError("the loss is not a number any more")
                self._loss, self._reached = step.mean_loss, number
                rows_file.write(f"{number},{step.mean_loss:.6g},\n")
                if monotonic() - self._reported >= _PROGRESS_SECONDS or number == self.total:
                    rows_file.flush()
                    self._reported = monotonic()
                    self._report(number, loss=step.mean_loss)

            script = self._checkout.script(self._base.family)
            words = command(
                self._checkout,
                script,
                str(settings.get("mixed_precision", "no")),
                config,
                self._device == "cpu",
            )
            try:
                code, output = run(words, self._checkout.folder, self._environment(), self._log, heard)
            except _CountsAnew:
                remove_tree(self.output)
                raise
            except DivergedError as error:
                raise self._with_sound_state(error) from None
        self._require_success(code, output)
        return start, self._loss

    def metadata(self) -> dict[str, str]:
        """What we add to the file's own."""
        return {
            "modelspec.trigger_phrase": self._job.trigger,
            "lora_foundry.trainer": "sd-scripts",
            "lora_foundry.base": f"{self._base.name} [{self._base.identity}]",
        }

    def _begin_or_go_on(self, settings: Mapping[str, object]) -> None:
        """Clears away what another training left: its states would be gone on from."""
        images = [(file_hash(image.path), image.caption, image.repeats) for image in self._job.images]
        known = {name: value for name, value in settings.items() if not name.startswith("save_")}
        start = self._job.settings.start_from and file_hash(Path(self._job.settings.start_from).expanduser())
        made_from = fingerprint("kohya-2", self._base.identity, known, images, start)
        mark = self.folder / "fingerprint.txt"
        if not mark.is_file() or mark.read_text(encoding="utf-8") != made_from:
            remove_tree(self.folder)
            remove_file(self._log)
            write_text(mark, made_from)
        make_folder(self.output)

    def _is_finished(self) -> bool:
        """Whether an earlier attempt left the whole file and was stopped before that could be said."""
        try:
            check_numbers(self.product)
            return read_header(self.product).metadata.get("ss_steps") == str(self.total)
        except (VerificationError, BaseModelError, OSError):
            return False

    def _check_count(self, step: Step, start: int) -> None:
        """Raises BackendError where the program does not go on at the state's step; older versions ignore the
        option for it and begin to count anew."""
        if step.total != self.total - start:
            raise _CountsAnew(
                f"sd-scripts wants to train {step.total} steps where {self.total - start} are left; update the checkout "
                f"{self._checkout.folder}. The next attempt begins anew."
            )

    def _with_sound_state(self, error: DivergedError) -> DivergedError:
        """The error with what is left to go on from. The last states may hold the numbers that broke it."""
        for place, step in states(self.output, self.total):
            if step >= self._reached:
                remove_tree(place)
        kept = newest_state(self.output, self.total)
        where = f"the state of step {kept[1]} is kept" if kept else "no sound state was saved"
        return DivergedError(
            f"Training stopped at step {self._reached + 1}: {error} ({where}); lower train.learning_rate, or set "
            "train.precision to bf16 or fp32."
        )

    def _require_success(self, code: int, output: Output) -> None:
        """Exit code 0 and a sound file, both."""
        fault: FoundryError | None = None
        if code != 0 or not self.product.is_file():
            fault = translate(output.text(), code, self._checkout, self._log)
        else:
            try:
                check_numbers(self.product)
                strange = [key for key in read_header(self.product).shapes if not key.startswith(_KEYS)]
            except VerificationError as error:
                kind = DivergedError if "NaN" in str(error) else BackendError
                fault = kind(f"sd-scripts ended well but left no sound LoRA: {error}")
            else:
                if strange:
                    fault = BackendError(f"sd-scripts left a file that is no LoRA: it holds {strange[0]!r}.")
        if fault is not None:
            remove_file(self.product)
            raise fault

    def _environment(self) -> dict[str, str]:
        if self._device.startswith("cuda:"):
            return {"CUDA_VISIBLE_DEVICES": self._device.partition(":")[2]}
        return {}

    def _say(self, done: int, message: str) -> None:
        self._progress(ProgressEvent(stage="train", done=done, total=self.total, message=message))

    def _report(self, done: int, loss: float) -> None:
        self._progress(ProgressEvent(stage="train", done=done, total=self.total, loss=round(loss, 5)))


class _CountsAnew(BackendError):
    """sd-scripts does not go on where its state stands."""


def newest_state(folder: Path, total: int) -> tuple[Path, int] | None:
    """The newest whole state below step `total`, and its step."""
    return max(states(folder, total), key=lambda found: found[1], default=None)


def states(folder: Path, total: int) -> list[tuple[Path, int]]:
    """All whole states below step `total`. A state's step is written first and its archives last, so one that a
    kill cut short is told by them."""
    found: list[tuple[Path, int]] = []
    for place in folder.glob(f"{OUTPUT_NAME}-step*-state"):
        try:
            step = json.loads((place / "train_state.json").read_text(encoding="utf-8"))["current_step"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        whole = all(zipfile.is_zipfile(place / file) for file in _STATE_FILES)
        if whole and isinstance(step, int) and 0 < step < total:
            found.append((place, step))
    return found


def _check(job: TrainingJob) -> None:
    """Raises InputError for a job that cannot be trained as it is."""
    refuse_what_it_cannot_do(job.settings)
    if not job.images:
        raise InputError(
            "There are no pictures to train on; run the generate stage, or put pictures into the folder."
        )
    for image in job.images:
        if not image.caption.strip():
            raise InputError(
                f"The caption of {image.path} is empty; write it, or run the caption stage again."
            )


def _cut_losses(path: Path, step: int) -> list[float]:
    """Rewrites loss.csv up to `step` and returns its losses. The rate's column stays empty: sd-scripts does not tell
    it."""
    kept: list[str] = []
    if path.is_file() and step:
        rows = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:])
        kept = [",".join(row) for row in rows if len(row) == 3 and row[0].isdigit() and int(row[0]) <= step]
    write_text(path, "step,loss,learning_rate\n" + "".join(f"{row}\n" for row in kept))
    return [float(row.split(",")[1]) for row in kept]


def _with_metadata(path: Path, more: Mapping[str, str]) -> bytes:
    """The file's bytes with `more` in its header; the tensors stay as they are."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted({**header.get("__metadata__", {}), **more}.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _count(path: Path) -> int:
    """How many numbers were trained."""
    shapes = read_header(path).shapes
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(".alpha"))
