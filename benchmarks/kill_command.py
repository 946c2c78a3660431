"""kill -9 `ostinato train forecast` at random instants, then `--resume`: the weights are the same.

    python benchmarks/kill_command.py [--kills 10] [--steps 60] [--seed 0]

A kill may fall into reading, preparation, training, a checkpoint, calibration or the writing of the run
folder. Compared is the SHA-256 of model.safetensors with that of a run never interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ostinato.data.bundled import bundled_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder, bundled_file("airpassengers") as data:
        command = [sys.executable, "-m", "ostinato", "train", "forecast", str(data), "--time", "Month"]
        command += ["--target", "#Passengers", "--horizon", "12", "--test", "12"]
        command += ["--steps", str(given.steps), "--quiet", "--resume", "--out"]
        whole = Path(folder) / "whole"
        started_s = time.monotonic()
        subprocess.run([*command, str(whole)], check=True, stdout=subprocess.DEVNULL)
        whole_s = time.monotonic() - started_s
        expected = digest(whole)
        equal = 0
        for number in range(given.kills):
            run = Path(folder) / f"run{number}"
            after_s = rng.uniform(0.05, 1.0) * whole_s
            killed = subprocess.Popen([*command, str(run)], stdout=subprocess.DEVNULL)
            try:
                killed.wait(after_s)
            except subprocess.TimeoutExpired:
                killed.send_signal(signal.SIGKILL)
                killed.wait()
            subprocess.run([*command, str(run)], check=True, stdout=subprocess.DEVNULL)
            same = digest(run) == expected
            equal += same
            print(
                f"killed after {after_s:5.1f} of {whole_s:.1f} s: {'equal' if same else 'DIFFERENT'}",
                flush=True,
            )
    print(f"{equal} of {given.kills} runs ended bitwise equal")
    sys.exit(equal != given.kills)


def digest(run: Path) -> str:
    """SHA-256 of the weights."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
