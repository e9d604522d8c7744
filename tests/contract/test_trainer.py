"""What every trainer promises: a whole LoRA under kohya's names or an error, progress that counts, and a stopped
training that goes on at its step. sd-scripts is played by a stub that prints, saves and fails as the real one does."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_foundry.backends.kohya.output import Output
from lora_foundry.backends.kohya.plan import (
    VOCABULARY_VARIABLE,
    configuration,
    provide_vocabulary,
    to_toml,
)
from lora_foundry.backends.kohya.trainer import KohyaTrainer
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import (
    BackendError,
    BaseModelError,
    DivergedError,
    FoundryError,
    InputError,
    MissingExtraError,
)
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.diffusion import NoiseProcess
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.parts import Parts
from lora_foundry.ports import Trainer, TrainingImage, TrainingJob
from lora_foundry.stages.publish.soundness import check_numbers
from lora_foundry.trainer.trainer import InProcessTrainer

STUB = Path(__file__).parents[1] / "data" / "kohya_stub"


class Stopped(Exception):
    """Stands for anything that ends a training from outside."""


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("mini")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like sd-scripts, under a name that trips programs up."""
    return shutil.copytree(STUB, tmp_path / "sd scripts of Zoë")


@pytest.fixture
def kohya(base: Base, checkout: Path) -> KohyaTrainer:
    return KohyaTrainer(base, checkout, Path(sys.executable), "cpu")


@pytest.fixture(params=["inprocess", "kohya"])
def trainer(request: pytest.FixtureRequest, base: Base) -> Trainer:
    if request.param == "inprocess":
        return InProcessTrainer(base, "cpu")
    made: Trainer = request.getfixturevalue("kohya")
    return made


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    return make_job(tmp_path / "Zoë van Dijk")


def make_job(folder: Path, **settings: object) -> TrainingJob:
    """Six steps of two on four pictures, two of which are shown twice."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number in range(4):
        path = folder / f"zoë {number}.png"
        Image.new("RGB", (64, 64), (60 * number, 99, 200)).save(path)
        images.append(TrainingImage(path, f"zoë, tag {number}", 1 + number % 2))
    given = {
        "rank": 4, "alpha": 4.0, "steps": 6, "batch_size": 2, "warmup_steps": 1, "resolution": 64, "precision": "fp32",
        "checkpoint_every": 2,
    }  # fmt: skip
    return TrainingJob(
        images=tuple(images),
        settings=TrainSection.model_validate(given | settings),
        trigger="zoë",
        output=folder / "training" / "lora.safetensors",
        workdir=folder / "training",
        metadata={"ss_output_name": "zoë_mini", "lora_foundry.recipe": "{}"},
    )


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    read: dict[str, Any] = json.loads(data[8 : 8 + length])
    return read


def silent(event: ProgressEvent) -> None:
    """Ignores the news."""


def stop_at(step: int) -> Callable[[ProgressEvent], None]:
    def progress(event: ProgressEvent) -> None:
        if event.loss is not None and event.done >= step:
            raise Stopped

    return progress


def stop(trainer: Trainer, job: TrainingJob, checkout: Path) -> None:
    """Ends a training after its fifth step; the stub, which is quick, waits there to be stopped."""
    fault = checkout / "fault.txt"
    fault.write_text("hang at 5")
    with pytest.raises(Stopped):
        trainer.train(job, stop_at(5))
    fault.unlink()


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_foundry.backends.kohya.trainer._PROGRESS_SECONDS", 0.0)


def test_a_training_leaves_a_sound_lora_with_our_metadata(trainer: Trainer, job: TrainingJob) -> None:
    result = trainer.train(job, silent)
    check_numbers(job.output)
    content = header(job.output)
    metadata = content.pop("__metadata__")
    assert all(key.startswith("lora_unet_") for key in content)
    assert metadata.items() >= job.metadata.items()
    assert metadata["modelspec.trigger_phrase"] == "zoë"
    assert metadata["ss_steps"] == "6"
    assert (result.steps, result.resumed_from, result.dry_run) == (6, 0, False)
    assert result.parameters > 0
    rows = (job.workdir / "loss.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *map(str, range(1, 7))]


def test_progress_rises_to_the_last_step(trainer: Trainer, job: TrainingJob) -> None:
    events: list[ProgressEvent] = []
    trainer.train(job, events.append)
    counted = [event for event in events if event.loss is not None]
    assert counted[-1].done == counted[-1].total == 6
    assert [event.done for event in counted] == sorted({event.done for event in counted})
    assert all(event.stage == "train" and event.total == 6 for event in events)


def test_a_stopped_training_goes_on_and_counts_right(
    trainer: Trainer, checkout: Path, job: TrainingJob
) -> None:
    stop(trainer, job, checkout)
    assert not job.output.exists()
    result = trainer.train(job, silent)
    assert result.resumed_from == 4
    assert result.steps == 6
    assert header(job.output)["__metadata__"]["ss_steps"] == "6"
    rows = (job.workdir / "loss.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == list("123456")


def test_other_settings_begin_anew(trainer: Trainer, checkout: Path, job: TrainingJob) -> None:
    stop(trainer, job, checkout)
    changed = job._replace(settings=job.settings.model_copy(update={"learning_rate": 5e-4}))
    assert trainer.train(changed, silent).resumed_from == 0


@pytest.mark.parametrize("fault", ["no pictures", "no caption"])
def test_a_set_that_cannot_be_trained_on_is_refused(trainer: Trainer, job: TrainingJob, fault: str) -> None:
    images = () if fault == "no pictures" else (job.images[0]._replace(caption=" "),)
    with pytest.raises(InputError, match="no pictures" if fault == "no pictures" else "caption of"):
        trainer.train(job._replace(images=images), silent)
    assert not job.output.exists()


FAULTS: list[tuple[str, type[FoundryError], str]] = [
    ("missing module", MissingExtraError, r"no module 'voluptuous'.*requirements\.txt"),
    ("memory", BackendError, "ran out of memory; lower train.batch_size"),
    ("sizes", BaseModelError, "not of the sizes it knows"),
    ("vocabulary", BaseModelError, "LORA_FOUNDRY_CLIP_VOCABULARY"),
    ("crash", BackendError, r"exit code 1: ValueError: something new.*log\.txt"),
    ("no pictures", InputError, "found no pictures"),
    ("nan", DivergedError, r"step 4: the loss is not a number.*state of step 2 is kept.*learning_rate"),
    ("nan file", DivergedError, "holds NaN"),
    ("no file", BackendError, "without leaving a LoRA, though its exit code is 0"),
    ("half a file", BackendError, "not a whole safetensors file"),
    ("zeros", BackendError, "changes nothing"),
    ("other keys", BackendError, "no LoRA: it holds 'something_else"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), FAULTS, ids=[row[0] for row in FAULTS])
def test_its_failures_are_told_whatever_its_exit_code(
    kohya: KohyaTrainer, checkout: Path, job: TrainingJob, fault: str, kind: type[FoundryError], words: str
) -> None:
    (checkout / "fault.txt").write_text(fault)
    with pytest.raises(kind, match=words):
        kohya.train(job, silent)
    assert not job.output.exists()
    (checkout / "fault.txt").unlink()
    assert kohya.train(job, silent).steps == 6  # what failed is not in the way of the next attempt


def test_a_flood_on_both_streams_blocks_nothing(
    kohya: KohyaTrainer, checkout: Path, job: TrainingJob
) -> None:
    (checkout / "fault.txt").write_text("flood")
    kohya.train(job, silent)
    log = (job.workdir / "log.txt").read_text()
    assert log.count("o" * 4000) == log.count("e" * 4000) == 200
    assert "steps:" not in log


def test_stopping_ends_the_launcher_and_its_child(
    kohya: KohyaTrainer, checkout: Path, job: TrainingJob
) -> None:
    (checkout / "fault.txt").write_text("hang at 3")
    with pytest.raises(Stopped):
        kohya.train(job, stop_at(3))
    wait_for(lambda: not alive(checkout), 20)


def test_nothing_outlives_a_killed_parent(checkout: Path, tmp_path: Path) -> None:
    """Our process is killed without a word; the training, a grandchild's child, must end too."""
    (checkout / "fault.txt").write_text("hang at 3")
    code = (
        "import sys; from pathlib import Path; from tests.contract import test_trainer as t;"
        "t.KohyaTrainer(t.find_base('mini'), Path(sys.argv[1]), Path(sys.executable), 'cpu')"
        ".train(t.make_job(Path(sys.argv[2])), t.silent)"
    )
    import subprocess

    ours = subprocess.Popen(
        [sys.executable, "-c", code, str(checkout), str(tmp_path / "job")], cwd=STUB.parents[2]
    )
    wait_for(lambda: any("train_network.py" in words for words in alive(checkout)), 60)
    ours.kill()
    ours.wait()
    wait_for(lambda: not alive(checkout), 20)


def alive(checkout: Path) -> list[str]:
    """The command lines of all processes that were given this checkout, ours aside."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(checkout) in words and int(place.parent.name) != os.getpid() and "KohyaTrainer" not in words:
            found.append(words)
    return found


def wait_for(true: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def test_a_version_that_counts_anew_is_found_out(
    kohya: KohyaTrainer, checkout: Path, job: TrainingJob
) -> None:
    stop(kohya, job, checkout)
    (checkout / "fault.txt").write_text("old version")
    with pytest.raises(BackendError, match="wants to train 6 steps where 2 are left"):
        kohya.train(job, silent)
    assert kohya.train(job, silent).resumed_from == 0


def test_a_state_that_a_kill_cut_short_is_left_out(
    kohya: KohyaTrainer, checkout: Path, job: TrainingJob
) -> None:
    stop(kohya, job, checkout)
    half = job.workdir / "kohya" / "output" / "lora-step00000004-state" / "random_states_0.pkl"
    half.write_bytes(half.read_bytes()[:-30])
    assert kohya.train(job, silent).resumed_from == 2


@pytest.mark.parametrize(
    ("folder", "python", "words"),
    [
        (None, None, "set LORA_FOUNDRY_KOHYA to the folder"),
        ("elsewhere", None, "is no checkout of sd-scripts"),
        ("checkout", None, "set LORA_FOUNDRY_KOHYA_PYTHON"),
        ("checkout", "no such python", "set LORA_FOUNDRY_KOHYA_PYTHON"),
    ],
)
def test_what_is_not_there_is_said_with_what_to_set(
    base: Base, checkout: Path, job: TrainingJob, folder: str | None, python: str | None, words: str
) -> None:
    place = {None: None, "elsewhere": checkout.parent, "checkout": checkout}[folder]
    with pytest.raises(InputError, match=words):
        KohyaTrainer(base, place, Path(python) if python else None).train(job, silent)


def test_a_setting_it_does_not_know_is_refused_by_name(kohya: KohyaTrainer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.targets is not handed on to sd-scripts"):
        kohya.train(make_job(tmp_path / "job", targets=("attention",)), silent)


def test_the_bar_is_read_in_any_pieces() -> None:
    text = (
        b"\rsteps:   0%|          | 0/3 [00:00<?, ?it/s]\rsteps:  33%|##  | 1/3 [00:01<00:02,  1.0s/it]"
        b"\rsteps:  33%|##  | 1/3 [00:01<00:02,  1.0s/it, avr_loss=0.5]\nINFO a line\n"
        b"\rsteps:  67%|##  | 2/3 [00:01<00:02,  1.0s/it, avr_loss=0.5]"
        b"\rsteps:  67%|##  | 2/3 [00:01<00:02,  1.0s/it, avr_loss=nan]\n"
    )
    for size in (1, 7, 50, len(text)):
        output = Output()
        steps, lines = [], []
        for start in range(0, len(text), size):
            more, said = output.feed(text[start : start + size])
            steps += more
            lines += said
        assert [step.done for step in steps] == [1, 2]
        assert steps[0].mean_loss == 0.5
        assert lines == ["INFO a line"]


def test_clip_vocabulary_is_provided_with_the_window_it_was_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (given / name).write_text("{}")
    (given / "tokenizer_config.json").write_text('{"model_max_length": 8192}')
    monkeypatch.setenv(VOCABULARY_VARIABLE, str(given))
    folder = provide_vocabulary(tmp_path / "cache")
    assert folder is not None
    config = folder / "openai_clip-vit-large-patch14" / "tokenizer_config.json"
    assert json.loads(config.read_text())["model_max_length"] == 77
    assert (config.parent / "merges.txt").exists()


def test_what_it_knows_is_handed_on_under_its_own_names(base: Base, tmp_path: Path) -> None:
    job = make_job(
        tmp_path / "job", text_encoder_rate=5e-5, conv_rank=8, conv_alpha=4.0, max_norm=1.0, export_precision="bf16",
        lr_schedule="constant", precision="bf16", min_snr_gamma=0.0, flip=True, start_from="/models/before.safetensors",
    )  # fmt: skip
    text = to_toml(configuration(job, base, tmp_path / 'a \\ "b"', tmp_path))
    config = tomllib.loads(text)
    expected = {
        "text_encoder_lr": 5e-5, "network_args": ["conv_dim=8", "conv_alpha=4.0"], "scale_weight_norms": 1.0,
        "save_precision": "bf16", "lr_scheduler": "constant_with_warmup", "mixed_precision": "bf16",
        "train_data_dir": str(tmp_path / "a \\ \"b\""), "max_train_steps": 6, "v_parameterization": True,
        "zero_terminal_snr": True, "network_dim": 4, "network_alpha": 4.0, "flip_aug": True,
        "network_weights": "/models/before.safetensors",
    }  # fmt: skip
    assert config.items() >= expected.items()
    assert "min_snr_gamma" not in config
    assert "network_train_unet_only" not in config


def file_of(configuration: str, family: str = "sd", **known: Any) -> Base:
    """A checkpoint file that nobody opens: what it was trained for stands in our configurations, or was found in it."""
    return Base(
        path=Path("base.safetensors"), layout="file", family=family, name="base", identity="0",
        configuration=configuration, **known,
    )  # fmt: skip


BASES = {
    "1.x": (file_of("sd"), set()),
    "2.x": (file_of("sd2"), {"v2", "v_parameterization"}),
    "2.x base": (file_of("sd2", prediction="epsilon"), {"v2"}),
    "sdxl": (file_of("sdxl", "sdxl"), {"no_half_vae"}),
    "noob": (
        file_of("sdxl", "sdxl", prediction="v_prediction", zero_terminal=True),
        {"no_half_vae", "v_parameterization", "zero_terminal_snr"},
    ),
    "1.x told": (file_of("sd").told("v_prediction", "on"), {"v_parameterization", "zero_terminal_snr"}),
    "noob told": (
        file_of("sdxl", "sdxl", prediction="v_prediction", zero_terminal=True).told("epsilon", "off"),
        {"no_half_vae"},
    ),
    "mini told": (find_base("mini").told("epsilon", "off"), set()),
}


@pytest.mark.parametrize("name", BASES)
def test_sd_scripts_trains_for_the_answer_that_our_own_trainer_trains_for(tmp_path: Path, name: str) -> None:
    """Checkpoint, configuration and recipe (`told`) all have a say in what the base answers with."""
    base, expected = BASES[name]
    given = configuration(make_job(tmp_path / "job"), base, tmp_path, tmp_path)
    said = {"v2", "v_parameterization", "zero_terminal_snr", "no_half_vae"} & given.keys()
    assert said == expected
    ours = NoiseProcess(Parts(base, torch.float32).scheduler_config, 0.0, torch.device("cpu"))
    assert ("v_parameterization" in said) == (ours.prediction == "v_prediction")
    assert ("zero_terminal_snr" in said) == ours.zero_terminal
