"""The Generator on a server: order, resuming, LoRAs lent and taken back, the hand-over of the GPU, the
doctor."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lora_foundry.backends.comfyui import loras
from lora_foundry.backends.comfyui.ahead import checked
from lora_foundry.backends.comfyui.bindings import Values
from lora_foundry.backends.comfyui.checks import Asked
from lora_foundry.backends.comfyui.client import ComfyUIClient, Patience
from lora_foundry.backends.comfyui.examine import examine_comfyui
from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
from lora_foundry.backends.comfyui.handover import NotEnoughMemoryError, Waits, take_gpu
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.backends.comfyui.verify import ComfyUIProver
from lora_foundry.backends.comfyui.workflows import load_workflow, shipped
from lora_foundry.backends.folder import FolderPublisher
from lora_foundry.domain.dataset import ReferenceUse
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.publication import LoraCard
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


needs_loras = pytest.mark.skipif(
    bool(REAL) and not REAL_LORAS, reason="COMFYUI_LORAS does not name the real server's LoRA folder"
)


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


def lora_file(
    folder: Path, key: str = "lora_unet_down_blocks_0_attentions_0_proj_in", up: float = 1.0
) -> LoraUse:
    """A LoRA of one module of the tiny checkpoint, whose attention blocks are 320 wide."""
    path = folder / "made.safetensors"
    generator = np.random.default_rng(0)
    tensors = {
        f"{key}.lora_down.weight": generator.normal(size=(4, 320, 1, 1)).astype(np.float32),
        f"{key}.lora_up.weight": np.full((320, 4, 1, 1), up, np.float32),
        f"{key}.alpha": np.float32(4.0).reshape(()),
    }
    save_file({name: np.asarray(value) for name, value in tensors.items()}, str(path))
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
    # Before the error comes what else was made: the one that failed may lie between two that did not.
    missing = [request(number) for number in range(9) if request(number).key not in got]
    later = [image.request.key for image in rest.generate([[each] for each in missing])]
    rest.close()
    assert got == sorted(set(got)), "in the order of the requests, each once"
    assert later == [each.key for each in missing]


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


def follow(server: Server, path: Path, workflow: str, strength: float = 0.7) -> list[Image.Image]:
    generator = ComfyUIGenerator(options(server, reference_workflow=workflow))
    try:
        use = ReferenceUse(path=path, strength=strength)
        return [made.image for made in generator.generate([[request(1, steps=4)]], reference=use)]
    finally:
        generator.close()


def test_a_reference_that_the_workflow_does_not_use_is_refused(server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "ref.png")
    with pytest.raises(InputError, match="uses no reference image"):
        follow(server, tmp_path / "ref.png", "sd15")
    with pytest.raises(InputError, match="cannot be read"):
        follow(server, tmp_path / "none.png", "img2img")


def test_a_reference_image_decides_the_picture(server: Server, tmp_path: Path) -> None:
    if server.stub is not None:
        pytest.skip("the stub has no nodes that look at pictures")
    for colour in ("red", "blue"):
        Image.new("RGB", (80, 64), colour).save(tmp_path / f"{colour}.png")
    (red,), (blue,) = (follow(server, tmp_path / f"{colour}.png", "img2img") for colour in ("red", "blue"))
    (far,) = follow(server, tmp_path / "red.png", "img2img", strength=0.1)
    assert red.tobytes() != blue.tobytes()
    assert red.tobytes() != far.tobytes()


def lent(server: Server) -> list[str]:
    assert server.loras is not None
    return [path.name for path in server.loras.glob("lora_foundry_tmp_*")]


@needs_loras
def test_a_lora_is_lent_under_a_name_of_its_content_and_taken_back(server: Server, tmp_path: Path) -> None:
    generator = ComfyUIGenerator(options(server))
    use = lora_file(tmp_path)
    digest = hashlib.sha256(use.path.read_bytes()).hexdigest()
    (plain,) = generator.generate([[request(1)]])
    (changed,) = generator.generate([[request(1)]], use)
    assert [name[:33] for name in lent(server)] == [f"lora_foundry_tmp_{digest[:16]}"]
    assert plain.image.tobytes() != changed.image.tobytes()
    generator.close()
    assert not lent(server)


@needs_loras
def test_what_a_killed_run_lent_is_taken_away_a_day_later(server: Server, tmp_path: Path) -> None:
    assert server.loras is not None
    forgotten, recent = (server.loras / f"lora_foundry_tmp_{age}.safetensors" for age in ("old", "new"))
    for path in (forgotten, recent):
        path.touch()
    os.utime(forgotten, (time.time() - 2 * 86400,) * 2)
    generator = ComfyUIGenerator(options(server))
    list(generator.generate([[request(1)]], lora_file(tmp_path)))
    generator.close()
    assert lent(server) == [recent.name]
    recent.unlink()


@needs_loras
def test_a_lora_is_proven_by_the_server_that_will_use_it(server: Server, tmp_path: Path) -> None:
    proof = ComfyUIProver(options(server)).prove(lora_file(tmp_path), request(1), 1.0)
    assert proof.picture_change > 1.0
    assert proof.keys == 3
    assert "the server's log" in proof.checked_by
    assert proof.server.startswith("ComfyUI ")
    assert not lent(server)


@needs_loras
def test_a_lora_without_effect_is_no_proof(server: Server, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="same picture"):
        ComfyUIProver(options(server)).prove(lora_file(tmp_path, up=0.0), request(1), 1.0)


@needs_loras
def test_a_lora_that_blackens_the_picture_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"spoils the picture.*is black"):
        ComfyUIProver(options(server)).prove(lora_file(tmp_path, up=float("nan")), request(1), 1.0)
    assert not lent(server)


@needs_loras
def test_a_key_that_only_the_server_s_log_names_is_refused(server: Server, tmp_path: Path) -> None:
    strange = lora_file(tmp_path, "lora_unet_down_blocks_7_attentions_0_proj_in")
    with pytest.raises(VerificationError, match=r"says in its log that it left out 3 keys"):
        ComfyUIProver(options(server)).prove(strange, request(1), 0.0)


@needs_loras
def test_keys_that_comfyui_would_drop_are_refused(server: Server, tmp_path: Path) -> None:
    generator = ComfyUIGenerator(options(server))
    with pytest.raises(VerificationError, match="leave out 3 of the 3 keys"):
        list(generator.generate([[request(1)]], lora_file(tmp_path, "base_model.model.down")))
    (tmp_path / "made.safetensors").write_bytes(b"short")
    with pytest.raises(VerificationError, match="cannot be read"):
        list(generator.generate([[request(1)]], LoraUse(path=tmp_path / "made.safetensors")))
    generator.close()


@needs_loras
def test_a_lora_installed_over_an_older_one_is_seen_and_the_older_one_forgotten(
    server: Server, tmp_path: Path
) -> None:
    assert server.loras is not None
    prover = ComfyUIProver(options(server))
    card = LoraCard(
        character="Elara", trigger="elara", description="", tags=(), strength=1.0, sha256="", base_model="",
        base_version="sd_v1", steps=1, scores={}, recipe={}, made_by="",
    )  # fmt: skip
    Image.new("RGB", (8, 8)).save(tmp_path / "preview.png")
    pictures = []
    try:
        for up in (1.0, -3.0):
            use = lora_file(tmp_path, up=up)
            files = FolderPublisher().publish(
                use.path, tmp_path / "preview.png", card, server.loras, "elara_test"
            )
            prover.installed(files)
            pictures.append(draw_with(server, "elara_test.safetensors"))
        assert files.kept is not None
        assert files.kept.name == "elara_test.v1.safetensors"
        assert pictures[0] != pictures[1], "the server draws with the weights of the file that was replaced"
    finally:
        for path in server.loras.glob("elara_test*"):
            path.unlink()


def draw_with(server: Server, lora: str | None) -> bytes:
    """The picture of one seed with a LoRA that the server has."""

    async def work() -> bytes:
        async with ComfyUIClient(server.url, server.patience) as client:
            graph = load_workflow("sd15").bind(
                Values(
                    prompt="a cat",
                    seed=1,
                    width=64,
                    height=64,
                    steps=1,
                    sampler="euler",
                    scheduler="normal",
                    checkpoint=CHECKPOINT,
                    lora=lora,
                )
            )
            return (await client.draw(graph, "save", 1, (64, 64))).images[0].tobytes()

    return asyncio.run(work())


def test_a_lora_folder_of_another_server_is_noticed_before_the_first_picture(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loras, "_PROBED_FOR", 0.3)
    other = tmp_path / "other"
    other.mkdir()
    generator = ComfyUIGenerator(options(server, lora_dir=other, lends=True))
    with pytest.raises(InputError, match=f"does not look in {other} for LoRAs .*set LORA_FOUNDRY_LORAS="):
        list(generator.generate([[request(1)]]))
    generator.close()
    assert not list(other.iterdir()), "the file that was tried is left behind"
    if server.stub is not None:
        assert not server.stub.executed


@needs_loras
def test_a_lora_folder_that_nobody_named_is_the_server_s_own(server: Server, tmp_path: Path) -> None:
    generator = ComfyUIGenerator(options(server, lora_dir=None))
    list(generator.generate([[request(1)]], lora_file(tmp_path)))
    assert len(lent(server)) == 1
    generator.close()
    assert not lent(server)


def test_the_gpu_is_handed_over_when_its_memory_came(server: Server) -> None:
    draw_with(server, None)
    handover = take_gpu(server.url, 1, lambda: None, Waits(queue=60.0))
    assert handover.before is not None
    assert handover.after is not None
    with pytest.raises(NotEnoughMemoryError, match=r"needs about \d+ MiB .* by ComfyUI's count are free"):
        take_gpu(server.url, 1 << 60, lambda: None, Waits(memory=0.1))


def test_a_queue_that_stays_busy_is_not_broken_off(server: Server, stub: StubServer) -> None:
    stub.misbehave("hang")
    stub.post_prompt({"prompt": sd15()})
    with pytest.raises(BackendError, match="still has 1 prompts"):
        take_gpu(server.url, 1, lambda: None, Waits(queue=0.1))


ASKED = Asked(64, 64, CHECKPOINT)


def test_the_doctor_names_what_is_wrong_and_its_mend(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loras, "_PROBED_FOR", 0.3)
    good = examine_comfyui(options(server), ASKED)
    assert [finding.ok for finding in good] == [True] * 4
    assert "version" in good[0].found
    assert CHECKPOINT in good[0].found
    changed = {"checkpoint": CHECKPOINT.replace(".", "y."), "lora_dir": tmp_path}
    _, checkpoint, folder, workflow = examine_comfyui(options(server, **changed), ASKED)
    assert not checkpoint.ok
    assert f"did you mean {CHECKPOINT}" in checkpoint.found
    assert not folder.ok
    assert f"does not look in {tmp_path}" in folder.found
    assert "it looks in " in folder.found
    assert folder.fix.startswith("Set LORA_FOUNDRY_LORAS=")
    assert not workflow.ok
    ipadapter = examine_comfyui(options(server, workflow="ipadapter"), ASKED)[-1]
    assert "IPAdapterUnifiedLoader" in ipadapter.found
    (absent,) = examine_comfyui(ComfyUIOptions("http://127.0.0.1:9", CHECKPOINT))
    assert not absent.ok
    assert "Start ComfyUI" in absent.fix


def test_the_shipped_sd15_workflow_passes_the_check_of_the_server(server: Server) -> None:
    _, remarks = checked("sd15", options(server, sampling={"sampler": "euler", "scheduler": "normal"}), ASKED)
    assert not [remark for remark in remarks if remark.level == "fault"]
    _, remarks = checked("sd15", options(server, sampling={"sampler": "eulr", "scheduler": "normal"}), ASKED)
    assert "did you mean euler" in " ".join(remark.text for remark in remarks if remark.level == "fault")


@pytest.mark.parametrize("name", sorted({*shipped()} - {"sd15", "ipadapter"}))
def test_the_nodes_of_the_shipped_workflows_are_the_real_ones(server: Server, name: str) -> None:
    if server.stub is not None:
        pytest.skip("the stub knows the SD1.5 nodes only")
    _, found = checked(name, options(server), None)
    remarks = [remark.text for remark in found if remark.level == "fault"]
    assert not [text for text in remarks if "is not there" not in text]  # model files that this server lacks
