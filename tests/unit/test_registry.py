"""Backends by name: what a recipe may say comes from the rows, and another package's entry point is a row like ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from lora_foundry import registry
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.recipe import field_paths, help_of
from lora_foundry.domain.sections import CaptionSection, ModelSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings

KINDS = get_args(registry.Kind)


@pytest.fixture
def foreign_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of somebody else's with an embedder, installed for the time of a test."""
    (tmp_path / "plain_embedder.py").write_text(
        "import numpy as np\n"
        "class PlainEmbedder:\n"
        "    same = 0.9\n"
        "    @classmethod\n"
        "    def make(cls, context):\n"
        "        made = cls(); made.recipe = context.recipe.name; return made\n"
        "    def embed(self, images):\n"
        "        return np.ones((len(images), 1), np.float32)\n"
    )
    meta = tmp_path / "plain_embedder-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-embedder\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        "[lora_foundry.embedder]\nplain = plain_embedder:PlainEmbedder\nmini = plain_embedder:PlainEmbedder\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.backends.cache_clear()
    yield
    registry.backends.cache_clear()


def test_every_row_is_a_class_that_can_be_made() -> None:
    for row in registry.BACKENDS:
        assert row.kind in KINDS
        assert callable(registry.load(row.kind, row.name).make), row
    assert {row.kind for row in registry.BACKENDS} == set(KINDS)


def test_a_foreign_package_adds_an_embedder_and_cannot_replace_ours(foreign_embedder: None) -> None:
    recipe = load_recipe("mini", ["model.embedder=plain"])
    ports = RecipePorts(recipe, find_base("mini"), Settings())
    assert type(ports.embedder).__name__ == "PlainEmbedder"
    assert ports.embedder.recipe == "mini"  # type: ignore[union-attr]
    assert "plain-embedder" in help_of(ModelSection.model_fields["embedder"])
    ours = RecipePorts(load_recipe("mini"), find_base("mini"), Settings()).embedder
    assert type(ours).__name__ == "MiniEmbedder"


def test_without_that_package_its_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"model\.embedder = 'dino'.*did you mean 'dinov2'\?$"):
        load_recipe("mini", ["model.embedder=dino"])
    with pytest.raises(InputError, match=r"caption\.look\.0.*there is no captioner of that name"):
        load_recipe("mini", ['caption.look=["wd14tagger-x"]'])


def test_help_names_every_choice() -> None:
    for section, key in ((ModelSection, "tagger"), (CaptionSection, "look")):
        text = help_of(section.model_fields[key])
        marker = "tagger" if key == "tagger" else "captioner"
        assert all(f"`{name}`" in text for name in registry.backends(marker))  # type: ignore[arg-type]
    assert "model.embedder" in field_paths()


def test_keys_of_earlier_versions_are_understood() -> None:
    assert load_recipe("mini", ["caption.backend=plan"]) == load_recipe("mini")
    former = load_recipe("mini").model_dump(mode="json")
    former["caption"]["backend"] = "plan"
    assert type(load_recipe("mini")).model_validate(former) == load_recipe("mini")
