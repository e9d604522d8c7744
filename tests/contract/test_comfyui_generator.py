"""The Generator on a server: order, resuming, LoRAs lent and taken back, the hand-over of the GPU, the
doctor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lora_foundry.backends.comfyui import loras
from lora_foundry.backends.comfyui.client import Patience
from lora_foundry.backends.comfyui.examine import check_workflow, examine_comfyui
from lora_foundry.backends.comfyui.generator import ComfyUIGenerator, ComfyUIOptions
from lora_foundry.backends.comfyui.handover import take_gpu
from lora_foundry.backends.comfyui.verify import prove_effect
from lora_foundry.backends.comfyui.workflows import load_workflow
from lora_foundry.domain.lora import LoraUse
from lora_foundry.errors import BackendError, BaseModelError, InputError, VerificationError
from lora_foundry.ports import Generator
from lora_foundry.testing.comfyui_stub import StubServer
from tests.contract.comfyui_fixtures import (
    CHECKPOINT,
    PATIENT,
    QUICK,
    REAL,
    REAL_LORAS,
    Server,
    request,
    sd15,
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The stub, or the real server of COMFYUI_URL."""
    if REAL:
        yield Server(REAL, None, Path(REAL_LORAS) if REAL_LORAS else None, PATIENT)
        return
    loras = tmp_path / "loras"
    loras.mkdir()
    with StubServer(("tiny.safetensors", "tiny_fullvae.safetensors"), loras) as stub:
        yield Server(stub.url, stub, loras, QUICK)


@pytest.fixture
def stub(server: Server) -> StubServer:
    if server.stub is None:
        pytest.skip("a real server does not misbehave on demand")
    return server.stub


@pytest.fixture
def generator(server: Server) -> Iterator[ComfyUIGenerator]:
    made = ComfyUIGenerator(options(server))
    yield made
    made.close()


def options(server: Server, **changes: object) -> ComfyUIOptions:
    known = {
        "url": server.url,
        "checkpoint": CHECKPOINT,
        "lora_dir": server.loras,
        "patience": server.patience,
    }
    return ComfyUIOptions(**{**known, **changes})  # type: ignore[arg-type]


def lora_file(folder: Path, key: str = "lora_unet_down_blocks_0_attentions_0_proj_in") -> LoraUse:
    path = folder / "made.safetensors"
    save_file({f"{key}.lora_down.weight": np.ones((4, 4), np.float32)}, str(path))
    return LoraUse(path=path)


def test_pictures_answer_their_requests_in_order(generator: ComfyUIGenerator) -> None:
    port: Generator = generator
    batches = [[request(number) for number in range(start, start + 3)] for start in (0, 3)]
    made = list(port.generate(batches))
    assert [image.request for image in made] == [item for batch in batches for item in batch]
    assert len({image.image.tobytes() for image in made}) == 6
    (again,) = port.generate([[request(4)]])
    assert again.image.tobytes() == made[4].image.tobytes()
    assert CHECKPOINT in port.model


def test_alike_requests_become_one_prompt_where_that_is_asked_for(server: Server) -> None:
    merging = ComfyUIGenerator(options(server, merge=True))
    made = list(merging.generate([[request(number) for number in range(4)], [request(9, prompt="a dog")]]))
    merging.close()
    assert [image.request.key for image in made] == ["shot-0", "shot-1", "shot-2", "shot-3", "shot-9"]
    assert len({image.image.tobytes() for image in made}) == 5
    if server.stub is not None:
        assert len(server.stub.executed) == 2


def test_a_server_killed_at_picture_17_and_started_again_loses_no_picture(
    server: Server, stub: StubServer
) -> None:
    stub.stop_after = 16
    revive = threading.Thread(target=lambda: (stub.dead.wait(20), stub.start()))
    revive.start()
    generator = ComfyUIGenerator(options(server, patience=Patience(2.0, 10.0, 5.0, 0.3)))
    batches = [[request(number) for number in range(start, start + 4)] for start in range(0, 40, 4)]
    made = [image.request.key for image in generator.generate(batches)]
    generator.close()
    revive.join()
    assert made == [f"shot-{number}" for number in range(40)]
    # Of the first 16 only those can be made twice that were on their way when the server died: 4 at most.
    assert 40 <= len(stub.executed) <= 44


def test_a_run_that_broke_off_has_what_it_was_given_and_goes_on_behind_it(
    server: Server, stub: StubServer
) -> None:
    stub.stop_after, stub.seconds = 5, 0.1
    generator = ComfyUIGenerator(options(server, patience=Patience(1.0, 0.3, 1.0, 0.2)))
    got: list[str] = []
    pictures = generator.generate([[request(number)] for number in range(9)])
    with pytest.raises(BackendError, match="has not answered"):
        got.extend(image.request.key for image in pictures)
    generator.close()
    assert 3 <= len(got) <= 5
    stub.start()
    rest = ComfyUIGenerator(options(server))
    got += [
        image.request.key for image in rest.generate([[request(number)] for number in range(len(got), 9)])
    ]
    rest.close()
    assert got == [f"shot-{number}" for number in range(9)]


def test_what_is_not_fetched_any_more_leaves_the_queue(server: Server, stub: StubServer) -> None:
    stub.seconds = 0.2
    generator = ComfyUIGenerator(options(server))
    pictures = generator.generate([[request(number)] for number in range(9)])
    next(pictures)
    pictures.close()  # type: ignore[attr-defined]
    generator.close()
    assert len(stub.get("/queue")["queue_pending"]) == 0
    assert len(stub.executed) < 5


def test_no_server_and_no_such_checkpoint_are_named(server: Server) -> None:
    nobody = ComfyUIGenerator(ComfyUIOptions("http://127.0.0.1:9", CHECKPOINT))
    with pytest.raises(BackendError, match="does not answer at"):
        list(nobody.generate([[request(1)]]))
    nobody.close()
    without = ComfyUIGenerator(options(server, checkpoint="tinny.safetensors"))
    with pytest.raises(BaseModelError, match=r"did you mean tiny"):
        list(without.generate([[request(1)]]))
    without.close()


def test_a_reference_that_the_workflow_does_not_use_is_refused(server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "ref.png")
    generator = ComfyUIGenerator(options(server, reference=tmp_path / "ref.png"))
    with pytest.raises(InputError, match="uses no reference image"):
        list(generator.generate([[request(1)]]))
    generator.close()


def test_a_reference_image_decides_the_picture(server: Server, tmp_path: Path) -> None:
    if server.stub is not None:
        pytest.skip("the stub has no nodes that look at pictures")
    made = []
    for colour in ("red", "blue"):
        Image.new("RGB", (80, 64), colour).save(tmp_path / f"{colour}.png")
        generator = ComfyUIGenerator(
            options(server, workflow="img2img", reference=tmp_path / f"{colour}.png", denoise=0.3)
        )
        made += [image.image.tobytes() for image in generator.generate([[request(1, steps=4)]])]
        generator.close()
    assert made[0] != made[1]


def test_a_lora_is_lent_under_a_name_of_its_content_and_taken_back(
    server: Server, stub: StubServer, tmp_path: Path
) -> None:
    assert server.loras is not None
    generator = ComfyUIGenerator(options(server))
    use = lora_file(tmp_path)
    (plain,) = generator.generate([[request(1)]])
    (changed,) = generator.generate([[request(1)]], use)
    (lent,) = server.loras.iterdir()
    assert lent.name.startswith("lora_foundry_tmp_")
    assert plain.image.tobytes() != changed.image.tobytes()
    assert prove_effect(generator, request(1), use, 1.0) > 1.0
    with pytest.raises(VerificationError, match="same picture"):
        prove_effect(generator, request(1), use, 300.0)
    generator.close()
    assert not list(server.loras.iterdir())


def test_a_real_lora_changes_the_picture(server: Server) -> None:
    source = next(iter(sorted(server.loras.glob("kohya*.safetensors"))), None) if server.loras else None
    if server.stub is not None or source is None:
        pytest.skip("needs a real server whose LoRA folder (COMFYUI_LORAS) holds a kohya*.safetensors")
    generator = ComfyUIGenerator(options(server))
    assert prove_effect(generator, request(1, steps=2), LoraUse(path=source), 1.0) > 1.0
    generator.close()


def test_keys_that_comfyui_would_drop_are_refused(server: Server, tmp_path: Path) -> None:
    generator = ComfyUIGenerator(options(server, lora_dir=tmp_path))
    with pytest.raises(VerificationError, match="leave out 1 keys"):
        list(generator.generate([[request(1)]], lora_file(tmp_path, "base_model.model.down")))
    (tmp_path / "made.safetensors").write_bytes(b"short")
    with pytest.raises(VerificationError, match="cannot be read"):
        list(generator.generate([[request(1)]], LoraUse(path=tmp_path / "made.safetensors")))
    generator.close()


def test_a_lora_folder_of_another_server_is_noticed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loras, "_LISTED_WITHIN", 0.3)
    other = tmp_path / "other"
    generator = ComfyUIGenerator(options(server, lora_dir=other))
    with pytest.raises(BackendError, match="does not list a LoRA"):
        list(generator.generate([[request(1)]], lora_file(tmp_path)))
    generator.close()
    unknown = ComfyUIGenerator(options(server, lora_dir=None))
    with pytest.raises(InputError, match="LORA_FOUNDRY_COMFYUI"):
        list(unknown.generate([[request(1)]], lora_file(tmp_path)))
    unknown.close()


def test_the_gpu_is_handed_over_when_its_memory_came(server: Server, stub: StubServer) -> None:
    stub.vram_free, stub.vram_after_free = 1 << 30, 7 << 30
    handover = take_gpu(server.url, 6 << 30, lambda: 6 << 30)
    assert handover == (1 << 30, 7 << 30, 6 << 30)


def test_a_training_that_would_not_fit_is_refused_with_both_figures(server: Server, stub: StubServer) -> None:
    stub.vram_free = stub.vram_after_free = 2 << 30
    with pytest.raises(
        BackendError, match=r"needs 6144 MiB .* 2048 MiB by ComfyUI's count and 1024 MiB by the driver"
    ):
        take_gpu(server.url, 6 << 30, lambda: 1 << 30, free_seconds=0.1)


def test_a_queue_that_stays_busy_is_not_broken_off(server: Server, stub: StubServer) -> None:
    stub.misbehave("hang")
    stub.post_prompt({"prompt": sd15()})
    with pytest.raises(BackendError, match="still has 1 prompts"):
        take_gpu(server.url, 1, queue_seconds=0.1)
    assert take_gpu("http://127.0.0.1:9", 1) is None


def test_the_doctor_names_what_is_wrong_and_its_mend(server: Server, tmp_path: Path) -> None:
    good = examine_comfyui(server.url, CHECKPOINT, server.loras)
    assert all(finding.ok for finding in good)
    assert "version" in good[0].found
    (tmp_path / "stranger.safetensors").touch()
    _, checkpoint, folder = examine_comfyui(server.url, "tinny.safetensors", tmp_path)
    assert not checkpoint.ok
    assert "did you mean tiny" in checkpoint.found
    assert not folder.ok
    assert "stranger" in folder.found
    (absent,) = examine_comfyui("http://127.0.0.1:9", CHECKPOINT)
    assert not absent.ok
    assert "Start ComfyUI" in absent.mend


def test_the_shipped_sd15_workflow_passes_the_check_of_the_server(server: Server) -> None:
    assert not [
        remark for remark in check_workflow(load_workflow("sd15"), server.url) if remark.level == "fault"
    ]


@pytest.mark.parametrize("name", ["sdxl", "img2img", "unclip", "flux", "flux_kontext", "qwen_image_edit"])
def test_the_nodes_of_the_shipped_workflows_are_the_real_ones(server: Server, name: str) -> None:
    if server.stub is not None:
        pytest.skip("the stub knows the SD1.5 nodes only")
    remarks = [
        remark.text for remark in check_workflow(load_workflow(name), server.url) if remark.level == "fault"
    ]
    assert not [text for text in remarks if "is not there" not in text]  # model files that this server lacks
