"""Whether a change of the code changes what is learned: short trainings on the bundled miniature with fixed seeds, and
the SHA-256 of what each left (the LoRA's tensors and its losses). The figures hold for one machine and one version of
torch, so they are compared and not kept: write them with the code before, and again with the code after.

    python benchmarks/same_bytes.py --write before.json
    python benchmarks/same_bytes.py --against before.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
import tempfile
from pathlib import Path

from PIL import Image

from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.ports import TrainingImage, TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer

SHORT: dict[str, object] = {
    "rank": 4, "alpha": 4.0, "steps": 6, "batch_size": 2, "learning_rate": 2e-3, "lr_schedule": "cosine",
    "warmup_steps": 1, "resolution": 64, "precision": "fp32", "checkpoint_every": 2, "min_snr_gamma": 0.0, "seed": 7,
}  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "everything": {
        "precision": "bf16", "gradient_checkpointing": True, "shuffle_tags": True, "caption_dropout": 0.3,
        "noise_offset": 0.1, "min_snr_gamma": 5.0, "lr_schedule": "cosine_with_restarts", "restarts": 2,
        "weight_decay": 0.1,
    },
    "text encoder, convolutions": {"text_encoder_rate": 1e-3, "conv_rank": 2, "max_norm": 0.5, "ema": 0.9},
    "buckets, masks, flips": {
        "buckets": True, "mask": "alpha", "flip": True, "accumulation": 2, "batch_size": 1, "multires_noise": 0.3,
    },
    "dora, adafactor": {"network": "dora", "optimizer": "adafactor"},
    "validation, samples": {"validation": 0.3, "saves": 3, "sample_prompts": ["{trigger}"], "sample_steps": 1},
}  # fmt: skip


class _Stopped(Exception):
    """Stands for anything that ends a training between two steps."""


def train(folder: Path, images: tuple[TrainingImage, ...], options: dict[str, object], stop: int) -> str:
    """One training, stopped after step `stop` (0: not) and gone on with; the hash of what it left."""
    settings = TrainSection.model_validate(SHORT | options)
    job = TrainingJob(images, settings, "elara", folder / "lora.safetensors", folder, {})

    def progress(event: ProgressEvent) -> None:
        if stop and event.loss is not None and event.done >= stop:
            raise _Stopped

    trainer = InProcessTrainer(find_base("mini"), "cpu")
    if stop:
        try:
            trainer.train(job, progress)
        except _Stopped:
            stop = 0
    trainer.train(job, lambda event: None)
    data = job.output.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    files = sorted([*folder.glob("*.csv"), *folder.glob("samples/*.png")])
    left = [data[8 + length :], *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"".join(left)).hexdigest()


def make_pictures(folder: Path) -> tuple[TrainingImage, ...]:
    """Five pictures of two shapes, whose alpha channel is their mask."""
    images = []
    for number in range(5):
        picture = Image.new("RGBA", (96, 64) if number == 3 else (64, 64), (50 * number, 90, 200, 255))
        picture.paste((200, 40 * number, 10, 255), (10, 20, 40, 50))
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        path = folder / f"elara_{number}.png"
        picture.save(path)
        images.append(TrainingImage(path, f"elara, tag {number}, running, best quality", mask=path))
    return tuple(images)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="a file for the hashes")
    parser.add_argument(
        "--against", type=Path, help="such a file of the code before; the exit code says if equal"
    )
    options = parser.parse_args()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = make_pictures(Path(folder))
        for name, given in OPTIONS.items():
            for stop in (0, 5):
                place = Path(folder) / f"{len(found)}"
                found[f"{name}{', stopped' if stop else ''}"] = train(place, images, given, stop)
    if options.write:
        options.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not options.against:
        return 0
    before = json.loads(options.against.read_text(encoding="utf-8"))
    different = [name for name in found if before.get(name) != found[name]]
    print(f"{len(found) - len(different)} of {len(found)} equal", *different, sep="\n  ")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
