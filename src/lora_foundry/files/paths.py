"""The only place that spells a folder's or a file's name; the layout is a contract with other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """Everything below one character's dataset folder."""

    root: Path
    slug: str

    @property
    def run_file(self) -> Path:
        """What this folder was made from: character, recipe, output name."""
        return self.root / "run.json"

    @property
    def versions(self) -> Path:
        """The versions before the current one, each whole."""
        return self.root / VERSIONS

    def version(self, number: int) -> Path:
        """One of them, counted from 1."""
        return self.versions / f"{number:02d}"

    @property
    def lock(self) -> Path:
        """Held while a run works in this folder."""
        return self.root / ".lock"

    @property
    def stored(self) -> Path:
        """With which state of the storage the folder was in step last; there only where there is a storage."""
        return self.root / ".stored.json"

    @property
    def images(self) -> Path:
        return self.root / "images"

    def image(self, index: int) -> Path:
        """The picture of shot `index`, counted from 0; files count from 001."""
        return self.images / f"{self.slug}_{index + 1:03d}.png"

    @staticmethod
    def caption(image: Path) -> Path:
        """The caption of a picture that was made here; a person's own may have theirs elsewhere (training_set)."""
        return image.with_suffix(".txt")

    @property
    def triage(self) -> Path:
        """What was found of the own pictures before the training."""
        return self.root / "triage.json"

    @property
    def triage_report(self) -> Path:
        """The same for people, with the pictures."""
        return self.root / "triage.html"

    @property
    def crops(self) -> Path:
        """Which files of images/ were cut from which own pictures."""
        return self.root / "crops.json"

    @property
    def reference(self) -> Path:
        """The character's reference image, as a run has taken it in."""
        return self.root / "reference.png"

    @property
    def reference_in_set(self) -> Path:
        """The same as a picture of the set: of all of them it is the one that surely shows the character."""
        return self.images / f"{self.slug}_reference.png"

    @property
    def rounds(self) -> Path:
        """The sets before the last, where a recipe asks for several rounds."""
        return self.root / ROUNDS

    def round(self, number: int) -> RoundPaths:
        """One of them, counted from 1."""
        return RoundPaths(self.rounds / f"{number:02d}", self.slug)

    @property
    def rejected(self) -> Path:
        """Pictures that curation set aside, kept for the report."""
        return self.root / "rejected"

    @property
    def candidates(self) -> Path:
        """Where curation keeps what it has made again until the set is decided; empty, and gone, afterwards."""
        return self.root / "candidates"

    def attempt(self, folder: Path, index: int, attempt: int) -> Path:
        """A picture of shot `index` outside images/: rejected or not yet decided on."""
        return folder / f"{self.slug}_{index + 1:03d}_attempt{attempt + 1}.png"

    def previous_images(self) -> Path:
        """The first free folder for pictures of an older plan."""
        number = 1
        while (folder := self.root / f"images.previous-{number}").exists():
            number += 1
        return folder

    @property
    def generation_metadata(self) -> Path:
        return self.root / "generation_metadata.json"

    @property
    def curation(self) -> Path:
        return self.root / "curation.json"

    @property
    def exclusions(self) -> Path:
        """Which pictures of images/ a person has thrown out."""
        return self.root / "exclusions.json"

    @property
    def edits(self) -> Path:
        """What a person changed in the set, step by step."""
        return self.root / ".edits"

    @property
    def tagging_results(self) -> Path:
        return self.root / "tagging_results.json"

    @property
    def captions_journal(self) -> Path:
        """Which captions are not a person's; there only while captions are being written."""
        return self.root / ".captions.json"

    @property
    def masks(self) -> Path:
        """Masks of the pictures in images/, by the same names: white is what counts."""
        return self.root / "masks"

    @property
    def regularisation(self) -> Path:
        """Pictures of nobody, trained beside the set."""
        return self.root / "regularisation"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def training_result(self) -> Path:
        return self.training / "result.json"

    @property
    def more_training(self) -> Path:
        return self.training / "more.json"

    @property
    def trained_lora(self) -> Path:
        return self.training / "lora.safetensors"

    @property
    def saved_loras(self) -> Path:
        """Exports kept while training (`saved_lora`), each of which the evaluation can measure."""
        return self.training / SAVED

    @property
    def samples(self) -> Path:
        """Pictures made while training went on."""
        return self.training / "samples"

    @property
    def sample_request(self) -> Path:
        """Asks the running training for sample pictures."""
        return self.training / SAMPLE_REQUEST

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def evaluation_result(self) -> Path:
        return self.evaluation / "scores.json"

    @property
    def chosen_lora(self) -> Path:
        """The checkpoint that was chosen, with what was found in its metadata."""
        return self.evaluation / "lora.safetensors"

    def evaluation_pictures(self, side: str = "") -> Path:
        """Where the evaluation's pictures lie; `side` is "before" or "after"."""
        return self.evaluation / "pictures" / side

    @property
    def before_after(self) -> Path:
        return self.evaluation / "before_after.png"

    @property
    def preview(self) -> Path:
        """The picture that is published beside the LoRA."""
        return self.evaluation / "preview.png"

    @property
    def report(self) -> Path:
        return self.evaluation / "report.html"

    @property
    def trials(self) -> Path:
        """Prompts that a person has tried with the finished LoRA, a folder each."""
        return self.root / "trials"

    def trial(self, name: str) -> TrialPaths:
        return TrialPaths(self.trials / name)

    @property
    def publication(self) -> Path:
        return self.root / "publication.json"


@dataclass(frozen=True)
class TrialPaths:
    """One prompt that was tried: what was asked, and a picture a seed without and with the LoRA."""

    root: Path

    @property
    def result(self) -> Path:
        return self.root / "trial.json"

    def picture(self, side: str, number: int) -> Path:
        return self.root / f"{side}_{number + 1}.png"


@dataclass(frozen=True)
class RoundPaths:
    """Everything of one set before the last."""

    root: Path
    slug: str

    @property
    def images(self) -> Path:
        return self.root / "images"

    def image(self, index: int) -> Path:
        return self.images / f"{self.slug}_{index + 1:03d}.png"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def lora(self) -> Path:
        return self.root / "lora.safetensors"

    @property
    def result(self) -> Path:
        return self.root / "round.json"


@dataclass(frozen=True)
class BinPaths:
    """One thing that was deleted: a note of what it was, and its parts by number, before their names."""

    home: Path
    name: str

    @property
    def bin(self) -> Path:
        return self.home.expanduser().absolute() / "bin"

    @property
    def root(self) -> Path:
        return self.bin / self.name

    @property
    def entry(self) -> Path:
        return self.root / "entry.json"

    def part(self, number: int, name: str) -> Path:
        return self.root / f"{number:03d}-{name}"


def task_log(home: Path, task_id: int) -> Path:
    """What the attempts of a task said, on the host that ran them."""
    return home.expanduser().absolute() / "logs" / "tasks" / f"{task_id}.log"


def published_lora(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def published_preview(folder: Path, name: str) -> Path:
    """The name ComfyUI and A1111 look for beside a LoRA."""
    return folder / f"{name}.preview.png"


def published_metadata(folder: Path, name: str) -> Path:
    """ComfyUI-Lora-Manager's name for what it knows of a LoRA."""
    return folder / f"{name}.metadata.json"


def published_card(folder: Path, name: str) -> Path:
    """A1111's name for what it knows of a LoRA."""
    return folder / f"{name}.json"


def saved_lora(workdir: Path, step: int) -> Path:
    """The export that was kept after `step` steps, below training/."""
    return workdir / SAVED / f"step-{step:04d}.safetensors"


def training_sample(workdir: Path, step: int, number: int) -> Path:
    """A picture drawn after `step` steps, below training/."""
    return workdir / SAMPLES / f"step-{step:04d}-{number}.png"


def training_samples(workdir: Path) -> list[tuple[Path, int]]:
    """The pictures that were drawn while training, each with the steps that were done then."""
    named = ((path, path.stem.split("-")[1]) for path in sorted((workdir / SAMPLES).glob("step-*-*.png")))
    return [(path, int(step)) for path, step in named if step.isdecimal()]


VERSIONS = "versions"
ROUNDS = "rounds"
SAMPLE_REQUEST = ".sample-now"  # asks a running training for its sample pictures; it takes the file away
TRAINING_CONFIG = "config.json"
TRAINING_LOG = "log.txt"
TRAINING_LOSS = "loss.csv"
RECORDING = "recording"  # there while a training's steps are recorded for the GPU
VALIDATION_LOSS = "validation.csv"
CHECKPOINTS = "checkpoints"
SAVED = "saved"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
CACHE = "cache"
