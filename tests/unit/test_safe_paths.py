"""What a request from elsewhere may name on this machine: every path-valued field of a recipe, at every door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lora_foundry.domain.recipe import Recipe, setting_values
from lora_foundry.domain.sections.base import LocalPath
from lora_foundry.errors import InputError, PermanentError
from lora_foundry.files.safe_paths import folders_of, markers_of, path_values, remember
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.tasks.payloads import prepare

# Fields of free text: words for prompts, captions and people. Whoever adds a field of text says here that it never
# becomes a path, or marks it with LocalPath where it is declared.
WORDS = {
    "name",
    "description",
    # ComfyUI's own names, looked up by its server:
    "generate.checkpoint",
    "generate.reference_checkpoint",
    "generate.text_encoder",
    "generate.vae",
    "generate.sampler",
    "generate.scheduler",
    "model.source",
    "model.train_source",
    "model.licence",  # for `setup`, a command of this machine
    "generate.prefix",
    "generate.suffix",
    "generate.negative",
    "caption.keep",
    "caption.quality_tags",
    "train.image_repeats",  # names of pictures, compared and never opened
    "train.sample_prompts",
}


def fields_below(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields_below(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def holds_text(annotation: Any) -> bool:
    return annotation is str or any(
        holds_text(part) for part in get_args(annotation) if not isinstance(part, str)
    )


PATHS = {path: marker for path, field in fields_below(Recipe) for marker in markers_of(field)}

LISTS = {path for path, field in fields_below(Recipe) if get_origin(field.annotation) is tuple}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", comfyui=tmp_path / "comfyui")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.safetensors").write_bytes(b"x")
    (folder / "secret.json").write_text("{}", encoding="utf-8")
    return folder


def payload(path: str, value: str) -> dict[str, Any]:
    said = [value] if path in LISTS else value
    return {"character_name": "Elara", "description": "1girl", "settings": {path: said}}


def refused(settings: Settings, path: str, value: str) -> str:
    with pytest.raises(PermanentError) as caught:
        prepare("generation", payload(path, value), settings)
    assert len(str(caught.value)) < 500
    return str(caught.value).replace(value[:80], "VALUE")


def test_every_text_of_a_recipe_is_words_a_choice_or_a_marked_path() -> None:
    unsaid = {
        path
        for path, field in fields_below(Recipe)
        if holds_text(field.annotation)
        and not path.startswith("shots.")
        and not markers_of(field)
        and "OneOf" not in repr(field)
    }
    assert unsaid == WORDS
    assert len(PATHS) >= 6


@pytest.mark.parametrize("path", PATHS)
def test_nothing_outside_is_named_and_the_refusal_tells_nothing(
    path: str, settings: Settings, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outside)
    there, absent = str(outside / "secret.safetensors"), str(outside / "absent.safetensors")
    assert refused(settings, path, there) == refused(settings, path, absent)
    folder = folders_of(PATHS[path].place, settings)[0]
    folder.mkdir(parents=True)
    for value in (
        str(outside), "..", ".", "~", "~root", "/", "/etc/passwd", "../outside/secret.json", "a/../../b", "secret.json",
        str(folder / ".." / ".." / "outside" / "secret.json"),
        f"file://{outside}", "x" * 5000, str(folder / ("x" * 5000)),
    ):  # fmt: skip
        assert "secret.safe" not in refused(settings, path, value), value
    (folder / "link").symlink_to(outside)
    refused(settings, path, str(folder / "link" / "secret.safetensors"))


@pytest.mark.parametrize(
    "path", [path for path, marker in PATHS.items() if marker.place != "models" or not marker.names]
)
def test_what_lies_in_the_folders_is_taken(path: str, settings: Settings) -> None:
    for folder in folders_of(PATHS[path].place, settings):
        value = str(folder / "sub" / "file.json")
        run = prepare("generation", payload(path, value), settings).run
        assert value in {found for where, _, found in path_values(run.recipe.model_dump()) if where == path}


def test_the_old_base_model_goes_through_the_same_check(settings: Settings, outside: Path) -> None:
    training = {"character_name": "Elara", "training_dir": "Elara", "output_name": "elara"}
    for value in ("..", str(outside / "secret.safetensors"), "/etc/passwd", "~/x"):
        with pytest.raises(PermanentError):
            prepare("training", training | {"base_model": value}, settings)


def test_a_whole_recipe_in_a_payload_is_checked_and_a_file_of_this_machine_is_not(
    settings: Settings, outside: Path
) -> None:
    recipe = load_recipe("mini", [f'train.regularisation_folder="{outside}"'])
    request = {"character_name": "Elara", "description": "1girl"}
    with pytest.raises(InputError, match="regularisation_folder"):
        prepare("generation", request | {"recipe": recipe.model_dump(mode="json")}, settings)
    own = settings.home / "recipes" / "own.toml"
    own.parent.mkdir(parents=True)
    text = (Path(__file__).parents[2] / "src/lora_foundry/recipes/mini.toml").read_text(encoding="utf-8")
    own.write_text(text.replace("[train]", f'[train]\nregularisation_folder = "{outside}"'), encoding="utf-8")
    run = prepare("generation", request | {"recipe": "own", "settings": {"seed": 3}}, settings).run
    assert run.recipe.train.regularisation_folder == str(outside)
    for name in ("../recipes/own", str(own), "x" * 5000, "absent", "own.toml/..", ""):
        with pytest.raises(InputError):
            prepare("generation", request | {"recipe": name}, settings)


def test_what_a_command_of_this_home_named_its_workers_may_read(
    settings: Settings, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outside.parent)
    given = ["train.regularisation_folder=outside", "generate.workflow=sd15", "model.instruments="]
    changes = remember(setting_values(given), settings)
    assert changes == [f'train.regularisation_folder="{outside}"']
    request = {"character_name": "Elara", "description": "1girl", "settings": setting_values(changes)}
    assert prepare("generation", request, settings).run.recipe.train.regularisation_folder == str(outside)
    with pytest.raises(InputError):  # that folder, and nothing beside it or in it
        prepare("generation", payload("train.regularisation_folder", str(outside / "x")), settings)
    assert remember(setting_values(given), settings) == changes


def test_a_marker_may_stand_in_a_list_or_a_table() -> None:
    class Section(BaseModel):
        files: tuple[Annotated[str, LocalPath("models")], ...] = ()
        table: dict[str, Annotated[str, LocalPath("models")]] = {}

    values = {"files": ("a", ""), "table": {"k": "b"}, "other": "c"}
    assert [(path, value) for path, _, value in path_values(values, Section)] == [
        ("files", "a"),
        ("table", "b"),
    ]
