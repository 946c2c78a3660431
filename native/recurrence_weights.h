// The large products of the backward pass, over all rows of a chunk: gradients of the weights and of x; and the gates
// again, from kept inputs and states, where they were not kept. Included by recurrence.cpp.
#pragma once

#include "recurrence_backward.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

constexpr int64_t kStrip = 48;    // units of one gate in a task
constexpr int64_t kRowGroup = 48; // packed rows in a task

OSTINATO_INLINE int64_t groups_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Walks packed rows in order, from row `first` of the chunk on.
struct PackedRow {
  const Steps& steps;
  int64_t s, r;

  PackedRow(const Steps& all, int64_t s_begin, int64_t first) : steps(all), s(s_begin), r(0) {
    const int64_t p = all.offset[s_begin] + first;
    while (all.offset[s + 1] <= p) ++s;
    r = p - all.offset[s];
  }
  void next() {
    if (++r == steps.active[s]) ++s, r = 0;
  }
};

// d_x of a group of packed rows, scattered to the caller's places. `sums` (kRowGroup, Dp) is scratch.
template <typename real>
void input_gradient(const BackWork<real>& w, int64_t group, real* sums) {
  const real *rows[kRowGroup], *rows_n[kRowGroup];
  real* out[kRowGroup];
  // gru's n lies behind the slot of the recurrent n: two runs of columns.
  const bool split = w.layer.cell == Cell::gru && !w.layer.norm;
  const int64_t D = w.layer.D, Dp = padded<real>(D), K = (split ? 2 : w.G) * w.Hp, K_n = split ? w.Hp : 0;
  const int64_t total = w.steps.offset[w.s_end] - w.steps.offset[w.s_begin];
  const int64_t n = least(kRowGroup, total - group * kRowGroup);
  PackedRow at(w.steps, w.s_begin, group * kRowGroup);
  for (int64_t i = 0; i < n; ++i, at.next()) {
    const real* gates = w.gates(at.s, at.r);
    rows[i] = gates + w.slots.ih(w.layer, 0);
    rows_n[i] = gates + w.slots.ih(w.layer, w.G - 1);
    out[i] = as<real>(w.call.d_x) + w.place(at.s, at.r) * D;
  }
  gate_product<real, 1>(rows, n, w.packed.ih, K, Dp, sums, Dp, nullptr, 0, Range{0, Dp}, K_n);
  if (split)
    gate_product<real, 1>(rows_n, n, w.packed.ih + K * kLanes<real>, K_n, Dp, sums, Dp, sums, Dp, Range{0, Dp}, K);
  for (int64_t i = 0; i < n; ++i) std::memcpy(out[i], sums + i * Dp, D * sizeof(real));
}

// One strip of one gate of weight_ih or weight_hh: sums over the chunk, and the caller's layout after the last one.
template <typename real>
void weight_strip(const BackWork<real>& w, bool is_input, int q, int64_t u) {
  const int64_t K = is_input ? w.layer.D : w.P, Kp = padded<real>(K), n = least(kStrip, w.H - u);
  real* sums = (is_input ? w.shared.d_ih : w.shared.d_hh) + (q * w.Hp + u) * Kp;
  void* wanted = const_cast<void*>(is_input ? w.call.d_weights.weight_ih : w.call.d_weights.weight_hh);
  if (!wanted) return;
  if (w.s_end == w.steps.n_steps) std::memset(sums, 0, n * Kp * sizeof(real));
  const real* gates = w.gates(w.s_begin, 0);
  const int64_t column = is_input ? w.slots.ih(w.layer, q) : w.slots.hh(w.layer, q);
  const int64_t operand = is_input                              ? w.panel.x
                          : w.layer.reset_before && q == 2 ? w.panel.rh
                                                                : w.panel.h;
  outer_product(gates + column + u, w.slots.width, n, w.shared.panel + operand, w.panel.stride,
                Kp / kLanes<real>, w.steps.offset[w.s_end] - w.steps.offset[w.s_begin], sums, Kp);
  if (w.s_begin > 0) return;
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(as<real>(wanted) + (q * w.H + u + i) * K, sums + i * Kp, K * sizeof(real));
}

template <typename real>
void projection_strip(const BackWork<real>& w, int64_t u) {
  void* wanted = const_cast<void*>(w.call.d_weights.weight_hr);
  if (!wanted) return;
  const int64_t n = least(kStrip, w.P - u);
  real* sums = w.shared.d_hr + u * w.Hp;
  if (w.s_end == w.steps.n_steps) std::memset(sums, 0, n * w.Hp * sizeof(real));
  outer_product(w.shared.panel + w.panel.d_h + u, w.panel.stride, n, w.shared.panel + w.panel.raw, w.panel.stride,
                w.Hp / kLanes<real>, w.steps.offset[w.s_end] - w.steps.offset[w.s_begin], sums, w.Hp);
  if (w.s_begin > 0) return;
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(as<real>(wanted) + (u + i) * w.H, sums + i * w.Hp, w.H * sizeof(real));
}

template <typename real>
void bias_sums(const BackWork<real>& w) {
  const int64_t width = w.slots.n_slots * w.Hp;
  if (w.s_end == w.steps.n_steps) std::memset(w.shared.d_bias, 0, width * sizeof(real));
  sum_rows(w.gates(w.s_begin, 0), w.slots.width, width / kLanes<real>,
           w.steps.offset[w.s_end] - w.steps.offset[w.s_begin], w.shared.d_bias);
}

template <typename real>
int64_t count_weight_tasks(const Layer& layer, const Backward& call, int64_t n_rows) {
  return 2 * layer.gates * groups_of(layer.H, kStrip) + (layer.projected ? groups_of(layer.P, kStrip) : 0) +
         (call.d_x ? groups_of(n_rows, kRowGroup) : 0) + 1;
}

template <typename real>
void run_weight_task(const BackWork<real>& w, int64_t task, real* scratch) {
  const int64_t strips = groups_of(w.H, kStrip), n_matrix = w.G * strips;
  if (task < 2 * n_matrix) {
    const int64_t in_matrix = task % n_matrix;
    return weight_strip(w, task < n_matrix, static_cast<int>(in_matrix / strips), in_matrix % strips * kStrip);
  }
  task -= 2 * n_matrix;
  if (w.layer.projected) {
    const int64_t n = groups_of(w.P, kStrip);
    if (task < n) return projection_strip(w, task * kStrip);
    task -= n;
  }
  const int64_t rows = w.steps.offset[w.s_end] - w.steps.offset[w.s_begin];
  if (w.call.d_x && task < groups_of(rows, kRowGroup)) return input_gradient(w, task, scratch);
  bias_sums(w);
}

// The activations of a group of packed rows again, from x and the old h, and their row of the panel.
template <typename real>
void recompute_group(const BackWork<real>& w, int64_t group) {
  const real *x_rows[kRowGroup], *h_rows[kRowGroup];
  const Layer& layer = w.layer;
  const int64_t total = w.steps.offset[w.s_end] - w.steps.offset[w.s_begin], Hp = w.Hp, width = w.slots.width;
  const int64_t n = least(kRowGroup, total - group * kRowGroup);
  const PackedRow first(w.steps, w.s_begin, group * kRowGroup);
  real* gates = w.gates(first.s, first.r);
  PackedRow at = first;
  for (int64_t i = 0; i < n; ++i, at.next()) {
    fill_panel(w, at.s, at.r);
    x_rows[i] = w.panel_row(at.s, at.r) + w.panel.x;
    h_rows[i] = w.panel_row(at.s, at.r) + w.panel.h;
  }
  product_of_gates(w.G, x_rows, n, w.forward.ih, layer.D, w.H, gates, width, w.forward.bias, 0,
                   Range{0, Hp});
  if (layer.cell == Cell::gru)
    for (int64_t i = 0; i < n; ++i) {
      real* row = gates + i * width;
      std::memcpy(row + 3 * Hp, row + 2 * Hp, Hp * sizeof(real));
      std::memcpy(row + 2 * Hp, w.forward.bias_hh + 2 * Hp, Hp * sizeof(real));
    }
  product_of_gates(w.G, h_rows, n, w.forward.hh, w.P, w.H, gates, width, static_cast<const real*>(gates), width,
                   Range{0, Hp});
  for (int64_t i = 0; i < n; ++i)
    for (int64_t u = 0; u < Hp; u += kLanes<real>) {
      real* a = gates + i * width + u;
      if (layer.cell == Cell::rnn) {
        store(a, rnn_activation<real>(load(a), layer.relu));
      } else if (layer.cell == Cell::lstm) {
        store(a, sigmoid(load(a)));
        store(a + Hp, sigmoid(load(a + Hp)));
        store(a + 2 * Hp, tanh(load(a + 2 * Hp)));
        store(a + 3 * Hp, sigmoid(load(a + 3 * Hp)));
      } else {
        const GruStep<real> now(load(a), load(a + Hp), load(a + 3 * Hp), load(a + 2 * Hp), Vector<real>{});
        store(a, now.r);
        store(a + Hp, now.z);
        store(a + 3 * Hp, now.n);
      }
    }
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
