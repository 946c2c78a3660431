// Random masks, bit for bit those of kernels/masks.py, which says what is hashed: an element is dropped where the hash
// of (key, row, episode, t, stream, unit) is below the threshold, and depends on nothing else.
#pragma once

#include <cstdint>

#include "isa.h"

namespace ostinato {

// 64-bit numbers by row b and time t, at data[b * row + t * step]; a stride may be 0.
struct MaskNumbers {
  const int64_t* data;
  int64_t row, step;

  int64_t at(int64_t b, int64_t t) const { return data[b * row + t * step]; }
};

struct MaskDraw {
  int64_t B, T, width;
  MaskNumbers key, rows, times, episodes;  // of key and rows, the step is 0
  uint32_t stream;     // kind, layer and direction
  uint64_t threshold;  // 0 (nothing is dropped) … 2^32 (everything)
  void* out;           // element (b, t, unit) at out + b * out_row + t * out_step + unit
  int64_t out_row, out_step;
};

// Each writes `dropped` or `kept` to every element of `out`.
struct MaskKernels {
  void (*of_bytes)(const MaskDraw&, uint8_t dropped, uint8_t kept);
  void (*of_float)(const MaskDraw&, float dropped, float kept);
  void (*of_double)(const MaskDraw&, double dropped, double kept);
};

OSTINATO_KERNELS(MaskKernels, mask_kernels)

}  // namespace ostinato
