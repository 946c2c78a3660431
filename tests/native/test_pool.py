"""The threads of the kernels in a Python process: forks, callers in several threads, affinity, the end.

They run through a small C library of the development build (native/tests/probe), in processes of their own: a
fork should not inherit what other tests loaded. native/tests/test_pool.cpp tests what threads do together.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROBE = Path(__file__).parents[2] / "build" / "dev" / "libostinato_pool_probe.so"
pytestmark = pytest.mark.skipif(not PROBE.exists(), reason="`make native` builds the probe of the pool")
PREAMBLE = f"""
import ctypes, multiprocessing, os, sys, threading, time
probe = ctypes.CDLL({str(PROBE)!r})
probe.probe_parallel.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
probe.probe_gang.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]

def parallel(n_threads=2, n_tasks=9, task_ns=1000):
    workers, n_runs = (ctypes.c_int * n_tasks)(), (ctypes.c_int * n_tasks)()
    probe.probe_parallel(n_threads, n_tasks, task_ns, workers, n_runs)
    assert list(n_runs) == [1] * n_tasks, list(n_runs)
    return set(workers)

def n_threads():
    tasks = os.listdir("/proc/self/task")
    return sum(open(f"/proc/self/task/{{t}}/comm").read() == "ostinato\\n" for t in tasks)
"""


def run(code):
    program = PREAMBLE + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-2000:]}"
    return done.stdout


def test_a_forked_child_makes_its_own_threads():
    run("""
        for _ in range(20):
            parallel()
        for _ in range(5):
            child = os.fork()
            if child == 0:
                for _ in range(20):
                    parallel()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            parallel()
    """)


def test_processes_of_multiprocessing_s_fork_work():
    run("""
        parallel()
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            found = pool.starmap(parallel, [(2, 7)] * 20)
        assert len(found) == 20
        parallel()
    """)


def test_a_fork_while_another_thread_computes():
    run("""
        stop = threading.Event()
        def compute():
            while not stop.is_set():
                parallel(task_ns=100)
        thread = threading.Thread(target=compute)
        thread.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                parallel()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
    """)


def test_several_python_threads_may_call_at_once():
    run("""
        failures = []
        def compute():
            try:
                for _ in range(200):
                    parallel(task_ns=0)
                    assert probe.probe_gang(2, 5, 0) in (-1, 0)
            except BaseException as error:
                failures.append(error)
        threads = [threading.Thread(target=compute) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert not failures, failures
    """)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity masks")
def test_threads_follow_the_affinity_mask():
    run("""
        cores = sorted(os.sched_getaffinity(0))
        assert probe.probe_usable_cores() == len(cores)
        parallel(n_threads=64)
        assert n_threads() <= len(cores) - 1, n_threads()
        os.sched_setaffinity(0, cores[:1])
        assert probe.probe_usable_cores() == 1
        time.sleep(0.01)  # the mask is read again after a millisecond
        assert parallel(n_threads=2, n_tasks=50) == {0}
        assert probe.probe_gang(2, 1, 0) == -1
        os.sched_setaffinity(0, cores)
        time.sleep(0.01)
        parallel(n_threads=2, n_tasks=50)
    """)


def test_no_thread_is_made_for_one_thread_s_work():
    run("""
        for n_threads_, n_tasks in [(1, 50), (2, 1), (0, 3), (2, 0)]:
            assert parallel(n_threads_, n_tasks) <= {0}
        assert not os.path.exists("/proc/self/task") or n_threads() == 0
    """)


@pytest.mark.parametrize("wait_s", [0, 0.02], ids=["spinning", "asleep"])
def test_the_process_ends_with_threads_waiting(wait_s):
    out = run(f"""
        parallel()
        time.sleep({wait_s})
        print("done")
    """)
    assert out == "done\n"
