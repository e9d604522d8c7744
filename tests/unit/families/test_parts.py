"""A base by its parts: reading ahead changes when a file is read, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared import loading, parts
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.parts import Parts

pytestmark = pytest.mark.usefixtures("own_configuration")


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that read tensors, by name."""
    seen: list[str] = []
    read = loading.read_tensors

    def noted(*arguments: Any) -> dict[str, Tensor]:
        seen.append(current_thread().name)
        return read(*arguments)

    monkeypatch.setattr(loading, "read_tensors", noted)
    return seen


def test_what_was_read_ahead_is_what_would_be_read(tiny_file: Path, readers: list[str]) -> None:
    ahead, plain = (Parts(find_base(str(tiny_file)), torch.bfloat16) for _ in range(2))
    ahead.read_ahead()
    one, other = ahead.load_denoiser().state_dict(), plain.load_denoiser().state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [name.startswith("read-ahead") for name in readers] == [True, False]


def test_it_is_read_once_for_each_time_it_is_loaded(tiny_file: Path, readers: list[str]) -> None:
    base = Parts(find_base(str(tiny_file)), torch.float32)
    base.read_ahead()
    first, second = base.load_denoiser(), base.load_denoiser()
    assert len(readers) == 2
    with torch.no_grad():
        next(first.parameters()).fill_(7)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_a_small_computer_reads_when_it_must(
    tiny_file: Path, readers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "available_memory", lambda: 3 * tiny_file.stat().st_size)
    base = Parts(find_base(str(tiny_file)), torch.float32)
    base.read_ahead()
    assert readers == []
    base.load_denoiser()
    assert len(readers) == 1


def test_a_folder_is_not_read_ahead(tiny_folder: Path, readers: list[str]) -> None:
    base = Parts(find_base(str(tiny_folder)), torch.float32)
    base.read_ahead()
    base.load_denoiser()
    assert readers == []


def test_a_file_that_was_cut_meanwhile_is_named(tiny_file: Path, tmp_path: Path) -> None:
    whole = tmp_path / "tiny.safetensors"
    whole.write_bytes(tiny_file.read_bytes())
    base = Parts(find_base(str(whole)), torch.float32)
    whole.write_bytes(whole.read_bytes()[:-4096])
    base.read_ahead()
    with pytest.raises(
        BaseModelError, match=r"tiny\.safetensors cannot be loaded: the file ends within .*; download"
    ):
        base.load_denoiser()


def test_encoders_come_with_the_vae_where_nothing_is_read_ahead(tiny_folder: Path) -> None:
    base = Parts(find_base(str(tiny_folder)), torch.float32)
    assert base.encoders.vae is base.vae
    first = base.vae
    base.release(text=True, vae=True)
    assert base.vae is not first
    assert all(
        torch.equal(one, other)
        for one, other in zip(base.vae.state_dict().values(), first.state_dict().values(), strict=True)
    )


def test_the_vae_alone_can_be_let_go_of(tiny_file: Path) -> None:
    base = Parts(find_base(str(tiny_file)), torch.float32)
    first = base.encoders.vae
    base.release(text=False, vae=True)
    assert base.encoders.vae is None
    assert base.encoders.text_encoder is not None
    assert base.vae is not first


def test_the_vae_needs_no_text_encoder(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise BaseModelError("no vocabulary")

    monkeypatch.setattr(parts, "load_pipeline", fail)
    base = Parts(find_base(str(tiny_file)), torch.float32)
    assert not any(weight.requires_grad for weight in base.vae.parameters())
    with pytest.raises(BaseModelError, match="no vocabulary"):
        _ = base.encoders


def test_a_vae_of_a_kind_that_the_library_lacks_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "strange")
    config = folder / "vae" / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace("AutoencoderKL", "AutoencoderOfTomorrow"), encoding="utf-8"
    )
    with pytest.raises(BaseModelError, match=r"strange cannot be loaded: .*AutoencoderOfTomorrow"):
        _ = Parts(find_base(str(folder)), torch.float32).vae
