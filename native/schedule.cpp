#include "schedule.h"

#include <algorithm>
#include <numeric>

namespace ostinato {

Schedule::Schedule(int64_t B, int64_t T, const uint8_t* mask, const uint8_t* resets, bool is_reverse) {
  std::vector<int64_t> length(static_cast<size_t>(B), T);
  bool has_holes = false, is_ragged = false;
  if (mask) {
    for (int64_t b = 0; b < B; ++b) {
      const uint8_t* row = mask + b * T;
      int64_t n = 0, last = 0;
      for (int64_t t = 0; t < T; ++t)
        if (row[t]) ++n, last = t + 1;
      length[static_cast<size_t>(b)] = n;
      has_holes |= last != n;
      is_ragged |= n != T;
    }
  }
  row_.resize(static_cast<size_t>(B));
  std::iota(row_.begin(), row_.end(), 0);
  if (is_ragged)
    std::stable_sort(row_.begin(), row_.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  count_.resize(static_cast<size_t>(B));
  for (int64_t r = 0; r < B; ++r) count_[r] = length[row_[r]];
  const int64_t n_steps = B > 0 ? count_[0] : 0;
  active_.resize(static_cast<size_t>(n_steps));
  offset_.resize(static_cast<size_t>(n_steps) + 1);
  offset_[0] = 0;
  int64_t n = B;
  for (int64_t s = 0; s < n_steps; ++s) {
    while (n > 0 && count_[n - 1] <= s) --n;
    active_[s] = n;
    offset_[s + 1] = offset_[s] + n;
  }
  const int64_t n_packed = offset_[n_steps];
  if (has_holes) time_.resize(static_cast<size_t>(n_packed));
  if (resets) {
    reset_.assign(static_cast<size_t>(n_packed), 0);
    ends_reset_.assign(static_cast<size_t>(B), 0);
  }
  if (has_holes || resets) {
    for (int64_t r = 0; r < B; ++r) {
      const int64_t b = row_[r];
      int64_t s = 0;
      bool pending = false;
      for (int64_t i = 0; i < T; ++i) {
        const int64_t t = is_reverse ? T - 1 - i : i;
        if (resets && !is_reverse) pending |= resets[b * T + t] != 0;
        if (!mask || mask[b * T + t]) {
          if (has_holes) time_[offset_[s] + r] = static_cast<int32_t>(t);
          if (resets) reset_[offset_[s] + r] = pending;
          pending = false;
          ++s;
        }
        // The reverse direction meets a reset after the step that it stands before.
        if (resets && is_reverse) pending |= resets[b * T + t] != 0;
      }
      if (resets) ends_reset_[r] = pending;
    }
  }
  steps_ = Steps{B,
                 T,
                 n_steps,
                 n_packed,
                 is_reverse,
                 row_.data(),
                 count_.data(),
                 active_.data(),
                 offset_.data(),
                 time_.empty() ? nullptr : time_.data(),
                 resets ? reset_.data() : nullptr,
                 resets ? ends_reset_.data() : nullptr};
}

}  // namespace ostinato
