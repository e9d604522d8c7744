"""What people can set, on a base of a few dozen numbers: every choice trains, and goes on exactly where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import InputError
from lora_foundry.ports import TrainingImage, TrainingJob
from lora_foundry.trainer import data, trainer
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer.conftest import short_section
from tests.unit.trainer.toy import BASE, ToyModel

pytestmark = pytest.mark.slow

pytest.importorskip("pytorch_optimizer")
pytest.importorskip("lycoris")


class Stopped(Exception):
    """Stands for anything that ends a process between two steps."""


@pytest.fixture(scope="module", autouse=True)
def toy() -> Any:
    """The toy in place of a real family."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "load_family", lambda base, given, device: ToyModel(given))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingImage, ...]:
    """Six pictures of three shapes; the last is a regularisation picture, the first has a mask."""
    folder = tmp_path_factory.mktemp("toy")
    made = []
    for number, size in enumerate([(64, 64), (96, 48), (64, 64), (48, 96), (96, 48), (64, 64)]):
        path = folder / f"{number}.png"
        Image.effect_noise(size, 90).convert("RGB").save(path)
        made.append(TrainingImage(path, f"elara, tag {number}, running", 1 + number % 2, regular=number == 5))
    mask = folder / "mask.png"
    Image.new("L", (64, 64), 0).save(mask)
    with Image.open(mask) as opened:
        opened.paste(255, (16, 16, 48, 48))
        opened.save(mask)
    made[0] = made[0]._replace(mask=mask)
    return tuple(made)


def make(folder: Path, images: tuple[TrainingImage, ...], **given: object) -> TrainingJob:
    options = {
        "steps": 7,
        "rank": 2,
        "alpha": 1.0,
        "checkpoint_every": 2,
        "learning_rate": 1e-2,
        "saves": 2,
    } | given
    return TrainingJob(images, short_section(**options), "elara", folder / "lora.safetensors", folder, {})


def train(job: TrainingJob, progress: Callable[[ProgressEvent], None] = lambda event: None) -> Any:
    return InProcessTrainer(BASE, "cpu").train(job, progress)


def weights(job: TrainingJob) -> dict[str, Tensor]:
    train(job)
    return load_file(job.output)


def stop_at(step: int) -> Callable[[ProgressEvent], None]:
    def progress(event: ProgressEvent) -> None:
        if event.done >= step:
            raise Stopped

    return progress


CHOICES: dict[str, dict[str, object]] = {
    "text encoder": {"text_encoder_rate": 5e-3, "shuffle_tags": True, "caption_dropout": 0.2},
    "conv": {"conv_rank": 3, "conv_alpha": 2.0, "max_norm": 2.0},
    "dora": {"network": "dora", "conv_rank": 2},
    "loha": {"network": "loha", "conv_rank": 2},
    "lokr": {"network": "lokr", "text_encoder_rate": 1e-3},
    "buckets": {"buckets": True, "accumulation": 2, "batch_size": 1, "mask": "folder"},
    "mean": {"ema": 0.9, "accumulation": 3, "multires_noise": 0.3},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1.0, "text_encoder_rate": 1.0, "ema": 0.5},
    "adafactor": {"optimizer": "adafactor", "conv_rank": 2, "conv_alpha": 1.0},
    "schedule-free": {"optimizer": "schedule_free", "lr_schedule": "constant", "text_encoder_rate": 1e-3},
    "flip": {"flip": True, "mask": "folder", "buckets": True},
    "validation": {"validation": 0.3, "saves": 7, "noise_offset": 0.1, "optimizer": "schedule_free",
                   "lr_schedule": "constant"},
}  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
@settings(
    max_examples=2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(stops=st.lists(st.integers(1, 7), max_size=3))
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(
    choice: str, stops: list[int], images: tuple[TrainingImage, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    whole, stopped = (
        make(folder / "a", images, **CHOICES[choice]),
        make(folder / "b", images, **CHOICES[choice]),
    )
    train(whole)
    for stop in stops:
        with pytest.raises(Stopped):
            train(stopped, stop_at(stop))
    train(stopped)
    for file in (whole.output, *whole.workdir.glob("saved/*"), *whole.workdir.glob("*.csv")):
        assert file.read_bytes() == (stopped.workdir / file.relative_to(whole.workdir)).read_bytes(), (
            file.name
        )


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_learns(choice: str, images: tuple[TrainingImage, ...], tmp_path: Path) -> None:
    """Pictures that were held out are told from noise better at the end than near the start."""
    given = {"learning_rate": 2e-2, **CHOICES[choice], "steps": 150, "validation": 0.3, "saves": 10,
             "checkpoint_every": 150}  # fmt: skip
    job = make(tmp_path, images, **given)
    trained = weights(job)
    assert all(bool(tensor.isfinite().all()) for tensor in trained.values())
    losses = [float(row.split(",")[1]) for row in (tmp_path / "validation.csv").read_text().splitlines()[1:]]
    # Prodigy starts at a rate of one millionth and only feels its way up in so few steps.
    assert losses[-1] < (1 if choice == "prodigy" else 0.98) * losses[0]


def test_two_batches_make_one_step(images: tuple[TrainingImage, ...], tmp_path: Path) -> None:
    given = {"mask": "folder", "regularisation_weight": 0.5, "buckets": True, "optimizer": "adafactor"}
    one = weights(make(tmp_path / "a", images, batch_size=4, **given))
    two = weights(make(tmp_path / "b", images, batch_size=2, accumulation=2, **given))
    uneven = weights(make(tmp_path / "c", images, batch_size=1, accumulation=4, **given))
    for other in (two, uneven):
        assert all(torch.allclose(one[key], other[key], atol=2e-3) for key in one)


def test_only_what_the_mask_shows_counts(images: tuple[TrainingImage, ...], tmp_path: Path) -> None:
    """A picture that is changed outside its mask alone teaches the same."""
    masked, changed = images[0], tmp_path / "changed.png"
    with Image.open(masked.path) as picture:
        picture.paste("red", (0, 0, 64, 8))
        picture.save(changed)
    results = []
    for name, path, mask in (("a", masked.path, "folder"), ("b", changed, "folder"), ("c", changed, "none")):
        # The toy's blur reaches one latent pixel beyond the mask's edge; the changed rows lie further out.
        job = make(tmp_path / name, (masked._replace(path=path),), mask=mask)
        results.append(weights(job))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert any(not torch.equal(results[1][key], results[2][key]) for key in results[0])


def test_alpha_is_a_mask(tmp_path: Path) -> None:
    files = []
    for number, colour in enumerate(("red", "blue")):
        picture = Image.new("RGBA", (64, 64), colour)
        picture.paste((0, 200, 0, 255), (0, 32, 64, 64))
        alpha = Image.new("L", (64, 64), 0)
        alpha.paste(255, (0, 40, 64, 64))
        picture.putalpha(alpha)
        path = tmp_path / f"{number}.png"
        picture.save(path)
        files.append(TrainingImage(path, "elara", 1, mask=path))
    # Behind full transparency the picture is white whatever its colour was.
    one, two = (
        weights(make(tmp_path / str(index), (file,), mask="alpha")) for index, file in enumerate(files)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_regularisation_pictures_weight_counts(images: tuple[TrainingImage, ...], tmp_path: Path) -> None:
    light, heavy = (
        weights(make(tmp_path / str(weight), images, regularisation_weight=weight)) for weight in (0.1, 3.0)
    )
    assert any(not torch.equal(light[key], heavy[key]) for key in light)


def test_norms_are_kept_below_the_limit(images: tuple[TrainingImage, ...], tmp_path: Path) -> None:
    tensors = weights(make(tmp_path, images, max_norm=0.01, learning_rate=0.1))
    update = (
        tensors["lora_unet_mix.lora_up.weight"].float() @ tensors["lora_unet_mix.lora_down.weight"].float()
    )
    assert 0.005 < float(update.norm()) * 0.5 <= 0.0101


def test_held_out_pictures_are_measured_and_never_learned(
    images: tuple[TrainingImage, ...], tmp_path: Path
) -> None:
    job = make(tmp_path / "a", images, validation=0.3, saves=7, steps=40)
    train(job)
    rows = (job.workdir / "validation.csv").read_text().splitlines()[1:]
    assert len(rows) > 7
    losses = [float(row.split(",")[1]) for row in rows]
    assert losses[-1] < losses[0]
    with pytest.raises(InputError, match=r"train\.validation holds out 1 of 1"):
        train(make(tmp_path / "b", images[:1], validation=0.5))


def test_flipped_samples_are_the_mirrored_pictures_with_their_masks(tmp_path: Path) -> None:
    """A set of pictures that are mirrored already learns the same when the coin is turned over."""
    made = []
    for side in (False, True):
        files = []
        for number in range(2):
            path, mask = tmp_path / f"{side}{number}.png", tmp_path / f"{side}{number}-mask.png"
            picture, shown = (
                Image.effect_noise((64, 64), 90 + number).convert("RGB"),
                Image.new("L", (64, 64), 0),
            )
            if side:
                with Image.open(tmp_path / f"False{number}.png") as other:
                    picture = other.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            shown.paste(255, (40, 0, 64, 64) if side else (0, 0, 24, 64))
            picture.save(path)
            shown.save(mask)
            files.append(TrainingImage(path, f"elara, tag {number}", mask=mask))
        made.append(tuple(files))
    coins = []
    with pytest.MonkeyPatch.context() as patch:
        real = data.NoiseSampler.samples

        def turned(self: data.NoiseSampler, step: int) -> list[data.Sample]:
            found = real(self, step)
            coins.extend(sample.flipped for sample in found)
            return [sample._replace(flipped=not sample.flipped) for sample in found]

        plain = weights(make(tmp_path / "a", made[0], flip=True, mask="folder", steps=20))
        patch.setattr(data.NoiseSampler, "samples", turned)
        mirrored = weights(make(tmp_path / "b", made[1], flip=True, mask="folder", steps=20))
    assert 0.2 < sum(coins) / len(coins) < 0.8
    assert all(torch.equal(plain[key], mirrored[key]) for key in plain)
    never = weights(make(tmp_path / "c", made[0], mask="folder", steps=20))
    assert any(not torch.equal(plain[key], never[key]) for key in plain)


@pytest.mark.parametrize("network", ["lora", "dora", "loha", "lokr"])
def test_a_training_starts_from_another_lora(
    images: tuple[TrainingImage, ...], tmp_path: Path, network: str
) -> None:
    given: dict[str, object] = {"network": network, "conv_rank": 2, "conv_alpha": 2.0}
    earlier = make(tmp_path / "a", images, **given)
    before = weights(earlier)
    still = {**given, "learning_rate": 1e-12, "weight_decay": 0.0, "start_from": str(earlier.output)}
    on = make(tmp_path / "b", images, **still)
    assert train(on).resumed_from == 0
    after = load_file(on.output)
    assert all(torch.allclose(before[key], after[key], atol=1e-3) for key in before)
    other = make(tmp_path / "c", images, **given, start_from=str(earlier.output), steps=3)
    train(other)
    earlier.output.write_bytes(on.output.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"train\.start_from names .* cannot be read as a LoRA"):
        train(make(tmp_path / "d", images, **still))


def test_another_alpha_is_taken_in_and_another_rank_refused(
    images: tuple[TrainingImage, ...], tmp_path: Path
) -> None:
    earlier = make(tmp_path / "a", images)
    before = weights(earlier)
    still: dict[str, object] = {
        "learning_rate": 1e-12,
        "weight_decay": 0.0,
        "start_from": str(earlier.output),
    }
    after = weights(make(tmp_path / "b", images, alpha=4.0, **still))
    for tensors in (before, after):
        tensors["change"] = (
            tensors["lora_unet_mix.lora_up.weight"].float()
            @ tensors["lora_unet_mix.lora_down.weight"].float()
            * float(tensors["lora_unet_mix.alpha"])
        )
    assert torch.allclose(before["change"], after["change"], atol=1e-4)
    with pytest.raises(InputError, match=r"does not fit this training: .*rank"):
        train(make(tmp_path / "c", images, rank=4, **still))
    with pytest.raises(InputError, match=r"has no lora_te_fc1\.lora_down\.weight"):
        train(make(tmp_path / "d", images, text_encoder_rate=1e-3, **still))


def test_a_finished_training_goes_on_with_more_steps(
    images: tuple[TrainingImage, ...], tmp_path: Path
) -> None:
    """From its end, along the longer schedule, and stopped on the way to the same bytes."""
    results = []
    for name, stops in (("a", []), ("b", [8, 11])):
        train(make(tmp_path / name, images))
        longer = make(tmp_path / name, images, steps=12)
        for stop in stops:
            with pytest.raises(Stopped):
                train(longer, stop_at(stop))
        assert train(longer).resumed_from == (10 if stops else 7)
        results.append(longer.output.read_bytes())
        rows = (longer.workdir / "loss.csv").read_text().splitlines()[1:]
        assert [int(row.split(",")[0]) for row in rows] == list(range(1, 13))
    assert results[0] == results[1]
    assert train(make(tmp_path / "a", images, steps=9)).resumed_from == 0
