#include "isa.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <initializer_list>

namespace ostinato {
namespace {

constexpr Isa kCompiled[] = {
#define OSTINATO_LIST(isa) Isa::isa,
    OSTINATO_FOR_EACH_ISA(OSTINATO_LIST)
#undef OSTINATO_LIST
};
constexpr int kNCompiled = sizeof(kCompiled) / sizeof(kCompiled[0]);

Isa widest_supported() {
  Isa best = kCompiled[0];
  for (Isa isa : kCompiled)
    if (supported(isa)) best = isa;
  return best;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{widest_supported()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::neon: return "neon";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "unknown";
}

const Isa* compiled_isas(int* n) {
  *n = kNCompiled;
  return kCompiled;
}

bool supported(Isa isa) {
#if defined(__x86_64__)
  // These ask cpuid and, for the wide registers, whether the operating system saves them (xgetbv).
  __builtin_cpu_init();
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma");
    default:
      return isa == Isa::baseline;
  }
#elif defined(__aarch64__)
  return isa == Isa::neon;  // part of the architecture
#else
  return isa == Isa::baseline;
#endif
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

const char* set_isa(const char* name) {
  thread_local char message[256];
  for (Isa isa : kCompiled) {
    if (std::strcmp(name, isa_name(isa)) == 0 && supported(isa)) {
      active().store(isa, std::memory_order_relaxed);
      return nullptr;
    }
  }
  bool is_known = false;
  for (Isa isa : {Isa::baseline, Isa::neon, Isa::avx2, Isa::avx512})
    is_known = is_known || std::strcmp(name, isa_name(isa)) == 0;
  int used = std::snprintf(message, sizeof(message), is_known ? "instruction set '%.40s' does not run here; known:"
                                                              : "unknown instruction set '%.40s'; known:", name);
  const char* separator = " ";
  for (Isa isa : kCompiled) {
    if (!supported(isa)) continue;
    used += std::snprintf(message + used, sizeof(message) - used, "%s%s", separator, isa_name(isa));
    separator = ", ";
  }
  return message;
}

}  // namespace ostinato
