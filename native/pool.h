// Threads of our own. They are created at the first call that wants them, wait briefly for the next call by spinning
// and then sleep; they follow the affinity mask of the calling thread, take its floating-point mode (rounding,
// flushing of denormals), and a forked child starts with none and makes its own.
//
// Tasks run concurrently and must not throw. Anything written before a call is visible to its tasks, and what they
// wrote is visible after it. A call from inside a task, and a call while another thread's call has the workers, runs
// its tasks one after the other on the calling thread: correct, never a deadlock.
#pragma once

#include <cstdint>

namespace ostinato {

// Cores that the calling thread may run on (its affinity mask), at least 1.
int usable_cores();

// Runs task(context, index, worker) for every index in [0, n_tasks) on at most n_threads threads, one a core; returns
// when all are done. The calling thread takes part as worker 0; worker is in [0, n_threads) and no two running tasks
// share it, so per-worker scratch memory needs n_threads places. Indices are handed out in order, one at a time, to
// whoever is free: a thread that other programs keep from running delays its own index only, so prefer a few tasks
// per thread to exactly one.
//
// Costs about 0.5 µs while workers spin. To wake a sleeping one takes 5 µs (on virtual machines 30 µs) until it runs,
// a third of that of the calling thread's time. So say with expected_ns about how long all tasks together take on one
// thread: less than twice what waking takes leaves sleeping workers asleep, until such calls follow closely enough
// to keep them awake.
void parallel(int n_threads, int n_tasks, void (*task)(void* context, int index, int worker), void* context,
              int64_t expected_ns = INT64_MAX);

// Where the threads of a gang meet.
class Barrier {
 public:
  // Returns when all threads of the gang have called it; what any of them wrote before is then visible to all. Spins
  // (about 0.1 µs when all run) and after a while sleeps, so that a partner who was put aside gets this core.
  void wait();

 protected:
  Barrier() = default;
};

// Runs task(context, worker, barrier) for every worker in [0, n_threads) at the same time, the calling thread being
// worker 0, for kernels whose threads meet at every time step. Returns false at once, having run nothing, when that
// many threads are not to be had: fewer cores, workers busy, slow to answer, or slow at the barriers of a recent gang
// because other programs use the cores; or workers asleep and less to do (expected_ns, as above) than waking is
// worth. The caller then does the work alone.
bool gang(int n_threads, void (*task)(void* context, int worker, Barrier& barrier), void* context,
          int64_t expected_ns = INT64_MAX);

}  // namespace ostinato
