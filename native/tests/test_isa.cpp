#include "isa.h"

#include <cstring>

#include "isa_facts.h"
#include "testing.h"

using namespace ostinato;

TEST(isa_plainest_is_supported_and_the_widest_active) {
  int n = 0;
  const Isa* compiled = compiled_isas(&n);
  CHECK(n >= 1);
  CHECK(supported(compiled[0]));
  Isa widest = compiled[0];
  for (int i = 0; i < n; ++i)
    if (supported(compiled[i])) widest = compiled[i];
  CHECK(active_isa() == widest);
}

TEST(isa_set_switches_the_kernels) {
  int n = 0;
  const Isa* compiled = compiled_isas(&n);
  const Isa before = active_isa();
  for (int i = 0; i < n; ++i) {
    if (!supported(compiled[i])) continue;
    CHECK(set_isa(isa_name(compiled[i])) == nullptr);
    CHECK(active_isa() == compiled[i]);
    const int expected = compiled[i] == Isa::avx512 ? 64 : compiled[i] == Isa::avx2 ? 32 : 16;
    CHECK(isa_facts()->vector_bytes == expected);
    CHECK(isa_facts()->has_fma == (compiled[i] != Isa::baseline));
  }
  set_isa(isa_name(before));
}

TEST(isa_unknown_name_changes_nothing_and_lists_the_known) {
  const Isa before = active_isa();
  const char* message = set_isa("sse9");
  CHECK(message != nullptr);
  CHECK(std::strstr(message, "'sse9'") != nullptr);
  CHECK(std::strstr(message, isa_name(before)) != nullptr);
  CHECK(active_isa() == before);
}
