"""Behaves like sd-scripts' train_network.py as seen from outside, as it was observed: what it prints and where, what it
saves, how it counts when it goes on, and that several failures end with exit code 0. What is to go wrong stands in the
file fault.txt beside it."""

import json
import struct
import sys
import time
import tomllib
import zipfile
from pathlib import Path

FAULT_FILE = Path(__file__).with_name("fault.txt")
FAULT = FAULT_FILE.read_text().strip() if FAULT_FILE.exists() else ""


def bar(done: int, total: int, loss: str) -> None:
    """Every step is drawn twice, first with the old loss."""
    for text in ("", f", avr_loss={loss}"):
        sys.stderr.write(
            f"\rsteps: {100 * done // total:3d}%|###       | {done}/{total} [00:01<00:02,  1.00s/it{text}]"
        )
        sys.stderr.flush()


def write_lora(
    path: Path, value: float, steps: int, keys: str = "lora_unet_mid_block_attentions_0_proj_in"
) -> None:
    header, data = {"__metadata__": {"ss_steps": str(steps), "ss_network_module": "networks.lora"}}, b""
    for name, shape in (
        (f"{keys}.lora_down.weight", [4, 8]),
        (f"{keys}.lora_up.weight", [8, 4]),
        (f"{keys}.alpha", []),
    ):
        count = shape[0] * shape[1] if shape else 1
        values = struct.pack(f"<{count}e", *[value] * count)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + data
    path.write_bytes(whole[:-10] if FAULT == "half a file" else whole)


def save_state(folder: Path, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_state.json").write_text(json.dumps({"current_epoch": 1, "current_step": step}))
    for name in ("optimizer.bin", "random_states_0.pkl"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("data", b"x" * 100)


def count_pictures(folder: Path) -> int:
    """Pictures times repeats of the subfolders that it takes, each of which must have its caption."""
    count = 0
    for place in folder.iterdir():
        repeats = place.name.split("_")[0]
        if not repeats.isdigit():
            sys.stderr.write(f"WARNING  ignore directory without repeats: {place.name}\n")
            continue
        pictures = [path for path in place.iterdir() if path.suffix in (".png", ".jpg", ".webp")]
        assert all(path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in pictures)
        count += int(repeats) * len(pictures)
    return count


def main() -> int:
    config = tomllib.loads(Path(sys.argv[1].removeprefix("--config_file=")).read_text(encoding="utf-8"))
    assert config["caption_extension"] == ".txt"
    sys.stderr.write(
        "2026-02-16 INFO     Loading settings from a file whose name is so lo\n                    ng\n"
    )
    if FAULT == "missing module":
        sys.stderr.write(
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'voluptuous'\n"
        )
        return 1
    if FAULT == "memory":
        sys.stderr.write("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.\n")
        return 1
    if FAULT == "sizes":
        sys.stderr.write("RuntimeError: size mismatch for conv_in.weight: copying a param\n")
        return 1
    if FAULT == "vocabulary":
        sys.stderr.write("OSError: Can't load tokenizer for 'openai/clip-vit-large-patch14'.\n")
        return 1
    if FAULT == "crash":
        sys.stderr.write("ValueError: something new\n")
        return 1
    samples = 0 if FAULT == "no pictures" else count_pictures(Path(config["train_data_dir"]))
    if samples == 0:
        sys.stderr.write("ERROR    No data found. Please verify arguments\n")
        return 0
    if FAULT == "flood":
        for _ in range(200):
            sys.stdout.write("o" * 4000 + "\n")
            sys.stderr.write("e" * 4000 + "\n")
    output = Path(config["output_dir"])
    total, every = config["max_train_steps"], config["save_every_n_steps"]
    epoch = -(-samples // config["train_batch_size"])
    first = 0
    if "resume" in config:
        first = json.loads((Path(config["resume"]) / "train_state.json").read_text())["current_step"]
        assert total > first
    if not config.get("skip_until_initial_step") or FAULT == "old version":
        first = 0
    first %= epoch
    sys.stdout.write("running training\n\nepoch 1/1\n\n")
    for step in range(first + 1, total + 1):
        loss = "nan" if FAULT == "nan" and step > 3 else f"{0.3 - step / 1000:.3g}"
        bar(step - first, total - first, loss)
        if step % every == 0:
            write_lora(output / f"{config['output_name']}-step{step:08d}.safetensors", 0.5, step)
            save_state(output / f"{config['output_name']}-step{step:08d}-state", step)
        if f"hang at {step}" == FAULT:
            time.sleep(600)
    if FAULT != "no file":
        value = float("nan") if FAULT in ("nan", "nan file") else 0.0 if FAULT == "zeros" else 0.5
        keys = "something_else" if FAULT == "other keys" else "lora_unet_mid_block_attentions_0_proj_in"
        path = output / f"{config['output_name']}.safetensors"
        sys.stdout.write(f"\nsaving checkpoint: {path}\n")
        write_lora(path, value, total, keys)
    sys.stderr.write("\nINFO     model saved.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
