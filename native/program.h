// Step programs: the step of a cell that a user wrote, as a flat list of row-local operators, run over time.
//
// Rows are sequences. A tile of rows runs all steps on its own. It works in chunks of steps; over a chunk it goes
// through three phases: `before` for all (row, step) pairs of the chunk, `during` step by step (in reversed order
// backward), `after` for all pairs again; then the products over rows that weights' gradients are. Only real steps
// have pairs: what a mask excludes costs nothing and reaches nothing. Every operator treats every row alike and alone,
// so outputs have the same bits whatever the tiles, chunks and threads; sums over rows follow the tiles, whose size
// the caller fixes.
#pragma once

#include <cstdint>

#include "isa.h"

namespace ostinato {

// Name, inputs. In the order of `Operator`.
#define OSTINATO_OPERATORS(DO)                                                                                   \
  DO(copy) DO(neg) DO(reciprocal) DO(sqrt) DO(rsqrt) DO(exp) DO(expm1) DO(log) DO(log1p) DO(abs) DO(sign) DO(sin)  \
  DO(cos) DO(sigmoid) DO(tanh) DO(relu) DO(square) DO(softplus) DO(erf) DO(floor)                                 \
  DO(add) DO(sub) DO(mul) DO(div) DO(max) DO(min) DO(pow) DO(gt) DO(ge) DO(lt) DO(le) DO(eq) DO(ne)               \
  DO(tanh_gradient) DO(sigmoid_gradient) DO(relu_gradient)                                                        \
  DO(where) DO(mul_add) DO(negative_mul_add) DO(sub_mul)                                                          \
  DO(sum) DO(amax) DO(amin) DO(dot) DO(moments) DO(cumsum) DO(normalise_gradient)                                 \
  DO(rowsum) DO(matmul) DO(bmm) DO(outer)

enum class Operator : int64_t {
#define OSTINATO_LIST(name) name,
  OSTINATO_OPERATORS(OSTINATO_LIST)
#undef OSTINATO_LIST
  n_operators
};

// Where a buffer lives. Address of row r: const, scalar, sum: no rows; strip, block, chunk: scratch of the tile;
// saved: the caller's, for all pairs of the run; state, next: a recurrent value before and after the step.
enum class Scope : int64_t { constant, scalar, strip, block, chunk, saved, state, next, sum };

struct Buffer {
  int64_t scope;   // a Scope
  int64_t stride;  // elements of a row
  int64_t place;   // offset in its scope, in elements of a row; or the number of the constant, saved value or leaf
};

struct Operand {
  int64_t buffer;     // -1: none
  int64_t offset;     // in elements, inside the row
  int64_t stride[3];  // of the instruction's axes, in elements
};

// Elementwise: size[0..2] axes, operands (to, a, b, c). Along an axis: size[0..1] kept, size[2] reduced; moments
// gives (mean, 1 / sqrt(variance + attr)), cumsum and normalise_gradient (gradient, normalised, scale) a whole line.
// matmul: size (m, K, N, has start), operands (to, a, start, packed weight's number as buffer); strides (m, last).
// bmm: size (m, n, k, p), strides (m, row, column). rowsum: as elementwise, `to` without rows.
// outer: size (m, K, N), operands (sum (N, K padded), left (m, K), gradient (m, N)).
struct Instruction {
  int64_t op;  // an Operator
  int64_t n_inputs;
  int64_t runs;     // nonzero: rows fill their buffers alike and can be worked on as one run, padding included
  int64_t size[4];
  double attr;
  Operand operand[4];
};

struct Segment {
  int64_t phase;  // 0 before, 1 during, 2 after, 3 products over rows
  int64_t first, last;
  int64_t is_product;
};

// A weight (K, N) to be packed as (blocks of W, K, W).
struct Pack {
  int64_t constant, offset, K, N, k_stride, n_stride, place;
};

// What is copied in or out at every step.
struct StepSeries {
  int64_t width, buffer;
};

// A program. All arrays belong to whoever made it and outlive every run.
struct Program {
  const Instruction* instructions;
  const Segment* segments;
  const Buffer* buffers;
  const StepSeries *inputs, *outputs;
  const Pack* packs;
  const double* scalars;
  const int64_t *leaf_widths, *saved_widths;
  int64_t n_instructions, n_segments, n_buffers, n_inputs, n_outputs, n_packs, n_scalars, n_leaves, n_saved;
  int64_t strip_width, block_width, chunk_width, sum_width;  // elements of a row in each scope; of all sums
};

// x[b, t, :] = data + b·row + t·step, unit stride inside. `data` null: zeros on the way in, not wanted on the way out.
struct Strided {
  void* data;
  int64_t row, step;
};

// One leaf (B, width), contiguous. Forward: the state before the first step, after a reset, after the last step.
// Backward: the gradient after the last step, that of the initial state (added to), that before the first step.
struct Leaf {
  const void* start;
  void* initial;  // null without resets
  void* end;
  void* kept;     // forward: (pairs, stride) rows for backward, null: not wanted
  Strided every;  // (B, T, width): forward out, the state after each step; backward in, its gradient; may be null
};

// One run over x (B, T, ·). T counts in the direction of work; `is_backward` walks it from the end.
struct ProgramRun {
  int64_t B, T;
  int64_t tile_rows, chunk_rows;  // rows of a tile; pairs that a chunk may have (at least tile_rows)
  bool is_backward;
  const uint8_t* mask;    // (B, T) contiguous, nonzero at real steps; null: all are
  const uint8_t* resets;  // (B, T) contiguous; null: none
  const void* const* constants;
  const void* packed;     // what `pack` wrote
  const Strided *inputs, *outputs;
  const Leaf* leaves;
  void* const* saved;     // (pairs, stride) each; tile i begins at pair i · pairs_of_tile()
  void* sums;             // (groups, sum_width), zeroed by the callee
  int64_t tiles_of_group;  // consecutive tiles that add up into the same sums

  int64_t n_tiles() const { return (B + tile_rows - 1) / tile_rows; }
  int64_t n_groups() const { return (n_tiles() + tiles_of_group - 1) / tiles_of_group; }
  // Rows of a kept or saved array that a tile owns; the last tile_rows of them are what a step past the end writes.
  int64_t pairs_of_tile() const { return tile_rows * (T + 1); }
};

struct ProgramKernels {
  int lanes[2];  // elements of a vector: float, double
  int64_t (*scratch_bytes[2])(const Program&, const ProgramRun&);
  void (*pack[2])(const Program&, const void* const* constants, void* packed);
  // All tiles of one group, one after the other; scratch is aligned to 64 bytes.
  void (*run_group[2])(const Program&, const ProgramRun&, int64_t group, void* scratch);
  // The groups' sums added up into the first one's, in order, elements [first, last).
  void (*add_sums[2])(const Program&, const ProgramRun&, int64_t first, int64_t last);
};

OSTINATO_KERNELS(ProgramKernels, program_kernels)

}  // namespace ostinato
