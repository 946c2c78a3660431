// The pool as a small C library, for tests from Python (forks, threads, affinity) and benchmarks/pool.py. Not shipped.
#include <atomic>
#include <cstdint>

#include "pool.h"
#include "waiting.h"

#define PROBE extern "C" __attribute__((visibility("default")))

using namespace ostinato;

PROBE int probe_usable_cores() { return usable_cores(); }

// Busy for task_ns in each task; workers (n_tasks) receives who did it, n_runs (n_tasks) how often it was done.
PROBE void probe_parallel(int n_threads, int n_tasks, int64_t task_ns, int* workers, int* n_runs) {
  struct Context {
    int64_t task_ns;
    int *workers, *n_runs;
  } context{task_ns, workers, n_runs};
  parallel(
      n_threads, n_tasks,
      [](void* argument, int index, int worker) {
        const Context& c = *static_cast<Context*>(argument);
        const int64_t end_ns = now_ns() + c.task_ns;
        while (now_ns() < end_ns) relax();
        c.workers[index] = worker;
        c.n_runs[index] += 1;
      },
      &context);
}

// A gang that meets n_steps times, each thread busy for work_ns in between. Returns -1 if refused, else how often a
// thread came out of the barrier before another had come in (0 if the barrier works).
PROBE int probe_gang(int n_threads, int n_steps, int64_t work_ns) {
  struct alignas(64) Place {
    std::atomic<int> step{0};
  };
  struct Context {
    Place places[64];
    int n_threads, n_steps;
    int64_t work_ns;
    std::atomic<int> n_early{0};
  } context;
  context.n_threads = n_threads, context.n_steps = n_steps, context.work_ns = work_ns;
  const bool has_run = gang(
      n_threads,
      [](void* argument, int worker, Barrier& barrier) {
        Context& c = *static_cast<Context*>(argument);
        for (int step = 1; step <= c.n_steps; ++step) {
          if (c.work_ns > 0) {
            const int64_t end_ns = now_ns() + c.work_ns;
            while (now_ns() < end_ns) relax();
          }
          c.places[worker].step.store(step, std::memory_order_relaxed);
          barrier.wait();
          for (int i = 0; i < c.n_threads; ++i)
            if (c.places[i].step.load(std::memory_order_relaxed) < step) ++c.n_early;
        }
      },
      &context);
  return has_run ? context.n_early.load() : -1;
}

// Time of one region of n_tasks busy for task_ns each.
PROBE int64_t probe_region_ns(int n_threads, int n_tasks, int64_t task_ns) {
  const int64_t start_ns = now_ns();
  parallel(
      n_threads, n_tasks,
      [](void* argument, int, int) {
        const int64_t work_ns = *static_cast<int64_t*>(argument);
        if (work_ns == 0) return;
        const int64_t end_ns = now_ns() + work_ns;
        while (now_ns() < end_ns) relax();
      },
      &task_ns);
  return now_ns() - start_ns;
}
