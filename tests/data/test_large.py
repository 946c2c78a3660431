"""Files larger than memory: the same table, at constant memory, and nothing left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ostinato.data.series import SeriesSpec, read_series
from ostinato.errors import DataError

SPEC = SeriesSpec(time="t", target="y", series="id", known=("k", "w"), observed="o", static="s")


def write(path: Path, n_times: int, n_series: int = 3, *, shuffled: bool = False) -> None:
    rng = np.random.default_rng(5)
    rows = [
        f"{t},s{s},{rng.normal():.3f},{t % 7},{'xyz'[t % 3]},{rng.normal():.3f},g{s % 2}\n"
        for t in range(n_times)
        for s in range(n_series)
        if (t + s) % 11
    ]
    if shuffled:
        rng.shuffle(rows)
    path.write_text("t,id,y,k,w,o,s\n" + "".join(rows))


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_table_on_disk_equals_the_table_in_memory(
    shuffled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    write(tmp_path / "t.csv", 30_000 if not shuffled else 15_000, shuffled=shuffled)
    inside = read_series(tmp_path / "t.csv", spec=SPEC)
    on_disk = read_series(tmp_path / "t.csv", spec=SPEC, budget_bytes=100_000)
    assert isinstance(on_disk.series[0].values, np.memmap)
    assert not isinstance(inside.series[0].values, np.memmap)
    assert on_disk.frequency == inside.frequency
    assert [str(note) for note in on_disk.notes] == [str(note) for note in inside.notes]
    for left, right in zip(inside, on_disk, strict=True):
        assert (left.id, left.start) == (right.id, right.start)
        for name in ("values", "known", "observed", "static"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert len(list(scratch.iterdir())) == 1
    part = on_disk.restrict(lambda series: series.id == "s1")
    del on_disk, left, right
    gc.collect()
    assert len(list(scratch.iterdir())) == 1, "a derived table must keep its arrays"
    assert np.isfinite(part["s1"].values).sum() > 10_000
    del part
    gc.collect()
    assert list(scratch.iterdir()) == [], "the temporary folder outlived its tables"


def test_a_refused_large_file_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    write(tmp_path / "t.csv", 2_000)
    with (tmp_path / "t.csv").open("a") as stream:
        stream.write("0,s1,1,1,x,1,g1\n")
    with pytest.raises(
        DataError, match=r"the time 0 of series 's1' is there twice, first in line 2"
    ) as caught:
        read_series(tmp_path / "t.csv", spec=SPEC, budget_bytes=1_000)
    n_lines = (tmp_path / "t.csv").read_text().count("\n")
    assert f"line {n_lines}:" in str(caught.value)
    del caught
    gc.collect()
    assert list(scratch.iterdir()) == []


PROBE = """
import resource, sys
from ostinato.data.series import SeriesSpec, read_series
spec = SeriesSpec(time="t", target="y", series="id", observed=("a", "b", "c", "d"))
read_series(sys.argv[1], spec=spec, budget_bytes=1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = read_series(sys.argv[2], spec=spec, budget_bytes=8 << 20)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, sum(series.length for series in table), float(table.series[-1].values[-1, 0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resource.getrusage counts kilobytes on Linux")
def test_memory_stays_flat_on_a_large_file(tmp_path: Path) -> None:
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    header = "t,id,y,a,b,c,d\n"
    block = ",".join(["0.1234567890123"] * 4)
    small.write_text(header + "".join(f"{i // 4},s{i % 4},{i}.5,{block}\n" for i in range(80_000)))
    n = 720_000
    with large.open("w") as stream:
        stream.write(header)
        for first in range(0, n, 20_000):
            stream.write("".join(f"{i // 4},s{i % 4},{i}.5,{block}\n" for i in range(first, first + 20_000)))
    size = large.stat().st_size
    assert size > 55e6, f"the file has only {size / 1e6:.0f} MB"
    run = subprocess.run(
        [sys.executable, "-c", PROBE, str(small), str(large)],
        capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    grown, length, last = run.stdout.split()
    assert (int(length), float(last)) == (n, n - 0.5)
    assert int(grown) < 24e6, (
        f"a file of {size / 1e6:.0f} MB took {int(grown) / 1e6:.1f} MB more than one of 6 MB"
    )
