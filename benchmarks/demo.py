"""Repeats `lora-foundry demo` in a fresh home and stores its figures: what a new user gets, and how long it takes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from common import finish, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "lora_foundry", "demo", "--home", home, "--json"]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
        seconds = time.perf_counter() - started
    result = json.loads(done.stdout)
    table(["stage", "seconds"], list(result["seconds"].items()))
    table(
        ["", "before", "after"],
        [
            [score, result["scores"][f"{score}_before"], result["scores"][f"{score}_after"]]
            for score in ("identity", "adherence")
        ],
    )
    figures = {**result["scores"], "seconds": round(seconds, 1)}
    finish("demo", figures, {"stage_seconds": result["seconds"]}, not options.no_save)


if __name__ == "__main__":
    main()
