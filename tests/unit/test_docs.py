"""A setting, command or recipe field that no page names does not exist for a user."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from lora_foundry.domain.recipe import field_paths
from lora_foundry.recipe_files import load_recipe, recipe_names
from lora_foundry.settings import Settings
from lora_foundry.trainer.memory import RESERVE

ROOT = Path(__file__).parents[2]


PAGES = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["PAGES"]


# The page of the memory takes seconds to make.
SLOW = {"memory.md"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PAGES]
)
def test_a_page_of_the_reference_says_what_the_code_says(name: str) -> None:
    text = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert text == PAGES[name](), f"docs/reference/{name} is out of date; run python docs/make_reference.py"


def test_a_recipe_names_the_smallest_card_that_its_training_fits() -> None:
    """By the table of the memory page, which a test above keeps true."""
    table = [
        line.split(" | ") for line in (ROOT / "docs/reference/memory.md").read_text("utf-8").splitlines()
    ]
    rows = {cells[0].split("`")[1]: cells[2:] for cells in table if cells[0].startswith("| `")}
    assert len(rows) >= 4
    for name, cells in rows.items():
        fitting = [
            size for size, cell in zip((8, 12, 16, 24), cells, strict=True) if not cell.startswith("no")
        ]
        if not fitting:
            # A larger card than the table's: the smallest that holds it beside what the desktop takes.
            least = float(cells[-1].removeprefix("no: ").split(" GiB")[0])
            fitting = [size for size in (32, 48, 80) if least <= size - RESERVE]
        assert f"a GPU with {fitting[0]} GB." in load_recipe(name).description, name


def test_the_reference_names_every_field_setting_and_command() -> None:
    """What the pages are made from is not empty, and nothing in it goes without a word of explanation."""
    recipes, settings, commands = (PAGES[name]() for name in ("recipes.md", "settings.md", "commands.md"))
    assert not [path for path in field_paths() if f"`{path}`" not in recipes]
    assert not [name for name in recipe_names() if f"`{name}`" not in recipes]
    assert not [name for name in Settings.model_fields if f"`LORA_FOUNDRY_{name.upper()}`" not in settings]
    assert {"## create", "### tasks retry", "### workflows check"} <= set(commands.splitlines())
    assert not [line for line in (recipes + settings + commands).splitlines() if line.endswith("|  |")]


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [
        path.relative_to(ROOT / "docs").as_posix()
        for path in (ROOT / "docs").rglob("*.md")
        if "decisions" not in path.parts and path.name != "README.md"
    ]
    assert not [page for page in pages if f"]({page}" not in index]


def test_readme_names_the_two_commands_and_shows_a_real_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
    picture = text.split("![", 1)[1].split("](", 1)[1].split(")", 1)[0]
    assert (ROOT / picture).stat().st_size > 10_000


def test_every_page_the_docs_link_to_exists() -> None:
    seen = 0
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8")):
            if "://" not in target:
                seen += 1
                assert (file.parent / target).exists(), f"{file} links to {target}, which is not there"
    assert seen > 20


def test_every_heading_the_docs_link_to_exists() -> None:
    seen = 0
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]:
        for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", file.read_text(encoding="utf-8")):
            page = file.parent / target if target else file
            if page.suffix == ".md":
                seen += 1
                assert heading in headings(page), f"{file} links to {target}#{heading}, which is not there"
    assert seen > 2


def headings(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them: small letters, blanks as dashes, nothing else but words."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


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


def test_files_that_a_decision_names_exist() -> None:
    roots = (ROOT, ROOT / "src", ROOT / "src" / "lora_foundry")
    gone = [
        f"{page.name}: {place}"
        for page in sorted((ROOT / "docs" / "decisions").glob("*.md"))
        for place in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page.read_text(encoding="utf-8"))
        if not any((root / place).exists() for root in roots)
    ]
    assert not gone, gone
