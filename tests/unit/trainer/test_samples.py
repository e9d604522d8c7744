"""Pictures drawn while training: whatever was let go of by then, in whatever types the parts compute, in tiles where the
memory holds no whole picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_foundry.families._shared import devices
from lora_foundry.families._shared.family import load_family
from lora_foundry.families._shared.frozen import FrozenModel
from lora_foundry.families._shared.inspect import Base, find_base
from lora_foundry.families._shared.parts import Parts
from lora_foundry.files.paths import SAMPLE_REQUEST, SAMPLES, VALIDATION_LOSS
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer.images import read_tensor
from lora_foundry.trainer.previews import read_rows
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer import tiny_bases
from tests.unit.trainer.conftest import short_section

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LONG = "{trigger}, " + "running, " * 70
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "learning text encoder, bf16": {"text_encoder_rate": 1e-3, "precision": "bf16"},
    "shuffled captions": {"shuffle_tags": True},
    "dora, fp16": {"network": "dora", "precision": "fp16"},
}


def drawn(base: Base, job: TrainingJob) -> list[Path]:
    InProcessTrainer(base, "cpu").train(job, lambda event: None)
    return sorted((job.workdir / "samples").glob("*.png"))


@pytest.mark.parametrize(
    ("options", "bf16_processor"),
    [
        *((name, False) for name in OPTIONS if name != "learning text encoder, bf16"),
        ("bf16", True),
        ("learning text encoder, bf16", True),
    ],
)
def test_every_export_draws_the_prompts(
    base: Base,
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    bf16_processor: bool,
) -> None:
    """Prompts of one and of several windows, which must share a shape."""
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: bf16_processor)
    job = make_job(
        tmp_path, steps=2, saves=2, sample_steps=1, sample_prompts=["{trigger}", LONG], **OPTIONS[options]
    )
    files = drawn(base, job)
    assert len(files) == 4
    for path in files:
        with Image.open(path) as picture:
            assert picture.size == (64, 64)
            assert len(set(picture.convert("L").tobytes())) > 5  # not of one colour


def test_what_another_training_showed_is_gone(
    base: Base, make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    job = make_job(tmp_path, steps=2, saves=1, sample_steps=1, sample_prompts=["{trigger}"], validation=0.3)
    folder = job.workdir / SAMPLES
    folder.mkdir(parents=True)
    for name in ("step-0001-1.png", "step-0012-1.png", "step-mine-1.png"):
        (folder / name).write_bytes(b"another training's")
    (job.workdir / VALIDATION_LOSS).write_text("step,loss\n1,0.5\n12,0.4\n", encoding="utf-8")
    files = drawn(base, job)
    assert [path.name for path in files] == ["step-0002-1.png", "step-mine-1.png"]
    assert [step for step, _ in read_rows(job.workdir / VALIDATION_LOSS)] == [2]


@pytest.mark.parametrize("family", ["sdxl", "z_image"])
def test_the_other_families_draw_in_bf16(
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    folder = {"sdxl": tiny_bases.sdxl_folder, "z_image": tiny_bases.z_image_folder}[family](tmp_path / "base")
    learning = {"text_encoder_rate": 1e-3} if family == "sdxl" else {}
    job = make_job(
        tmp_path,
        steps=1,
        saves=1,
        sample_steps=1,
        precision="bf16",
        sample_prompts=["a", "{trigger}, running"],
        **learning,
    )
    assert len(drawn(find_base(str(folder)), job)) == 2


def test_a_training_that_finds_its_caches_loads_no_text_encoder_to_draw_or_to_fill_up(
    base: Base, make_job: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions of unlike length are filled up with the empty prompt, which is in the cache."""
    given: dict[str, Any] = {"steps": 2, "saves": 1, "sample_steps": 1, "sample_prompts": ["{trigger}"]}
    job = make_job(tmp_path, **given)
    images = (job.images[0]._replace(caption=LONG), *job.images[1:])
    drawn(base, job._replace(images=images))

    def never(self: Parts) -> Any:
        raise AssertionError("the text encoders were loaded")

    monkeypatch.setattr(Parts, "encoders", property(never))
    again = make_job(tmp_path, seed=8, **given)
    assert len(drawn(base, again._replace(images=images))) == 1


class _Short:
    """A VAE's method on a device that holds so many pixels at once."""

    def __init__(self, real: Callable[..., Any], pixels: int, scale: int = 1) -> None:
        self._real, self._pixels, self._scale = real, pixels, scale
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, given: Tensor) -> Any:
        self.seen.append(tuple(given.shape))
        if given.shape[0] * given.shape[-1] * given.shape[-2] * self._scale**2 > self._pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._real(given)


def test_on_a_gpu_pictures_are_encoded_one_by_one(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of 1024 pixels at once take 20 GiB in fp32, one 2.5."""
    model: Any = load_family(base, short_section(), CPU)
    vae = model._vae
    encode = _Short(vae.encode, 1 << 30)
    monkeypatch.setattr(vae, "encode", encode)
    pixels = torch.rand(3, 3, 64, 64) * 2 - 1
    together = model.encode_images(pixels)
    monkeypatch.setattr(type(model), "_vae", property(lambda self: vae))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    encode.seen.clear()
    model._device = torch.device("meta")  # any but a CPU; what is encoded stays where it is
    monkeypatch.setattr(type(model), "_encode", lambda self, part: vae.encode(part).latent_dist.mean)
    alone = model.encode_images(pixels)
    assert encode.seen == [(1, 3, 64, 64)] * 3
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_the_memory_does_not_hold_is_encoded_and_decoded_in_tiles(base: Base, pictures: Any) -> None:
    """The tiles' seams are blended; the latents stay close to those of the whole picture."""
    model: Any = load_family(base, short_section(), CPU)
    pixels = torch.stack([read_tensor(pictures[0].path, (384, 384))])
    whole = model.encode_images(pixels)
    vae = model._vae
    vae.encoder = _Wrapped(vae.encoder, _Short(vae.encoder, 256 * 256))
    tiled = model.encode_images(pixels)
    assert tiled.shape == whole.shape
    assert model._tile == 256
    assert float((tiled - whole).abs().mean()) < 0.1 * float(whole.std())
    scale = model._parts.vae_scale_factor
    vae.decoder = _Wrapped(vae.decoder, _Short(vae.decoder, 128 * 128, scale))
    from diffusers.image_processor import VaeImageProcessor

    (image,) = model._decode(tiled, VaeImageProcessor())
    assert model._tile == 128
    assert image.size == (384, 384)
    vae.encoder = _Wrapped(vae.encoder, _Short(vae.encoder, 1))
    with pytest.raises(torch.OutOfMemoryError):
        model.encode_images(pixels)


class _Wrapped(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self._call = inner, call

    def forward(self, given: Tensor) -> Any:
        return self._call(given)


@pytest.mark.parametrize(("prompts", "count"), [(["{trigger}"], 1), ([], 2)])
def test_pictures_that_are_asked_for_come_once_after_the_next_steps(
    base: Base, make_job: Callable[..., TrainingJob], tmp_path: Path, prompts: list[str], count: int
) -> None:
    """Without sample prompts of two captions of the set."""
    given: dict[str, Any] = {"saves": 0, "sample_steps": 1, "sample_prompts": prompts}
    job = make_job(tmp_path, steps=4, checkpoint_every=2, **given)
    request = job.workdir / SAMPLE_REQUEST
    request.parent.mkdir(parents=True, exist_ok=True)
    request.touch()
    made = drawn(base, _with_unlike_captions(job))
    assert len(made) == count
    assert all(picture.name < "step-0004-1.png" for picture in made)
    assert not request.exists()


def test_where_the_memory_does_not_hold_what_is_asked_for_the_training_goes_on(
    base: Base, make_job: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FrozenModel, "draw", draw)
    job = make_job(tmp_path, steps=2, checkpoint_every=2, saves=0, sample_prompts=[])
    request = job.workdir / SAMPLE_REQUEST
    request.parent.mkdir(parents=True, exist_ok=True)
    request.touch()
    assert drawn(base, job) == []
    assert job.output.is_file()
    assert "does not hold the drawing" in (job.workdir / "log.txt").read_text(encoding="utf-8")


def _with_unlike_captions(job: TrainingJob) -> TrainingJob:
    images = [each._replace(caption=f"{each.caption}, {number}") for number, each in enumerate(job.images)]
    return job._replace(images=tuple(images))
