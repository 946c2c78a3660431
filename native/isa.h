// Instruction sets: which ones are compiled in, which one the machine runs, and how a part picks its kernels.
//
// A part (say, scan) is one source compiled once per instruction set, with OSTINATO_ISA defined to its name:
//
//   scan.h                                          scan.cpp (in ISA_SOURCES of CMakeLists.txt)
//     #include "isa.h"                                #include "scan.h"
//     namespace ostinato {                            namespace ostinato { namespace OSTINATO_ISA {
//     struct ScanKernels { void (*run)(…); };         namespace { … everything … }
//     OSTINATO_KERNELS(ScanKernels, scan_kernels)     const ScanKernels* scan_kernels() {
//     }                                                 static const ScanKernels kernels = {run};
//                                                       return &kernels;
//   elsewhere: scan_kernels()->run(…);                }}}
//
// A source of ISA_SOURCES includes no header that defines functions with external linkage (<vector>, <algorithm>,
// <string> …): the linker keeps one copy of an inline function, and it may be the one that needs AVX-512.
#pragma once

#if defined(OSTINATO_WITH_BASELINE)
#define OSTINATO_IF_BASELINE(text) text
#else
#define OSTINATO_IF_BASELINE(text)
#endif
#if defined(OSTINATO_WITH_AVX2)
#define OSTINATO_IF_AVX2(text) text
#else
#define OSTINATO_IF_AVX2(text)
#endif
#if defined(OSTINATO_WITH_AVX512)
#define OSTINATO_IF_AVX512(text) text
#else
#define OSTINATO_IF_AVX512(text)
#endif
#if defined(OSTINATO_WITH_NEON)
#define OSTINATO_IF_NEON(text) text
#else
#define OSTINATO_IF_NEON(text)
#endif

// DO(name) once for each compiled instruction set, from the plainest to the widest.
#define OSTINATO_FOR_EACH_ISA(DO) \
  OSTINATO_IF_BASELINE(DO(baseline)) OSTINATO_IF_NEON(DO(neon)) OSTINATO_IF_AVX2(DO(avx2)) OSTINATO_IF_AVX512(DO(avx512))

namespace ostinato {

enum class Isa { baseline, neon, avx2, avx512 };

// Lower-case name, as in OSTINATO_ISA and Python.
const char* isa_name(Isa isa);

// The compiled instruction sets, from the plainest to the widest; n receives their number (at least 1).
const Isa* compiled_isas(int* n);

// Whether this processor and its operating system run it.
bool supported(Isa isa);

// What the kernels run on: at first the widest supported set. May change between calls (set_isa), so a kernel's
// caller asks for the table once per call. Thread-safe.
Isa active_isa();

// Switches to a set by name. Returns nullptr, or a message that says what is wrong and lists the names that work;
// then nothing has changed. The message lives until the thread's next call.
const char* set_isa(const char* name);

}  // namespace ostinato

// In a part's header, inside namespace ostinato: declares `const Table* function()` in the namespace of every compiled
// instruction set and, outside of per-set sources, `const Table* function()` that returns the active one's.
#if defined(OSTINATO_ISA)
#define OSTINATO_KERNELS(Table, function) \
  namespace OSTINATO_ISA {                \
  const Table* function();                \
  }
#else
#define OSTINATO_DECLARE_KERNELS_(isa, Table, function) \
  namespace isa {                                       \
  const Table* function();                              \
  }
#define OSTINATO_PICK_KERNELS_(isa, function) \
  case Isa::isa:                              \
    return isa::function();
#define OSTINATO_KERNELS(Table, function)                                        \
  OSTINATO_IF_BASELINE(OSTINATO_DECLARE_KERNELS_(baseline, Table, function))     \
  OSTINATO_IF_NEON(OSTINATO_DECLARE_KERNELS_(neon, Table, function))             \
  OSTINATO_IF_AVX2(OSTINATO_DECLARE_KERNELS_(avx2, Table, function))             \
  OSTINATO_IF_AVX512(OSTINATO_DECLARE_KERNELS_(avx512, Table, function))         \
  inline const Table* function() {                                               \
    switch (active_isa()) {                                                      \
      OSTINATO_IF_BASELINE(OSTINATO_PICK_KERNELS_(baseline, function))           \
      OSTINATO_IF_NEON(OSTINATO_PICK_KERNELS_(neon, function))                   \
      OSTINATO_IF_AVX2(OSTINATO_PICK_KERNELS_(avx2, function))                   \
      OSTINATO_IF_AVX512(OSTINATO_PICK_KERNELS_(avx512, function))               \
      default:                                                                   \
        return nullptr; /* set_isa lets no other set through */                  \
    }                                                                            \
  }
#endif
