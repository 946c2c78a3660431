#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>

#include "waiting.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ostinato {
namespace {

constexpr int kMaxThreads = 1024;
constexpr std::size_t kStackBytes = std::size_t{4} << 20;
// A worker spins this long for the next call if the last one came within it, and the shorter time otherwise: where
// calls are far apart, PyTorch's own threads spin in between, and a spinning worker would take their core.
constexpr int64_t kSpinNs = 50'000;
constexpr int64_t kShortSpinNs = 2'000;
// The calling thread spins this long for the last tasks of the others before it sleeps.
constexpr int64_t kFinishSpinNs = 50'000;
// Threads of a gang that have not all come by then are taken for kept away; a sleeping worker needs about 10 µs.
constexpr int64_t kGangAnswerNs = 100'000;
// A wait at a barrier beyond this is not work but a partner that is kept from running.
constexpr int64_t kBarrierSpinNs = 100'000;
constexpr int64_t kFirstRefusalNs = 2'000'000;
constexpr int64_t kLongestRefusalNs = 256'000'000;
constexpr int64_t kAffinityNs = 1'000'000;

// The bits that say how arithmetic rounds and whether denormals are flushed.
#if defined(__x86_64__)
using FloatMode = unsigned int;
FloatMode float_mode() { return _mm_getcsr() & 0xffc0u; }  // without the sticky exception flags
void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
FloatMode float_mode() {
  FloatMode mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(FloatMode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
using FloatMode = int;
FloatMode float_mode() { return 0; }
void set_float_mode(FloatMode) {}
#endif

// The cores that a thread may run on; 8192 of them are more than kernels know.
struct Affinity {
  unsigned char mask[1024];
};

#if defined(__linux__)
bool read_affinity(Affinity* affinity) {
  std::memset(affinity->mask, 0, sizeof(affinity->mask));
  return sched_getaffinity(0, sizeof(affinity->mask), reinterpret_cast<cpu_set_t*>(affinity->mask)) == 0;
}
void apply_affinity(pthread_t thread, const Affinity& affinity) {
  pthread_setaffinity_np(thread, sizeof(affinity.mask), reinterpret_cast<const cpu_set_t*>(affinity.mask));
}
#else
bool read_affinity(Affinity* affinity) {
  std::memset(affinity->mask, 0, sizeof(affinity->mask));
  return false;
}
void apply_affinity(pthread_t, const Affinity&) {}
#endif

int count_cores(const Affinity& affinity) {
  int n = 0;
  for (unsigned char bits : affinity.mask) n += __builtin_popcount(bits);
  if (n == 0) n = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  return n < 1 ? 1 : n;
}

}  // namespace

// The threads of one gang. The last to arrive opens the next phase.
struct GangBarrier : Barrier {
  explicit GangBarrier(int n) : n_threads(n) {}

  void meet() {
    const uint32_t now = phase.load();
    if (n_arrived.fetch_add(1, std::memory_order_acq_rel) == n_threads - 1) {
      n_arrived.store(0, std::memory_order_relaxed);
      phase.store_and_wake(now + 1);
      return;
    }
    if (!phase.spin_while(now, kBarrierSpinNs)) {
      n_slow.fetch_add(1, std::memory_order_relaxed);
      phase.sleep_while(now);
    }
  }

  const int n_threads;
  alignas(64) std::atomic<int> n_arrived{0};
  alignas(64) Signal phase;
  alignas(64) std::atomic<int> n_slow{0};
};

void Barrier::wait() { static_cast<GangBarrier*>(this)->meet(); }

namespace {

// What the workers are asked to do: the tasks of `parallel`, or a gang (whose barrier is then set).
struct Job {
  void (*task)(void*, int, int) = nullptr;
  void (*gang_task)(void*, int, Barrier&) = nullptr;
  void* context = nullptr;
  int n_tasks = 0;
  GangBarrier* barrier = nullptr;
  FloatMode mode = 0;
};

enum GangState : uint32_t { kGathering, kGo, kDismissed };

// True on a thread that is inside a task.
thread_local bool is_inside = false;

// Never destroyed: workers may look at it until the process has ended.
class Pool {
 public:
  bool try_take() { return !is_taken_.exchange(true, std::memory_order_acquire); }
  void give_back() { is_taken_.store(false, std::memory_order_release); }

  // The rest is for the thread that took the pool.

  // The number of threads (the caller among them) out of those wanted, after creating what is missing.
  int prepare(int n_threads);
  void parallel(int n_threads, const Job& job);
  bool gang(int n_threads, const Job& job);

 private:
  // Who may join the present job and who has: places left in the upper half, threads at work in the lower.
  static constexpr uint32_t kPlace = 1u << 16;
  static uint32_t places(uint32_t value) { return value >> 16; }
  static uint32_t n_at_work(uint32_t value) { return value & (kPlace - 1); }

  static void* worker_main(void* pool);
  bool create_worker();
  void open(int n_places, const Job& job);
  // Lets nobody join any more; returns how many places had been left.
  int close();
  void await_leavers();
  bool join(int* worker);
  void leave();
  void run_tasks(int worker);
  void run_as_gang(int worker);
  void follow_affinity();

  alignas(64) Signal gate_;
  alignas(64) std::atomic<int> next_{0};
  alignas(64) Signal gang_state_;
  Job job_;
  // Changes when the last worker leaves a closed job while the caller sleeps.
  alignas(64) Signal left_;
  alignas(64) std::atomic<bool> is_taken_{false};

  int n_workers_ = 0;
  int n_cores_ = 1;
  Affinity affinity_ = {};
  int64_t affinity_read_ns_ = INT64_MIN;
  pthread_t affinity_reader_ = {};
  int64_t refuse_until_ns_ = INT64_MIN;
  int64_t refusal_ns_ = kFirstRefusalNs;
  pthread_t workers_[kMaxThreads];
};

bool Pool::create_worker() {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  // Signals are for the program's own threads: Python handles them in its main thread.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const bool is_created = pthread_create(&workers_[n_workers_], &attributes, worker_main, this) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (is_created) ++n_workers_;
  return is_created;
}

void Pool::follow_affinity() {
  const int64_t now = now_ns();
  const pthread_t self = pthread_self();
  if (pthread_equal(affinity_reader_, self) && now < affinity_read_ns_ + kAffinityNs) return;
  affinity_read_ns_ = now;
  affinity_reader_ = self;
  Affinity present;
  if (read_affinity(&present) && std::memcmp(&present, &affinity_, sizeof(present)) == 0) return;
  affinity_ = present;
  n_cores_ = count_cores(present);
  for (int i = 0; i < n_workers_; ++i) apply_affinity(workers_[i], affinity_);
}

int Pool::prepare(int n_threads) {
  follow_affinity();
  if (n_threads > n_cores_) n_threads = n_cores_;
  if (n_threads > kMaxThreads) n_threads = kMaxThreads;
  while (n_workers_ < n_threads - 1)
    if (!create_worker()) return n_workers_ + 1;
  return n_threads;
}

void Pool::open(int n_places, const Job& job) {
  job_ = job;
  job_.mode = float_mode();
  next_.store(0, std::memory_order_relaxed);
  gate_.store(kPlace * static_cast<uint32_t>(n_places));
  const int n_asleep = gate_.n_asleep();
  const int n_to_wake = n_places - (n_workers_ - n_asleep);
  if (n_to_wake > 0) gate_.wake(n_to_wake);
}

int Pool::close() { return static_cast<int>(places(gate_.fetch_and(kPlace - 1))); }

bool Pool::join(int* worker) {
  uint32_t value = gate_.load();
  while (places(value) > 0) {
    if (gate_.compare_exchange(&value, value - kPlace + 1)) {
      *worker = static_cast<int>(places(value));
      return true;
    }
  }
  return false;
}

void Pool::leave() {
  const uint32_t before = gate_.fetch_sub(1);
  // The caller may be gone by now, and another call under way: then this wakes nobody, or somebody in vain.
  if (n_at_work(before) == 1 && places(before) == 0 && left_.n_asleep() > 0) left_.add_and_wake(1);
}

void Pool::await_leavers() {
  const auto all_left = [this] { return n_at_work(gate_.load()) == 0; };
  if (spin_until(all_left, kFinishSpinNs)) return;
  left_.sleep_until(all_left);
}

void Pool::run_tasks(int worker) {
  // A copy: the compiler may not keep fields of a shared object in registers across the calls.
  const Job job = job_;
  for (;;) {
    const int index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= job.n_tasks) return;
    job.task(job.context, index, worker);
  }
}

void Pool::run_as_gang(int worker) {
  if (!gang_state_.spin_while(kGathering, kGangAnswerNs)) gang_state_.sleep_while(kGathering);
  if (gang_state_.load() == kGo) job_.gang_task(job_.context, worker, *job_.barrier);
}

void* Pool::worker_main(void* argument) {
  Pool& pool = *static_cast<Pool*>(argument);
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "ostinato");
#elif defined(__APPLE__)
  pthread_setname_np("ostinato");
#endif
  is_inside = true;
  const auto has_places = [&pool] { return places(pool.gate_.load()) > 0; };
  int64_t spin_ns = kSpinNs;
  for (;;) {
    const int64_t start_ns = now_ns();
    if (!spin_until(has_places, spin_ns)) pool.gate_.sleep_until(has_places);
    int worker;
    if (!pool.join(&worker)) continue;
    spin_ns = now_ns() - start_ns < kSpinNs ? kSpinNs : kShortSpinNs;
    if (float_mode() != pool.job_.mode) set_float_mode(pool.job_.mode);
    if (pool.job_.barrier != nullptr)
      pool.run_as_gang(worker);
    else
      pool.run_tasks(worker);
    pool.leave();
  }
  return nullptr;
}

void Pool::parallel(int n_threads, const Job& job) {
  open(n_threads - 1, job);
  run_tasks(0);
  close();
  await_leavers();
}

bool Pool::gang(int n_threads, const Job& job) {
  const int64_t start_ns = now_ns();
  if (start_ns < refuse_until_ns_) return false;
  gang_state_.store(kGathering);
  open(n_threads - 1, job);
  const bool all_came = spin_until([this] { return places(gate_.load()) == 0; }, kGangAnswerNs) || close() == 0;
  gang_state_.store_and_wake(all_came ? kGo : kDismissed);
  if (all_came) job.gang_task(job.context, 0, *job.barrier);
  await_leavers();
  const bool was_quick = all_came && job.barrier->n_slow.load(std::memory_order_relaxed) == 0;
  if (was_quick) {
    refusal_ns_ = kFirstRefusalNs;
  } else {
    refuse_until_ns_ = now_ns() + refusal_ns_;
    if (refusal_ns_ < kLongestRefusalNs) refusal_ns_ *= 2;
  }
  return all_came;
}

std::atomic<Pool*> the_pool{nullptr};

// The threads of the parent do not exist in a forked child; the child leaves their pool alone and makes its own.
void forget_pool() { the_pool.store(nullptr, std::memory_order_relaxed); }
[[maybe_unused]] const int is_fork_safe = pthread_atfork(nullptr, nullptr, forget_pool);

Pool& pool() {
  Pool* present = the_pool.load(std::memory_order_acquire);
  if (present != nullptr) return *present;
  Pool* made = new Pool;
  if (the_pool.compare_exchange_strong(present, made, std::memory_order_acq_rel)) return *made;
  delete made;  // another thread was first
  return *present;
}

}  // namespace

int usable_cores() {
  Affinity affinity;
  read_affinity(&affinity);
  return count_cores(affinity);
}

void parallel(int n_threads, int n_tasks, void (*task)(void* context, int index, int worker), void* context) {
  if (n_threads > n_tasks) n_threads = n_tasks;
  if (n_threads > 1 && !is_inside && pool().try_take()) {
    Pool& taken = pool();
    n_threads = taken.prepare(n_threads);
    if (n_threads > 1) {
      Job job;
      job.task = task;
      job.context = context;
      job.n_tasks = n_tasks;
      is_inside = true;
      taken.parallel(n_threads, job);
      is_inside = false;
      taken.give_back();
      return;
    }
    taken.give_back();
  }
  for (int index = 0; index < n_tasks; ++index) task(context, index, 0);
}

bool gang(int n_threads, void (*task)(void* context, int worker, Barrier& barrier), void* context) {
  GangBarrier barrier(n_threads);
  if (n_threads == 1) {
    task(context, 0, barrier);
    return true;
  }
  if (is_inside || !pool().try_take()) return false;
  Pool& taken = pool();
  bool has_run = false;
  if (taken.prepare(n_threads) == n_threads) {
    Job job;
    job.gang_task = task;
    job.context = context;
    job.barrier = &barrier;
    is_inside = true;
    has_run = taken.gang(n_threads, job);
    is_inside = false;
  }
  taken.give_back();
  return has_run;
}

}  // namespace ostinato
