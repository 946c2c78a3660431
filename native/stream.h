// The contract between a session and the kernels compiled for each instruction set: one step of one plain layer, its
// weights in one of several formats.
//
// Sizes as in recurrence.h. A state's rows are padded to whole vectors: h (B, Hp), c (B, Hp). Padding is zero where the
// caller begins with zeros.
#pragma once

#include <cstdint>

#include "recurrence.h"

namespace ostinato {

// How packed weights are held. Biases, states and sums are float whatever the weights are.
enum class WeightFormat : int {
  real = 0,      // as given: the bits of a run without a session
  bfloat16 = 1,  // rounded to nearest, ties to even; float only
  int8 = 2,      // weight_ih and weight_hh row by row: scale · q, |q| <= 127, scale = max|row| / 127; float only
};

// One step of rows [row, row_end) and units of blocks [block, block_end) of W units.
struct StreamStep {
  const void* packed;
  const void* x;         // row b at x + b·x_row elements, D elements
  int64_t x_row;
  const void* h_before;  // (B, Hp)
  void* h_after;         // (B, Hp), may not alias h_before
  void* c;               // (B, Hp), updated in place; lstm only
  void* y;               // row b at y + b·y_row elements, H elements, or null: h, plus x where adds_input
  int64_t y_row;
  bool adds_input;       // D == H; needs y
  int64_t row, row_end, block, block_end;
};

// Packed weights are laid out by the kernels and owned by the caller, aligned to 64 bytes. With the format `real` they
// are what Kernels::pack_forward writes. Layers are plain (Layer::is_plain).
struct StreamKernels {
  int64_t lanes;  // W
  int64_t (*packed_bytes)(const Layer&, WeightFormat);
  void (*pack)(const Layer&, const Weights&, WeightFormat, void* packed);
  // Results depend on neither the rows nor the blocks of a call.
  void (*step)(const Layer&, WeightFormat, const StreamStep&);
};

struct AllStreamKernels {
  StreamKernels of_float, of_double;
};

OSTINATO_KERNELS(AllStreamKernels, stream_kernels)

}  // namespace ostinato
