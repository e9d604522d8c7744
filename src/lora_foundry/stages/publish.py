"""Installs the LoRA, but only one that was proven: sound numbers, every key known to the base, and a picture that
changes when it is on. A file that a user loads in vain is worse than none."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.errors import VerificationError
from lora_foundry.paths import RunPaths
from lora_foundry.pictures import file_hash, load_picture
from lora_foundry.ports import Ports, ProgressCallback
from lora_foundry.storage import read_model, require_model, write_model

_ITEM_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def run(run: Run, ports: Ports, progress: ProgressCallback) -> Publication:
    """Proves and installs the LoRA, or says why it stays here. Raises VerificationError for a LoRA that is no good."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    lora = require_model(paths.training_result, TrainedLora, "train")
    scores = require_model(paths.evaluation_result, Evaluation, "evaluate")
    made_from = fingerprint(
        run.recipe.publish, run.recipe.evaluate, lora.sha256, str(run.lora_dir), run.output_name
    )
    earlier = read_model(paths.publication, Publication)
    if earlier is not None and earlier.fingerprint == made_from and _still_there(earlier):
        return earlier
    progress(ProgressEvent(stage="publish", done=0, total=3, unit="check", message="numbers"))
    check_numbers(lora.path)
    if file_hash(lora.path) != lora.sha256 or scores.lora_sha256 != lora.sha256:
        raise VerificationError(
            f"{lora.path} is not the file that was trained and measured; run the command again."
        )
    progress(ProgressEvent(stage="publish", done=1, total=3, unit="check", message="effect on the pictures"))
    change = picture_change(paths, scores)
    if change < run.recipe.publish.min_change:
        raise VerificationError(
            f"The LoRA changes its pictures by {change:.2f} grey levels only (publish.min_change is "
            f"{run.recipe.publish.min_change:g}); train longer or at a higher rate."
        )
    progress(ProgressEvent(stage="publish", done=2, total=3, unit="check", message="copying"))
    result = _publish(run, ports, paths, lora, scores, change, made_from)
    write_model(paths.publication, result)
    progress(ProgressEvent(stage="publish", done=3, total=3, unit="check", message=result.verdict))
    return result


def _publish(
    run: Run,
    ports: Ports,
    paths: RunPaths,
    lora: TrainedLora,
    scores: Evaluation,
    change: float,
    made_from: str,
) -> Publication:
    identity, least = scores.after.identity, run.recipe.evaluate.min_identity
    if identity is not None and identity < least:
        verdict = f"not published: identity {identity:.2f} is below evaluate.min_identity {least:.2f}"
        return Publication(published=False, verdict=verdict, picture_change=change, fingerprint=made_from)
    files = ports.publisher.publish(
        lora.path, paths.before_after, _metadata(run, lora, scores), run.lora_dir, run.output_name
    )
    return Publication(
        published=True,
        verdict="published",
        lora=files.lora,
        preview=files.preview,
        metadata=files.metadata,
        sha256=lora.sha256,
        picture_change=change,
        fingerprint=made_from,
    )


def _still_there(earlier: Publication) -> bool:
    """Whether what an earlier run installed is still in place, unchanged."""
    if not earlier.published:
        return True
    return earlier.lora is not None and earlier.lora.exists() and file_hash(earlier.lora) == earlier.sha256


def check_numbers(path: Path) -> None:
    """Raises VerificationError unless the file is whole safetensors without NaN or infinity, and not all zero."""
    try:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (OSError, struct.error, ValueError) as error:
        raise VerificationError(f"{path} is not a whole safetensors file ({error}); train again.") from error
    changed = False
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = _values(data[begin:end], entry["dtype"])
        if not np.isfinite(values).all():
            raise VerificationError(f"{path} holds NaN or infinity in {name}; train again at a lower rate.")
        changed |= name.endswith("lora_up.weight") and bool(values.any())
    if not changed:
        raise VerificationError(f"{path} changes nothing: every lora_up weight is zero; train again.")


def _values(data: bytes, kind: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A tensor's numbers as float32; bf16 is float32 without its lower half."""
    if kind == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind not in _ITEM_TYPES:
        return np.zeros(1, np.float32)
    return np.frombuffer(data, _ITEM_TYPES[kind]).astype(np.float32)


def picture_change(paths: RunPaths, scores: Evaluation) -> float:
    """Mean absolute difference of grey levels, 0 to 255, between the same seeds without and with the LoRA.

    The evaluation's own pictures are compared: the generator that made them refused a LoRA with unknown keys."""
    differences = []
    for before, after in zip(scores.before.pictures, scores.after.pictures, strict=True):
        pair = [load_picture(paths.evaluation_pictures() / picture.file) for picture in (before, after)]
        if pair[0] is not None and pair[1] is not None:
            differences.append(np.abs(_grey(pair[0]) - _grey(pair[1])).mean())
    return round(float(np.mean(differences)), 3) if differences else 0.0


def _grey(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(image.convert("L"), dtype=np.float64)


def _metadata(run: Run, lora: TrainedLora, scores: Evaluation) -> bytes:
    """What people and programs want to know about the file; "activation text" and "preferred weight" are A1111's."""
    character = run.character
    content = {
        "character": character.name,
        "trigger": character.trigger,
        "description": character.description,
        "activation text": character.trigger,
        "preferred weight": scores.strength,
        "sha256": lora.sha256,
        "base_model": run.recipe.model.base,
        "steps": lora.steps,
        "scores": {
            "identity_before": scores.before.identity,
            "identity_after": scores.after.identity,
            "adherence_before": scores.before.adherence,
            "adherence_after": scores.after.adherence,
        },
        "recipe": run.recipe.model_dump(mode="json"),
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
