#include "isa_facts.h"

namespace ostinato {
namespace OSTINATO_ISA {

const IsaFacts* isa_facts() {
#if defined(__AVX512F__)
  constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
  constexpr int vector_bytes = 32;
#else
  constexpr int vector_bytes = 16;
#endif
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  constexpr bool has_fma = true;
#else
  constexpr bool has_fma = false;
#endif
  static const IsaFacts facts = {vector_bytes, has_fma};
  return &facts;
}

}  // namespace OSTINATO_ISA
}  // namespace ostinato
