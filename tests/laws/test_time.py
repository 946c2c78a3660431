"""Laws 1, 2 and 6: stretches, chunks and streams are the same thing."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ostinato as ot

B, T, D = 3, 6, 5


@pytest.mark.causal
def test_forward_equals_steps(case):
    x, state, more = case.randn(B, T, D), case.state(B), case.dt(B, T)
    whole = case.layer(x, state, **more)
    ys = []
    for t in range(T):
        y, state = case.layer.step(x[:, t], state, **{name: value[:, t] for name, value in more.items()})
        ys.append(y)
    case.same(torch.stack(ys, 1), whole.y, "outputs of steps")
    case.same(state, whole.state, "state after steps")


@pytest.mark.causal
def test_chunks_equal_the_whole(case):
    x, start, more = case.randn(B, T, D), case.state(B), case.dt(B, T)
    mask = torch.rand(B, T, generator=case.generator) < 0.7
    resets = torch.rand(B, T, generator=case.generator) < 0.25
    for rules in ({}, {"mask": mask}, {"resets": resets}, {"mask": mask, "resets": resets}):
        if case.backend == "torch" and "resets" in rules:
            continue
        whole = case.layer(x, start, **rules, **more)
        for cuts in ((2, 4), (1, 1, 4), (0, 6)):
            state, ys, t = start, [], 0
            for size in cuts:
                part = {name: value[:, t : t + size] for name, value in {**rules, **more}.items()}
                y, state = case.layer(x[:, t : t + size], state, **part)
                ys.append(y)
                t += size
            case.same(torch.cat(ys, 1), whole.y, f"outputs of chunks {cuts} under {list(rules)}")
            case.same(state, whole.state, f"state after chunks {cuts} under {list(rules)}")


@pytest.mark.causal
def test_a_stream_saved_between_frames_equals_the_offline_run(case):
    x, state, more = case.randn(B, T, D), case.state(B), case.dt(B, T)
    whole = case.layer(x, state, **more)
    ys = []
    for t in range(T):
        state = ot.State.from_bytes(state.to_bytes(case.layer), case.layer)
        y, state = case.layer.step(x[:, t], state, **{name: value[:, t] for name, value in more.items()})
        ys.append(y)
    case.same(torch.stack(ys, 1), whole.y, "outputs of the stream")


_CONTINUE = """
import sys, torch, ostinato as ot
from pathlib import Path
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for name, options in {options!r}.items():
    layer = ot.LSTM(5, 7, 2, **options)
    layer.load_state_dict(load_file(folder / f"{{name}}.weights"))
    ot.set_mask_key(layer, seed=3, step=11)
    x = load_file(folder / "x")["x"]
    state = ot.State.from_bytes((folder / f"{{name}}.state").read_bytes(), layer)
    ys = []
    for size in (1, 2, 1):
        y, state = layer(x[:, :size], state)
        x = x[:, size:]
        ys.append(y)
    save_file({{"y": torch.cat(ys, 1).contiguous()}}, folder / f"{{name}}.y")
"""


def test_a_stream_continued_in_another_process_equals_the_offline_run(tmp_path: Path, tolerance):
    options = {
        "reference": {"backend": "reference", "peephole": True, "zoneout_h": 0.2, "dropout_recurrent": 0.3},
        "torch": {"backend": "torch", "dropout_out": 0.3},
    }
    x = torch.randn(B, 7, D)
    save_file({"x": x[:, 3:].contiguous()}, tmp_path / "x")
    whole = {}
    for name, told in options.items():
        layer = ot.LSTM(D, 7, 2, **told)
        ot.set_mask_key(layer, seed=3, step=11)
        start = layer.initial_state(B, rows=[11, 5, 8])
        whole[name] = layer(x, start).y
        state = layer(x[:, :3], start).state
        save_file(layer.state_dict(), tmp_path / f"{name}.weights")
        (tmp_path / f"{name}.state").write_bytes(state.to_bytes(layer))
        assert ot.State.row_ids((tmp_path / f"{name}.state").read_bytes()) == ["11", "5", "8"]
    subprocess.run(
        [sys.executable, "-c", _CONTINUE.format(options=options), str(tmp_path)], check=True, timeout=120
    )
    for name in options:
        y, expected = load_file(tmp_path / f"{name}.y")["y"], whole[name][:, 3:]
        error = (y - expected).abs().max().item()
        assert torch.equal(y, expected) if name == "reference" else error <= tolerance[torch.float32], error


def test_memory_is_flat_over_a_long_stream():
    """The million-step run is `benchmarks/stream_memory.py`; objects show a leak sooner than pages do."""
    layer = ot.GRU(D, 7).eval()
    x, state = torch.randn(2, D), None
    counts = []
    with torch.no_grad():
        for _ in range(3):
            for _ in range(500):
                _, state = layer.step(x, state)
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[2] <= counts[1] + 20, f"objects after each 500 steps: {counts}"
