"""A reference image on the real bundled model: it decides how pictures look, or the call fails and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lora_foundry.backends.diffusers import DiffusersGenerator
from lora_foundry.backends.mini_instruments import MiniTagger
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import ImageRequest, ReferenceUse
from lora_foundry.domain.run import Run
from lora_foundry.errors import InputError
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.files.images import read_record
from lora_foundry.mini import PICTURE
from lora_foundry.recipe_files import load_recipe
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.generate import step as generate
from mini_world.render import render
from tests.painted import PaintedGenerator, PaintedPorts, make_run, quiet
from tests.unit.test_mini_world import SHOT_OF_PERSON

REQUEST = ImageRequest(
    key="001.0", prompt="1girl, standing confidently", negative="", seed=3, width=64, height=64, steps=4, cfg=4.0,
    sampler="dpmpp_2m", scheduler="normal",
)  # fmt: skip


@pytest.fixture(scope="module")
def generator() -> Iterator[DiffusersGenerator]:
    recipe = load_recipe("mini", ["generate.reference_method=img2img"])
    made = DiffusersGenerator(find_base("mini"), recipe.generate, "cpu")
    yield made
    made.close()


def draw(generator: DiffusersGenerator, reference: ReferenceUse | None, number: int = 1) -> np.ndarray:
    requests = [REQUEST.model_copy(update={"key": f"{place}", "seed": 3 + place}) for place in range(number)]
    images = [np.asarray(made.image, float) for made in generator.generate([requests], reference=reference)]
    return np.stack(images)


def plain(tmp_path: Path, colour: str) -> Path:
    path = tmp_path / f"{colour}.png"
    Image.new("RGB", (96, 64), colour).save(path)
    return path


def test_image_to_image_follows_the_reference_as_closely_as_it_is_told(
    generator: DiffusersGenerator, tmp_path: Path
) -> None:
    free = draw(generator, None)
    path = tmp_path / "figure.png"
    Image.fromarray(render(SHOT_OF_PERSON, 1)).save(path)
    target = np.asarray(Image.open(path), float)
    near, far = (draw(generator, ReferenceUse(path=path, strength=strength)) for strength in (0.9, 0.25))
    distances = [np.abs(picture[0] - target).mean() for picture in (near, far, free)]
    assert distances[0] < distances[1] < distances[2]
    assert np.array_equal(far, draw(generator, ReferenceUse(path=path, strength=0.25)))
    assert np.array_equal(free, draw(generator, None)), "the reference stays on after its call"
    assert len(draw(generator, ReferenceUse(path=path, strength=1.0), number=2)) == 2


def make_adapter(generator: DiffusersGenerator, folder: Path) -> Path:
    """An IP-Adapter for the bundled UNet with random weights, in the form of the published files."""
    torch.manual_seed(0)
    unet = generator._drawing().pipeline.unet
    width, tokens, seen = unet.config.cross_attention_dim, 4, 16
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        patch_size=16, projection_dim=seen,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    tensors: dict[str, Any] = {
        "image_proj.proj.weight": torch.randn(tokens * width, seen),
        "image_proj.proj.bias": torch.zeros(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for part in ("to_k_ip", "to_v_ip"):
                tensors[f"ip_adapter.{number}.{part}.weight"] = torch.randn(inner, width)
            number += 2
    path = folder / "ip-adapter.safetensors"
    save_file(tensors, path)
    return path


def test_an_ip_adapter_is_used_and_taken_off_again(generator: DiffusersGenerator, tmp_path: Path) -> None:
    adapter = make_adapter(generator, tmp_path)
    recipe = load_recipe("mini", ["generate.reference_method=ip_adapter", f"generate.ip_adapter='{adapter}'"])
    prompted = DiffusersGenerator(find_base("mini"), recipe.generate, "cpu")
    free = draw(prompted, None)
    pictures = [
        draw(prompted, ReferenceUse(path=plain(tmp_path, colour), strength=0.8), number=2)
        for colour in ("red", "blue")
    ]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0][:1], free)
    assert np.array_equal(draw(prompted, None), free)
    prompted.close()


def test_the_bundled_adapter_draws_the_person_of_the_picture_elsewhere() -> None:
    """Another pose and place than the picture's, without a word of the person: hair, clothes and headphones come over."""
    recipe = load_recipe("mini")
    prompted = DiffusersGenerator(find_base("mini"), recipe.generate, "cpu")
    prompt = "sitting casually, laughing happily, side view, urban environment, high quality, detailed, best quality"
    asked = [
        REQUEST.model_copy(update={"key": f"{place}", "seed": place, "prompt": prompt, "steps": 12})
        for place in range(4)
    ]
    drawn, free = (
        [made.image for made in prompted.generate([asked], reference=reference)]
        for reference in (ReferenceUse(path=PICTURE, strength=1.0), None)
    )
    prompted.close()
    shown = {"hair_color": "green hair", "outfit_color": "yellow", "accessory": "headphones"}

    def right(pictures: list[Image.Image]) -> int:
        seen = MiniTagger().read(pictures)
        return sum(row.get(trait) == value for row in seen for trait, value in shown.items())

    assert right(drawn) >= 9
    assert right(free) <= 4
    assert [row.get("background") for row in MiniTagger().read(drawn)].count("urban environment") >= 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["generate.reference_method=ip_adapter", "generate.ip_adapter=''"], "needs the adapter's file"),
        (
            ["generate.reference_method=ip_adapter", "generate.ip_adapter='nowhere.safetensors'"],
            "CLIP vision model",
        ),
    ],
)
def test_a_reference_that_cannot_be_used_is_said_to_be_so(
    tmp_path: Path, settings: list[str], says: str
) -> None:
    generator = DiffusersGenerator(find_base("mini"), load_recipe("mini", settings).generate, "cpu")
    with pytest.raises(InputError, match=says):
        draw(generator, ReferenceUse(path=plain(tmp_path, "red")))


class Follower(PaintedGenerator):
    """Remembers the reference it was handed."""

    references: list[ReferenceUse | None]

    def generate(self, batches, lora=None, reference=None):  # type: ignore[no-untyped-def]
        self.references = [*getattr(self, "references", []), reference]
        yield from super().generate(batches, lora)


def with_reference(run: Run, path: Path) -> Run:
    character = Character(name="Elara", description=run.character.description, reference_image=path)
    return run.model_copy(update={"character": character})


def test_the_stages_hand_the_reference_on_and_record_it(tmp_path: Path) -> None:
    run = with_reference(make_run(tmp_path / "set"), plain(tmp_path, "red"))
    follower = Follower(faults={"002.0": "blank"})
    metadata = generate.run(run, PaintedPorts(follower), quiet)
    curate.run(run, PaintedPorts(follower), quiet)
    assert len(follower.references) == 2, "the gallery, and the blank picture made again"
    assert {use.path for use in follower.references if use} == {tmp_path / "set" / "reference.png"}
    record = read_record(tmp_path / "set" / "images" / metadata.pictures[0].file)
    assert record is not None
    assert "+ reference" in record.model
    again = generate.run(with_reference(run, plain(tmp_path, "blue")), PaintedPorts(follower), quiet)
    assert again.fingerprint != metadata.fingerprint


def test_a_reference_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("not a picture")
    run = with_reference(make_run(tmp_path / "set"), tmp_path / "words.png")
    with pytest.raises(InputError, match=r"n(o|ot a) picture"):
        generate.run(run, PaintedPorts(), quiet)
