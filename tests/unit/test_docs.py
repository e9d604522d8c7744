"""A setting, command or recipe field that no page names does not exist for a user."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import typer

from lora_foundry.cli.app import app
from lora_foundry.domain.recipe import Recipe, field_paths
from lora_foundry.recipe_files import recipe_names
from lora_foundry.settings import Settings

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_every_recipe_field_is_documented_as_described_in_the_code() -> None:
    text = page("recipes.md")
    for path in field_paths():
        section: type = Recipe
        for part in path.split("."):
            field = section.model_fields[part]  # type: ignore[attr-defined]
            section = field.annotation
        assert f"`{path}`" in text, f"docs/recipes.md lacks {path}; run python docs/make_recipes_page.py"
        assert field.description.replace("|", "\\|") in text, f"docs/recipes.md is out of date for {path}"
    assert not [name for name in recipe_names() if f"`{name}`" not in text]


def test_every_setting_is_documented() -> None:
    text = page("settings.md")
    for name in Settings.model_fields:
        assert f"`LORA_FOUNDRY_{name.upper()}`" in text, f"docs/settings.md lacks {name}"


def test_every_command_and_option_is_documented() -> None:
    text = page("commands.md")
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert f"## {name}" in text, f"docs/commands.md lacks {name}"
        parameters = [
            *command.params,
            *(each for sub in getattr(command, "commands", {}).values() for each in sub.params),
        ]
        for parameter in parameters:
            for option in (each for each in parameter.opts if each.startswith("--")):
                assert f"`{option}`" in text, f"docs/commands.md lacks {option} of {name}"


def test_readme_names_the_two_commands_and_shows_a_real_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    picture = text.split("![", 1)[1].split("](", 1)[1].split(")", 1)[0]
    assert (ROOT / picture).stat().st_size > 10_000


def test_every_page_the_docs_link_to_exists() -> None:
    import re

    seen = 0
    for file in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8")):
            if "://" not in target:
                seen += 1
                assert (file.parent / target).exists(), f"{file} links to {target}, which is not there"
    assert seen > 20


def test_the_picture_of_the_architecture_shows_every_room() -> None:
    namespace = runpy.run_path(str(ROOT / "docs" / "make_architecture_picture.py"))
    rooms = namespace["rooms"]()
    assert {"families", "trainer", "tasks", "stages", "registry"} <= set(rooms)
    shown = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    missing = [name for name in rooms if f">{name}</text>" not in shown]
    assert not missing, f"docs/architecture.svg lacks {missing}; run python docs/make_architecture_picture.py"
    for name, room in rooms.items():
        assert not set(namespace["nearest"](name, rooms)) - room.uses


def test_places_that_the_documents_name_exist() -> None:
    gone = [
        f"{page.name}: {place}"
        for page in (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md")
        for place in re.findall(
            r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|toml))?)`", page.read_text(encoding="utf-8")
        )
        if not any((root / place).exists() for root in (ROOT, ROOT / "src" / "lora_foundry"))
        and not place.startswith(("images/", "training/", "evaluation/", "benchmarks/results"))
    ]
    assert not gone, gone
