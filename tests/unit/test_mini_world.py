"""The miniature world teaches the bundled model its words: its pictures must be reproducible and show each
word differently, and its captions must never say what a picture does not show."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_foundry.mini import MODEL_DIR
from mini_world.captions import full_caption, sample_caption
from mini_world.names import CHARACTERS, NAMES
from mini_world.render import render, render_with_weight
from mini_world.scene import (
    Character,
    Scene,
    attributes,
    is_visible,
    sample_character,
    sample_scene,
    value_of,
)
from mini_world.train_reference import Adapter, captions
from mini_world.vocabulary import ATTRIBUTES, QUALITY_TAGS, SHOT, TRAITS, outfit_tag, tag

# A change counts where a band moves by more than this; the smallest is an iris in a full body shot.
CLEAR_CHANGE = 40
CLEAR_PIXELS = 8
MIDDLE_AND_CLOSE = ("cowboy shot", "close-up portrait")

PERSON = Character("1girl", "brown", "short hair", "green", "pale skin", "hoodie", "blue", "hat")
SHOT_OF_PERSON = Scene(
    PERSON,
    pose="standing confidently",
    expression="neutral expression",
    view="front view",
    framing="full body shot",
    lighting="natural lighting",
    background="white background",
)


def scenes(count: int, seed: int = 3) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def with_value(scene: Scene, attribute: str, value: str) -> Scene:
    if attribute in TRAITS:
        return replace(scene, character=replace(scene.character, **{attribute: value}))
    return replace(scene, **{attribute: value})


def changed_pixels(first: np.ndarray, second: np.ndarray) -> int:
    difference = np.abs(first.astype(int) - second.astype(int)).max(axis=2)
    return int((difference > CLEAR_CHANGE).sum())


def tags_of(scene: Scene) -> dict[str, str]:
    """Every tag that could name the scene's facts, visible or not, by attribute."""
    named = {attribute: tag(attribute, value_of(scene, attribute)) for attribute in ATTRIBUTES}
    named["outfit"] = outfit_tag(scene.character.outfit, scene.character.outfit_color)
    del named["outfit_color"]
    return named


def test_same_scene_and_seed_give_the_same_bytes() -> None:
    for seed, scene in enumerate(scenes(30)):
        picture = render(scene, seed)
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        assert picture.tobytes() == render(scene, seed).tobytes()


def test_seeds_vary_the_picture() -> None:
    pictures = {render(SHOT_OF_PERSON, seed).tobytes() for seed in range(20)}
    assert len(pictures) == 20


def test_sampling_repeats_for_a_seed() -> None:
    assert scenes(50, seed=8) == scenes(50, seed=8)
    assert scenes(50, seed=8) != scenes(50, seed=9)


@pytest.mark.parametrize("attribute", list(ATTRIBUTES))
@pytest.mark.parametrize("view", SHOT["view"])
@pytest.mark.parametrize("framing", SHOT["framing"])
def test_every_visible_value_looks_different(attribute: str, view: str, framing: str) -> None:
    base = replace(SHOT_OF_PERSON, view=view, framing=framing)
    variants = [with_value(base, attribute, value) for value in ATTRIBUTES[attribute]]
    pictures = [render(scene, 5) for scene in variants if is_visible(scene, attribute)]
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            assert changed_pixels(picture, other) >= CLEAR_PIXELS


def test_what_is_hidden_has_no_label() -> None:
    behind = replace(SHOT_OF_PERSON, view="back view")
    assert attributes(behind)["eye_color"] == -1
    assert attributes(behind)["expression"] == -1
    assert attributes(replace(SHOT_OF_PERSON, framing="close-up portrait"))["pose"] == -1
    assert attributes(replace(SHOT_OF_PERSON, expression="laughing happily"))["eye_color"] == -1
    winking = replace(SHOT_OF_PERSON, view="side view", expression="playful expression")
    assert attributes(winking)["eye_color"] == -1
    scarf = replace(PERSON, accessory="scarf")
    assert attributes(replace(SHOT_OF_PERSON, character=scarf, framing="close-up portrait"))["outfit"] == -1


@pytest.mark.parametrize("attribute", ["eye_color", "expression"])
@pytest.mark.parametrize("framing", MIDDLE_AND_CLOSE)
def test_hidden_attributes_do_not_change_the_picture(attribute: str, framing: str) -> None:
    behind = replace(SHOT_OF_PERSON, view="back view", framing=framing)
    pictures = {render(with_value(behind, attribute, value), 1).tobytes() for value in ATTRIBUTES[attribute]}
    assert len(pictures) == 1


def test_labels_point_at_the_scenes_values() -> None:
    for scene in scenes(200):
        labels = attributes(scene)
        assert list(labels) == list(ATTRIBUTES)
        for attribute, index in labels.items():
            assert (index != -1) == is_visible(scene, attribute)
            assert index == -1 or ATTRIBUTES[attribute][index] == value_of(scene, attribute)


def test_full_caption_names_all_that_is_visible_and_nothing_else() -> None:
    for scene in scenes(300):
        parts = full_caption(scene).split(", ")
        if scene.name:
            assert parts.pop(0) == scene.name
        assert tuple(parts[-len(QUALITY_TAGS) :]) == QUALITY_TAGS
        expected = [text for attribute, text in tags_of(scene).items() if is_visible(scene, attribute)]
        assert sorted(parts[: -len(QUALITY_TAGS)]) == sorted(expected)


def test_sampled_captions_never_contradict_the_picture() -> None:
    rng = np.random.default_rng(11)
    for scene in scenes(300):
        parts = [part for part in sample_caption(scene, rng).split(", ") if part]
        if scene.name:
            assert parts.pop(0) == scene.name
        allowed = {text for attribute, text in tags_of(scene).items() if is_visible(scene, attribute)}
        said = [part for part in parts if part not in QUALITY_TAGS]
        assert set(said) <= allowed
        assert len(set(said)) == len(said)


def test_sampled_captions_leave_gaps() -> None:
    rng = np.random.default_rng(12)
    captions = [sample_caption(SHOT_OF_PERSON, rng) for _ in range(300)]
    for text in tags_of(SHOT_OF_PERSON).values():
        share = np.mean([text in caption.split(", ") for caption in captions])
        assert 0.3 < share < 0.97
    assert 0.6 < np.mean([caption.endswith("quality") for caption in captions]) < 0.95
    assert len(set(captions)) > 260


def test_an_unnamed_view_is_mostly_the_front() -> None:
    rng = np.random.default_rng(13)
    unnamed = [
        scene.view
        for scene in scenes(1000)
        if not any(view in sample_caption(scene, rng).split(", ") for view in SHOT["view"])
    ]
    assert np.mean([view == "front view" for view in unnamed]) > 0.65


def test_names_are_fixed_and_bound_to_one_look() -> None:
    assert len(set(NAMES)) == 200
    assert len({name.split()[0] for name in NAMES}) == 200
    assert NAMES[:3] == ("Corako Greymantle", "Zelumiko", "Zelolana")
    assert CHARACTERS["Zelumiko"] == Character(
        "1boy", "orange", "hair bun", "yellow", "tan skin", "robe", "red", "cat ears"
    )
    for scene in scenes(400):
        assert scene.name is None or scene.character == CHARACTERS[scene.name]


def test_named_people_appear_and_are_sometimes_only_named() -> None:
    rng = np.random.default_rng(14)
    named = [scene for scene in scenes(3000) if scene.name]
    assert 0.09 < len(named) / 3000 < 0.15
    bare = 0
    for scene in named:
        said = set(sample_caption(scene, rng).split(", "))
        bare += not any(text in said for attribute, text in tags_of(scene).items() if attribute in TRAITS)
    assert 0.35 < bare / len(named) < 0.65


def test_characters_use_every_value_of_every_trait() -> None:
    rng = np.random.default_rng(15)
    characters = [sample_character(rng) for _ in range(400)]
    for trait, values in TRAITS.items():
        assert {getattr(character, trait) for character in characters} == set(values)


def test_weights_rise_over_face_and_accessory() -> None:
    picture, weight = render_with_weight(SHOT_OF_PERSON, 2)
    assert picture.tobytes() == render(SHOT_OF_PERSON, 2).tobytes()
    assert weight.shape == (64, 64)
    assert weight.min() == 1.0
    assert weight.max() > 2.0
    _, behind = render_with_weight(replace(SHOT_OF_PERSON, view="back view"), 2)
    assert behind.sum() < weight.sum()


def test_a_trained_adapter_is_written_as_the_library_reads_it() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet")
    adapter = Adapter(unet, 120).half().float()
    parts = {
        part: {
            name.removeprefix(f"{part}."): value.float()
            for name, value in adapter.published().items()
            if name.startswith(f"{part}.")
        }
        for part in ("image_proj", "ip_adapter")
    }
    features = torch.randn(2, 69, 120)
    read = unet._convert_ip_adapter_image_proj_to_diffusers(parts["image_proj"])
    with torch.no_grad():
        assert torch.allclose(read(features), adapter.resampler(features), atol=1e-4)
    processors = unet._convert_ip_adapter_attn_to_diffusers([parts])
    known = [each for name, each in processors.items() if name.endswith("attn2.processor")]
    for one, other in zip(known, adapter.processors, strict=True):
        assert torch.equal(one.to_v_ip[0].weight, other.to_v_ip[0].weight)


def test_captions_beside_a_reference_tell_no_more_than_it_shows() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        person = sample_character(rng)
        drawn, shown = sample_scene(rng, person), sample_scene(rng, person)
        told, meant = (set(text.split(", ")) for text in captions(drawn, shown, rng))
        assert told <= meant
        if not is_visible(shown, "eye_color"):
            assert len([text for text in meant if text.endswith(" eyes")]) <= len(
                [text for text in told if text.endswith(" eyes")]
            )
