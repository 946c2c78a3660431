// Linear recurrences h' = keep * h + add, unit by unit, with the gates that give keep and add computed on the
// way.
//
// A row (one sequence) is run by whoever calls; rows and blocks of units are independent of each other, so
// outputs and gradients have the same bits whatever the split. All arrays belong to the caller, nothing is
// kept between calls, and outputs may not overlap inputs or each other.
#pragma once

#include <cstdint>

#include "isa.h"

namespace ostinato {

// What the inputs are, in their order. Equations: kernels/reference.py, the cells of the same names.
enum class Gates : int {
  linear,          // keep, add
  mingru,          // z, n before their functions; n = g(·)
  mingru_linear,   // the same with n as it is
  minlstm,         // i, f, n; n = g(·)
  minlstm_linear,  // the same with n as it is
  rglru,           // r, i, n; with `rate`
};
constexpr int kNGates = 6;
constexpr int kMostInputs = 3;

constexpr int inputs_of(Gates gates) {
  return gates == Gates::linear || gates == Gates::mingru || gates == Gates::mingru_linear ? 2 : 3;
}

// An array (B, T, H) whose units are contiguous; strides in elements, 0 where it is the same for all rows or
// steps.
template <typename real>
struct Series {
  real* data;
  int64_t row_stride, step_stride;
};

// An array (B, H) whose units are contiguous.
template <typename real>
struct Rows {
  real* data;
  int64_t row_stride;
};

template <typename real>
struct Scan {
  int64_t T, H;
  Series<const real> inputs[kMostInputs];
  const real* rate;          // (H,), >= 0: -log of what an open gate keeps (rglru); else null
  Rows<const real> start;    // the state before the first step
  Rows<const real> initial;  // the state after a reset; data null without resets
  const uint8_t* mask;       // (B, T), 1 at real steps; null: all are
  const uint8_t*
      resets;       // (B, T), 1 where the row starts anew before step t (reverse: after step t); null: none
  bool is_reverse;  // from the last step to the first
  bool carries;     // y is the state at masked steps, not 0
};

template <typename real>
struct ScanOutputs {
  Series<real> y;
  Rows<real> state;  // after the last step; while running, the state so far
};

template <typename real>
struct ScanGradients {
  Series<const real> y;                // what the forward run wrote
  Series<const real> d_y;              // data null: zeros
  Rows<const real> d_state;            // of the final state; data null: zeros
  Series<real> d_inputs[kMostInputs];  // data null: not wanted
  Rows<real> d_start;                  // while running, the gradient of the state so far
  Rows<real> d_initial;                // with resets
  Rows<real> d_rate;                   // of each row, for rglru; their sum over rows is the caller's
};

struct ScanKernels {
  // Units [unit, unit_end) of one row over all T steps; indexed by Gates.
  void (*forward_f32[kNGates])(const Scan<float>&, const ScanOutputs<float>&, int64_t row, int64_t unit,
                               int64_t unit_end);
  void (*forward_f64[kNGates])(const Scan<double>&, const ScanOutputs<double>&, int64_t row, int64_t unit,
                               int64_t unit_end);
  void (*backward_f32[kNGates])(const Scan<float>&, const ScanGradients<float>&, int64_t row, int64_t unit,
                                int64_t unit_end);
  void (*backward_f64[kNGates])(const Scan<double>&, const ScanGradients<double>&, int64_t row, int64_t unit,
                                int64_t unit_end);
};

OSTINATO_KERNELS(ScanKernels, scan_kernels)

#if !defined(OSTINATO_ISA)
// All B rows on at most n_threads threads. The backward run also adds up the rows' d_rate into d_rate_sum
// (H,), rows rising; null for cells without `rate`.
template <typename real>
void scan_forward(Gates gates, int64_t B, const Scan<real>& scan, const ScanOutputs<real>& out,
                  int n_threads);
template <typename real>
void scan_backward(Gates gates, int64_t B, const Scan<real>& scan, const ScanGradients<real>& out,
                   real* d_rate_sum, int n_threads);
#endif

}  // namespace ostinato
