"""Evaluating and publishing as stages: resumable to the byte, honest without an instrument, strict about proofs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.numpy import save_file

from lora_foundry.backends.folder import FolderPublisher
from lora_foundry.domain.dataset import GenerationMetadata, ImageRequest, ReferenceUse
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.lora import LoraUse, SavedLora, TrainedLora
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.publication import Proof, Publication
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.errors import BackendError, InputError, StageError, VerificationError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import save_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.safetensors import read_header
from lora_foundry.files.storage import make_folder, require_model, write_model
from lora_foundry.ports import GeneratedImage, PublishedFiles, Trait
from lora_foundry.stages.evaluate import step as evaluate
from lora_foundry.stages.publish import step as publish
from tests.painted import PaintedGenerator, make_run, paint, quiet, tree

SETTINGS = ("generate.images=4", "generate.batch_size=3", "evaluate.prompts=4", "evaluate.seeds=2")


class Painter(PaintedGenerator):
    """With a LoRA the colours are the other way round, unless it is one that does nothing."""

    def __init__(self, breaks_after: int | None = None, effect: bool = True) -> None:
        super().__init__(breaks_after=breaks_after)
        self.effect = effect
        self.uses: list[LoraUse | None] = []

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        self.uses.append(lora)
        for request, image in super().generate(batches):
            yield GeneratedImage(request, ImageOps.invert(image) if lora and self.effect else image)


class Lookout:
    """A tagger that reads hair from whether the first pixel's red is even, which the painter's LoRA turns round."""

    def understand(self, tags: Iterable[str]) -> list[Trait]:
        return [Trait("hair_color", tag) for tag in tags if tag.endswith(" hair")]

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        reds = [image.convert("RGB").tobytes()[0] for image in images]
        return [{"hair_color": "red hair" if red % 2 else "brown hair"} for red in reds]


class Examiner:
    """A program that will use the LoRA; it says what it was shown, or refuses."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.news = refuses, list[str]()

    def prove(self, lora: LoraUse, request: ImageRequest, min_change: float) -> Proof:
        self.news.append(f"prove {lora.path.name} {request.prompt.split(',')[0]}")
        if self.refuses:
            raise VerificationError("It takes none of the keys.")
        return Proof(server="examiner", picture_change=9.0, keys=2)

    def installed(self, files: PublishedFiles) -> None:
        assert files.lora.is_file()
        self.news.append(f"installed {files.lora.name}")


class Ports:
    """Only what evaluating and publishing may ask for."""

    def __init__(self, generator: Painter | None = None, tagger: Lookout | None = None) -> None:
        self.generator = generator or Painter()
        self.tagger = tagger
        self.embedder = None
        self.prover: Examiner | None = None
        self.publisher = FolderPublisher()


def prepare(folder: Path, *settings: str, up: float = 0.5) -> tuple[Run, RunPaths]:
    """A run that stands just before its evaluation."""
    run = make_run(folder, *SETTINGS, *settings)
    paths = RunPaths(folder, run.character.slug)
    plan = plan_pictures(run.character, run.recipe, "painted [0]")
    pictures = tuple(
        save_picture(paths.images / record.file, paint(record.request.seed, (64, 64)), record)
        for record in (plan.record(index) for index in range(4))
    )
    write_model(paths.generation_metadata, GenerationMetadata(
        character=run.character.name, trigger=run.character.trigger, description="", recipe="mini", seed=1,
        model="painted [0]", fingerprint="x", pictures=pictures, seconds=0.0,
    ))  # fmt: skip
    train(paths, up)
    return run, paths


def train(paths: RunPaths, up: float) -> None:
    make_folder(paths.training)
    halves = {
        "x.lora_up.weight": np.full((2, 2), up, np.float16),
        "x.lora_down.weight": np.ones((2, 2), np.float16),
    }
    save_file(halves, paths.trained_lora)
    result = TrainedLora(path=paths.trained_lora, sha256=file_hash(paths.trained_lora), steps=5, final_loss=0.1,
                         seconds=1.0)  # fmt: skip
    write_model(paths.training_result, result)


def measure(run: Run, ports: Ports) -> Evaluation:
    return evaluate.run(run, ports, quiet)  # type: ignore[arg-type]


def install(run: Run, ports: Ports) -> Publication:
    return publish.run(run, ports, quiet)  # type: ignore[arg-type]


def test_both_sides_get_the_same_requests_and_only_one_the_lora(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    ports = Ports(tagger=Lookout())
    events: list[ProgressEvent] = []
    result = evaluate.run(run, ports, events.append)  # type: ignore[arg-type]
    assert [use is not None for use in ports.generator.uses] == [False, True, True]
    assert ports.generator.uses[1] == LoraUse(path=paths.trained_lora, strength=1.0)
    before, after = result.before.pictures, result.after.pictures
    assert [(each.prompt, each.seed) for each in before] == [(each.prompt, each.seed) for each in after]
    assert len(before) == 8
    assert len(result.without_trigger.pictures) == 4
    assert [event.done for event in events] == list(range(1, 21))
    assert {event.total for event in events} == {20}
    for one, other in zip(before, after, strict=True):
        pair = [Image.open(paths.evaluation_pictures() / each.file) for each in (one, other)]
        assert ImageOps.invert(pair[0]).tobytes() == pair[1].tobytes()


def test_scores_are_the_shares_that_the_pictures_show(tmp_path: Path) -> None:
    run, _ = prepare(tmp_path)
    result = measure(run, Ports(tagger=Lookout()))
    assert result.before.identity is not None
    assert result.after.identity is not None
    assert result.before.identity + result.after.identity == pytest.approx(1)
    right = sum(picture.traits_right for picture in result.after.pictures)
    assert result.after.identity == right / 8
    assert result.traits == {"hair_color": "brown hair"}
    assert result.held_out == result.shots == 4


def test_without_an_instrument_there_are_no_scores_and_the_reason_is_told(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    ports = Ports()
    result = measure(run, ports)
    assert result.before.identity is result.after.adherence is result.after.likeness is None
    assert "tagger = none" in result.note
    assert result.note in paths.report.read_text(encoding="utf-8")
    assert len(ports.generator.uses) == 2


def test_a_description_without_known_traits_is_told(tmp_path: Path) -> None:
    run, _ = prepare(tmp_path)
    stranger = run.character.model_copy(update={"tags": ("a mood",)})
    result = measure(run.model_copy(update={"character": stranger}), Ports(tagger=Lookout()))
    assert result.after.identity is None
    assert "names no trait" in result.note


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an evaluation that nothing interrupted."""
    run, paths = prepare(tmp_path_factory.mktemp("undisturbed"))
    measure(run, Ports(tagger=Lookout()))
    return tree(paths.evaluation)


@pytest.mark.parametrize("breaks_after", [0, 1, 4, 8, 13, 19])
def test_an_interrupted_evaluation_ends_as_an_undisturbed_one(
    tmp_path: Path, undisturbed: dict[str, bytes], breaks_after: int
) -> None:
    run, paths = prepare(tmp_path / "broken")
    with pytest.raises(BackendError):
        measure(run, Ports(Painter(breaks_after=breaks_after), Lookout()))
    assert not paths.evaluation_result.exists()
    second = Painter()
    measure(run, Ports(second, Lookout()))
    resumed = tree(paths.evaluation)
    assert resumed.keys() == undisturbed.keys()
    for name, content in resumed.items():
        if name != "report.html":  # it tells seconds
            assert content == undisturbed[name], name
    assert len(second.made) <= 20 - breaks_after + 2  # a batch is made as a whole


def test_a_finished_evaluation_is_taken_as_it_is(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    first = measure(run, Ports(tagger=Lookout()))
    idle = Ports(Painter(breaks_after=0), Lookout())
    assert measure(run, idle) == first
    looser = run.model_copy(
        update={"recipe": make_run(tmp_path, *SETTINGS, "evaluate.min_identity=0.5").recipe}
    )
    assert measure(looser, idle) == first
    paths.report.unlink()
    paths.before_after.unlink()
    measure(run, idle)
    assert paths.report.exists()
    assert paths.before_after.exists()


def test_another_lora_is_measured_anew_but_the_base_is_not(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    measure(run, Ports(tagger=Lookout()))
    train(paths, 0.25)
    ports = Ports(tagger=Lookout())
    result = measure(run, ports)
    assert None not in ports.generator.uses
    assert len(ports.generator.made) == 12
    assert result.trained_sha256 == file_hash(paths.trained_lora)


def test_damaged_and_forgotten_pictures_are_mended_and_removed(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    measure(run, Ports())
    good = tree(paths.evaluation_pictures())
    damaged = paths.evaluation_pictures("after") / "002_1.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (paths.evaluation_pictures("after") / "099_1.png").write_bytes(b"of older prompts")
    paths.evaluation_result.unlink()
    measure(run, Ports())
    assert tree(paths.evaluation_pictures()) == good


def test_a_missing_training_picture_is_named(tmp_path: Path) -> None:
    class Mirror:
        def embed(self, images: Sequence[Image.Image]) -> object:
            raise AssertionError

    run, paths = prepare(tmp_path)
    missing = next(iter(sorted(paths.images.glob("*.png"))))
    missing.unlink()
    ports = Ports()
    ports.embedder = Mirror()  # type: ignore[assignment]
    with pytest.raises(StageError, match=missing.name):
        measure(run, ports)


def test_a_proven_lora_is_installed_with_what_belongs_to_it(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    ports = Ports(tagger=Lookout())
    scores = measure(run, ports)
    result = install(run, ports)
    assert result.published
    assert result.lora is not None
    assert result.lora.read_bytes() == paths.chosen_lora.read_bytes()
    card = json.loads((tmp_path / "loras" / "zoë.metadata.json").read_text(encoding="utf-8"))
    assert card["character"] == "Zoë van Dijk"
    assert card["civitai"]["trainedWords"] == [card["trigger"]] == ["zoë van dijk"]
    assert json.loads(card["usage_tips"]) == {"strength": 1.0}
    assert card["size"] == result.lora.stat().st_size
    a1111 = json.loads((tmp_path / "loras" / "zoë.json").read_text(encoding="utf-8"))
    assert a1111["activation text"] == "zoë van dijk"
    assert a1111["preferred weight"] == 1.0
    assert card["sha256"] == file_hash(result.lora)
    assert card["scores"]["identity_after"] == scores.after.identity
    assert card["recipe"]["train"]["rank"] == run.recipe.train.rank
    with Image.open(tmp_path / "loras" / "zoë.preview.png") as preview:
        assert preview.size == (512, 512)
    assert "Published as zoë.safetensors" in paths.report.read_text(encoding="utf-8")
    assert require_model(paths.publication, Publication, "publish") == result


def test_the_program_that_will_use_it_is_asked_first_and_told_last(tmp_path: Path) -> None:
    run, _ = prepare(tmp_path)
    ports = Ports()
    ports.prover = Examiner()
    measure(run, ports)
    result = install(run, ports)
    assert result.proof == Proof(server="examiner", picture_change=9.0, keys=2)
    assert ports.prover.news == ["prove lora.safetensors zoë van dijk", "installed zoë.safetensors"]


def test_what_that_program_refuses_is_not_installed(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    ports = Ports()
    ports.prover = Examiner(refuses=True)
    measure(run, ports)
    with pytest.raises(VerificationError, match="none of the keys"):
        install(run, ports)
    assert not (tmp_path / "loras").exists()
    assert not paths.publication.exists()


def test_publishing_again_changes_nothing_and_mends_what_was_lost(tmp_path: Path) -> None:
    run, _ = prepare(tmp_path)
    ports = Ports()
    measure(run, ports)
    first = install(run, ports)
    folder = tmp_path / "loras"
    files = tree(folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert install(run, ports) == first
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for lost in files:
        (folder / lost).unlink()
        assert install(run, ports) == first
        assert tree(folder) == files


def test_a_lora_without_effect_is_not_published(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    ports = Ports(Painter(effect=False))
    measure(run, ports)
    with pytest.raises(VerificationError, match=r"0\.00 grey levels"):
        install(run, ports)
    assert not (tmp_path / "loras").exists()
    assert not paths.publication.exists()


@pytest.mark.parametrize("up", [float("nan"), 0.0])
def test_unsound_numbers_are_not_published(tmp_path: Path, up: float) -> None:
    run, _ = prepare(tmp_path, up=up)
    ports = Ports()
    measure(run, ports)
    with pytest.raises(VerificationError):
        install(run, ports)
    assert not (tmp_path / "loras").exists()


def test_a_file_that_was_not_measured_is_not_published(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    ports = Ports()
    measure(run, ports)
    train(paths, 0.25)
    with pytest.raises(VerificationError, match="trained and measured"):
        install(run, ports)


def test_a_file_that_was_changed_after_it_was_measured_is_not_published(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    ports = Ports()
    measure(run, ports)
    save_file({"x.lora_up.weight": np.full((2, 2), 0.25, np.float16)}, paths.chosen_lora)
    with pytest.raises(VerificationError, match="trained and measured"):
        install(run, ports)
    assert not (tmp_path / "loras").exists()


@pytest.mark.parametrize("tagger", [None, Lookout()])
def test_below_the_recipes_threshold_the_run_ends_without_publishing(
    tmp_path: Path, tagger: Lookout | None
) -> None:
    run, paths = prepare(tmp_path, "evaluate.min_identity=1", "evaluate.more_training=0")
    ports = Ports(tagger=tagger)
    measure(run, ports)
    result = install(run, ports)
    assert not result.published
    assert result.verdict.startswith("not published: identity ")
    assert result.lora is result.preview is result.metadata is None
    assert not (tmp_path / "loras").exists()
    assert "Not published: identity" in paths.report.read_text(encoding="utf-8")


def test_somebody_elses_file_stops_publishing_before_anything_is_written(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    ports = Ports()
    measure(run, ports)
    make_folder(tmp_path / "loras")
    (tmp_path / "loras" / "zoë.safetensors").write_bytes(b"theirs")
    with pytest.raises(InputError, match="not made here"):
        install(run, ports)
    assert tree(tmp_path / "loras") == {"zoë.safetensors": b"theirs"}
    assert not paths.publication.exists()


class Parrot(Painter):
    """Its last checkpoint knows one training picture only; the one before listens, as the base does."""

    def __init__(self, learned: Path) -> None:
        super().__init__(effect=False)
        self.learned = learned

    def generate(self, batches, lora=None, reference=None):  # type: ignore[no-untyped-def]
        for made in super().generate(batches, lora):
            overfitted = lora is not None and lora.path.name == "lora.safetensors"
            yield made._replace(image=Image.open(self.learned).convert("RGB")) if overfitted else made


class Constant:
    """An embedder to which everybody looks the same."""

    same = 0.5

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.tile(np.array([1, 0], np.float32), (len(images), 1))


def test_an_overfitted_checkpoint_is_recognised_and_not_taken(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    early = paths.saved_loras / "step-0002.safetensors"
    make_folder(early.parent)
    save_file({"x.lora_up.weight": np.full((2, 2), 0.1, np.float16)}, early)
    trained = require_model(paths.training_result, TrainedLora, "train")
    saved = (SavedLora(step=2, path=early, sha256=file_hash(early)),)
    write_model(paths.training_result, trained.model_copy(update={"saved": saved}))
    ports = Ports(Parrot(sorted(paths.images.glob("*.png"))[0]))
    ports.embedder = Constant()  # type: ignore[assignment]
    result = measure(run, ports)
    by_step = {each.step: each for each in result.candidates}
    assert by_step.keys() == {2, 5}
    assert by_step[5].memorised == 1.0
    assert by_step[5].score < by_step[2].score
    assert (result.step, result.overfit_from) == (2, 5)
    assert "training had gone on too long" in paths.report.read_text(encoding="utf-8")
    assert read_header(paths.chosen_lora).metadata["lora_foundry.recommended_strength"] == "1"


def save_checkpoints(paths: RunPaths, *steps: int) -> None:
    """Earlier exports beside the training's last step, which is 5."""
    saved = []
    make_folder(paths.saved_loras)
    for step in steps:
        path = paths.saved_loras / f"step-{step:04d}.safetensors"
        save_file({"x.lora_up.weight": np.full((2, 2), step / 10, np.float16)}, path)
        saved.append(SavedLora(step=step, path=path, sha256=file_hash(path)))
    trained = require_model(paths.training_result, TrainedLora, "train")
    write_model(paths.training_result, trained.model_copy(update={"saved": tuple(saved)}))


class Better(Painter):
    """Without a LoRA, and with one of the checkpoints that are good, hair is brown in every picture; else in none."""

    def __init__(self, *good: str, breaks_after: int | None = None) -> None:
        super().__init__(breaks_after)
        self.good = good
        self.by_file: dict[str, int] = {}

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        name = lora.path.name if lora else "base"
        for made in super().generate(batches):
            self.by_file[name] = self.by_file.get(name, 0) + 1
            colour = (0, 90, 120) if lora is None or name in self.good else (1, 90, 120)
            picture = Image.effect_noise((64, 64), 90).convert("RGB")
            picture.putpixel((0, 0), colour)
            yield made._replace(image=picture)


class Poses(Lookout):
    """Understands a shot, too, and sees it always."""

    def understand(self, tags: Iterable[str]) -> list[Trait]:
        words = list(tags)
        return super().understand(words) or [Trait("pose", words[0])] * bool(words)

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        return [{**row, "pose": "standing"} for row in super().read(images)]


def several(folder: Path, *settings: str) -> tuple[Run, RunPaths]:
    run, paths = prepare(
        folder, "evaluate.choice_prompts=6", "evaluate.prompts=8", "shots.impossible=[]", "generate.batch_size=4",
        'shots.poses=["standing"]', *settings,
    )  # fmt: skip
    save_checkpoints(paths, 2, 3)
    return run, paths


def test_one_that_is_clearly_better_is_found_on_half_of_the_pictures(tmp_path: Path) -> None:
    run, _ = several(tmp_path)
    painter = Better("step-0003.safetensors")
    result = measure(run, Ports(painter, Poses()))
    assert result.step == 3
    assert {each.step: each.pictures for each in result.candidates} == {2: 3, 3: 3, 5: 3}
    # Of the last checkpoint one batch, after which it has lost; of the chosen one everything that is reported, and
    # eight without the trigger; of the base none for the choice, since the tagger tells how far a prompt is followed.
    assert painter.by_file == {
        "base": 16,
        "step-0002.safetensors": 3,
        "step-0003.safetensors": 3 + 16 + 8,
        "lora.safetensors": 3 + 4,
    }
    assert len(result.after.pictures) == len(result.before.pictures) == 16


def test_what_is_reported_without_the_trigger_is_of_the_checkpoint_that_is_taken(tmp_path: Path) -> None:
    """It leads on the few prompts of the choice and loses on all: then the last one is, with all that is told of it."""

    class Lucky(Better):
        def generate(
            self,
            batches: Iterable[Sequence[ImageRequest]],
            lora: LoraUse | None = None,
            reference: ReferenceUse | None = None,
        ) -> Iterator[GeneratedImage]:
            listed = [list(batch) for batch in batches]
            self.good = (*self.good[:1], "step-0003.safetensors") if len(listed[0]) == 3 else self.good[:1]
            yield from super().generate(listed, lora)

    run, paths = several(tmp_path)
    painter = Lucky("nothing")
    result = measure(run, Ports(painter, Poses()))
    assert result.step == 5
    assert {each.file.split("/")[0] for each in result.after.pictures} == {"last"}
    assert len(result.after.pictures) == 16
    assert painter.by_file["lora.safetensors"] == 3 + 16 + 8
    assert read_header(paths.chosen_lora).metadata["lora_foundry.chosen_step"] == "5"


def test_a_checkpoint_that_is_named_is_compared_with_no_other_in_full(tmp_path: Path) -> None:
    run, paths = several(tmp_path, "evaluate.step=2")
    result = measure(run, Ports(Better("step-0003.safetensors"), Poses()))
    assert result.step == 2
    assert not paths.evaluation_pictures("last").exists()


@pytest.mark.parametrize("breaks_after", [2, 8, 20, 29, 40])
def test_an_interrupted_choice_ends_as_an_undisturbed_one(tmp_path: Path, breaks_after: int) -> None:
    straight, _ = several(tmp_path / "straight")
    measure(straight, Ports(tagger=Lookout()))
    run, paths = several(tmp_path / "broken")
    with pytest.raises(BackendError):
        measure(run, Ports(Painter(breaks_after=breaks_after), Lookout()))
    measure(run, Ports(Painter(), Lookout()))
    there = tree(tmp_path / "straight" / "evaluation")
    for name, content in tree(paths.evaluation).items():
        if name != "report.html":  # it tells seconds
            assert content == there.pop(name), name
    assert there.keys() == {"report.html"}
