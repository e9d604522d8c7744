"""Runs the pieces one after another, each in a process of its own that is ended after nine minutes, and stores their
figures in benchmarks/results/gpu/. The exit code is 0 only where every piece ended and nothing in it was wrong.

    python -m benchmarks.gpu                       all pieces on the best GPU
    python -m benchmarks.gpu --piece memory        one of them
    python -m benchmarks.gpu --rehearse            on the CPU with the miniature; stores nothing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import RESULTS, machine
from benchmarks.gpu.pieces import PIECES, ROOT, Place, run_piece

SECONDS = 540


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--piece", action="append", choices=[*PIECES], help="only this one; may be repeated")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with the miniature")
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lora-foundry-gpu")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # what each process is told
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        print("There is no CUDA device; --rehearse runs the pieces on the CPU.", file=sys.stderr)
        return 2
    options.work.mkdir(parents=True, exist_ok=True)
    if options.rehearse and not options.here:
        options.results = Path(tempfile.mkdtemp(dir=options.work))
    place = Place("cpu" if options.rehearse else "cuda", options.rehearse, options.work)
    if options.here:
        return run_piece(options.piece[0], place, options.results / f"{options.piece[0]}.json")
    failed = [name for name in options.piece or PIECES if not _run(name, options)]
    print(f"failed: {', '.join(failed)}" if failed else "every piece is as it should be")
    return int(bool(failed))


def _run(name: str, options: argparse.Namespace) -> bool:
    """One piece in a process of its own; whether it ended well."""
    words = [sys.executable, "-m", "benchmarks.gpu", "--here", "--piece", name, "--results", str(options.results),
             "--work", str(options.work), *(["--rehearse"] if options.rehearse else [])]  # fmt: skip
    started = time.monotonic()
    try:
        code = subprocess.run(words, cwd=ROOT, timeout=SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        code = -1
        print(f"WRONG ({name}): it took longer than {SECONDS} s and was ended", flush=True)
    file = options.results / f"{name}.json"
    if file.is_file():
        figures = json.loads(file.read_text(encoding="utf-8"))
        figures |= {
            "machine": machine(),
            "command": " ".join(words[1:]),
            "seconds": round(time.monotonic() - started, 1),
        }
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(
        f"{name}: {'well' if code == 0 else f'failed ({code})'}, {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
