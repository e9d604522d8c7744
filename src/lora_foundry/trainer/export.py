"""Writes the trained LoRA the way sd-scripts does, since that is what ComfyUI, A1111 and diffusers read:
kohya's key names, an alpha for each module, fp16. The same training gives the same bytes: no times are in the
file, and the header's order is fixed (the safetensors library shuffles it)."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lora_foundry.domain.lora import SavedLora
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import DivergedError, InputError
from lora_foundry.families._shared.family import FamilyModel
from lora_foundry.families._shared.targets import KOHYA, FileFormat, Target
from lora_foundry.files import storage
from lora_foundry.files.paths import SAVED, saved_lora
from lora_foundry.trainer.lora import DOWN, MAGNITUDE, UP, Adapter

_LEGACY_OFFSET, _LEGACY_BYTES = 0x100000, 0x10000


def kohya_tensors(
    adapter: Adapter,
    state: Mapping[str, Tensor],
    export_name: Callable[[Target], str],
    dtype: torch.dtype = torch.float16,
    file_format: FileFormat = KOHYA,
) -> dict[str, Tensor]:
    """For each module its tensors as `file_format` names them, all in `dtype`: with an alpha (0-d), or with the scale
    alpha / rank in the up matrix where the format has none. `state` has the weights, as `Adapter.state` names them.
    Raises DivergedError."""
    endings = {DOWN: file_format.down, UP: file_format.up}
    tensors: dict[str, Tensor] = {}
    for module in adapter.modules:
        name = export_name(module.target)
        if file_format.alpha or UP not in module.tensors:
            tensors[f"{name}.alpha"] = torch.tensor(module.alpha, dtype=dtype)
        for ending in module.tensors:
            tensor = state[f"{module.name}.{ending}"]
            if ending == UP and not file_format.alpha:
                tensor = tensor * (module.alpha / len(state[f"{module.name}.{DOWN}"]))
            tensor = tensor.to(dtype)
            if ending == MAGNITUDE:  # one number for each output, in as many dimensions as the weight has
                tensor = tensor.reshape(-1, *[1] * (state[f"{module.name}.{DOWN}"].ndim - 1))
            tensors[f"{name}.{endings.get(ending, ending)}"] = tensor
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise DivergedError(
            "The trained weights do not fit fp16 or are not numbers; lower train.learning_rate and "
            "train again."
        )
    return tensors


def load_lora(path: Path, adapter: Adapter, model: FamilyModel) -> None:
    """Puts the weights of a LoRA file into `adapter`, to go on from them: under the names that this trainer writes. Where
    its alpha is another, the up matrix takes that in. Raises InputError for a file that does not fit."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"train.start_from names {path}, which cannot be read as a LoRA ({error}); name a .safetensors file."
        ) from error
    form = model.file_format
    endings = {DOWN: form.down, UP: form.up}
    state: dict[str, Tensor] = {}
    for module in adapter.modules:
        name = model.export_name(module.target)
        for ending, own in module.tensors.items():
            key = f"{name}.{endings.get(ending, ending)}"
            if key not in tensors:
                raise _unlike(path, f"it has no {key}")
            given = tensors[key].float()
            if given.numel() != own.numel():
                raise _unlike(
                    path, f"{key} has the shape {tuple(given.shape)}, and {tuple(own.shape)} is trained"
                )
            state[f"{module.name}.{ending}"] = given.reshape(own.shape)
        rank = float(len(module.tensors[DOWN])) if DOWN in module.tensors else module.alpha
        alpha = float(tensors.get(f"{name}.alpha", torch.tensor(rank)))
        if UP in module.tensors:
            state[f"{module.name}.{UP}"] *= alpha / module.alpha
        elif abs(alpha - module.alpha) > 1e-3 * module.alpha:
            raise _unlike(path, f"{name} has the alpha {alpha:g}, and {module.alpha:g} is trained")
    adapter.load(state)


def _unlike(path: Path, what: str) -> InputError:
    return InputError(
        f"train.start_from names {path}, which does not fit this training: {what}. Set train.rank, train.conv_rank, "
        "train.network, train.targets and train.text_encoder_rate as they were for that file."
    )


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Writes the file atomically and returns its SHA-256. Raises StorageError."""
    data = lora_bytes(tensors, metadata)
    storage.write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def lora_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file's bytes, with the hashes in its metadata by which model managers know a LoRA."""
    described = {**metadata, **_hashes(tensors, metadata)}
    return _serialize(tensors, described)


def _hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Both hashes are taken over a file with the ss_ entries alone, as sd-scripts does."""
    data = _serialize(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    (length,) = struct.unpack("<Q", data[:8])
    weights = hashlib.sha256(data[8 + length :]).hexdigest()
    legacy = hashlib.sha256(data[_LEGACY_OFFSET : _LEGACY_OFFSET + _LEGACY_BYTES]).hexdigest()[:8]
    return {"sshs_model_hash": weights, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{weights}"}


def _serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """safetensors bytes whose header has its keys in a fixed order."""
    data = save(dict(sorted(tensors.items())), {key: metadata[key] for key in sorted(metadata)})
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


class CheckpointExporter:
    """Keeps exports while training goes on, so that the best of them can be chosen by measurement afterwards: the last
    step is seldom the best one. Each is a whole LoRA file, named by its step; `export` writes one, `planned` are the
    steps after which one is kept."""

    def __init__(
        self,
        settings: TrainSection,
        planned: frozenset[int],
        workdir: Path,
        export: Callable[[Path, int], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._planned, self._workdir, self._export, self._clock = planned, workdir, export, clock
        self._seconds = settings.save_every_minutes * 60
        self._last = clock()

    def begin(self, start: int) -> None:
        """Removes what another training, or steps that are to come again, left behind."""
        for saved in saved_exports(self._workdir):
            if saved.step > start:
                saved.path.unlink(missing_ok=True)
        storage.remove_leftovers(storage.make_folder(self._workdir / SAVED))

    def is_due(self, step: int) -> bool:
        """Whether an export is to be kept after `step` steps."""
        late = self._seconds > 0 and self._clock() - self._last >= self._seconds
        return step in self._planned or late

    def keep(self, step: int) -> None:
        """Writes the export of this step. Raises StorageError, DivergedError."""
        self._export(saved_lora(self._workdir, step), step)
        self._last = self._clock()


def saved_exports(workdir: Path) -> tuple[SavedLora, ...]:
    """All exports that were kept so far, the earliest first."""
    files = (workdir / SAVED).glob("step-*.safetensors")
    found = {int(path.stem.removeprefix("step-")): path for path in files}
    return tuple(
        SavedLora(step=step, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for step, path in sorted(found.items())
    )
