// For tests that must hold on every instruction set.
#pragma once

#include "isa.h"

namespace testing {

// Calls body() with each compiled instruction set that this machine runs, and goes back to the one before.
template <typename Body>
void on_every_isa(Body&& body) {
  const ostinato::Isa before = ostinato::active_isa();
  int n = 0;
  const ostinato::Isa* compiled = ostinato::compiled_isas(&n);
  for (int i = 0; i < n; ++i) {
    if (!ostinato::supported(compiled[i])) continue;
    ostinato::set_isa(ostinato::isa_name(compiled[i]));
    body();
  }
  ostinato::set_isa(ostinato::isa_name(before));
}

}  // namespace testing
