"""The product as a user meets it: the command line on the real miniature model, start to finish."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_foundry import Character, Foundry
from lora_foundry.api import CreateResult
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.files.images import read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.safetensors import read_header
from lora_foundry.files.storage import require_model
from tests.commands import Commands, Done
from tests.homes import SMALL, Homes
from tests.painted import paint


def lora_foundry(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Starts the program as a person does, with `home` as LORA_FOUNDRY_HOME and small settings."""
    environment = {**os.environ, "LORA_FOUNDRY_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    return subprocess.run(
        [sys.executable, "-m", "lora_foundry", *arguments, *changes(SMALL)],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip


def changes(settings: tuple[str, ...]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture
def command(commands: Commands, home: Path) -> Callable[..., Done]:
    """A command that answers at once; `home` is LORA_FOUNDRY_HOME."""

    def run(*words: str, home: Path = home, settings: tuple[str, ...] = ()) -> Done:
        return commands.run(*words, *changes(settings), environment={"LORA_FOUNDRY_HOME": str(home)})

    return run


def test_create_makes_everything_the_contract_names(command: Callable[..., Done], home: Path) -> None:
    done = lora_foundry(home, "create", "Zoë van Dijk", "-d", "1girl, brown hair, blue eyes, armor", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "completed"
    assert set(result["scores"]) == {
        "identity_before",
        "identity_without_trigger",
        "identity_after",
        "identity_uncertainty",
        "adherence_before",
        "adherence_after",
        "likeness_before",
        "likeness_after",
    }
    assert all(0 <= score <= 1 for score in result["scores"].values())
    assert set(result["seconds"]) == {"generate", "curate", "caption", "train", "evaluate", "publish"}

    folder = home / "datasets" / "Zoë van Dijk"
    assert Path(result["dataset_dir"]) == folder
    names = [f"zoë_van_dijk_{number:03d}" for number in range(1, 7)]
    assert sorted(path.name for path in (folder / "images").iterdir()) == [
        f"{name}.{kind}" for name in names for kind in ("png", "txt")
    ]
    metadata = json.loads((folder / "generation_metadata.json").read_text(encoding="utf-8"))
    for name, picture in zip(names, metadata["pictures"], strict=True):
        assert picture["file"] == f"{name}.png"
        assert len(picture["shot"]) == 5
        assert picture["request"]["seed"] > 0
        with Image.open(folder / "images" / picture["file"]) as image:
            assert image.size == (64, 64)
            assert image.info["parameters"].startswith(picture["request"]["prompt"])
    captions = json.loads((folder / "tagging_results.json").read_text(encoding="utf-8"))["captions"]
    assert all(caption["text"].startswith("zoë van dijk, ") for caption in captions)
    report = Path(result["report_path"]).read_text(encoding="utf-8")
    assert "Zoë van Dijk" in report
    lora = Path(result["lora_path"])
    assert lora == home / "loras" / "zoë_van_dijk_mini.safetensors"
    beside = json.loads(lora.with_name("zoë_van_dijk_mini.metadata.json").read_text(encoding="utf-8"))
    assert beside["trigger"] == "zoë van dijk"
    with Image.open(lora.with_name("zoë_van_dijk_mini.preview.png")) as preview:
        assert preview.width > 400

    # Nothing is made twice: no picture, caption or weight is written again.
    made = [
        *folder.glob("images/*"),
        *folder.glob("checkpoints/*"),
        *folder.glob("evaluation/**/*.png"),
        lora,
    ]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert len(before) > 2 * 12
    again = json.loads(command("create", "Zoë van Dijk", "-d", "1girl, brown hair, blue eyes, armor", "--json",
                               settings=SMALL).stdout)  # fmt: skip
    assert again["scores"] == result["scores"]
    assert {path: path.stat().st_mtime_ns for path in made} == before


BAD_INPUT = {
    "empty name": (("",), (), "name is empty"),
    "slash": (("a/b",), (), "'/'"),
    "dots": (("..",), (), "folder on every system"),
    "emoji": (("fire\N{FIRE}",), (), "letters, digits"),
    "long name": (("n" * 300,), (), "300 characters"),
    "empty description": (("Elara", "-d", ""), (), "description is empty"),
    "unknown recipe": (("Elara", "-r", "mimi"), (), "did you mean 'mini'"),
    "unknown key": (("Elara",), ("train.rnk=3",), "did you mean 'train.rank'"),
    "rank 0": (("Elara",), ("train.rank=0",), "train.rank = 0"),
    "0 images": (("Elara",), ("generate.images=0",), "generate.images = 0"),
    "no such base": (("Elara",), ("model.base=nowhere.safetensors",), "nowhere.safetensors"),
    "unknown trainer": (("Elara",), ("train.backend=kohia",), "train.backend"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(
    command: Callable[..., Done], home: Path, case: str
) -> None:
    arguments, settings, words = BAD_INPUT[case]
    described = arguments if "-d" in arguments else (*arguments, "-d", "1girl")
    done = command("create", *described, settings=settings)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.strip().count("\n") == 0
    assert not home.exists(), "something was left half-made"


@pytest.mark.parametrize("option", ["--reference", "--pictures"])
@pytest.mark.parametrize("name", ["empty.png", "words.jpg"])
def test_a_file_that_is_no_picture_is_refused_at_once_by_its_own_name(
    command: Callable[..., Done], home: Path, tmp_path: Path, option: str, name: str
) -> None:
    (tmp_path / name).write_text("only words" if name == "words.jpg" else "")
    done = command("create", "Foo", "-r", "mini", option, str(tmp_path / name))
    assert done.returncode == 2
    assert f"{tmp_path / name} is not a picture that can be read" in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not [path for path in home.rglob("*") if path.suffix in {".png", ".jpg", ".db"}], (
        "something is kept"
    )
    assert option == "--pictures" or not home.exists()


def test_what_lies_beside_own_pictures_and_is_none_is_said(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    paint(1, (64, 64)).save(photos / "a.png")
    (photos / "notes.docx").touch()
    done = command("create", "Mira", "-r", "mini", "--pictures", str(photos), "--detach")
    assert done.returncode == 0, done.stderr
    assert "1 file is no picture and was left out: notes.docx" in done.stderr
    assert "docx" not in done.stdout


def test_errors_are_json_where_json_was_asked_for(command: Callable[..., Done]) -> None:
    done = command("create", "a/b", "-d", "1girl", "--json")
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["status"] == "failed"
    assert answer["kind"] == "InputError"
    assert answer["retryable"] is False


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 a zip with a pickle in it" + bytes(100), "pickle"),
        (b"\x00\x01\x00\x00\x00\x00\x00\x00{}", "not a whole safetensors file (10 bytes)"),
        (b"", "not a whole safetensors file (0 bytes)"),
    ],
)
def test_bases_that_cannot_be_used_are_told_apart(
    command: Callable[..., Done], home: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes(content)
    done = command("create", "Elara", "-d", "1girl", settings=(f"model.base={base}",))
    assert done.returncode == 2
    assert words in done.stderr.lower()
    assert done.stderr.strip().count("\n") == 0
    assert not home.exists()


def test_a_home_that_cannot_be_made_is_one_sentence(command: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = command("create", "Elara", "-d", "1girl", home=tmp_path / "file" / "home")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_recipes_and_doctor_answer(command: Callable[..., Done]) -> None:
    listed = command("recipes")
    assert listed.returncode == 0
    assert "mini" in listed.stdout
    assert "sd15" in listed.stdout
    shown = command("recipes", "sd15", "--json")
    assert json.loads(shown.stdout)["train"]["rank"] == 32
    assert "train.rank" not in shown.stderr
    healthy = command("doctor", "--json")
    assert healthy.returncode == 0, healthy.stdout
    ill = command("doctor", "-r", "sd15")
    assert ill.returncode == 1
    assert "dreamshaper_8.safetensors" in ill.stdout
    assert "->" in ill.stdout


def test_a_run_tells_of_all_its_stages_in_their_order(homes: Homes) -> None:
    assert homes.seen == ["generate", "curate", "caption", "train", "evaluate", "publish"]


def test_one_picture_becomes_a_lora_without_a_word(command: Callable[..., Done], home: Path) -> None:
    done = command("demo", "--from-picture", "--json", settings=SMALL)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["trigger"]) == ("completed", "mira")
    assert 0 <= result["scores"]["identity_after"] <= 1
    paths = RunPaths(home / "datasets" / "Mira", "mira")
    drawn = [read_record(file) for file in sorted(paths.images.glob("mira_0*.png"))]
    assert len(drawn) >= 4
    assert all(
        record is not None and record.request.prompt.startswith("1girl, ") for record in drawn
    )  # what it shows
    assert [file.name for file in paths.images.glob("*_reference*.png")], "the picture itself is in the set"


def test_two_characters_become_one_lora(command: Callable[..., Done], home: Path, tmp_path: Path) -> None:
    """One from words, one from own pictures, through the command and the task table."""
    own = tmp_path / "photos"
    own.mkdir()
    for number in range(3):
        paint(number, (64, 64)).save(own / f"{number}.png")
    (tmp_path / "duo.toml").write_text(
        'name = "Duo"\n[[character]]\nname = "Elara"\ndescription = "1girl, brown hair, red dress"\n'
        '[[character]]\nname = "Kai"\ndescription = "1boy, white hair, blue hoodie"\npictures = ["photos"]\n'
    )
    done = command("create", "--cast", str(tmp_path / "duo.toml"), "-r", "mini", "--json", settings=SMALL)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["trigger"]) == ("completed", "elara, kai")
    assert [each["name"] for each in result["cast"]["members"]] == ["Elara", "Kai"]
    pairs = {(each["called"], each["shown"]) for each in result["cast"]["bleed"]}
    assert pairs == {("Elara", "Kai"), ("Kai", "Elara")}
    metadata = read_header(Path(result["lora_path"])).metadata
    assert [each["trigger"] for each in json.loads(metadata["lora_foundry.cast"])] == ["elara", "kai"]
    card = json.loads(Path(result["lora_path"]).with_suffix(".metadata.json").read_text(encoding="utf-8"))
    assert card["civitai"]["trainedWords"] == ["elara", "kai"]
    assert len(list((home / "datasets" / "Duo" / "members" / "Kai" / "images").glob("*.png"))) == 3
    assert [file.name for file in sorted(own.iterdir())] == ["0.png", "1.png", "2.png"]


def test_the_python_api_works_in_an_event_loop(homes: Homes, home: Path, elara: Character) -> None:
    homes.copy(home, before="publish")
    seen: list[str] = []

    async def create() -> CreateResult:
        return await Foundry(home).acreate(
            elara, "mini", settings=SMALL, progress=lambda event: seen.append(event.stage)
        )

    assert asyncio.run(create()).lora_path == home / "loras" / "elara_mini.safetensors"
    assert seen[-1] == "publish"


def test_other_settings_redo_only_what_they_touch(finished: Path, elara: Character) -> None:
    images = finished / "datasets" / "Elara" / "images"
    before = {path.name: path.stat().st_mtime_ns for path in images.glob("*.png")}
    assert len(before) == 6
    weights = (finished / "loras" / "elara_mini.safetensors").read_bytes()
    Foundry(finished).create(elara, "mini", settings=[*SMALL, "train.steps=16"])
    assert before == {path.name: path.stat().st_mtime_ns for path in images.glob("*.png")}
    assert weights != (finished / "loras" / "elara_mini.safetensors").read_bytes()


def test_too_little_identity_is_trained_longer_once_and_then_said(
    homes: Homes, home: Path, elara: Character
) -> None:
    """Nobody reaches an identity of 1 in a dozen steps: half as many more are taken, then the run ends unpublished."""
    homes.copy(home, before="train")
    demanding = [*SMALL, "evaluate.min_identity=1", "evaluate.more_training=1", "evaluate.choose=false"]
    told: list[str] = []
    result = Foundry(home).create(
        elara, "mini", settings=demanding, progress=lambda event: told.append(event.message)
    )
    assert any("training longer" in message for message in told)
    paths = RunPaths(result.dataset_dir, elara.slug)
    assert require_model(paths.training_result, TrainedLora, "train").steps == 18
    assert not result.published
    assert result.verdict.startswith("not published: identity")
    before = paths.trained_lora.stat().st_mtime_ns
    assert not Foundry(home).create(elara, "mini", settings=demanding).published
    assert paths.trained_lora.stat().st_mtime_ns == before, (
        "it was trained longer as often as the recipe allows"
    )
