"""How captions are merged: what is seen beats what was asked for, and nothing contradicts anything."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_foundry.backends.vlm import VisionCaptioner, parse_answer
from lora_foundry.domain.captions import corrected, merge, open_features, own_features, uncalled
from lora_foundry.domain.character import Character
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.tags import GROUPS, booru, topics_of, without_contradictions
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.images import save_picture
from lora_foundry.recipe_files import load_recipe

WORDS = sorted({word for group in GROUPS for word in group} | {"red hair", "sword", "rain"})
QUALITY = ("high quality", "best quality")


def test_what_is_seen_beats_what_was_asked_for() -> None:
    asked = ["running", "smiling warmly", "front view", "outdoor setting"]
    seen = ["from behind", "running", "outdoors", "sword"]
    assert corrected(asked, seen) == ["running", "smiling warmly", "from behind", "outdoor setting"]
    text = merge("elara", [], asked, seen, (), QUALITY)
    assert text == "elara, running, from behind, outdoor setting, sword, high quality, best quality"


def test_features_of_most_pictures_are_the_characters_and_rare_ones_are_not() -> None:
    seen = [["red hair", "hat"], ["red hair", "blue dress"], ["red hair", "smile"], ["smile", "smile"]]
    assert own_features(seen, 0.35) == ("red hair",)
    assert own_features(seen, 0.25) == ("red hair", "blue dress")


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("elara, running", "running"),
        ("Elara", ""),
        ("running,, elara ,smile", "running, smile"),
        ("a sketch of ELARA, from behind", "a sketch of someone, from behind"),
        ("elara voss, elara, elarabird", "elarabird"),
        ("elara+brom, rain", "someone+someone, rain"),
    ],
)
def test_an_uncalled_caption_names_nobody(caption: str, said: str) -> None:
    assert uncalled(caption, ("elara", "elara voss", "brom")) == said
    assert uncalled("running, smile", ()) == "running, smile"


def test_pruning_knows_every_spelling_and_the_trigger_is_first() -> None:
    text = merge(
        "elara",
        ["red hair"],
        ["standing"],
        ["red_hair", "hat", "best quality", "Elara"],
        ["Red Hair"],
        QUALITY,
    )
    assert text == "elara, standing, hat, high quality, best quality"


@given(st.lists(st.sampled_from(WORDS)), st.lists(st.sampled_from(WORDS)))
def test_no_caption_contradicts_itself(asked: list[str], seen: list[str]) -> None:
    tags = merge("elara", [], asked, seen, (), QUALITY).split(", ")
    assert tags[0] == "elara"
    assert tuple(tags[-2:]) == QUALITY
    assert len({booru(tag) for tag in tags}) == len(tags)
    for group in GROUPS:
        assert len([tag for tag in tags if tag in group]) <= 1
    if {"back view", "from behind"} & set(tags):
        assert not GROUPS[3] & set(tags)


def test_from_behind_no_face_is_seen() -> None:
    assert without_contradictions(["back view", "smile", "blush", "running"]) == ["back view", "running"]


def test_an_answer_becomes_tags() -> None:
    text = '<think>hm</think>\n- Red hair.\n2) standing, `smile`; "hat"\nHere is a long sentence about the picture, rain'
    assert parse_answer(text) == ["red hair", "standing", "smile", "hat", "rain"]


def ask(tmp_path: Path, answer: httpx.Response, seen: list[httpx.Request] | None = None) -> list[list[str]]:
    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return answer

    looker = VisionCaptioner("http://127.0.0.1:9/v1/", "llava", "secret", httpx.MockTransport(handle))
    character = Character(name="Elara", description="1girl")
    plan = plan_pictures(character, load_recipe("mini"), "x")
    record = save_picture(tmp_path / plan.record(0).file, Image.new("RGB", (64, 64), "red"), plan.record(0))
    return looker.describe(character, [record], tmp_path)


def test_a_vision_model_is_shown_the_picture(tmp_path: Path) -> None:
    requests: list[httpx.Request] = []
    answer = httpx.Response(200, json={"choices": [{"message": {"content": "red hair, standing"}}]})
    assert ask(tmp_path, answer, requests) == [["red hair", "standing"]]
    body = json.loads(requests[0].content)
    assert str(requests[0].url) == "http://127.0.0.1:9/v1/chat/completions"
    assert requests[0].headers["authorization"] == "Bearer secret"
    assert body["model"] == "llava"
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (httpx.Response(500), BackendError, "HTTP 500"),
        (httpx.Response(404, text="no such model"), InputError, "no such model"),
        (httpx.Response(200, text="<html>"), BackendError, "OpenAI-compatible"),
        (httpx.Response(200, json={"choices": []}), BackendError, "OpenAI-compatible"),
    ],
)
def test_a_vision_model_that_fails_is_told(
    tmp_path: Path, answer: httpx.Response, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        ask(tmp_path, answer)


def test_a_vision_model_without_an_address_is_asked_for() -> None:
    with pytest.raises(InputError, match="LORA_FOUNDRY_VLM_URL"):
        VisionCaptioner(None, "")


@pytest.mark.parametrize(
    ("description", "settled"),
    [
        ("1girl", ("green eyes", "long hair", "red dress", "crown")),
        ("a woman with brown eyes and long black hair", ("red dress", "crown")),
        ("1girl, short hair, armor, crown", ("green eyes", "red hair")),
    ],
)
def test_only_what_the_description_leaves_open_is_settled(description: str, settled: tuple[str, ...]) -> None:
    seen = [
        ["1girl", "green eyes", "long hair", "red dress", "crown", "smile"],
        ["1girl", "green eyes", "long hair", "red dress", "crown", "red hair"],
        ["1girl", "blue eyes", "red hair", "blue dress", "blue hair"],
    ]
    found = open_features(description, seen, 0.5)
    assert set(settled) <= set(found)
    assert not {"smile", "blue eyes", "blue dress", "1girl", "blue hair"} & set(found)
    assert len(found) == len(set(found))


def test_one_picture_alone_settles_nothing() -> None:
    assert open_features("1girl", [["green eyes"], []], 0.5) == ()
    assert open_features("1girl", [["green eyes"], ["green eyes"]], 0.5) == ("green eyes",)


def test_clothes_are_settled_first_and_their_color_where_they_agree() -> None:
    seen = [["dress", "red dress"], ["dress", "blue dress"], ["robe", "red robe"], ["dress", "blue dress"]]
    assert open_features("1girl", seen, 0.5) == ("dress", "blue dress")
    assert open_features("1girl, robe", seen, 0.5) == ()
    assert open_features("1girl, dress", seen, 0.5) == ("blue dress",)


def test_extras_are_settled_together_only_where_they_are_seen_together() -> None:
    apart = [["glasses", "tan skin"], ["glasses"], ["cat ears", "tan skin"], ["cat ears"], ["glasses"]]
    assert set(open_features("1girl", apart, 0.35)) == {"glasses", "tan skin"}
    both = [["glasses", "hat"], ["glasses", "hat"], ["glasses"]]
    assert open_features("1girl", both, 0.35) == ("glasses", "hat")
    assert open_features("1girl, hat", apart, 0.35) == ("glasses", "tan skin"), "no picture shows a hat"
    assert open_features("1girl, hat", [["hat"], ["hat"], ["horns"], ["horns"]], 0.35) == ()


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ("1girl, brown hair, armor", {"gender", "hair color", "clothes"}),
        ("1girl, black hair, red dress", {"gender", "hair color", "clothes", "clothes color"}),
        (
            "a woman with red hair and green eyes. She wears a blue dress",
            {"gender", "hair color", "eyes", "clothes", "clothes color"},
        ),
        ("long silver hair", {"hair color", "haircut"}),
        ("somebody", set()),
    ],
)
def test_what_a_description_tells(description: str, told: set[str]) -> None:
    assert topics_of(description) == told


def test_a_taggers_own_spelling_and_empty_tags_are_borne() -> None:
    seen = [["white_shirt", "shirt", ""], ["white_shirt", "shirt", " "]]
    assert set(open_features("1girl", seen, 0.35)) == {"white_shirt"}


@pytest.mark.parametrize(
    ("described", "seen", "settled"),
    [
        ("1boy", ["red dress", "white dress", "pink dress", "green suit"], ("dress",)),
        ("1boy, dress", ["red dress", "red dress", "pink dress"], ("red dress",)),
        ("1boy", ["red dress", "red dress", "pink suit"], ("red dress",)),
        ("1girl", ["red school uniform", "blue school uniform"], ("school uniform",)),
    ],
)
def test_clothes_are_settled_before_their_colour(
    described: str, seen: list[str], settled: tuple[str, ...]
) -> None:
    assert open_features(described, [[tag] for tag in seen], 0.35) == settled
