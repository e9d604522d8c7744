"""The trainer on the bundled model: exact repeats, exact resumes, and clear ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import DivergedError, InputError, StopRequested
from lora_foundry.families._shared import devices
from lora_foundry.families._shared.base import Base
from lora_foundry.families.sd import train as sd
from lora_foundry.ports import TrainingImage, TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer

pytestmark = pytest.mark.slow

MakeJob = Callable[..., TrainingJob]


class Stopped(Exception):
    """Stands for anything that ends a process between two steps."""


def silent(event: ProgressEvent) -> None:
    """Ignores the news."""


def stop_at(step: int) -> Callable[[ProgressEvent], None]:
    def progress(event: ProgressEvent) -> None:
        if event.done >= step:
            raise Stopped

    return progress


def train(base: Base, job: TrainingJob, progress: Callable[[ProgressEvent], None] = silent) -> Any:
    return InProcessTrainer(base, "cpu").train(job, progress)


def outcome(job: TrainingJob) -> tuple[bytes, bytes]:
    return job.output.read_bytes(), (job.workdir / "loss.csv").read_bytes()


class Trained(NamedTuple):
    """A training of the usual settings that is over; no test writes into its folder."""

    job: TrainingJob
    result: TrainedLora

    def copy(self, make_job: MakeJob, folder: Path) -> TrainingJob:
        """The same, over in another folder too."""
        shutil.copytree(self.job.output.parent, folder, dirs_exist_ok=True)
        return make_job(folder)


@pytest.fixture(scope="module")
def trained(base: Base, make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    job = make_job(tmp_path_factory.mktemp("trained"))
    return Trained(job, train(base, job))


def test_equal_jobs_give_equal_bytes(base: Base, make_job: MakeJob, tmp_path: Path, trained: Trained) -> None:
    again = make_job(tmp_path / "again")
    result = train(base, again)
    assert outcome(again) == outcome(trained.job)
    assert result.sha256 == trained.result.sha256
    assert result.final_loss == trained.result.final_loss > 0
    other = make_job(tmp_path / "other", seed=8)
    train(base, other)
    assert outcome(other) != outcome(trained.job)


EVERYTHING: dict[str, object] = {
    "precision": "bf16", "gradient_checkpointing": True, "shuffle_tags": True, "caption_dropout": 0.3,
    "noise_offset": 0.1, "min_snr_gamma": 5.0, "lr_schedule": "cosine_with_restarts", "restarts": 2,
    "weight_decay": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_stopped_training_goes_on_to_the_same_bytes(
    base: Base, make_job: MakeJob, tmp_path: Path, trained: Trained, settings: dict[str, object]
) -> None:
    whole, stopped = trained.job, make_job(tmp_path / "stopped", **settings)
    if settings:
        whole = make_job(tmp_path / "whole", **settings)
        train(base, whole)
    for step in (3, 5):
        with pytest.raises(Stopped):
            train(base, stopped, stop_at(step))
    result = train(base, stopped)
    assert result.resumed_from == 4
    assert outcome(stopped) == outcome(whole)
    log = (stopped.workdir / "log.txt").read_text()
    assert [log.count(f"[step {step}] checkpoint") for step in (2, 4, 6)] == [1, 1, 1]
    assert log.count("going on") == 2


def test_in_bf16_a_stopped_training_goes_on_to_the_same_bytes(
    base: Base, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, the LoRA is computed with in a 16-bit copy, which a checkpoint does not hold."""
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    given: dict[str, object] = {"precision": "bf16", "max_norm": 0.5, "steps": 4, "saves": 0}
    whole, stopped = (make_job(tmp_path / name, **given, accumulation=2, batch_size=1) for name in ("a", "b"))
    train(base, whole)
    with pytest.raises(Stopped):
        train(base, stopped, stop_at(3))
    assert train(base, stopped).resumed_from == 2
    assert outcome(stopped) == outcome(whole)


def test_exports_are_kept_on_the_way_and_the_last_of_them_is_the_result(
    base: Base, make_job: MakeJob, tmp_path: Path
) -> None:
    whole = make_job(tmp_path / "whole", saves=3)
    kept = train(base, whole).saved
    assert [saved.step for saved in kept] == [2, 4, 6]
    assert [saved.path.name for saved in kept] == [f"step-{step:04d}.safetensors" for step in (2, 4, 6)]
    assert kept[-1].path.read_bytes() == whole.output.read_bytes()
    with safe_open(kept[0].path, "pt") as file:
        assert file.metadata()["ss_steps"] == "2"

    stopped = make_job(tmp_path / "stopped", saves=3)
    with pytest.raises(Stopped):
        train(base, stopped, stop_at(5))
    assert [saved.sha256 for saved in train(base, stopped).saved] == [saved.sha256 for saved in kept]
    train(base, stopped._replace(settings=stopped.settings.model_copy(update={"saves": 0, "seed": 8})))
    assert not list((stopped.workdir / "saved").iterdir()), "of another training"


def test_running_a_finished_training_again_writes_the_same_file(
    base: Base, make_job: MakeJob, tmp_path: Path, trained: Trained
) -> None:
    job = trained.copy(make_job, tmp_path)
    before = outcome(job)
    job.output.unlink()
    assert train(base, job).resumed_from == 6
    assert outcome(job) == before


def test_other_settings_begin_anew_and_how_often_to_save_is_no_setting_of_the_result(
    base: Base, make_job: MakeJob, tmp_path: Path, trained: Trained
) -> None:
    job = trained.copy(make_job, tmp_path / "a")
    assert train(base, make_job(tmp_path / "a", learning_rate=1e-3)).resumed_from == 0
    seldom = make_job(tmp_path / "b", checkpoint_every=5)
    train(base, seldom)
    train(base, job)
    assert outcome(seldom) == outcome(job)


def test_a_stop_that_was_asked_for_loses_no_step(base: Base, make_job: MakeJob, tmp_path: Path) -> None:
    """The worker's own stop comes with the progress; here that of a kept export, far from any checkpoint."""
    settings = {"steps": 4, "saves": 2, "checkpoint_every": 100}
    whole, job = make_job(tmp_path / "whole", **settings), make_job(tmp_path / "stopped", **settings)
    train(base, whole)

    def stop(event: ProgressEvent) -> None:
        if event.done == 2:
            raise StopRequested("enough")

    with pytest.raises(StopRequested):
        train(base, job, stop)
    result = train(base, job)
    assert result.resumed_from == 2
    assert outcome(job) == outcome(whole)


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(
    base: Base, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, norms = torch.amp.GradScaler.step, list[float]()

    def step(self: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, *arguments: Any) -> Any:
        gradients = [tensor.grad for group in optimizer.param_groups for tensor in group["params"]]
        norms.append(float(torch.cat([each.flatten() for each in gradients if each is not None]).norm()))
        return real(self, optimizer, *arguments)

    monkeypatch.setattr(torch.amp.GradScaler, "step", step)
    train(base, make_job(tmp_path / "free", steps=2, max_grad_norm=0.0))
    largest = max(norms)
    norms.clear()
    train(base, make_job(tmp_path / "clipped", steps=2, max_grad_norm=largest / 10))
    assert norms == pytest.approx([largest / 10] * 2, rel=0.01)


def test_a_single_picture_is_learned(base: Base, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(
        tmp_path, steps=16, batch_size=4, learning_rate=5e-3, lr_schedule="constant", checkpoint_every=16
    )
    result = train(base, job._replace(images=job.images[:1]))
    losses = [float(row.split(",")[1]) for row in (job.workdir / "loss.csv").read_text().splitlines()[1:]]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert result.steps == 16
    assert result.parameters == sum(
        tensor.numel() for name, tensor in _tensors(job.output).items() if not name.endswith("alpha")
    )


def test_gradient_checkpointing_changes_memory_and_not_the_result(
    base: Base, make_job: MakeJob, tmp_path: Path, trained: Trained
) -> None:
    saving = train(base, make_job(tmp_path, gradient_checkpointing=True))
    assert trained.result.final_loss == pytest.approx(saving.final_loss, rel=1e-3)


def test_nan_stops_at_its_step_and_the_last_good_checkpoint_stays(
    base: Base, make_job: MakeJob, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path)
    real, calls = sd.Model.losses, []

    def poisoned(self: sd.Model, *arguments: Any) -> Tensor:
        calls.append(1)
        return real(self, *arguments) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(sd.Model, "losses", poisoned)
    with pytest.raises(DivergedError, match=r"step 5.*checkpoint of step 4 is kept.*learning_rate"):
        train(base, job)
    assert not job.output.exists()
    assert "[step 5] stopped" in (job.workdir / "log.txt").read_text()
    assert (job.workdir / "loss.csv").read_text().splitlines()[-1].startswith("4,")
    monkeypatch.undo()
    assert train(base, job).resumed_from == 4
    assert outcome(job) == outcome(trained.job)


def test_a_lora_that_is_not_a_number_is_never_saved(
    base: Base, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient were sound; the optimizer spoiled the weights right before the checkpoint."""
    job = make_job(tmp_path, saves=0)
    real, calls = torch.amp.GradScaler.step, []

    def step(self: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, *arguments: Any) -> Any:
        answer = real(self, optimizer, *arguments)
        calls.append(1)
        if len(calls) == 4:
            optimizer.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")
        return answer

    monkeypatch.setattr(torch.amp.GradScaler, "step", step)
    with pytest.raises(DivergedError, match=r"step 4: the LoRA.*checkpoint of step 2 is kept"):
        train(base, job)
    assert not job.output.exists()
    monkeypatch.undo()
    assert train(base, job).resumed_from == 2


def test_latents_and_captions_are_encoded_once(
    base: Base, make_job: MakeJob, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = trained.copy(make_job, tmp_path)
    first = outcome(job)

    def never(self: sd.Model, *arguments: Any) -> Tensor:
        raise AssertionError("encoded again")

    monkeypatch.setattr(sd.Model, "encode_images", never)
    monkeypatch.setattr(sd.Model, "encode_captions", never)
    train(base, make_job(tmp_path, seed=99))
    assert outcome(job) != first, "nothing was trained"


def test_an_edited_caption_or_picture_is_encoded_again(
    base: Base, make_job: MakeJob, tmp_path: Path, trained: Trained
) -> None:
    job = trained.copy(make_job, tmp_path)
    before = job.output.read_bytes()
    edited = (job.images[0]._replace(caption="elara, something else"), *job.images[1:])
    assert train(base, job._replace(images=edited)).resumed_from == 0
    assert job.output.read_bytes() != before


def test_progress_counts_steps_with_their_loss_and_is_not_a_flood(
    base: Base, make_job: MakeJob, tmp_path: Path
) -> None:
    events: list[ProgressEvent] = []
    train(base, make_job(tmp_path, checkpoint_every=6), events.append)
    counted = [event for event in events if event.loss is not None]
    assert counted[-1].done == counted[-1].total == 6
    assert [event.done for event in counted] == sorted({event.done for event in counted})
    assert all(event.stage == "train" and event.total == 6 for event in events)


def test_the_file_says_how_it_was_made(base: Base, trained: Trained) -> None:
    with safe_open(trained.job.output, "pt") as file:
        metadata = file.metadata()
    expected = {
        "modelspec.sai_model_spec": "1.0.1", "modelspec.trigger_phrase": "elara", "modelspec.prediction_type": "v",
        "modelspec.resolution": "64x64", "ss_network_dim": "4", "ss_network_alpha": "4.0", "ss_steps": "6",
        "ss_network_module": "networks.lora", "ss_unet_lr": "0.002", "ss_seed": "7",
        "ss_output_name": "elara_mini", "ss_v_parameterization": "True", "ss_zero_terminal_snr": "True",
    }  # fmt: skip
    assert metadata.items() >= expected.items()
    assert metadata["lora_foundry.base"] == f"mini [{base.identity}]"
    frequencies = json.loads(metadata["ss_tag_frequency"])["1_elara"]
    assert frequencies["elara"] == frequencies["running"] == 5
    assert frequencies["tag 3"] == 1
    assert not any("time" in key or "date" in key for key in metadata)


@pytest.mark.parametrize("fault", ["none", "no caption", "no picture"])
def test_bad_sets_are_refused_by_name(base: Base, make_job: MakeJob, tmp_path: Path, fault: str) -> None:
    job = make_job(tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"text")
    images, message = {
        "none": ((), "no pictures"),
        "no caption": ((job.images[0]._replace(caption=" "),), "elara_000.png"),
        "no picture": ((*job.images, TrainingImage(broken, "elara", 1)), "broken.png is not a picture"),
    }[fault]
    with pytest.raises(InputError, match=message):
        train(base, job._replace(images=images))
    assert not job.output.exists()


def test_a_long_caption_is_read_to_its_end(base: Base, make_job: MakeJob, tmp_path: Path) -> None:
    """Two captions that differ only far beyond the text encoder's window must train differently."""
    files = []
    for number, ending in enumerate(("red hair", "blue hair")):
        job = make_job(tmp_path / str(number), steps=2)
        caption = "elara, " + "running, " * 70 + ending
        train(base, job._replace(images=(job.images[0]._replace(caption=caption),)))
        files.append(_tensors(job.output))
    assert any(not torch.equal(files[0][name], files[1][name]) for name in files[0])


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
