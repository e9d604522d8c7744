"""Starts the script as a child, as accelerate's launcher does: a signal to this process alone leaves the child running."""

import subprocess
import sys

words = sys.argv[1:]
script = next(index for index, word in enumerate(words) if not word.startswith("--"))
code = subprocess.Popen([sys.executable, *words[script:]]).wait()
if code:
    sys.stderr.write(
        f"subprocess.CalledProcessError: Command '{words[script]}' returned non-zero exit status {code}.\n"
    )
sys.exit(1 if code else 0)
