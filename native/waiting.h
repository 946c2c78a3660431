// How threads of the pool wait: first by spinning, then by sleeping in the kernel.
#pragma once

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ostinato {

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Tells the processor that this is a spin loop.
inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");  // `yield` does nothing on most cores
#endif
}

// A spin loop that was away this long was put aside for another thread: a look at the clock comes every µs or so.
constexpr int64_t kPutAsideNs = 20'000;

// Spins until done() or for limit_ns; returns done(). With was_put_aside it also ends, and says so, when another
// thread has had this core in the meantime.
template <typename Done>
bool spin_until(Done done, int64_t limit_ns, bool* was_put_aside = nullptr) {
  // The shortest waits matter most: a pause takes up to 0.1 µs and the clock half of that.
  for (int i = 0; i < 64; ++i)
    if (done()) return true;
  int64_t now = now_ns();
  const int64_t end_ns = now + limit_ns;
  while (now < end_ns) {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      relax();
    }
    const int64_t before = now;
    now = now_ns();
    if (was_put_aside != nullptr && now - before > kPutAsideNs) {
      *was_put_aside = true;
      break;
    }
  }
  return done();
}

// A word that threads wait on. A thread that goes to sleep counts itself and then looks again; a thread that changes
// the word looks at the count afterwards. All of these are sequentially consistent, so one of the two sees the other.
class Signal {
 public:
  uint32_t load() const { return value_.load(); }
  void store(uint32_t value) { value_.store(value); }
  uint32_t fetch_and(uint32_t bits) { return value_.fetch_and(bits); }
  uint32_t fetch_sub(uint32_t amount) { return value_.fetch_sub(amount); }
  bool compare_exchange(uint32_t* expected, uint32_t value) {
    return value_.compare_exchange_weak(*expected, value, std::memory_order_acq_rel, std::memory_order_acquire);
  }

  void store_and_wake(uint32_t value) {
    value_.store(value);
    if (n_asleep() > 0) wake(INT_MAX);
  }
  // Cheaper, and may miss a thread that is going to sleep at this moment: such threads use nap_until.
  void post(uint32_t value) {
    value_.store(value, std::memory_order_release);
    if (n_asleep_.load(std::memory_order_relaxed) > 0) wake(INT_MAX);
  }
  void add_and_wake(uint32_t amount) {
    value_.fetch_add(amount);
    if (n_asleep() > 0) wake(INT_MAX);
  }

  int n_asleep() const { return n_asleep_.load(); }

  bool spin_while(uint32_t seen, int64_t limit_ns) const {
    return spin_until([this, seen] { return load() != seen; }, limit_ns);
  }
  void sleep_while(uint32_t seen) {
    sleep_until([this, seen] { return load() != seen; });
  }

  // Sleeps until done(), which must not become true without a later change of the word and a wake.
  template <typename Done>
  void sleep_until(Done done) {
    sleep_until(done, false);
  }

  // The same, looking again every millisecond.
  template <typename Done>
  void nap_until(Done done) {
    sleep_until(done, true);
  }

#if defined(__linux__)
  void wake(int n) { syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, n, nullptr, nullptr, 0); }

 private:
  void sleep_if(uint32_t seen, bool is_nap) {
    const timespec nap = {0, 1'000'000};
    syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, is_nap ? &nap : nullptr, nullptr, 0);
  }
#else
  void wake(int) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    changed_.notify_all();
  }

 private:
  void sleep_if(uint32_t seen, bool is_nap) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (value_.load() != seen) return;
    if (is_nap)
      changed_.wait_for(lock, std::chrono::milliseconds(1));
    else
      changed_.wait(lock);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
#endif
  template <typename Done>
  void sleep_until(Done done, bool is_nap) {
    n_asleep_.fetch_add(1);
    for (;;) {
      const uint32_t seen = value_.load();
      if (done()) break;
      sleep_if(seen, is_nap);
    }
    n_asleep_.fetch_sub(1);
  }

  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the kernel looks at the word itself");
  // Two cache lines: who has changed the word looks at the count, which spinning readers of the word would take away.
  alignas(64) std::atomic<uint32_t> value_{0};
  alignas(64) std::atomic<int> n_asleep_{0};
};

}  // namespace ostinato
