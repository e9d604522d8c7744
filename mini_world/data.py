"""Pictures drawn once and kept as memory-mapped shards, so that training never waits for the renderer
and every script sees the same pictures. A shard is a folder of arrays; scene number i of seed s can
always be drawn again from (s, i), which is how captions are sampled afresh for pictures that are stored
only once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mini_world.scene import Scene, attributes, sample_character, sample_scene
from mini_world.vocabulary import ATTRIBUTES, TRAITS

IMAGE_SIZE = 64
WEIGHT_SCALE = 16
ATTRIBUTE_NAMES = tuple(ATTRIBUTES)
GROUP_CHARACTERS = 8
GROUP_SHOTS = 4


@dataclass(frozen=True)
class Shard:
    """Pictures with what they show: uint8 images, uint8 loss weights (x16), int8 attribute indices."""

    images: np.ndarray
    weights: np.ndarray
    labels: np.ndarray
    seed: int
    first: int


def scene_at(seed: int, index: int) -> Scene:
    """The scene that has this number in the endless list that the seed stands for."""
    return sample_scene(np.random.default_rng([seed, index]))


def labels_of(scene: Scene) -> list[int]:
    """Attribute indices in the fixed order, -1 for what the picture does not show."""
    shown = attributes(scene)
    return [shown[name] for name in ATTRIBUTE_NAMES]


def picture_seed(seed: int, index: int) -> int:
    """The renderer's own seed for one picture: different pictures jitter differently."""
    return int(np.random.default_rng([seed, index, 1]).integers(2**31))


def write_shard(folder: Path, seed: int, first: int, count: int) -> None:
    """Draw `count` scenes into a folder, written aside and renamed, so that a shard is whole or absent."""
    from mini_world.render import render_with_weight

    if folder.exists():
        return
    aside = folder.with_name(f"{folder.name}.part{os.getpid()}")
    aside.mkdir(parents=True)
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    weights = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    labels = np.empty((count, len(ATTRIBUTE_NAMES)), np.int8)
    for place in range(count):
        scene = scene_at(seed, first + place)
        picture, weight = render_with_weight(scene, picture_seed(seed, first + place))
        images[place] = picture
        weights[place] = np.clip(np.rint(weight * WEIGHT_SCALE), 0, 255).astype(np.uint8)
        labels[place] = labels_of(scene)
    for name, array in (("images", images), ("weights", weights), ("labels", labels)):
        np.save(aside / f"{name}.npy", array)
    (aside / "shard.json").write_text(json.dumps({"seed": seed, "first": first, "count": count}))
    aside.rename(folder)


def open_shard(folder: Path) -> Shard:
    """A shard's arrays, left on disk and mapped into memory."""
    about = json.loads((folder / "shard.json").read_text())
    images, weights, labels = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "weights", "labels")
    )
    return Shard(images, weights, labels, about["seed"], about["first"])


def shard_folders(root: Path) -> list[Path]:
    """Finished shards in order."""
    return sorted(path.parent for path in root.glob("shard-*/shard.json") if ".part" not in path.parent.name)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def build_shards(root: Path, seed: int, shards: int, size: int) -> None:
    """Draw numbered shards of `size` pictures each; those that exist are kept."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        write_shard(root / f"shard-{number:03d}", seed, number * size, size)
        print(f"{root.name}: shard {number + 1} of {shards}", flush=True)


def _changed(character, rng: np.random.Generator):
    """The same character with one to three traits drawn anew: a near relative, hard to tell apart."""
    values = {name: getattr(character, name) for name in TRAITS}
    for name in rng.permutation(list(TRAITS))[: int(rng.integers(1, 4))]:
        values[str(name)] = str(rng.choice(TRAITS[str(name)]))
    return type(character)(**values)


def group_scenes(seed: int, index: int) -> list[list[Scene]]:
    """Eight characters, half of them relatives of another, each in the same four shots: what the encoder
    learns from, since only the character tells the rows apart and only the shot the columns."""
    rng = np.random.default_rng([seed, index])
    characters = [sample_character(rng) for _ in range(GROUP_CHARACTERS // 2)]
    characters += [_changed(character, rng) for character in characters]
    shots = [sample_scene(rng) for _ in range(GROUP_SHOTS)]
    rows = []
    for character in characters:
        rows.append(
            [
                Scene(character, s.pose, s.expression, s.view, s.framing, s.lighting, s.background)
                for s in shots
            ]
        )
    return rows


def build_groups(root: Path, seed: int, count: int, shard: int = 100) -> None:
    """Draw the encoder's groups, a file of one hundred at a time: images (groups, 8, 4, 64, 64, 3)."""
    from mini_world.render import render

    root.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, shard):
        target = root / f"groups-{first:05d}.npy"
        if target.exists():
            continue
        block = np.empty((shard, GROUP_CHARACTERS, GROUP_SHOTS, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for place in range(shard):
            rng = np.random.default_rng([seed, first + place, 2])
            for row, scenes in enumerate(group_scenes(seed, first + place)):
                for column, scene in enumerate(scenes):
                    block[place, row, column] = render(scene, int(rng.integers(2**31)))
        aside = target.with_suffix(".part.npy")
        np.save(aside, block)
        aside.rename(target)
        print(f"groups: {first + shard} of {count}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures that the models are trained on.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kind", choices=("pictures", "held-out", "groups"), default="pictures")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--size", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--anew", action="store_true", help="throw away what was drawn before")
    options = parser.parse_args()
    root = options.work / options.kind
    if options.anew:
        shutil.rmtree(root, ignore_errors=True)
    if options.kind == "groups":
        build_groups(root, options.seed if options.seed is not None else 31, options.shards * 100)
    else:
        default = {"pictures": 11, "held-out": 12}[options.kind]
        build_shards(
            root, options.seed if options.seed is not None else default, options.shards, options.size
        )


if __name__ == "__main__":
    main()
