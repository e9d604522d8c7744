"""Names become folders on every system, so what cannot be one is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_foundry.domain.character import Character, check_name, split_tags
from lora_foundry.domain.run import Run
from lora_foundry.errors import InputError
from lora_foundry.recipe_files import load_recipe
from tests.painted import make_run


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a/b", "'/'"),
        ("..", "folder on every system"),
        ("a\\b", "holds"),
        ("../../etc", "'/'"),
        ("x\0y", "NUL"),
        ("fire \N{FIRE}", "holds"),
        ("n" * 300, "300 characters"),
        ("CON", "folder on every system"),
        ("nul.txt", "folder on every system"),
        (".hidden", "every system"),
        ("ends.", "every system"),
        ("-rf", "every system"),
        ("'_'", "no letter"),
        ("a:b", "':'"),
        ("a*", "holds"),
        ("é" * 65, "65 characters"),
        ("tab\u202ename", "holds"),
    ],
)
def test_bad_names_are_refused_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("\\", "\\\\")):
        Character(name=name, description="1girl")


@pytest.mark.parametrize(
    "name", ["Elara", "Zoë van Dijk", "O'Neil", "Jean-Luc", "綾波", "R2_D2", "Dr. Who", "محمد"]
)
def test_names_of_every_script_are_welcome(name: str) -> None:
    character = Character(name=name, description="1girl")
    assert character.name == name
    assert " " not in character.slug


def test_composed_and_decomposed_letters_are_one_name() -> None:
    assert check_name("Zoe\N{COMBINING DIAERESIS}") == check_name("Zoë")


def test_defaults_come_from_name_and_description() -> None:
    character = Character(name="Zoë van Dijk", description="1girl,  brown hair,, armor, brown hair")
    assert character.trigger == "zoë van dijk"
    assert character.slug == "zoë_van_dijk"
    assert character.tags == ("1girl", "brown hair", "armor")


@pytest.mark.parametrize("description", ["a\0b", "x" * 3000])
def test_bad_descriptions_are_refused(description: str) -> None:
    with pytest.raises(InputError, match="description"):
        Character(name="Elara", description=description)


@pytest.mark.parametrize("description", ["", "  ", ",,,"])
def test_only_own_pictures_need_no_description(tmp_path: Path, description: str) -> None:
    def make(*settings: str) -> Run:
        return Run(
            character=Character(name="Elara", description=description),
            recipe=load_recipe("mini", settings),
            dataset_dir=tmp_path,
            lora_dir=tmp_path,
            output_name="elara",
        )

    for source in ("auto", "described", "mixed"):
        with pytest.raises(InputError, match="description is empty"):
            make(f"dataset.source={source}")
    assert make("dataset.source=own").character.tags == ()


@pytest.mark.parametrize("trigger", ["a,b", "x" * 65, "a\x07b"])
def test_bad_triggers_are_refused(trigger: str) -> None:
    with pytest.raises(InputError, match="trigger"):
        Character(name="Elara", description="1girl", trigger=trigger)


@given(st.text(max_size=80))
def test_any_text_is_a_safe_name_or_refused(text: str) -> None:
    try:
        name = check_name(text)
    except InputError:
        return
    assert name
    assert not set(name) & set('/\\:*?"<>|\0')
    assert ".." not in name
    assert name == check_name(name)


@given(st.lists(st.text(alphabet="abc ", max_size=6), max_size=8))
def test_split_tags_keeps_order_and_drops_repeats(parts: list[str]) -> None:
    tags = split_tags(",".join(parts))
    assert len(set(tags)) == len(tags)
    assert all(tag == " ".join(tag.split()) and tag for tag in tags)


@pytest.mark.parametrize(
    ("trigger", "plain"),
    [("girl", True), ("Red dress", True), ("from_behind", True), ("rim", True), ("elara", False), ("oscar", False),
     ("elara red", False), ("rimworld", False)],
)  # fmt: skip
def test_a_trigger_that_the_base_was_taught_is_warned_of_and_kept(
    tmp_path: Path, trigger: str, plain: bool
) -> None:
    run = make_run(tmp_path)
    run = run.model_copy(update={"character": run.character.model_copy(update={"trigger": trigger})})
    assert Run.model_validate(run.model_dump()).trigger == trigger
    assert bool(run.cautions) is plain
    assert all(
        f"'{trigger}' is a word that the base already knows" in caution and "such as 'elara'" in caution
        for caution in run.cautions
    )
