// What a thread carries beside its stack: the cores it may run on, its time slice, its floating-point mode.
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ostinato {

// A waking thread with a shorter slice than the running one is preferred by Linux (6.12 on): a worker that wakes
// while PyTorch's threads still spin runs at once. 0.1 ms is the shortest allowed.
constexpr uint64_t kSliceNs = 100'000;

// The bits that say how arithmetic rounds and whether denormals are flushed.
#if defined(__x86_64__)
using FloatMode = unsigned int;
inline FloatMode float_mode() { return _mm_getcsr() & 0xffc0u; }  // without the sticky exception flags
inline void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
inline FloatMode float_mode() {
  FloatMode mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(FloatMode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
using FloatMode = int;
inline FloatMode float_mode() { return 0; }
inline void set_float_mode(FloatMode) {}
#endif

// The cores that a thread may run on; 8192 of them are more than kernels know.
struct Affinity {
  unsigned char mask[1024];
};

#if defined(__linux__)
inline int present_core() { return sched_getcpu(); }

inline bool read_affinity(Affinity* affinity) {
  std::memset(affinity->mask, 0, sizeof(affinity->mask));
  return sched_getaffinity(0, sizeof(affinity->mask), reinterpret_cast<cpu_set_t*>(affinity->mask)) == 0;
}
inline void apply_affinity(pthread_t thread, const Affinity& affinity) {
  pthread_setaffinity_np(thread, sizeof(affinity.mask), reinterpret_cast<const cpu_set_t*>(affinity.mask));
}

// The part of the kernel's struct sched_attr that every version has.
struct SchedulingAttributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

inline void prefer_short_slices() {
  // Where the kernel refuses (an old one, a sandbox), the slice stays as it was.
  SchedulingAttributes attributes = {};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0 || attributes.policy != SCHED_OTHER) return;
  attributes.size = sizeof(attributes);
  attributes.runtime = kSliceNs;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}
#else
inline int present_core() { return -1; }
inline void prefer_short_slices() {}

inline bool read_affinity(Affinity* affinity) {
  std::memset(affinity->mask, 0, sizeof(affinity->mask));
  return false;
}
inline void apply_affinity(pthread_t, const Affinity&) {}
#endif

inline Affinity without(Affinity affinity, int core) {
  const bool is_possible = core >= 0 && core < 8 * static_cast<int>(sizeof(affinity.mask));
  if (is_possible) affinity.mask[core / 8] &= static_cast<unsigned char>(~(1u << (core % 8)));
  return affinity;
}

inline int count_cores(const Affinity& affinity) {
  int n = 0;
  for (unsigned char bits : affinity.mask) n += __builtin_popcount(bits);
  if (n == 0) n = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  return n < 1 ? 1 : n;
}

}  // namespace ostinato
