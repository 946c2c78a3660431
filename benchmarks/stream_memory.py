"""Resident memory over a long stream of single steps: `python benchmarks/stream_memory.py [STEPS]`.

Prints one JSON object; exits 1 if memory grew by more than 5 % after the first tenth.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

import ostinato as ot


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = ot.LSTM(8, 32).eval()
    state = layer.initial_state(1)
    frames = torch.randn(1000, 1, 8)
    after_warm_up = 0
    start_s = time.perf_counter()
    with torch.no_grad():
        for step in range(n_steps):
            _, state = layer.step(frames[step % 1000], state)
            if step == n_steps // 10:
                after_warm_up = resident_bytes()
    elapsed_s = time.perf_counter() - start_s
    growth = resident_bytes() / after_warm_up - 1
    print(json.dumps({
        "steps": n_steps, "path": layer.path, "rss_after_a_tenth_bytes": after_warm_up,
        "rss_at_the_end_bytes": resident_bytes(), "growth": round(growth, 4),
        "microseconds_a_step": round(elapsed_s / n_steps * 1e6, 1), "torch": torch.__version__,
    }))  # fmt: skip
    return int(growth > 0.05)


if __name__ == "__main__":
    raise SystemExit(main())
