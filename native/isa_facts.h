// What the compiler was allowed to use in each instruction set's build of the kernels: tests and `isas()` read it.
#pragma once

#include "isa.h"

namespace ostinato {

struct IsaFacts {
  int vector_bytes;  // width of the registers the flags allow
  bool has_fma;      // whether a * b + c rounds once, which results independent of tiling rest on
};

OSTINATO_KERNELS(IsaFacts, isa_facts)

}  // namespace ostinato
