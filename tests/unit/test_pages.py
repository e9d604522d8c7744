"""What the pages promise before any browser sees them: no way for text to become markup, nothing that the content
policy would have to allow, and little to load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_foundry.web import pages
from lora_foundry.web.routes import modules

WEB = Path(pages.__file__).parent
MODULES = sorted((WEB / "static" / "js").glob("*.js"))
PAGES = {page.name: page for page in pages.pages()}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_no_module_can_turn_text_into_markup_or_code(module: Path) -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|new Function"
    code = re.sub(r"//.*", "", module.read_text(encoding="utf-8"))
    assert not re.findall(ways, code)


@pytest.mark.parametrize("page", PAGES)
def test_pages_hold_nothing_inline_and_name_only_files_that_are_there(page: str) -> None:
    text = pages.render(PAGES[page], "some-id")
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert all('src="/static/' in tag for tag in re.findall(r"<script[^>]*>", text))
    files = re.findall(r'"/static/([^"]+)"', text)
    assert f"js/{page}.js" in files
    assert [file for file in files if not (WEB / "static" / file).is_file()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_control_has_a_name_and_every_id_is_there_once(page: str) -> None:
    text = pages.render(PAGES[page], "some-id")
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'\s(?:for|aria-labelledby|aria-describedby)="([^"]+)"', text):
        assert target in ids


def test_a_page_and_a_route_are_found_by_lying_in_the_folder() -> None:
    """Adding one changes no list: the module is there, the menu has its words, every page has its template and script."""
    folder = {path.stem for path in (WEB / "routes").glob("*.py")} - {"__init__"}
    assert {module.__name__.rpartition(".")[2] for module in modules()} == folder
    menu = re.findall(r"</svg>\s*([\w ]+)</a>", pages.render(PAGES["run"], "some-id").partition("<nav")[2])
    assert menu[:3] == ["Runs", "New character", "System"]
    assert len(menu) == len([page for page in PAGES.values() if page.words])
    for name in PAGES:
        assert (WEB / "templates" / f"{name}.html.jinja").is_file()
        assert (WEB / "static" / "js" / f"{name}.js").is_file()


def test_an_address_is_escaped() -> None:
    text = pages.render(PAGES["run"], '"><img src=x onerror=alert(1)>')
    assert "<img src=x" not in text


def test_modules_import_only_modules_that_are_there_and_ids_that_pages_have() -> None:
    templates = "".join(path.read_text(encoding="utf-8") for path in (WEB / "templates").iterdir())
    known = set(re.findall(r'id="([^"{]+)"', templates))
    for module in MODULES:
        text = module.read_text(encoding="utf-8")
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert (module.parent / name).is_file(), f"{module.name} imports {name}"
        assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= known, module.name


def loaded_by(page: str) -> set[Path]:
    """The script of a page, what it imports at any depth, and its stylesheets."""
    templates = [
        (WEB / "templates" / f"{name}.html.jinja").read_text(encoding="utf-8") for name in ("base", page)
    ]
    named = re.findall(r'static/([\w.]+\.(?:css|js))"', "".join(templates))
    found, open_ = {WEB / "static" / name for name in named}, [f"{page}.js"]
    while open_:
        module = WEB / "static" / "js" / open_.pop()
        if module not in found:
            found.add(module)
            open_ += re.findall(r'from "\./([^"]+)"', module.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_loads_is_light(page: str) -> None:
    files = loaded_by(page)
    assert len(files) > 4, "nothing was followed"
    assert sum(path.stat().st_size for path in files) < 75_000
