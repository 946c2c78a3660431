// The time loop, backwards, and the products that give the weights' gradients. Included by recurrence.cpp.
#pragma once

#include "recurrence_forward.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

template <typename real>
struct BackWork {
  const Layer& layer;
  const Steps& steps;
  const Backward& call;
  const PackedBackward<real> packed;
  const PackedForward<real> forward;  // its small parameters: peepholes and normalisation
  const Slots<real> slots;
  const Panel<real> panel;
  const Shared<real> shared;
  int64_t s_begin, s_end, r_begin, r_end, H, Hp, P, Pp;
  int G;
  Range units;            // of the old h, which is P wide: those that this thread computes
  real *wide, *narrow;    // (n_rows, Hp), (n_rows, Pp)
  const real** rows;      // (n_rows,)
  int64_t bytes;

  BackWork(const Layer& l, const Steps& s, const Backward& b, void* shared_base, int64_t chunk_rows, int64_t sb,
           int64_t se, int64_t rb, int64_t re, void* scratch)
      : layer(l), steps(s), call(b), packed(l, b.packed), forward(l, b.packed_forward), slots(l), panel(l),
        shared(l, s.B, chunk_rows, shared_base), s_begin(sb), s_end(se), r_begin(rb), r_end(re), H(l.H),
        Hp(padded<real>(l.H)), P(l.P), Pp(padded<real>(l.P)), G(l.gates), units{0, padded<real>(l.P)} {
    Parts parts(scratch);
    const int64_t n = re - rb;
    wide = parts.take<real>(n * Hp);
    narrow = parts.take<real>(n * Pp);
    rows = parts.take<const real*>(n);
    bytes = parts.bytes();
  }

  // All by sorted row r.
  int64_t row(int64_t r) const { return steps.row[r]; }
  int64_t in_chunk(int64_t s, int64_t r) const { return steps.offset[s] + r - steps.offset[s_begin]; }
  real* gates(int64_t s, int64_t r) const {
    const int64_t p = call.recompute ? in_chunk(s, r) : steps.offset[s] + r;
    return as<real>(call.gates) + p * slots.width;
  }
  const real* c_before(int64_t s, int64_t r) const {
    return as<real>(call.c_before) + (steps.offset[s] + r) * Hp;
  }
  real* panel_row(int64_t s, int64_t r) const { return shared.panel + in_chunk(s, r) * panel.stride; }
  int64_t place(int64_t s, int64_t r) const { return row(r) * steps.T + steps.time_of(s, r); }
  const real* x_row(int64_t s, int64_t r) const {
    return as<real>(call.x) + row(r) * call.x_row + steps.time_of(s, r) * call.x_step;
  }
  const real* h_before(int64_t s, int64_t r) const {
    if (steps.resets(s, r)) return as<real>(call.initial_h) + row(r) * P;
    if (s == 0) return as<real>(call.h0) + row(r) * P;
    return as<real>(call.y) + place(s - 1, r) * P;
  }
  int64_t position(int64_t s, int64_t r) const {
    const int64_t t = steps.time_of(s, r);
    return steps.is_reverse ? steps.T - 1 - t : t;
  }
  const real* mask_row(int64_t s, int64_t r) const {
    return as<real>(call.masks.recurrent) + position(s, r) * call.masks.recurrent_step + row(r) * P;
  }
  const uint8_t* zoneout_row(const uint8_t* mask, int64_t s, int64_t r, int64_t width) const {
    return mask + (position(s, r) * steps.B + row(r)) * width;
  }
  real* small(int64_t r) const { return shared.d_small + r / Shared<real>::kGroup * shared.small_width; }
};

// What the weights' gradients need of x and of the old h.
template <typename real>
void fill_panel(const BackWork<real>& w, int64_t s, int64_t r) {
  real* to = w.panel_row(s, r);
  copy_row(to + w.panel.x, w.x_row(s, r), w.layer.D, padded<real>(w.layer.D));
  copy_row(to + w.panel.h, w.h_before(s, r), w.P, w.Pp);
  if (w.call.masks.recurrent) {
    const real* mask = w.mask_row(s, r);
    for (int64_t u = 0; u < w.P; ++u) to[w.panel.h + u] *= mask[u];
  }
}

// Split a gradient under zoneout, units [u, n): `d` keeps what enters the step, `d_past` receives what goes past it.
template <typename real>
OSTINATO_INLINE void pass_by(Vector<real>& d, Vector<real>& d_past, const uint8_t* stays, double probability,
                             int64_t u, int64_t n) {
  if (stays) {
    const auto stay = load_flags<real>(stays + u, n - u);
    const Vector<real> zero = {};
    d_past = stay ? d : zero;
    d = stay ? zero : d;
  } else {
    d_past = d * static_cast<real>(probability);
    d = d * static_cast<real>(1 - probability);
  }
}

// The same of dh, a row of P: what goes past the step stays in `d`, what enters it goes to `d_new`.
template <typename real>
void split_h(const BackWork<real>& w, int64_t s, int64_t r, real* d, real* d_new) {
  const uint8_t* stays = w.layer.random ? w.zoneout_row(w.call.masks.zoneout_h, s, r, w.P) : nullptr;
  for (int64_t u = 0; u < w.Pp; u += kLanes<real>) {
    Vector<real> enters = first_lanes<real>(load(d + u), w.P - u), past;
    pass_by<real>(enters, past, stays, w.layer.zoneout_h, u, w.P);
    store(d + u, past);
    store(d_new + u, enters);
  }
}

// d_new: gradient of h before zoneout and projection, (Hp). On return `d_h` holds what goes past the product.
template <typename real>
void rnn_row_backward(const BackWork<real>& w, int64_t s, int64_t r, const real* d_new) {
  real* gates = w.gates(s, r);
  for (int64_t u = w.units.begin; u < w.units.end; u += kLanes<real>) {
    const Vector<real> y = load(gates + u), d = load(d_new + u), zero = {};
    store(gates + u, w.layer.relu ? (y > zero ? d : zero) : d * fma(-y, y, broadcast(real(1))));
  }
}

template <typename real>
OSTINATO_INLINE Vector<real> through_sigmoid(Vector<real> d, Vector<real> y) {
  return d * y * (real(1) - y);
}
template <typename real>
OSTINATO_INLINE Vector<real> through_tanh(Vector<real> d, Vector<real> y) {
  return d * fma(-y, y, broadcast(real(1)));
}

template <typename real>
void lstm_row_backward(const BackWork<real>& w, int64_t s, int64_t r, const real* d_new) {
  real *gates = w.gates(s, r), *d_c = w.shared.d_c + r * w.Hp;
  const real* before = w.c_before(s, r);
  const real* d_cells = w.call.d_cells ? as<real>(w.call.d_cells) + w.place(s, r) * w.H : nullptr;
  const int64_t Hp = w.Hp;
  const bool zones = w.layer.zoneout_c > 0;
  const uint8_t* stays = zones && w.layer.random ? w.zoneout_row(w.call.masks.zoneout_c, s, r, w.H) : nullptr;
  for (int64_t u = w.units.begin; u < w.units.end; u += kLanes<real>) {
    const Vector<real> i = load(gates + u), f = load(gates + Hp + u), g = load(gates + 2 * Hp + u),
                       o = load(gates + 3 * Hp + u), old = load(before + u), d = load(d_new + u);
    const Vector<real> seen = tanh(fma(f, old, i * g));
    Vector<real> d_state = load(d_c + u), d_past = {};
    if (d_cells && u < w.H) d_state += load_part(d_cells + u, w.H - u);
    if (zones) pass_by<real>(d_state, d_past, stays, w.layer.zoneout_c, u, w.H);
    const Vector<real> d_now = fma(d * o, fma(-seen, seen, broadcast(real(1))), d_state);
    store(gates + u, through_sigmoid<real>(d_now * g, i));
    store(gates + Hp + u, through_sigmoid<real>(d_now * old, f));
    store(gates + 2 * Hp + u, through_tanh<real>(d_now * i, g));
    store(gates + 3 * Hp + u, through_sigmoid<real>(d * seen, o));
    store(d_c + u, fma(d_now, f, d_past));
  }
}

// The same with peepholes, coupled gates, normalisation and zoneout of c. `normed` (Hp) is scratch.
template <typename real>
void lstm_row_backward_with_options(const BackWork<real>& w, int64_t s, int64_t r, const real* d_new,
                                    real* normed) {
  constexpr int W = kLanes<real>;
  const Layer& layer = w.layer;
  const int64_t Hp = w.Hp;
  const int g_g = layer.coupled ? 1 : 2, g_o = g_g + 1;
  real *gates = w.gates(s, r), *d_c = w.shared.d_c + r * Hp, *small = w.small(r);
  const real *before = w.c_before(s, r), *peep = w.forward.peephole;
  real *g_i = gates, *g_f = gates + Hp, *gate_g = gates + g_g * Hp, *gate_o = gates + g_o * Hp;
  if (w.call.d_cells) {
    const real* d_cells = as<real>(w.call.d_cells) + w.place(s, r) * w.H;
    for (int64_t u = 0; u < w.H; ++u) d_c[u] += d_cells[u];
  }
  // d_o, and dh through o tanh(seen) to what tanh saw.
  for (int64_t u = 0; u < Hp; u += W) {
    const Vector<real> i = load(g_i + u), g = load(gate_g + u), o = load(gate_o + u), d = load(d_new + u);
    const Vector<real> f = layer.coupled ? real(1) - i : load(g_f + u);
    Vector<real> shown = fma(f, load(before + u), i * g);
    if (layer.norm)
      shown = fma(load(gates + w.slots.norm_c + u), load(w.forward.norm_c + u), load(w.forward.norm_c_bias + u));
    const Vector<real> seen = tanh(shown);
    store(gate_o + u, through_sigmoid<real>(d * seen, o));
    store(normed + u, through_tanh<real>(d * o, seen));
  }
  if (layer.norm) {
    real* d_norm = small + w.shared.small_norm_c;
    for (int64_t u = 0; u < Hp; u += W) store(d_norm + Hp + u, load(d_norm + Hp + u) + load(normed + u));
    normalise_backward(normed, gates + w.slots.norm_c, w.forward.norm_c, d_norm, gates[w.slots.scales + 3], 1, w.H,
                       Hp);
    std::memcpy(normed, gates + w.slots.norm_c, Hp * sizeof(real));
  }
  const uint8_t* stays =
      layer.zoneout_c > 0 && layer.random ? w.zoneout_row(w.call.masks.zoneout_c, s, r, w.H) : nullptr;
  for (int64_t u = 0; u < Hp; u += W) {
    const Vector<real> i = load(g_i + u), g = load(gate_g + u), old = load(before + u), d_o = load(gate_o + u);
    const Vector<real> f = layer.coupled ? real(1) - i : load(g_f + u);
    Vector<real> d_state = load(d_c + u), d_past = {};
    if (layer.zoneout_c > 0) pass_by<real>(d_state, d_past, stays, layer.zoneout_c, u, w.H);
    Vector<real> d_now = load(normed + u) + d_state;
    if (peep) d_now = fma(d_o, load(peep + (g_o - 1) * Hp + u), d_now);
    const Vector<real> d_i = through_sigmoid<real>(layer.coupled ? d_now * (g - old) : d_now * g, i);
    const Vector<real> d_f = layer.coupled ? Vector<real>{} : through_sigmoid<real>(d_now * old, f);
    d_past = fma(d_now, f, d_past);
    if (peep) {
      real* d_peep = small + w.shared.small_peephole;
      const Vector<real> now = fma(f, old, i * g);
      d_past = fma(d_i, load(peep + u), d_past);
      store(d_peep + u, fma(d_i, old, load(d_peep + u)));
      if (!layer.coupled) {
        d_past = fma(d_f, load(peep + Hp + u), d_past);
        store(d_peep + Hp + u, fma(d_f, old, load(d_peep + Hp + u)));
      }
      real* last = d_peep + (g_o - 1) * Hp + u;
      store(last, fma(d_o, now, load(last)));
    }
    store(gate_g + u, through_tanh<real>(d_now * i, g));
    store(g_i + u, d_i);
    if (!layer.coupled) store(g_f + u, d_f);
    store(d_c + u, d_past);
  }
}

// `d_h` receives what passes by the step; with the reset before the product, r and the product of n come later.
template <typename real>
void gru_row_backward(const BackWork<real>& w, int64_t s, int64_t r, const real* d_new, real* d_h, bool adds) {
  real* gates = w.gates(s, r);
  const real* old_h = w.h_before(s, r);
  const int64_t Hp = w.Hp;
  for (int64_t u = w.units.begin; u < w.units.end; u += kLanes<real>) {
    const Vector<real> reset = load(gates + u), z = load(gates + Hp + u), u_n = load(gates + 2 * Hp + u),
                       n = load(gates + 3 * Hp + u), d = load(d_new + u);
    const Vector<real> old = u < w.H ? load_part(old_h + u, w.H - u) : Vector<real>{};
    const Vector<real> d_n = through_tanh<real>(d * (real(1) - z), n);
    store(gates + Hp + u, through_sigmoid<real>(d * (old - n), z));
    store(gates + 3 * Hp + u, d_n);
    if (!w.layer.reset_before) {
      store(gates + u, through_sigmoid<real>(d_n * u_n, reset));
      store(gates + 2 * Hp + u, d_n * reset);
    }
    store(d_h + u, adds ? fma(d, z, load(d_h + u)) : d * z);
  }
}

// Normalisation's part of a row: from the slots to the gradients of both products, gates [first, first + n_gates).
template <typename real>
void recurrent_norm_backward(const BackWork<real>& w, int64_t s, int64_t r, int first, int n_gates, int scale) {
  real *gates = w.gates(s, r), *small = w.small(r);
  const int64_t skip = first * w.Hp;
  normalise_backward(gates + w.slots.bias_hh(w.layer, first), gates + w.slots.norm_hh + skip,
                     w.forward.norm_hh + skip, small + w.shared.small_norm_hh + skip,
                     gates[w.slots.scales + scale], n_gates, w.H, w.Hp);
}

template <typename real>
void input_norm_backward(const BackWork<real>& w, int64_t s, int64_t r, real* scratch) {
  real *gates = w.gates(s, r), *small = w.small(r);
  const real* d = gates;
  if (w.layer.cell == Cell::gru) {
    // r, z and n, without the slot between.
    std::memcpy(scratch, gates, 2 * w.Hp * sizeof(real));
    std::memcpy(scratch + 2 * w.Hp, gates + 3 * w.Hp, w.Hp * sizeof(real));
    d = scratch;
  }
  normalise_backward(d, gates + w.slots.norm_ih, w.forward.norm_ih, small + w.shared.small_norm_ih,
                     gates[w.slots.scales], w.G, w.H, w.Hp);
}

// dh (n rows from r_begin) += or = gates' columns [column, column + K) · weights.
template <typename real>
void back_product(BackWork<real>& w, int64_t s, int64_t n, int64_t column, int64_t K, const real* weights,
                  real* out, bool adds) {
  for (int64_t r = 0; r < n; ++r) w.rows[r] = w.gates(s, w.r_begin + r) + column;
  gate_product<real, 1>(w.rows, n, weights, K, w.Pp, out, w.Pp, adds ? out : nullptr, w.Pp, w.units, 0,
                        s & 1);
}

template <typename real>
void fused_step_backward(BackWork<real>& w, int64_t s, int64_t n, const Team& team) {
  const int64_t Hp = w.Hp;
  const bool zones = w.layer.zoneout_h > 0;
  for (int64_t r = w.r_begin; r < w.r_begin + n; ++r) {
    real* d_h = w.shared.d_h + r * Hp;
    if (w.call.d_y) {
      const real* d_y = as<real>(w.call.d_y) + w.place(s, r) * w.H;
      const int64_t end = least(w.units.end, w.H);
      int64_t u = w.units.begin;
      for (; u + kLanes<real> <= end; u += kLanes<real>) store(d_h + u, load(d_h + u) + load(d_y + u));
      for (; u < end; ++u) d_h[u] += d_y[u];
    }
    real* d_new = zones ? w.narrow + (r - w.r_begin) * Hp : d_h;
    if (zones) split_h(w, s, r, d_h, d_new);
    if (w.layer.cell == Cell::lstm)
      lstm_row_backward(w, s, r, d_new);
    else if (w.layer.cell == Cell::gru)
      gru_row_backward(w, s, r, d_new, d_h, zones);
    else
      rnn_row_backward(w, s, r, d_new);
    if (!w.call.recompute && team.worker == 0) fill_panel(w, s, r);
  }
  // Every unit's gradient goes into every unit of the old h.
  team.meet();
  back_product(w, s, n, w.slots.hh(w.layer, 0), w.G * Hp, w.packed.hh, w.shared.d_h + w.r_begin * Hp,
               zones || w.layer.cell == Cell::gru);
}

template <typename real>
void step_backward_with_options(BackWork<real>& w, int64_t s, int64_t n, real* scratch) {
  const Layer& layer = w.layer;
  const int64_t Hp = w.Hp, Pp = w.Pp, begin = w.r_begin;
  for (int64_t r = begin; r < begin + n; ++r) {
    real *d_h = w.shared.d_h + r * Pp, *d_new = w.narrow + (r - begin) * Pp;
    fill_panel(w, s, r);
    if (w.call.d_y) {
      const real* d_y = as<real>(w.call.d_y) + w.place(s, r) * w.P;
      for (int64_t u = 0; u < w.P; ++u) d_h[u] += d_y[u];
    }
    if (layer.zoneout_h > 0) {
      split_h(w, s, r, d_h, d_new);
    } else {
      std::memcpy(d_new, d_h, Pp * sizeof(real));
      std::memset(d_h, 0, Pp * sizeof(real));
    }
    if (layer.projected) std::memcpy(w.panel_row(s, r) + w.panel.d_h, d_new, Pp * sizeof(real));
    w.rows[r - begin] = d_new;
  }
  if (layer.projected) {
    gate_product<real, 1>(w.rows, n, w.packed.hr, w.P, Hp, w.wide, Hp, nullptr, 0, Range{0, Hp});
  }
  for (int64_t r = begin; r < begin + n; ++r) {
    const real* d_new = layer.projected ? w.wide + (r - begin) * Hp : w.narrow + (r - begin) * Pp;
    if (layer.projected) {
      // o tanh(seen), before o becomes its gradient.
      real *raw = w.panel_row(s, r) + w.panel.raw, *gates = w.gates(s, r);
      const real* before = w.c_before(s, r);
      const int g_g = layer.coupled ? 1 : 2;
      for (int64_t u = 0; u < Hp; u += kLanes<real>) {
        const Vector<real> i = load(gates + u), f = layer.coupled ? real(1) - i : load(gates + Hp + u);
        Vector<real> shown = fma(f, load(before + u), i * load(gates + g_g * Hp + u));
        if (layer.norm)
          shown = fma(load(gates + w.slots.norm_c + u), load(w.forward.norm_c + u),
                      load(w.forward.norm_c_bias + u));
        store(raw + u, load(gates + (g_g + 1) * Hp + u) * tanh(shown));
      }
    }
    if (layer.cell == Cell::lstm)
      lstm_row_backward_with_options(w, s, r, d_new, scratch);
    else if (layer.cell == Cell::gru)
      gru_row_backward(w, s, r, d_new, w.shared.d_h + r * Pp, true);
    else
      rnn_row_backward(w, s, r, d_new);
    if (layer.norm && !layer.reset_before) recurrent_norm_backward(w, s, r, 0, w.G, 1);
  }
  // From the sums to the old h: into `narrow`, then times its mask into what passes by.
  if (layer.reset_before) {
    if (layer.norm)
      for (int64_t r = begin; r < begin + n; ++r) recurrent_norm_backward(w, s, r, 2, 1, 2);
    back_product(w, s, n, w.slots.hh(layer, 2), Hp, w.packed.hh_n, w.narrow, false);
    for (int64_t r = begin; r < begin + n; ++r) {
      real *gates = w.gates(s, r), *d_rh = w.narrow + (r - begin) * Pp, *panel = w.panel_row(s, r);
      for (int64_t u = 0; u < Hp; u += kLanes<real>) {
        const Vector<real> reset = load(gates + u), d = load(d_rh + u), h_in = load(panel + w.panel.h + u);
        store(panel + w.panel.rh + u, reset * h_in);
        store(gates + u, through_sigmoid<real>(d * h_in, reset));
        store(d_rh + u, d * reset);
      }
      if (layer.norm) recurrent_norm_backward(w, s, r, 0, 2, 1);
    }
    back_product(w, s, n, w.slots.hh(layer, 0), 2 * Hp, w.packed.hh, w.narrow, true);
  } else {
    back_product(w, s, n, w.slots.hh(layer, 0), w.G * Hp, w.packed.hh, w.narrow, false);
  }
  for (int64_t r = begin; r < begin + n; ++r) {
    real *d_h = w.shared.d_h + r * Pp, *d_in = w.narrow + (r - begin) * Pp;
    if (w.call.masks.recurrent) {
      const real* mask = w.mask_row(s, r);
      for (int64_t u = 0; u < w.P; ++u) d_in[u] *= mask[u];
    }
    for (int64_t u = 0; u < Pp; u += kLanes<real>) store(d_h + u, load(d_h + u) + load(d_in + u));
    if (layer.norm) input_norm_backward(w, s, r, scratch);
  }
}

// What a reset at step s sends to the initial state instead of further back.
template <typename real>
void reset_backward(const BackWork<real>& w, int64_t s, int64_t n) {
  if (!w.steps.reset) return;
  for (int64_t r = w.r_begin; r < w.r_begin + n; ++r) {
    if (!w.steps.resets(s, r)) continue;
    real *d_h = w.shared.d_h + r * w.Pp, *to = as<real>(w.call.d_initial_h) + w.row(r) * w.P;
    for (int64_t u = 0; u < w.P; ++u) to[u] += d_h[u];
    std::memset(d_h, 0, w.Pp * sizeof(real));
    if (w.layer.cell != Cell::lstm) continue;
    real *d_c = w.shared.d_c + r * w.Hp, *to_c = as<real>(w.call.d_initial_c) + w.row(r) * w.H;
    for (int64_t u = 0; u < w.H; ++u) to_c[u] += d_c[u];
    std::memset(d_c, 0, w.Hp * sizeof(real));
  }
}

template <typename real>
void rows_backward(BackWork<real>& w, real* scratch, const Team& team) {
  const bool is_fused = w.layer.is_fused() && !w.call.masks.recurrent;
  for (int64_t s = w.s_end - 1; s >= w.s_begin; --s) {
    const int64_t n = least(w.steps.active[s], w.r_end) - w.r_begin;
    if (n <= 0) continue;
    if (is_fused)
      fused_step_backward(w, s, n, team);
    else
      step_backward_with_options(w, s, n, scratch);
    reset_backward(w, s, n);
  }
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
