"""Several characters in one LoRA: who may be in a cast, what its training is made of, and how each is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lora_foundry.cli.cast import EXAMPLE, read_cast
from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import Caption, GenerationMetadata, ImageRequest, TaggingResults
from lora_foundry.domain.evaluation import Bleed, Evaluation
from lora_foundry.domain.lora import LoraUse, TrainedLora
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.run import Run
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import save_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, write_model
from lora_foundry.pipeline import PIPELINE
from lora_foundry.ports import GeneratedImage, Trait
from lora_foundry.recipe_files import load_recipe
from lora_foundry.stages.evaluate import cast as evaluate
from lora_foundry.stages.train.step import for_cast, training_images
from tests.painted import PaintedGenerator, PaintedPorts, make_run, paint, quiet, tree

COLOURS = ("red hair", "brown hair", "blue hair")
POSES = load_recipe("mini").shots.poses
SETTINGS = ("generate.images=4", "evaluate.prompts=3", "evaluate.seeds=2")


def member(name: str, description: str = "1girl, red hair", **more: str) -> Member:
    return Member(character=Character(name=name, description=description, **more))


def cast_of(folder: Path, *members: Member) -> Run:
    values = make_run(folder, *SETTINGS, name="Duo").model_dump() | {
        "members": members,
        "dataset_dir": folder,
    }
    return Run.model_validate(values)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([member("Elara")], "2 to 6 characters; this one has 1"),
        ([member(f"Name {letter}") for letter in "abcdefg"], "this one has 7"),
        ([member("Elara"), member("elara")], "Two characters of the cast"),
        ([member("Kai"), member("Kai Lan")], "is part of Kai Lan's trigger"),
        ([member("Elara"), member("Kai", trigger="ELARA")], "is part of"),
        (
            [member("Elara"), member("Kai", description="")],
            "Kai has neither a description, a reference nor pictures",
        ),
        (
            [member("Elara"), Member(character=member("Kai").character, source="reference")],
            "Kai has no reference",
        ),
    ],
)
def test_who_cannot_be_in_one_lora_is_said(tmp_path: Path, members: list[Member], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cast_of(tmp_path, *members)


def test_triggers_that_only_share_letters_are_kept(tmp_path: Path) -> None:
    assert cast_of(tmp_path, member("Kai"), member("Kaia")).triggers == ("kai", "kaia")


def test_a_members_run_is_one_of_its_own_and_survives_json(tmp_path: Path) -> None:
    run = cast_of(tmp_path, member("Elara"), Member(character=Character(name="Kai"), source="own"))
    assert Run.model_validate_json(run.model_dump_json()) == run
    elara, kai = run.member_runs
    assert (elara.dataset_dir, kai.dataset_dir) == (tmp_path / "members/Elara", tmp_path / "members/Kai")
    assert (elara.draws, kai.draws) == (True, False)
    assert not elara.members
    assert run.trigger == "elara, kai"
    assert run.described == "Elara: 1girl, red hair; Kai"
    alone = make_run(tmp_path)
    assert alone.member_runs == (alone,)


def test_the_file_says_who_is_in_it_and_where_their_pictures_are(tmp_path: Path) -> None:
    (tmp_path / "photos" / "zo").mkdir(parents=True)
    (tmp_path / "kai.png").write_bytes(b"")
    (tmp_path / "trio.toml").write_text(EXAMPLE)
    cast = read_cast(tmp_path / "trio.toml")
    assert [each.character.name for each in cast.members] == ["Elara", "Kai", "Zo"]
    assert cast.members[1].character.reference_image == tmp_path / "kai.png"
    assert (cast.members[0].source, cast.members[2].source) == ("auto", "own")
    assert cast.pictures == {"Zo": (tmp_path / "photos" / "zo",)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is no TOML"),
        ('name = "Duo"', "has no characters.*It looks like this"),
        ('name = "Duo"\ncharacter = []', "has no characters.*It looks like this"),
        (EXAMPLE, "there is no .*kai.png"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "cast.toml").write_text(text)
    with pytest.raises(InputError, match=f"(?s){said}"):
        read_cast(tmp_path / "cast.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_cast(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("first", "elara", "said"),
    [
        ("name='Duo'", "[[character]]\nname='Elara'\ndescripton='x'",
         "Elara has no 'descripton'; did you mean 'description'?"),
        ("name='Duo'", "[[character]]\nnam='Elara'", "Character 1 has no 'nam'; did you mean 'name'?"),
        ("name='Duo'", "[[character]]\nname=' '",
         'Character 1 needs a name: write name = "Elara" below its [[character]].'),
        ("name='Duo'", "[[character]]\nname='Elara'\ntags=['x']", "Elara's 'tags' must be words in quotes."),
        ("name='Duo'", "[[character]]\nname='Elara'\npictures=[1]",
         "Elara's 'pictures' must be a path in quotes, or a list of them."),
        ("name='Duo'", "[[character]]\nname='Elara'\ntrigger='a,b'",
         "Elara: The trigger 'a,b' cannot be used: 1 to 64 characters without a comma."),
        ("name='Duo'", "[[characters]]\nname='Elara'", "Write [[character]], not [[characters]]."),
        ("name='Duo'", "[character]\nname='Elara'", "Write [[character]], not [character]."),
        ("name='Duo'\nrecipe='mini'", "[[character]]\nname='Elara'",
         "A cast has no 'recipe'; known: character, name"),
        ("", "[[character]]\nname='Elara'",
         'The LoRA needs a name: write name = "Trio" in the first line.'),
    ],
)  # fmt: skip
def test_a_fault_in_the_file_is_one_sentence_that_names_whose_it_is(
    tmp_path: Path, first: str, elara: str, said: str
) -> None:
    (tmp_path / "cast.toml").write_text(f"{first}\n{elara}\n")
    with pytest.raises(InputError) as error:
        read_cast(tmp_path / "cast.toml")
    assert str(error.value) == said


def test_one_folder_of_pictures_needs_no_list(tmp_path: Path) -> None:
    (tmp_path / "zo").mkdir()
    (tmp_path / "kai").mkdir()
    text = (
        "name='Duo'\n[[character]]\nname='Zo'\npictures='zo'\n[[character]]\nname='Kai'\npictures=['kai']\n"
    )
    (tmp_path / "cast.toml").write_text(text)
    assert read_cast(tmp_path / "cast.toml").pictures == {
        "Zo": (tmp_path / "zo",),
        "Kai": (tmp_path / "kai",),
    }


class Mixer(PaintedGenerator):
    """The first pixel says hair and pose. With a LoRA the hair is that of whom the prompt calls, but every other of Kai's
    pictures shows Elara instead; and where nobody is called, some poses are wrong."""

    def generate(
        self, batches: Iterable[Sequence[ImageRequest]], lora: LoraUse | None = None, reference: object = None
    ) -> Iterator[GeneratedImage]:
        for request, image in super().generate(batches, lora):
            shown = 2  # the base draws blue hair
            if lora is not None:
                called = request.prompt.split(",")[0]
                shown = 0 if called == "elara" or (called == "kai" and request.seed % 2) else 1
            asked = [POSES.index(part) for part in request.prompt.split(", ") if part in POSES]
            pose = asked[0] + (lora is not None and shown == 1 and "kai" not in request.prompt)
            image.putpixel((0, 0), (shown, pose, 0))
            yield GeneratedImage(request, image)


class Lookout:
    """Reads the first pixel."""

    def understand(self, tags: Iterable[str]) -> list[Trait]:
        known = {**dict.fromkeys(COLOURS, "hair_color"), **dict.fromkeys(POSES, "pose")}
        return [Trait(known[tag], tag) for tag in tags if tag in known]

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        pixels = [image.convert("RGB").tobytes()[:2] for image in images]
        return [{"hair_color": COLOURS[hair % 3], "pose": POSES[pose % len(POSES)]} for hair, pose in pixels]


def prepare(folder: Path) -> tuple[Run, RunPaths]:
    """A cast that stands just before its evaluation."""
    run = cast_of(folder, member("Elara"), member("Kai", description="1boy, brown hair"))
    for number, each in enumerate(run.member_runs):
        paths = RunPaths(each.dataset_dir, each.character.slug)
        plan = plan_pictures(each.character, each.recipe, "painted [0]")
        count = 4 if number else 2
        pictures = tuple(
            save_picture(paths.images / record.file, paint(record.request.seed + number, (64, 64)), record)
            for record in (plan.record(index) for index in range(count))
        )
        write_model(paths.generation_metadata, GenerationMetadata(
            character=each.character.name, trigger=each.character.trigger, description="", recipe="mini", seed=1,
            model="painted [0]", fingerprint="x", pictures=pictures, seconds=1.5,
        ))  # fmt: skip
        captions = tuple(
            Caption(file=each.file, text=f"tag {number}", source="template") for each in pictures
        )
        for picture in pictures:
            (paths.images / picture.file).with_suffix(".txt").write_text(
                f"{each.character.trigger}, tag {number}"
            )
        write_model(
            paths.tagging_results,
            TaggingResults(
                character=each.character.name,
                trigger=each.character.trigger,
                captioner="template",
                pruned=(),
                fingerprint="x",
                captions=captions,
            ),
        )
    paths = RunPaths(folder, run.character.slug)
    make_folder(paths.training)
    save_file({"x.lora_up.weight": np.ones((2, 2), np.float16)}, paths.trained_lora)
    result = TrainedLora(path=paths.trained_lora, sha256=file_hash(paths.trained_lora), steps=5, final_loss=0.1,
                         seconds=1.0)  # fmt: skip
    write_model(paths.training_result, result)
    return run, paths


def measure(run: Run, generator: Mixer | None = None) -> Evaluation:
    ports: Any = PaintedPorts(
        generator or Mixer(), Lookout()
    )  # of a stage's ports it has what this one asks for
    return evaluate.run(run, ports, quiet)


def test_one_training_takes_all_sets_and_shows_all_characters_as_often(tmp_path: Path) -> None:
    run, _ = prepare(tmp_path)
    images = training_images(run)
    assert [image.caption for image in images] == ["elara, tag 0"] * 2 + ["kai, tag 1"] * 4
    assert [image.repeats for image in images] == [2] * 2 + [1] * 4  # as many samples of each
    assert for_cast(run.recipe.train, 2).steps == 2 * run.recipe.train.steps
    assert for_cast(run.recipe.train, 0) == run.recipe.train


def test_each_character_is_measured_and_what_a_trigger_brings_of_another(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    result = measure(run)
    assert result.cast is not None
    elara, kai = result.cast.members
    shown = [each.seen["hair_color"] for each in result.after.pictures[6:]].count("red hair") / 6
    assert 0 < shown < 1  # or the test would show nothing
    assert (elara.identity_before, elara.identity_after) == (0.0, 1.0)
    assert kai.identity_after == pytest.approx(1 - shown, abs=1e-4)
    assert result.after.identity == pytest.approx((1.0 + kai.identity_after) / 2, abs=1e-4)
    assert result.cast.bleed == (
        Bleed(called="Elara", shown="Kai", share=0.0, chance=0.0),
        Bleed(called="Kai", shown="Elara", share=round(shown, 4), chance=0.0),
    )
    assert result.cast.mean_bleed == pytest.approx(shown / 2, abs=1e-4)
    assert result.cast.drift == 1.0  # all poses are wrong where nobody is called
    assert (elara.identity_without_trigger, kai.identity_without_trigger) == (0.0, 1.0)
    assert result.trigger == "elara, kai"
    assert len({each.file for each in result.after.pictures}) == 12
    assert "of Elara" in result.assessment.reason or shown <= 0.2
    report = paths.report.read_text(encoding="utf-8")
    assert "The characters" in report
    assert "<code>kai</code>" in report
    assert Evaluation.model_validate_json(paths.evaluation_result.read_text()) == result


@pytest.mark.parametrize("breaks_after", [5, 20])
def test_an_interrupted_evaluation_of_a_cast_ends_as_an_undisturbed_one(
    tmp_path: Path, breaks_after: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    measure(prepare(whole)[0])
    run, _ = prepare(broken)
    stops = Mixer(breaks_after=breaks_after)
    with pytest.raises(BackendError):
        measure(run, stops)
    measure(run)
    ends = [tree(folder / "evaluation") for folder in (whole, broken)]
    for each in ends:
        del each["report.html"]  # it tells seconds
    assert ends[0] == ends[1]
    rested = Mixer()
    measure(run, rested)
    assert rested.made == []


def test_stages_before_the_training_work_on_one_character_after_another(tmp_path: Path) -> None:
    run = cast_of(tmp_path, member("Elara"), member("Kai", description="1boy, brown hair"))
    told: list[str] = []
    stages = {stage.name: stage for stage in PIPELINE}
    ports: Any = PaintedPorts(Mixer())
    stages["generate"].load()(run, ports, lambda event: told.append(event.message))
    for each in run.member_runs:
        assert len(list(RunPaths(each.dataset_dir, each.character.slug).images.glob("*.png"))) == 4
        assert any(message.startswith(each.character.name) for message in told)
