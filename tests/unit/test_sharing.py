"""Nothing local leaves: every recipe field that may hold a path, whatever its type, and the character's reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_foundry.domain.character import Character
from lora_foundry.domain.recipe import Recipe, field_paths
from lora_foundry.domain.sections.base import LocalPath, Section, declared
from lora_foundry.domain.sharing import bare_name, needed_metadata, shareable_character, shareable_recipe
from lora_foundry.recipe_files import load_recipe, recipe_names

SECRET = "/home/private person/some folder"


def test_no_field_that_may_hold_a_path_keeps_one() -> None:
    recipe = load_recipe("mini")
    for name in Recipe.model_fields:
        section = getattr(recipe, name)
        if not isinstance(section, Section):
            continue
        changes = {}
        for key, field in type(section).model_fields.items():
            if any(isinstance(mark, LocalPath) for mark in field.metadata):
                value = getattr(section, key)
                changes[key] = (SECRET,) if isinstance(value, tuple) else SECRET
        recipe = recipe.model_copy(update={name: section.model_copy(update=changes)})
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"sample_prompts": ("private person at home",)})}
    )
    assert "private person" in recipe.model_dump_json()
    assert "private person" not in shareable_recipe(recipe).model_dump_json()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("mini", "mini"),
        ("model.safetensors", "model.safetensors"),
        ("/a/private person/model.safetensors", "model.safetensors"),
        ("C:\\Users\\private person\\model.safetensors", "model.safetensors"),
        ("~/private person/folder", ""),
        ("", ""),
    ],
)
def test_a_name_stays_and_a_path_goes(given: str, shown: str) -> None:
    assert bare_name(given) == shown


def test_the_reference_image_is_the_characters_own_business() -> None:
    character = Character(name="Elara", description="1girl", reference_image=Path(SECRET) / "me.png")
    assert "private person" not in json.dumps(shareable_character(character))


def test_minimal_metadata_is_what_a_program_needs() -> None:
    said = {"ss_network_dim": "16", "ss_tag_frequency": "{}", "lora_foundry.recipe": "{}", "modelspec.title": "x",
            "ss_base_model_version": "sd_v1"}  # fmt: skip
    assert set(needed_metadata(said)) == {"ss_network_dim", "modelspec.title", "ss_base_model_version"}


def test_every_recipe_field_declares_what_it_affects() -> None:
    known = {
        f"{name}.{key}"
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and hasattr(field.annotation, "deciding")
        for key, _ in declared(field.annotation)
    }
    assert known == {path for path in field_paths() if "." in path and not path.startswith("shots.")}
    recipe = load_recipe(recipe_names()[0])
    assert "batch_size" not in recipe.generate.deciding("pictures")
    assert "rank" in recipe.train.deciding("weights")
    assert "sample_prompts" not in recipe.train.deciding("weights")
    assert "min_identity" not in recipe.evaluate.deciding("scores")
