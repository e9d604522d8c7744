"""The report and the grid: one file, everything escaped, readable when little is there."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lora_foundry.domain.character import Character
from lora_foundry.domain.curation import CurationResult, Reason, Verdict
from lora_foundry.domain.dataset import Caption, GenerationMetadata, PictureRecord, Round, TaggingResults
from lora_foundry.domain.evaluation import CastScores, Evaluation, EvaluationPicture, MemberScores, ScoreRow
from lora_foundry.domain.held_out import evaluation_prompts, held_out_shots
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.run import Run
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, write_model, write_text
from lora_foundry.recipe_files import load_recipe, recipe_names
from lora_foundry.stages._shared.loss_curve import HEIGHT, WIDTH, draw_loss, read_losses
from lora_foundry.stages._shared.report import recipe_text, write_report
from lora_foundry.stages.evaluate.before_after import draw_before_after, enlarge, made_from, spread

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def make_run(folder: Path, description: str = "1girl, brown hair", recipe: str = "mini") -> Run:
    character = Character(name="Zoë", description=description)
    return Run(character=character, recipe=load_recipe(recipe), dataset_dir=folder, lora_dir=folder,
               output_name="x")  # fmt: skip


def make_scores(pictures: tuple[EvaluationPicture, ...] = (), note: str = "") -> Evaluation:
    row = ScoreRow(identity=0.5, adherence=0.25, identity_by_trait={"hair_color": 0.5}, likeness=-0.001,
                   adherence_by_attribute={"pose": 0.75}, pictures=pictures)  # fmt: skip
    return Evaluation(character="Zoë", trigger="zoë", model="base", before=row, after=row, without_trigger=ScoreRow(),
                      strength=1.0, lora_sha256="ab", traits={"hair_color": HOSTILE}, shots=1, held_out=1,
                      note=note, fingerprint="", seconds=1.25)  # fmt: skip


class Reader(HTMLParser):
    """What a browser would load or run, and whether every tag is closed."""

    VOID = frozenset({"meta", "img", "br", "line", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in {"src", "href", "srcset"}:
                self.sources.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path, "zoë")
    for folder in (paths.evaluation_pictures(), paths.training, paths.images, paths.rejected):
        make_folder(folder)
    return paths


def fill(paths: RunPaths) -> tuple[EvaluationPicture, ...]:
    """What all stages leave, with something hostile wherever a user's words can stand."""
    Image.new("RGB", (64, 64), "red").save(paths.images / "zoë_001.png")
    Image.new("RGB", (768, 768), "blue").save(paths.evaluation_pictures() / "1.png")
    Image.new("RGB", (64, 64)).save(paths.rejected / "2.png")
    caption = Caption(file="zoë_001.png", text=f"zoë, {HOSTILE}", source="edited")
    write_model(paths.tagging_results, TaggingResults(
        character="Zoë", trigger="zoë", captioner="plan", pruned=(), fingerprint="", captions=(caption,)
    ))  # fmt: skip
    verdict = Verdict(file="rejected/2.png", index=1, attempt=0, seed=5, accepted=False,
                      reasons=(Reason(code="blank", text=f"it is blank {HOSTILE}"),))  # fmt: skip
    write_model(paths.curation, CurationResult(
        character="Zoë", fingerprint="", wanted=1, made=2, budget=2, accepted=(), rejected=(verdict,), coverage=(),
        seconds=0.5,
    ))  # fmt: skip
    write_text(paths.training / "loss.csv", "step,loss,learning_rate\n1,0.5,1e-3\n2,0.4,1e-3\n")
    shot = held_out_shots(load_recipe("mini").shots, 1, 1, ())[0]
    return (
        EvaluationPicture(file="1.png", shot=shot, prompt="p", seed=123456, traits_right=1, traits_seen=2),
    )


def test_the_report_is_one_whole_file_and_escapes_everything(paths: RunPaths) -> None:
    run = make_run(paths.root, description=f"1girl, {HOSTILE}")
    write_report(run, paths, make_scores(fill(paths), note=HOSTILE))
    text = paths.report.read_text(encoding="utf-8")
    page = Reader(text)
    assert not page.open
    assert HOSTILE not in text
    assert "&lt;img src=x" in text
    assert not {"script", "link", "iframe"} & page.tags
    assert len(page.sources) == 4
    assert all(re.match("data:image/(png|jpeg);base64,", source) for source in page.sources)
    assert "http" not in text
    assert "url(" not in text
    assert len(text) < 60_000, "large pictures were not made small"


def test_the_report_tells_what_there_is_to_tell(paths: RunPaths) -> None:
    run = make_run(paths.root)
    write_report(run, paths, make_scores(fill(paths)))
    text = paths.report.read_text(encoding="utf-8")
    assert "Measured, not published yet" in text
    for words in ("0.50", "0.25", "0.75", "0.00", "hair color", "<polyline", "it is blank", "caption written by hand",
                  "1 of 2 visible traits right", "seed 123456", "1.2 s", "batch_size = 8", "42 for plan"):  # fmt: skip
        assert words in text, words
    assert "-0.00" not in text


@pytest.mark.parametrize(
    ("published", "words"), [(True, "Published as x.safetensors"), (False, "Not published: too bad")]
)
def test_the_verdict_stands_at_the_top(paths: RunPaths, published: bool, words: str) -> None:
    verdict = Publication(published=published, verdict="not published: too bad")
    write_report(make_run(paths.root), paths, make_scores(), verdict)
    assert words in paths.report.read_text(encoding="utf-8").split("</header>")[0]


def test_a_report_of_almost_nothing_is_still_one(tmp_path: Path) -> None:
    row = ScoreRow()
    scores = make_scores().model_copy(update={"before": row, "after": row, "traits": {}})
    write_report(make_run(tmp_path), RunPaths(tmp_path, "zoë"), scores)
    text = RunPaths(tmp_path, "zoë").report.read_text(encoding="utf-8")
    assert not Reader(text).open
    assert "not measured" in text
    assert "<svg" not in text
    assert "Rejected" not in text


@pytest.mark.parametrize("name", recipe_names())
def test_the_shown_recipe_can_be_used_again(name: str) -> None:
    recipe = load_recipe(name, ['caption.keep=["a \\"b\\" \\\\ é"]'])
    assert tomllib.loads(recipe_text(recipe)) == recipe.model_dump(mode="json")


def test_the_loss_curve_stays_inside_its_drawing(tmp_path: Path) -> None:
    assert draw_loss([]) is None
    assert draw_loss([(1, 0.5)]) is None
    for losses in ([(1, 0.5), (2, 0.5)], [(step, 1 / step) for step in range(1, 5000)]):
        curve = draw_loss(losses)
        assert curve is not None
        for line in (curve.raw, curve.smooth):
            points = [tuple(map(float, point.split(","))) for point in line.split()]
            assert 2 <= len(points) <= 300
            assert all(curve.left <= x <= curve.right and 0 <= y <= curve.bottom for x, y in points)
        assert curve.right < WIDTH
        assert curve.bottom < HEIGHT
        assert (curve.first, curve.last) == (curve.first, losses[-1][0])
    assert read_losses(tmp_path / "none.csv") == []


def records(count: int) -> list[PictureRecord]:
    run = make_run(Path())
    shots = held_out_shots(run.recipe.shots, count, 1, ())
    return evaluation_prompts(run.character, run.recipe, shots, "model", "without_trigger")


def run_of(character: Character) -> Run:
    return make_run(Path()).model_copy(update={"character": character})


@pytest.mark.parametrize("name", ["Elara", "Zoë", "Дарья", "花", "n" * 60])
@pytest.mark.parametrize("count", [1, 7])
def test_the_grid_is_a_picture_of_both_rows(tmp_path: Path, name: str, count: int) -> None:
    character = Character(name=name, description=", ".join(["1girl", "very long hair"] * 40))
    black, white = [Image.new("RGB", (64, 64), tone) for tone in ("black", "white")]
    draw_before_after(
        tmp_path / "grid.png", run_of(character), records(count), [black] * count, [white] * count
    )
    with Image.open(tmp_path / "grid.png") as grid:
        column = {grid.getpixel((240, y)) for y in range(grid.height)}
        assert grid.width == 164 + min(count, 6) * 202 - 10
    assert {(0, 0, 0), (255, 255, 255)} <= column


@pytest.mark.parametrize(
    ("character", "words"),
    [
        (Character(name="Mira", description="1girl, red hair"), "trained on pictures of: 1girl, red hair"),
        (
            Character(name="Mira", reference_image=Path("mira.png")),
            "trained on pictures drawn from one of the character",
        ),
        (Character(name="Mira"), "trained on own pictures"),
        (Character(name="Mira", description="花"), ""),
    ],
)
def test_the_grid_says_what_the_person_brought(character: Character, words: str) -> None:
    assert made_from(run_of(character)) == words


def test_the_columns_are_spread_and_pictures_keep_their_shape() -> None:
    assert spread(7, 6) == [0, 1, 2, 3, 4, 5]
    assert spread(64, 4) == [0, 16, 32, 48]
    assert spread(2, 6) == [0, 1]
    assert enlarge(Image.new("RGB", (100, 50)), 192).size == (192, 96)
    checks = Image.frombytes("RGB", (2, 1), bytes([0, 0, 0, 255, 255, 255]))
    assert len(enlarge(checks, 64).getcolors() or []) == 2


def test_the_rounds_are_told_with_what_they_added(tmp_path: Path) -> None:
    run, paths = make_run(tmp_path), RunPaths(tmp_path, "zoë")
    place = paths.round(1)
    make_folder(place.images)
    Image.new("RGB", (8, 8), "red").save(place.image(0))
    done = Round(number=1, fingerprint="x", model="base", distance=0.4, cohesion=0.9,
                 kept=(place.image(0).name, "gone.png"), completed=(HOSTILE, "green eyes"))  # fmt: skip
    last = done.model_copy(update={"number": 2, "kept": (), "completed": (), "lora": "ab"})
    metadata = GenerationMetadata(character="Zoë", trigger="zoë", description="", recipe="mini", seed=1, model="base",
                                  fingerprint="x", pictures=(), rounds=(done, last), seconds=1.0)  # fmt: skip
    write_model(paths.generation_metadata, metadata)
    write_report(run, paths, make_scores())
    text = paths.report.read_text(encoding="utf-8")
    assert "Round 1: mean distance 0.40, of those kept 0.10; added to the description: &lt;img" in text
    assert "green eyes." in text
    assert "a short LoRA was trained on them" in text
    assert len(Reader(text).sources) == 1


def test_a_character_of_a_cast_without_a_description_is_named_and_has_no_figures(tmp_path: Path) -> None:
    run, paths = make_run(tmp_path), RunPaths(tmp_path, "zoë")
    told = MemberScores(name="Kai", trigger="kai", identity_before=0.25, identity_after=0.75)
    scores = make_scores().model_copy(
        update={"cast": CastScores(members=(told, MemberScores(name="Zo", trigger="zo")))}
    )
    write_report(run, paths, scores)
    text = paths.report.read_text(encoding="utf-8")
    assert "Zo: without a description" in text
    assert "<b>–</b>" not in text
    assert "<b>0.75</b>" in text
