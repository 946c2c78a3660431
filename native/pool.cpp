#include "pool.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cstdint>
#include <cstring>

#include "thread_state.h"
#include "waiting.h"

namespace ostinato {
namespace {

constexpr int kMaxThreads = 1024;
// Beyond, meeting at every time step takes longer than most steps.
constexpr int kMaxGang = 64;
constexpr std::size_t kStackBytes = std::size_t{4} << 20;
// A worker spins this long for the next call if the last one came within it, and the shorter time otherwise. It also
// stops, and keeps to the shorter time for a while, when another thread wants its core: PyTorch's own threads spin for
// milliseconds after each of its parallel operators, and a worker that spins against them slows those operators down.
constexpr int64_t kSpinNs = 200'000;
constexpr int64_t kShortSpinNs = 2'000;
constexpr int64_t kYieldingNs = 20'000'000;
// The calling thread spins this long for the last tasks of the others before it sleeps.
constexpr int64_t kFinishSpinNs = 50'000;
// Threads of a gang that have not all come by then are taken for kept away; a sleeping worker needs 5 to 50 µs, and
// on an idle virtual core sometimes ten times that, which long work is worth waiting for.
constexpr int64_t kGangAnswerNs = 100'000;
constexpr int64_t kLongestGangAnswerNs = 1'000'000;
constexpr int64_t kWorthOfAnswer = 8;  // of the work's time
// A wait at a barrier beyond this may be a partner that is kept from running: the core is left to others meanwhile.
constexpr int64_t kBarrierSpinNs = 100'000;
constexpr int64_t kFirstRefusalNs = 2'000'000;
constexpr int64_t kLongestRefusalNs = 16'000'000;
constexpr int64_t kAffinityNs = 1'000'000;
// What waking takes, before it was measured, and the most that a measurement counts (beyond, it measured the load).
constexpr int64_t kUsualWakeNs = 20'000;
constexpr int64_t kLongestWakeNs = 100'000;

// Which worker of a gang this thread is.
thread_local int gang_worker = 0;

}  // namespace

// Each thread says in its own cache line how often it has come, and looks at the others': a line crosses between two
// cores once, where a common counter would cross three times.
struct GangBarrier : Barrier {
  explicit GangBarrier(int n) : n_threads(n) {}

  void meet() {
    const int self = gang_worker;
    const uint32_t step = places[self].n_come.load() + 1;
    places[self].n_come.post(step);
    for (int i = 0; i < n_threads; ++i) {
      if (i == self) continue;
      Signal& other = places[i].n_come;
      const auto has_come = [&other, step] { return static_cast<int32_t>(other.load() - step) >= 0; };
      if (spin_until(has_come, kBarrierSpinNs)) continue;
      const int64_t since_ns = now_ns();
      other.nap_until(has_come);
      slow_ns.fetch_add(now_ns() - since_ns + kBarrierSpinNs, std::memory_order_relaxed);
    }
  }

  struct Place {
    Signal n_come;
  };
  const int n_threads;
  alignas(64) std::atomic<int64_t> slow_ns{0};  // what all threads together waited in vain
  Place places[kMaxGang];
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
  // Of n_places for workers those that are worth having: all, or only workers that are awake where the work is short.
  int worth_having(int n_places, int64_t expected_ns);
  void parallel(int n_threads, const Job& job);
  bool refuses_gangs() const { return now_ns() < refuse_until_ns_; }
  bool gang(int n_threads, const Job& job, int64_t expected_ns);

 private:
  // Who may join the present job and who has: places left in the upper half, threads at work in the lower.
  static constexpr uint32_t kPlace = 1u << 16;
  static uint32_t places(uint32_t value) { return value >> 16; }
  static uint32_t n_at_work(uint32_t value) { return value & (kPlace - 1); }

  static void* worker_main(void* worker);
  void work(int index);
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
  void keep_off_this_core();

  struct Worker {
    Pool* pool;
    int index;
    pthread_t thread;
  };

  alignas(64) Signal gate_;
  // Changes when workers are asked to be awake, without a job yet.
  std::atomic<uint32_t> attention_{0};
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
  int64_t short_call_ns_ = INT64_MIN / 2;
  Worker workers_[kMaxThreads];
  alignas(64) std::atomic<int64_t> opened_ns_{0};
  // What waking a worker took, smoothed.
  std::atomic<int64_t> wake_ns_{kUsualWakeNs};
  // Where each worker was last seen.
  alignas(64) std::atomic<int16_t> cores_[kMaxThreads];
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
  Worker& worker = workers_[n_workers_];
  worker.pool = this;
  worker.index = n_workers_;
  cores_[n_workers_].store(-1, std::memory_order_relaxed);
  const bool is_created = pthread_create(&worker.thread, &attributes, worker_main, &worker) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (!is_created) return false;
  ++n_workers_;
  // It starts on this core otherwise, and waits for the calling thread to leave it.
  if (n_cores_ > 1) apply_affinity(worker.thread, without(affinity_, present_core()));
  return true;
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
  for (int i = 0; i < n_workers_; ++i) apply_affinity(workers_[i].thread, affinity_);
}

// Linux tends to wake a thread on the core of the one that woke it if it has been there before or no core is idle (an
// idle core of a virtual machine looks taken): both would then share a core, and the calling thread would wait.
void Pool::keep_off_this_core() {
  const int core = present_core();
  if (core < 0 || n_cores_ < 2) return;
  for (int i = 0; i < n_workers_; ++i) {
    if (cores_[i].load(std::memory_order_relaxed) != core) continue;
    apply_affinity(workers_[i].thread, without(affinity_, core));
    cores_[i].store(-1, std::memory_order_relaxed);
  }
}

int Pool::worth_having(int n_places, int64_t expected_ns) {
  const int n_awake = n_workers_ - gate_.n_asleep();
  if (n_awake >= n_places || expected_ns / 2 >= wake_ns_.load(std::memory_order_relaxed)) return n_places;
  const int64_t now = now_ns();
  if (now - short_call_ns_ < kSpinNs / 2) {
    attention_.fetch_add(1);
    gate_.wake(n_places - n_awake);
  }
  short_call_ns_ = now;
  return n_awake;
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
  keep_off_this_core();
  next_.store(0, std::memory_order_relaxed);
  opened_ns_.store(now_ns(), std::memory_order_relaxed);
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
  gang_worker = worker;
  if (gang_state_.load() == kGo) job_.gang_task(job_.context, worker, *job_.barrier);
}

void* Pool::worker_main(void* argument) {
  const Worker& worker = *static_cast<Worker*>(argument);
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "ostinato");
#elif defined(__APPLE__)
  pthread_setname_np("ostinato");
#endif
  prefer_short_slices();
  is_inside = true;
  worker.pool->work(worker.index);
  return nullptr;
}

void Pool::work(int index) {
  int64_t spin_ns = kSpinNs, yielding_until_ns = INT64_MIN;
  uint32_t attention = attention_.load();
  const auto is_called = [this, &attention] { return places(gate_.load()) > 0 || attention_.load() != attention; };
  for (;;) {
    const int64_t start_ns = now_ns();
    bool was_put_aside = false, has_slept = false;
    if (!spin_until(is_called, start_ns < yielding_until_ns ? kShortSpinNs : spin_ns, &was_put_aside)) {
      gate_.sleep_until(is_called);
      has_slept = true;
    }
    const int64_t now = now_ns();
    if (was_put_aside) yielding_until_ns = now + kYieldingNs;
    const uint32_t present_attention = attention_.load();
    const bool was_asked = present_attention != attention;
    attention = present_attention;
    spin_ns = was_asked || now - start_ns < kSpinNs ? kSpinNs : kShortSpinNs;
    const int core = present_core();
    if (cores_[index].load(std::memory_order_relaxed) != core) {
      cores_[index].store(static_cast<int16_t>(core), std::memory_order_relaxed);
    }
    int worker;
    if (!join(&worker)) continue;
    if (has_slept) {
      int64_t took_ns = now - opened_ns_.load(std::memory_order_relaxed);
      if (took_ns > kLongestWakeNs) took_ns = kLongestWakeNs;
      wake_ns_.store((3 * wake_ns_.load(std::memory_order_relaxed) + took_ns) / 4, std::memory_order_relaxed);
    }
    if (float_mode() != job_.mode) set_float_mode(job_.mode);
    if (job_.barrier != nullptr)
      run_as_gang(worker);
    else
      run_tasks(worker);
    leave();
  }
}

void Pool::parallel(int n_threads, const Job& job) {
  open(n_threads - 1, job);
  run_tasks(0);
  close();
  await_leavers();
}

bool Pool::gang(int n_threads, const Job& job, int64_t expected_ns) {
  const int64_t worth_ns = expected_ns / kWorthOfAnswer;
  const int64_t answer_ns = worth_ns < kGangAnswerNs          ? kGangAnswerNs
                            : worth_ns > kLongestGangAnswerNs ? kLongestGangAnswerNs
                                                              : worth_ns;
  gang_state_.store(kGathering);
  open(n_threads - 1, job);
  const bool all_came = spin_until([this] { return places(gate_.load()) == 0; }, answer_ns) || close() == 0;
  gang_state_.store_and_wake(all_came ? kGo : kDismissed);
  gang_worker = 0;
  const int64_t since_ns = now_ns();
  if (all_came) job.gang_task(job.context, 0, *job.barrier);
  await_leavers();
  // Parts of a step are never equal, and long steps make long waits: what counts is their share of the time.
  const int64_t slow_ns = job.barrier->slow_ns.load(std::memory_order_relaxed);
  const bool was_quick = all_came && 4 * slow_ns < now_ns() - since_ns;
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

void parallel(int n_threads, int n_tasks, void (*task)(void* context, int index, int worker), void* context,
              int64_t expected_ns) {
  if (n_threads > n_tasks) n_threads = n_tasks;
  if (n_threads > 1 && !is_inside && pool().try_take()) {
    Pool& taken = pool();
    n_threads = taken.prepare(n_threads);
    if (n_threads > 1) n_threads = 1 + taken.worth_having(n_threads - 1, expected_ns);
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

bool gang(int n_threads, void (*task)(void* context, int worker, Barrier& barrier), void* context,
          int64_t expected_ns) {
  if (n_threads == 1) {
    GangBarrier barrier(1);
    gang_worker = 0;
    task(context, 0, barrier);
    return true;
  }
  if (n_threads < 1 || n_threads > kMaxGang || is_inside || !pool().try_take()) return false;
  Pool& taken = pool();
  bool has_run = false;
  const int n_workers = n_threads - 1;
  if (!taken.refuses_gangs() && taken.prepare(n_threads) == n_threads &&
      taken.worth_having(n_workers, expected_ns) == n_workers) {
    GangBarrier barrier(n_threads);
    Job job;
    job.gang_task = task;
    job.context = context;
    job.barrier = &barrier;
    is_inside = true;
    has_run = taken.gang(n_threads, job, expected_ns);
    is_inside = false;
  }
  taken.give_back();
  return has_run;
}

}  // namespace ostinato
