// The order in which the real steps of a batch are worked on.
#pragma once

#include <cstdint>
#include <vector>

#include "recurrence.h"

namespace ostinato {

// Owns what a `Steps` points to.
class Schedule {
 public:
  // mask, resets: (B, T) contiguous, nonzero for true, or null. The caller keeps nothing alive.
  Schedule(int64_t B, int64_t T, const uint8_t* mask, const uint8_t* resets, bool is_reverse);

  const Steps& steps() const { return steps_; }

 private:
  std::vector<int64_t> row_, count_, active_, offset_;
  std::vector<int32_t> time_;
  std::vector<uint8_t> reset_, ends_reset_;
  Steps steps_{};
};

}  // namespace ostinato
