"""The diffusers generator on the real bundled model: what decides a picture is its request, and nothing else."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import Linear
from PIL import Image
from safetensors.torch import save_file

from lora_foundry.backends.diffusers import DiffusersGenerator, merging
from lora_foundry.backends.diffusers import generator as generators
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.lora import LoraUse
from lora_foundry.errors import BackendError, InputError, VerificationError
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.samplers import SAMPLERS, make_scheduler
from lora_foundry.recipe_files import load_recipe

DESCRIPTION = "1girl, red hair, green dress, hat"


def request(number: int = 0, **changes: Any) -> ImageRequest:
    values: dict[str, Any] = {
        "key": f"{number:03d}.0", "prompt": f"{DESCRIPTION}, standing confidently, front view", "negative": "",
        "seed": 1000 + number, "width": 64, "height": 64, "steps": 3, "cfg": 4.0, "sampler": "dpmpp_2m",
        "scheduler": "normal",
    }  # fmt: skip
    return ImageRequest(**{**values, **changes})


def make_generator() -> DiffusersGenerator:
    return DiffusersGenerator(find_base("mini"), load_recipe("mini").generate, "cpu")


@pytest.fixture(scope="module")
def generator() -> Iterator[DiffusersGenerator]:
    made = make_generator()
    yield made
    made.close()


def pixels(generator: DiffusersGenerator, *requests: ImageRequest, lora: LoraUse | None = None) -> np.ndarray:
    made = list(generator.generate([list(requests)], lora))
    assert [each.request for each in made] == list(requests)
    return np.stack([np.asarray(each.image) for each in made])


def apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second).mean())


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, generator: DiffusersGenerator) -> Path:
    """A LoRA with random weights in kohya's names on the UNet and, as kohya does it, the whole text encoder."""
    pipeline = generator._drawing().pipeline
    path = tmp_path_factory.mktemp("lora") / "random lora.safetensors"
    save_file(kohya_tensors(pipeline), path)
    return path


def kohya_tensors(pipeline: Any) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    tensors = {}
    for part, prefix in ((pipeline.unet, "lora_unet_"), (pipeline.text_encoder, "lora_te_")):
        for name, module in part.named_modules():
            if not name.endswith(
                ("attn2.to_v", "attn1.to_q", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
            ):
                continue
            full = name if part is pipeline.unet or name.startswith("text_model") else f"text_model.{name}"
            key = prefix + full.replace(".", "_")
            rows, columns = module.weight.shape
            tensors[f"{key}.lora_down.weight"] = torch.randn(4, columns, generator=noise) * 0.1
            tensors[f"{key}.lora_up.weight"] = torch.randn(rows, 4, generator=noise) * 0.1
            tensors[f"{key}.alpha"] = torch.tensor(4.0)
    assert any(key.startswith("lora_te_") for key in tensors)
    return tensors


def test_the_same_batch_gives_the_same_bytes(generator: DiffusersGenerator) -> None:
    batch = [request(number) for number in range(3)]
    first = pixels(generator, *batch)
    assert np.array_equal(first, pixels(generator, *batch))
    fresh = make_generator()
    assert np.array_equal(first, pixels(fresh, *batch))
    assert first.shape == (3, 64, 64, 3)
    assert apart(first[0], first[1]) > 5, "seeds differ, pictures differ"


def test_a_picture_does_not_depend_on_its_batch(generator: DiffusersGenerator) -> None:
    batch = [request(number, sampler="euler_ancestral") for number in range(3)]
    together = pixels(generator, *batch)
    for number, alone in enumerate(batch):
        # Not the same bytes (sums are taken in another order), but the same picture.
        assert apart(together[number], pixels(generator, alone)[0]) < 0.5


def test_a_mixed_batch_keeps_its_order(generator: DiffusersGenerator) -> None:
    long_prompt = ", ".join([DESCRIPTION] * 12)
    batch = [
        request(0),
        request(1, steps=2),
        request(2, prompt=long_prompt),
        request(3, width=128),
        request(4),
    ]
    made = list(generator.generate([batch]))
    assert [each.request for each in made] == batch
    assert [each.image.size for each in made] == [(64, 64), (64, 64), (64, 64), (128, 64), (64, 64)]
    for each in made:
        assert apart(np.asarray(each.image), pixels(generator, each.request)[0]) < 0.5


def test_it_is_the_pipelines_own_picture(generator: DiffusersGenerator) -> None:
    """Plain diffusers, asked the plain way, gives what the generator gives."""
    asked = request(5, negative="blurry")
    pipeline = generator._drawing().pipeline
    pipeline.scheduler = make_scheduler(generator._drawing()._schedule, "dpmpp_2m", "normal")
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(asked.seed))
    plain = pipeline(
        asked.prompt, negative_prompt=asked.negative, latents=noise, num_inference_steps=3, guidance_scale=4.0,
        guidance_rescale=0.5, width=64, height=64,
    ).images[0]  # fmt: skip
    assert apart(np.asarray(plain), pixels(generator, asked)[0]) < 0.5


def test_the_end_of_a_long_prompt_counts(generator: DiffusersGenerator) -> None:
    start = ", ".join(["detailed"] * 31)  # 62 tokens, all that a window has room for
    green, red = (
        pixels(generator, request(0, prompt=f"{start}, {word}"))[0] for word in ("green hair", "red hair")
    )
    assert apart(green, red) > 0.1, "cut at the window's end, both would be the same"


def test_a_long_negative_prompt_is_filled_up_to(generator: DiffusersGenerator) -> None:
    asked = request(0, negative=", ".join(["blurry", "bad anatomy"] * 40))
    assert pixels(generator, asked).shape == (1, 64, 64, 3)


def test_prompts_are_encoded_once(generator: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = make_generator()
    pipeline = fresh._drawing().pipeline
    calls: list[int] = []
    pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    batches = [[request(number, prompt="1girl", negative="blurry") for number in range(3)] for _ in range(2)]
    assert len(list(fresh.generate(batches))) == 6
    assert len(calls) == 3, "the prompt, the negative prompt and the empty window, once each"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scheduler", ["normal", "karras"])
def test_every_sampler_draws(generator: DiffusersGenerator, sampler: str, scheduler: str) -> None:
    """With enough steps all samplers draw a picture with the colours that the prompt names, not mud."""
    picture = pixels(generator, request(3, sampler=sampler, scheduler=scheduler, steps=12))[0].astype(float)
    assert picture.std() > 25
    assert np.isfinite(picture).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_bases_own_schedule_is_kept(generator: DiffusersGenerator, sampler: str) -> None:
    generator._drawing()
    for spacing in ("normal", "karras"):
        made = make_scheduler(generator._drawing()._schedule, sampler, spacing)
        assert made.config.prediction_type == "v_prediction"
        assert made.config.rescale_betas_zero_snr is True
        assert made.config.timestep_spacing == "trailing"
        made.set_timesteps(16)
        assert int(made.timesteps[0]) == 999, "trailing starts at the last timestep"
        assert len(made.timesteps) == 16


SD15 = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon", "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True,
        "timestep_spacing": "leading", "clip_sample": False, "_class_name": "PNDMScheduler"}  # fmt: skip


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "euler_ancestral"])
def test_karras_spacing_on_an_ordinary_base(sampler: str) -> None:
    """The formula of Karras et al. (2022), eq. 5, with rho 7, between the base's own ends."""
    made = make_scheduler(SD15, sampler, "karras")
    made.set_timesteps(20)
    sigmas = made.sigmas.double().numpy()[:-1]
    ramp = np.linspace(0, 1, 20)
    low, high = sigmas[-1] ** (1 / 7), sigmas[0] ** (1 / 7)
    assert sigmas == pytest.approx((high + ramp * (low - high)) ** 7, rel=1e-3)
    assert float(made.sigmas[-1]) == 0
    normal = make_scheduler(SD15, sampler, "normal")
    normal.set_timesteps(20)
    assert not np.allclose(normal.sigmas.numpy()[:-1], sigmas, rtol=0.05)


def test_karras_is_left_out_where_noise_is_infinite(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lora_foundry"):
        made = make_scheduler({**SD15, "rescale_betas_zero_snr": True}, "dpmpp_2m", "karras")
    assert made.config.use_karras_sigmas is False
    assert "zero terminal SNR" in caplog.text


def test_a_base_with_other_spacings_on_still_obeys_the_recipe() -> None:
    own = {
        **SD15,
        "use_karras_sigmas": True,
        "use_exponential_sigmas": False,
        "algorithm_type": "sde-dpmsolver++",
    }
    made = make_scheduler(own, "dpmpp_2m", "normal")
    assert made.config.use_karras_sigmas is False
    assert made.config.algorithm_type == "dpmsolver++"


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'euler'"):
        make_scheduler(SD15, "eulr", "normal")


def test_cfg_rescale_and_cfg_one(generator: DiffusersGenerator) -> None:
    section = load_recipe("mini", ["generate.guidance_rescale=0"]).generate
    plain = DiffusersGenerator(find_base("mini"), section, "cpu")
    strong = request(0, cfg=12.0)
    assert apart(pixels(generator, strong)[0], pixels(plain, strong)[0]) > 1, "the rescale has an effect"
    one = request(0, cfg=1.0)
    assert np.array_equal(pixels(generator, one), pixels(plain, one)), (
        "without guidance there is none to rescale"
    )


def test_a_lora_is_put_on_and_taken_off_again(generator: DiffusersGenerator, lora: Path) -> None:
    asked = request(0)
    before = pixels(generator, asked)
    loaded = generator._drawing().pipeline
    half = pixels(generator, asked, lora=LoraUse(path=lora, strength=0.5))
    full = pixels(generator, asked, lora=LoraUse(path=lora, strength=1.0))
    assert apart(before, half) > 0.5
    assert apart(before, full) > apart(before, half)
    assert np.array_equal(before, pixels(generator, asked, lora=LoraUse(path=lora, strength=0.0)))
    assert np.array_equal(before, pixels(generator, asked)), "the base is as it was"
    assert generator._drawing().pipeline is loaded, "and was not loaded again"


def test_the_lora_acts_as_in_plain_diffusers(generator: DiffusersGenerator, lora: Path) -> None:
    asked = request(1)
    pipeline = make_generator()._drawing().pipeline
    pipeline.load_lora_weights(str(lora), adapter_name="plain")
    pipeline.scheduler = make_scheduler(pipeline.scheduler.config, "dpmpp_2m", "normal")
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(asked.seed))
    plain = pipeline(
        asked.prompt, negative_prompt="", latents=noise, num_inference_steps=3, guidance_scale=4.0,
        guidance_rescale=0.5, width=64, height=64,
    ).images[0]  # fmt: skip
    assert apart(np.asarray(plain), pixels(generator, asked, lora=LoraUse(path=lora))[0]) < 0.5


def test_merged_or_beside_the_weights_it_draws_the_same(
    generator: DiffusersGenerator, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = LoraUse(path=lora, strength=0.7)
    merged = pixels(generator, request(1), lora=use)
    monkeypatch.setattr(merging, "_fits", lambda pipeline: False)
    assert apart(merged, pixels(generator, request(1), lora=use)) < 0.5


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(torch.OutOfMemoryError("CUDA out of memory"), BackendError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_an_error_while_merging_leaves_the_base_as_it_was(
    generator: DiffusersGenerator,
    lora: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    expected: type[BaseException],
) -> None:
    before = pixels(generator, request(1))
    whole, merged = Linear.merge, []

    def failing(self: Any, *arguments: Any, **options: Any) -> None:
        if len(merged) == 3:
            raise fault
        merged.append(self)
        whole(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Linear, "merge", failing)
        with pytest.raises(expected):
            pixels(generator, request(1), lora=LoraUse(path=lora))
    assert np.array_equal(before, pixels(generator, request(1)))


def test_a_computer_of_little_memory_does_not_merge(
    generator: DiffusersGenerator, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "total_memory", lambda: 1 << 20)
    drawing = generator.generate([[request(1)], [request(2)]], LoraUse(path=lora))
    next(drawing)
    assert generator._merged == []
    drawing.close()


def test_two_generations_at_once_do_not_mix_their_loras(generator: DiffusersGenerator, lora: Path) -> None:
    batches = [[request(0)], [request(1)]]
    expected = [np.asarray(made.image) for made in generator.generate(batches)]
    with_lora = generator.generate(batches, LoraUse(path=lora))
    first = np.asarray(next(with_lora).image)
    assert apart(first, expected[0]) > 0.5
    assert np.array_equal(
        np.stack([np.asarray(made.image) for made in generator.generate(batches)]), expected
    )
    assert apart(np.asarray(next(with_lora).image), expected[1]) > 0.5
    with_lora.close()
    assert np.array_equal(pixels(generator, request(0))[0], expected[0])


@pytest.mark.parametrize(
    "strange",
    ["lora_unet_down_blocks_9_attentions_0_proj_in.lora_down.weight", "lora_te2_text_model_x.lora_up.weight",
     "unet.no_such_block.lora_A.weight"],
)  # fmt: skip
def test_a_lora_for_another_base_is_refused_by_name(
    generator: DiffusersGenerator, tmp_path: Path, strange: str
) -> None:
    tensors = {**kohya_tensors(generator._drawing().pipeline), strange: torch.zeros(4, 4)}
    save_file(tensors, tmp_path / "other.safetensors")
    before = pixels(generator, request(0))
    with pytest.raises(VerificationError, match=strange.replace(".", r"\.")):
        pixels(generator, request(0), lora=LoraUse(path=tmp_path / "other.safetensors"))
    assert np.array_equal(before, pixels(generator, request(0)))


def test_a_lora_of_other_sizes_is_refused(generator: DiffusersGenerator, tmp_path: Path) -> None:
    tensors = {
        key: value.repeat(1, 2).contiguous() if key.endswith("lora_down.weight") else value
        for key, value in kohya_tensors(generator._drawing().pipeline).items()
    }
    save_file(tensors, tmp_path / "wide.safetensors")
    before = pixels(generator, request(0))
    with pytest.raises(VerificationError, match="does not fit mini"):
        pixels(generator, request(0), lora=LoraUse(path=tmp_path / "wide.safetensors"))
    assert np.array_equal(before, pixels(generator, request(0)))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 a pickle", b"\x10\0\0\0\0\0\0\0{"])
def test_what_is_no_lora_file_is_refused(
    generator: DiffusersGenerator, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "lora.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VerificationError, match="missing or is no whole safetensors"):
        pixels(generator, request(0), lora=LoraUse(path=path))


def test_nan_is_an_error_and_never_a_picture() -> None:
    broken = make_generator()
    pipeline = broken._drawing().pipeline
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(BackendError, match=r"mini gives NaN .*picture 007\.0, seed 1007"):
        pixels(broken, request(7))


def test_one_nan_picture_among_good_ones_comes_out_black(caplog: pytest.LogCaptureFixture) -> None:
    broken = make_generator()
    pixels(broken, request(0))
    with torch.no_grad():
        broken._drawing().pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with caplog.at_level(logging.WARNING, "lora_foundry"):
        assert pixels(broken, request(3)).max() == 0
    assert "picture 003.0 (seed 1003) came out as NaN" in caplog.text


def test_black_pictures_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    broken = make_generator()
    with torch.no_grad():
        broken._drawing().pipeline.vae.decoder.conv_out.bias.fill_(-100.0)
    with caplog.at_level(logging.WARNING, "lora_foundry"):
        pixels(broken, request(2))
    assert "picture 002.0 (seed 1002) came out black" in caplog.text


def test_a_vae_that_overflows_half_precision_is_widened_for_that_picture(
    generator: DiffusersGenerator,
) -> None:
    """As the VAE of Stable Diffusion 1.5 does on some pictures; afterwards its weights are as they were."""
    narrow = make_generator()
    pipeline = narrow._drawing().pipeline
    vae = pipeline.vae.to(torch.bfloat16)
    kept = {name: value.clone() for name, value in vae.state_dict().items()}
    whole = type(vae).decode

    def overflowing(self: Any, latent: torch.Tensor, **options: Any) -> Any:
        decoded = whole(self, latent, **options)
        return (torch.full_like(decoded[0], float("nan")),) if latent.dtype == torch.bfloat16 else decoded

    vae.decode = overflowing.__get__(vae)
    assert apart(pixels(narrow, request(0)), pixels(generator, request(0))) < 3
    assert vae.dtype == torch.bfloat16
    assert all(torch.equal(value, kept[name]) for name, value in vae.state_dict().items())


def test_only_the_picture_that_overflowed_is_decoded_anew(generator: DiffusersGenerator) -> None:
    narrow = make_generator()
    vae = narrow._drawing().pipeline.vae.to(torch.bfloat16)
    whole, decoded = type(vae).decode, []

    def overflowing(self: Any, latent: torch.Tensor, **options: Any) -> Any:
        decoded.append((len(latent), latent.dtype))
        (pixels,) = whole(self, latent, **options)
        if latent.dtype == torch.bfloat16:
            pixels[1] = float("nan")
        return (pixels,)

    vae.decode = overflowing.__get__(vae)
    together = list(narrow.generate([[request(0), request(1), request(2)]]))
    assert decoded == [(3, torch.bfloat16), (1, torch.float32)]
    for made in together:
        (alone,) = generator.generate([[made.request]])
        assert apart(np.asarray(made.image), np.asarray(alone.image)) < 3


def test_large_pictures_are_decoded_one_by_one(
    generator: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    decode = generator._decode

    def noted(latents: torch.Tensor) -> torch.Tensor:
        sizes.append(len(latents))
        return decode(latents)

    monkeypatch.setattr(generator, "_decode", noted)
    for most, expected in ((64 * 64 * 2, [2, 1]), (64 * 64 - 1, [1, 1, 1])):
        sizes.clear()
        monkeypatch.setattr(generators, "_DECODED_ON_CPU", most)
        assert len(list(generator.generate([[request(0), request(1), request(2)]]))) == 3
        assert sizes == expected


def test_a_memory_that_does_not_hold_several_decodes_one_by_one(
    generator: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pixels(generator, request(0), request(1))
    decode = generator._decode

    def small(latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    monkeypatch.setattr(generator, "_decode", small)
    assert apart(before, pixels(generator, request(0), request(1))) < 0.5


def test_the_library_is_imported_with_the_first_picture() -> None:
    """A run whose pictures are all there only asks for the model's name, and must not wait for seconds."""
    code = (
        "import sys\n"
        "from lora_foundry.backends.diffusers import DiffusersGenerator\n"
        "from lora_foundry.families._shared.inspect import find_base\n"
        "from lora_foundry.recipe_files import load_recipe\n"
        "DiffusersGenerator(find_base('mini'), load_recipe('mini').generate).model\n"
        "print('diffusers' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_closing_gives_the_model_back_and_the_next_call_loads_again() -> None:
    made = make_generator()
    before = pixels(made, request(0))
    made.close()
    assert made._loaded is None
    assert np.array_equal(before, pixels(made, request(0)))


def test_the_models_name_is_known_without_loading() -> None:
    made = make_generator()
    assert made.model.startswith("mini [")
    assert made._loaded is None


@pytest.mark.parametrize("device", ["cuda:99", "tpu9"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    made = DiffusersGenerator(find_base("mini"), load_recipe("mini").generate, device)
    with pytest.raises(InputError, match=device):
        pixels(made, request(0))


def test_the_prompt_decides_what_is_seen(generator: DiffusersGenerator) -> None:
    """The model draws what it is told: a red picture for red words and a green one for green ones."""
    red, green = (
        Image.fromarray(
            pixels(
                generator, request(0, prompt=f"1girl, {word} hair, {word} dress, white background", steps=10)
            )[0]
        )
        .resize((1, 1), Image.Resampling.BOX)
        .getpixel((0, 0))
        for word in ("red", "green")
    )
    assert isinstance(red, tuple)
    assert isinstance(green, tuple)
    assert red[0] - red[1] > green[0] - green[1] + 20


@pytest.mark.gpu
def test_half_precision_on_a_gpu_gives_nearly_the_same_picture(
    generator: DiffusersGenerator, lora: Path
) -> None:
    gpu = DiffusersGenerator(find_base("mini"), load_recipe("mini").generate, "cuda")
    for use in (None, LoraUse(path=lora, strength=0.5)):
        for sampler in SAMPLERS:
            asked = request(0, steps=12, sampler=sampler)
            assert apart(pixels(gpu, asked, lora=use), pixels(generator, asked, lora=use)) < 6
    assert gpu._drawing().pipeline.unet.dtype == torch.float16
    gpu.close()
