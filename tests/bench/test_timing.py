"""Turns, medians, growth, load: the arithmetic of the benchmark, with invented clocks."""

import gc
import time

import numpy as np
import pytest

from ostinato.bench import machine, timing
from ostinato.bench.machine import LoadGuard, Reading, shares_between
from ostinato.bench.situations import foreign_load, peak_bytes, saved_bytes
from ostinato.bench.timing import Contestant, Effort, Timing, geometric_mean, measure, ratio, ratio_spread


def contestant(name, log):
    def call():
        log.append((name, gc.isenabled()))

    return Contestant(name, call, dict)


def test_contestants_take_turns_and_another_begins_each_round():
    log = []
    found = measure([contestant(n, log) for n in "abc"], Effort(0.0, 3, 3, 0.0), is_threaded=False)
    assert {name: len(one.turns) for name, one in found.items()} == {"a": 3, "b": 3, "c": 3}
    turns = [name for i, (name, _) in enumerate(log) if i == 0 or log[i - 1][0] != name]
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab", "an untimed call each comes first"
    assert not any(enabled for _, enabled in log), "no garbage collection while timing"
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_a_failure():
    def fail():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        measure([Contestant("a", fail, dict)], Effort(0.0, 1, 1, 0.0), is_threaded=False)
    assert gc.isenabled()


def test_what_comes_between_is_not_on_the_clock():
    order = []
    one = Contestant("a", lambda: order.append("call"), dict)
    effort = Effort(0.0, 2, 2, 0.0)
    found = measure(
        [one], effort, is_threaded=False, between=lambda: (order.append("between"), time.sleep(0.003))
    )
    timed = order[-2:]
    assert timed == ["between", "call"]
    assert found["a"].median_s < 0.001


def test_medians_ratios_and_spreads():
    ours = Timing([np.array([1.0, 1.0, 9.0]), np.array([2.0]), np.array([3.0])])
    peer = Timing([np.array([4.0]), np.array([4.0]), np.array([4.0, 5.0, 3.0])])
    assert ours.medians == [1.0, 2.0, 3.0]
    assert ours.calls == 5
    assert ratio(peer, ours) == 2.0
    low, high = ratio_spread(peer, ours)
    assert (low, high) == pytest.approx(np.percentile([4.0, 2.0, 4 / 3], (25, 75)))
    assert ours.percentile_s(100) == 9.0
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_long_rounds_stop_early():
    effort = Effort(seconds=1.0, rounds=9, few_rounds=5, turn_s=0.0)
    assert not timing._is_enough(effort, 5, 1.5)
    assert timing._is_enough(effort, 5, 2.0)
    assert not timing._is_enough(effort, 4, 60.0)
    assert not timing._is_enough(effort, 9, 0.5), "short cases go on until the time is used"
    assert timing._is_enough(effort, 9, 1.0)


def test_foreign_time_is_busy_time_that_is_not_ours(monkeypatch):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    before = Reading(at_s=10.0, own_s=1.0, busy_s=100.0, steal_s=5.0)
    shares = shares_between(before, Reading(at_s=12.0, own_s=2.5, busy_s=102.0, steal_s=5.2))
    assert shares.foreign == pytest.approx(0.5 / 4)
    assert shares.steal == pytest.approx(0.2 / 4)
    assert shares.is_noisy
    assert not shares_between(before, Reading(12.0, 2.9, 102.0, 5.0)).is_noisy
    assert shares_between(before, Reading(12.0, 2.9, None, None)) is None, "a system without /proc/stat"


def test_the_guard_stops_waiting_when_its_patience_is_over(monkeypatch):
    busy = iter(range(1000))

    def reading():
        n = next(busy)
        return Reading(at_s=float(n), own_s=0.0, busy_s=10.0 * n, steal_s=0.0)

    monkeypatch.setattr(machine, "read_counters", reading)
    monkeypatch.setattr(machine.time, "sleep", lambda _: None)
    guard = LoadGuard(patience_s=0.35)
    guard.wait_for_quiet()
    assert guard.waited_s == pytest.approx(0.4)
    guard.wait_for_quiet()
    assert guard.waited_s == pytest.approx(0.4), "patience is for the whole benchmark"
    assert not guard.may_repeat(Reading(time.perf_counter(), 0.0, 0.0, 0.0))


def test_a_noisy_measurement_is_repeated_while_there_is_patience():
    guard = LoadGuard(patience_s=10.0)
    assert guard.may_repeat(Reading(time.perf_counter() - 6.0, 0.0, 0.0, 0.0))
    assert not guard.may_repeat(Reading(time.perf_counter() - 6.0, 0.0, 0.0, 0.0))
    assert 6.0 <= guard.waited_s < 7.0


def test_counters_of_this_machine_rise():
    before = machine.read_counters()
    while time.process_time() < before.own_s + 0.05:
        pass
    after = machine.read_counters()
    assert after.own_s - before.own_s >= 0.03
    shares = shares_between(before, after)
    assert shares is None or 0 <= shares.foreign <= 1.5


def test_the_processor_is_named():
    described = machine.describe_machine()
    assert described["cpu"]
    assert described["cpus"] >= 1


def test_foreign_processes_end_with_the_block():
    with foreign_load(2):
        children = [p for p in machine.Path("/proc").glob("[0-9]*/stat") if _is_child(p)]
        assert len(children) >= 2
    assert not [p for p in children if _is_child(p)]


def _is_child(stat):
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(fields[1]) == machine.os.getpid() and fields[0] != "Z"


def test_memory_between_forward_and_backward_is_counted_once_per_storage():
    import torch

    x = torch.randn(100, 10, requires_grad=True)

    def call():
        y = x.exp()  # keeps y, 4000 bytes
        return (y * y).sum().backward()  # keeps y twice more

    assert saved_bytes(call) == 4000


def test_the_peak_of_a_call_is_seen_where_the_system_tells_it():
    import torch

    peak = peak_bytes(lambda: torch.ones(64_000_000 // 4).sum())
    if peak is None:
        pytest.skip("no high-water mark to read here")
    assert 50e6 < peak < 200e6
