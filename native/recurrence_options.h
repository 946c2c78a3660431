// The time loop, forwards, of cells with options inside the step: the sums pass through memory, because normalisation,
// projections and the reset gate before the product need whole rows. Included by recurrence.cpp.
#pragma once

#include "recurrence_forward.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

// Gates [first, first + G) of raw = start + the rows that enter the product · weights.
template <typename real>
void recurrent_product(Work<real>& work, int G, const real* weights, int64_t n, const real* start, int64_t first) {
  const int64_t stride = work.G * work.Hp, skip = first * work.Hp;
  product_of_gates(G, work.h_rows, n, weights, work.P, work.H, work.raw + skip, stride,
                   start ? start + skip : nullptr, stride, work.units);
}

// Normalise gates [first, first + n_gates) of one row of sums, keep x_hat, apply gamma and add the bias.
template <typename real>
void normalise_row(const Work<real>& work, real* sums, const real* gamma, const real* bias, int first, int n_gates,
                   real* kept, real* kept_scale) {
  const int64_t H = work.H, Hp = work.Hp;
  const Normal<real> normal(sums + first * Hp, n_gates, H, Hp);
  if (kept) *kept_scale = normal.scale;
  for (int q = first; q < first + n_gates; ++q)
    for (int64_t u = 0, at = q * Hp; u < Hp; u += kLanes<real>, at += kLanes<real>) {
      const Vector<real> x_hat = normal.of(load(sums + at), H - u);
      if (kept) store(kept + at, x_hat);
      store(sums + at, fma(x_hat, load(gamma + at), load(bias + at)));
    }
}

template <typename real>
void normalise_input(Work<real>& work, int64_t s, int64_t r, real* pre) {
  real* kept = work.gates(s, r);
  const Slots<real>& at = work.slots;
  normalise_row(work, pre, work.packed.norm_ih, work.packed.bias, 0, work.G, kept ? kept + at.norm_ih : nullptr,
                kept ? kept + at.scales : nullptr);
}

// One row of an LSTM step: from the sums before the activation to c and h before projection and zoneout.
template <typename real>
void lstm_row(Work<real>& work, int64_t s, int64_t r, const real* pre, real* h_new) {
  constexpr int W = kLanes<real>;
  const Layer& layer = work.layer;
  const int64_t Hp = work.Hp;
  const int g_g = layer.coupled ? 1 : 2, g_o = g_g + 1;
  real *sums = work.raw + r * work.G * Hp, *c = work.c + r * Hp, *kept = work.gates(s, r), *c_new = h_new;
  const real* peep = work.packed.peephole;
  auto sum = [&](int g, int64_t u) {
    const Vector<real> recurrent = load(sums + g * Hp + u);
    return layer.norm ? recurrent + load(pre + g * Hp + u) : recurrent;
  };
  for (int64_t u = 0; u < Hp; u += W) {
    const Vector<real> old = load(c + u);
    Vector<real> a_i = sum(0, u), a_f = {}, a_o = sum(g_o, u);
    if (!layer.coupled) a_f = sum(1, u);
    if (peep) {
      a_i = fma(load(peep + u), old, a_i);
      if (!layer.coupled) a_f = fma(load(peep + Hp + u), old, a_f);
    }
    const Vector<real> i = sigmoid(a_i), f = layer.coupled ? real(1) - i : sigmoid(a_f), g = tanh(sum(g_g, u));
    const Vector<real> now = fma(f, old, i * g);
    if (peep) a_o = fma(load(peep + (g_o - 1) * Hp + u), now, a_o);
    const Vector<real> o = sigmoid(a_o);
    store(sums + g_o * Hp + u, o);
    store(c_new + u, now);
    if (kept) {
      store(kept + u, i);
      if (!layer.coupled) store(kept + Hp + u, f);
      store(kept + g_g * Hp + u, g);
      store(kept + g_o * Hp + u, o);
    }
  }
  if (layer.zoneout_c > 0) {
    const Zoneout<real> zoneout = work.zoneout_c(s, r);
    for (int64_t u = 0; u < Hp; u += W) store(c + u, zoneout.of(load(c + u), load(c_new + u), u, work.H));
  } else {
    std::memcpy(c, c_new, Hp * sizeof(real));
  }
  if (layer.norm) {
    const Normal<real> normal(c_new, 1, work.H, Hp);
    if (kept) kept[work.slots.scales + 3] = normal.scale;
    for (int64_t u = 0; u < Hp; u += W) {
      const Vector<real> x_hat = normal.of(load(c_new + u), work.H - u);
      if (kept) store(kept + work.slots.norm_c + u, x_hat);
      store(c_new + u, fma(x_hat, load(work.packed.norm_c + u), load(work.packed.norm_c_bias + u)));
    }
  }
  for (int64_t u = 0; u < Hp; u += W) store(h_new + u, load(sums + g_o * Hp + u) * tanh(load(c_new + u)));
}

template <typename real>
void gru_row(Work<real>& work, int64_t s, int64_t r, const real* pre, const real* h_before, real* h_new) {
  constexpr int W = kLanes<real>;
  const Layer& layer = work.layer;
  const int64_t Hp = work.Hp;
  const real* sums = work.raw + r * 3 * Hp;
  real* kept = work.gates(s, r);
  for (int64_t u = 0; u < Hp; u += W) {
    const Vector<real> old = load(h_before + u), u_n = load(sums + 2 * Hp + u), a_n = load(pre + 2 * Hp + u);
    Vector<real> r_gate, z, n, h;
    if (layer.reset_before) {
      // `gru_reset_rows` has left r and z in the first two.
      r_gate = load(sums + u), z = load(sums + Hp + u);
      n = tanh(layer.norm ? u_n + a_n : u_n);
      h = fma(z, old - n, n);
    } else {
      Vector<real> a_r = load(sums + u), a_z = load(sums + Hp + u);
      if (layer.norm) a_r += load(pre + u), a_z += load(pre + Hp + u);
      const GruStep<real> now(a_r, a_z, a_n, u_n, old);
      r_gate = now.r, z = now.z, n = now.n, h = now.h;
    }
    store(h_new + u, h);
    if (kept) {
      store(kept + u, r_gate);
      store(kept + Hp + u, z);
      store(kept + 2 * Hp + u, u_n);
      store(kept + 3 * Hp + u, n);
    }
  }
}

// Reset gate before the product: r and z of all rows, then the product of r·h with the weights of n.
template <typename real>
void gru_reset_rows(Work<real>& work, int64_t s, int64_t n, const real* pre) {
  constexpr int W = kLanes<real>;
  const Layer& layer = work.layer;
  const int64_t Hp = work.Hp;
  for (int64_t r = 0; r < n; ++r) {
    real* sums = work.raw + r * 3 * Hp;
    for (int64_t u = 0; u < Hp; u += W) {
      Vector<real> a_r = load(sums + u), a_z = load(sums + Hp + u);
      if (layer.norm) a_r += load(pre + r * 3 * Hp + u), a_z += load(pre + r * 3 * Hp + Hp + u);
      const Vector<real> gate = sigmoid(a_r);
      store(sums + u, gate);
      store(sums + Hp + u, sigmoid(a_z));
      store(work.wide + r * Hp + u, gate * load(work.h_rows[r] + u));
    }
    work.h_rows[r] = work.wide + r * Hp;
  }
  recurrent_product(work, 1, work.packed.hh_n, n, layer.norm ? nullptr : pre, 2);
  if (!layer.norm) return;
  for (int64_t r = 0; r < n; ++r) {
    real* kept = work.gates(s, r);
    normalise_row(work, work.raw + r * 3 * Hp, work.packed.norm_hh, work.packed.bias_hh, 2, 1,
                  kept ? kept + work.slots.norm_hh : nullptr, kept ? kept + work.slots.scales + 2 : nullptr);
  }
}

// All recurrent sums of one step, normalised where asked for.
template <typename real>
void step_sums(Work<real>& work, int64_t s, int64_t n, const real* pre) {
  const Layer& layer = work.layer;
  const real* start = layer.norm ? nullptr : pre;
  if (layer.cell == Cell::gru && !layer.reset_before && !layer.norm) {
    // The reset gate multiplies W_hn h + b_hn alone, so n's sum starts from its own bias.
    const int64_t stride = 3 * work.Hp;
    for (int64_t r = 0; r < n; ++r) {
      std::memcpy(work.raw + r * stride, pre + r * stride, 2 * work.Hp * sizeof(real));
      std::memcpy(work.raw + r * stride + 2 * work.Hp, work.packed.bias_hh + 2 * work.Hp, work.Hp * sizeof(real));
    }
    start = work.raw;
  }
  recurrent_product(work, layer.reset_before ? 2 : work.G, work.packed.hh, n, start, 0);
  if (layer.norm)
    for (int64_t r = 0; r < n; ++r) {
      real* kept = work.gates(s, r);
      normalise_row(work, work.raw + r * work.G * work.Hp, work.packed.norm_hh, work.packed.bias_hh, 0,
                    layer.reset_before ? 2 : work.G, kept ? kept + work.slots.norm_hh : nullptr,
                    kept ? kept + work.slots.scales + 1 : nullptr);
    }
  if (layer.reset_before) gru_reset_rows(work, s, n, pre);
}

template <typename real>
void finish_row(Work<real>& work, int64_t s, int64_t r, const real* h_before, real* h_new) {
  const Layer& layer = work.layer;
  if (layer.zoneout_h > 0) {
    const Zoneout<real> zoneout = work.zoneout_h(s, r);
    for (int64_t u = 0; u < work.Pp; u += kLanes<real>)
      store(h_new + u, zoneout.of(load(h_before + u), load(h_new + u), u, work.P));
  }
  std::memcpy(work.y_row(s, r), h_new, work.P * sizeof(real));
}

template <typename real>
void step_with_options(Work<real>& work, int64_t s, int64_t n, const real* pre, const real* before, real* after) {
  const Layer& layer = work.layer;
  const int64_t Hp = work.Hp, Pp = work.Pp;
  work.enter_product(s, n, before);
  step_sums(work, s, n, pre);
  for (int64_t r = 0; r < n; ++r) {
    const real* own = pre + r * work.G * Hp;
    if (layer.cell == Cell::lstm) {
      lstm_row(work, s, r, own, layer.projected ? work.wide + r * Hp : after + r * Pp);
    } else if (layer.cell == Cell::gru) {
      gru_row(work, s, r, own, before + r * Pp, after + r * Pp);
    } else {
      const real* sums = work.raw + r * Hp;
      real* kept = work.gates(s, r);
      for (int64_t u = 0; u < Hp; u += kLanes<real>) {
        const Vector<real> a = layer.norm ? load(sums + u) + load(own + u) : load(sums + u);
        const Vector<real> h = rnn_activation<real>(a, layer.relu);
        store(after + r * Pp + u, h);
        if (kept) store(kept + u, h);
      }
    }
    if (layer.projected) work.h_rows[r] = work.wide + r * Hp;
  }
  if (layer.projected) {
    gate_product<real, 1>(work.h_rows, n, work.packed.hr, work.H, Pp, after, Pp, nullptr, 0, Range{0, Pp});
  }
  for (int64_t r = 0; r < n; ++r) finish_row(work, s, r, before + r * Pp, after + r * Pp);
}

template <typename real>
void rows_with_options(Work<real>& work) {
  int64_t ready = 0;
  real* pre = nullptr;
  for (int64_t s = 0; s < work.steps.n_steps; ++s) {
    const int64_t n = work.rows_at(s);
    if (n <= 0) break;
    real *before = work.h[s & 1], *after = work.h[~s & 1];
    if (s == ready) {
      int64_t rows = 0;
      do {
        rows += work.rows_at(ready++);
      } while (ready < work.steps.n_steps && work.rows_at(ready) > 0 &&
               rows + work.rows_at(ready) <= work.chunk_rows);
      project(work, s, ready);
      pre = work.pre;
      if (work.layer.norm) {
        real* row = pre;
        for (int64_t ahead = s; ahead < ready; ++ahead)
          for (int64_t r = 0; r < work.rows_at(ahead); ++r, row += work.G * work.Hp)
            normalise_input(work, ahead, r, row);
      }
    }
    work.begin_step(s, n, before);
    step_with_options(work, s, n, pre, before, after);
    work.store_cells(s, n);
    pre += n * work.G * work.Hp;
  }
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
