"""The LoRAs that stand installed, by the metadata file that publishing puts beside each."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from lora_foundry.domain.evaluation import Scores
from lora_foundry.files.paths import published_lora, published_preview

_SUFFIX = ".metadata.json"
_MOST_BYTES = 1_000_000


class _Card(BaseModel):
    """What we read of a metadata file."""

    model_config = ConfigDict(extra="ignore", validate_by_name=True)

    character: str
    trigger: str
    description: str = ""
    strength: float | None = Field(
        None,
        validation_alias=AliasChoices("strength", "recommended_strength"),  # as earlier versions wrote it
    )
    sha256: str = ""
    base_model: str = ""
    steps: int | None = None
    scores: Scores = Scores()


class InstalledLora(_Card):
    """An installed LoRA."""

    name: str
    bytes: int
    installed_at: datetime
    preview: str | None


def installed_loras(folder: Path) -> list[InstalledLora]:
    """Those with a metadata file of ours, the newest first; files of others are left out."""
    found = [lora for path in sorted(folder.glob(f"*{_SUFFIX}")) if (lora := _read(folder, path)) is not None]
    return sorted(found, key=lambda each: each.installed_at, reverse=True)


def _read(folder: Path, path: Path) -> InstalledLora | None:
    name = path.name.removesuffix(_SUFFIX)
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_BYTES:
            return None
        card = _Card.model_validate_json(path.read_bytes())
        stat = published_lora(folder, name).stat()
    except (OSError, ValidationError):
        return None
    preview = f"/api/v1/loras/{quote(name, safe='')}/preview?v={stat.st_mtime_ns:x}"
    return InstalledLora(
        **card.model_dump(),
        name=name,
        bytes=stat.st_size,
        installed_at=datetime.fromtimestamp(stat.st_mtime, UTC),
        preview=preview if published_preview(folder, name).is_file() else None,
    )
