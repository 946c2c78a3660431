// The time loop, forwards. Included by recurrence.cpp, once per instruction set.
#pragma once

#include "cell_math.h"
#include "pack.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

// The rows that one thread takes through time, and its scratch.
template <typename real>
struct Work {
  // Weights up to this size stay in the cache from step to step.
  static constexpr int64_t kCachedBytes = int64_t{5} << 18;

  const Layer& layer;
  const Steps& steps;
  const Forward& call;
  const PackedForward<real> packed;
  const Slots<real> slots;
  int64_t r_begin, r_end, H, Hp, P, Pp;
  int G;
  int64_t chunk_rows;  // of the input products that are made ahead: enough to be worth the weights' reading
  Range units;         // those that this thread computes: all, unless a team shares the rows
  real* h[2];          // (n_rows, Pp): state before and after the step, by turns
  real* c;             // (n_rows, Hp)
  real* pre;           // (chunk rows, G·Hp): the input products of some steps ahead
  real* raw;           // (n_rows, G·Hp): the recurrent products
  real *h_in, *wide;   // (n_rows, Pp) h times its mask; (n_rows, Hp) r·h, or h before the projection
  const real** x_rows; // (chunk rows,)
  const real** h_rows; // (n_rows,)
  int64_t bytes;

  Work(const Layer& l, const Steps& s, const Forward& f, int64_t begin, int64_t end, void* scratch)
      : layer(l), steps(s), call(f), packed(l, f.packed), slots(l), r_begin(begin), r_end(end), H(l.H),
        Hp(padded<real>(l.H)), P(l.P), Pp(padded<real>(l.P)), G(l.gates), chunk_rows(input_bytes() > 2 * kCachedBytes ? 128 : 64), units{0, padded<real>(l.H)} {
    Parts parts(scratch);
    const int64_t n = end - begin, n_ahead = n > chunk_rows ? n : chunk_rows;
    h[0] = parts.take<real>(n * Pp);
    h[1] = parts.take<real>(n * Pp);
    c = parts.take<real>(n * Hp);
    pre = parts.take<real>(n_ahead * G * Hp);
    raw = parts.take<real>(n * G * Hp);
    h_in = parts.take<real>(n * Pp);
    wide = parts.take<real>(n * Hp);
    x_rows = parts.take<const real*>(n_ahead);
    h_rows = parts.take<const real*>(n);
    bytes = parts.bytes();
  }

  int64_t input_bytes() const { return layer.D * G * Hp * static_cast<int64_t>(sizeof(real)); }
  int64_t recurrent_bytes() const { return layer.P * G * Hp * static_cast<int64_t>(sizeof(real)); }
  int64_t rows_at(int64_t s) const { return least(steps.active[s], r_end) - r_begin; }
  int64_t row(int64_t r) const { return steps.row[r_begin + r]; }
  const real* x_row(int64_t s, int64_t r) const {
    return as<real>(call.x) + row(r) * call.x_row + steps.time_of(s, r_begin + r) * call.x_step;
  }
  int64_t kept_row(int64_t s, int64_t r) const { return steps.offset[s] + r_begin + r; }
  real* gates(int64_t s, int64_t r) const {
    return call.gates ? as<real>(call.gates) + kept_row(s, r) * slots.width : nullptr;
  }
  real* y_row(int64_t s, int64_t r) const {
    return as<real>(call.y) + (row(r) * steps.T + steps.time_of(s, r_begin + r)) * P;
  }
  const real* mask_row(int64_t s, int64_t r) const {
    const int64_t t = steps.time_of(s, r_begin + r);
    const int64_t position = steps.is_reverse ? steps.T - 1 - t : t;
    return as<real>(call.masks.recurrent) + position * call.masks.recurrent_step + row(r) * P;
  }
  Zoneout<real> zoneout(const uint8_t* mask, double probability, int64_t s, int64_t r, int64_t width) const {
    const int64_t t = steps.time_of(s, r_begin + r);
    const int64_t position = steps.is_reverse ? steps.T - 1 - t : t;
    return {layer.random ? mask + (position * steps.B + row(r)) * width : nullptr, static_cast<real>(probability)};
  }
  Zoneout<real> zoneout_h(int64_t s, int64_t r) const {
    return zoneout(call.masks.zoneout_h, layer.zoneout_h, s, r, P);
  }
  Zoneout<real> zoneout_c(int64_t s, int64_t r) const {
    return zoneout(call.masks.zoneout_c, layer.zoneout_c, s, r, H);
  }

  // Points h_rows at what the recurrent product multiplies: h, or h times its mask.
  void enter_product(int64_t s, int64_t n, const real* h_now) {
    for (int64_t r = 0; r < n; ++r) {
      h_rows[r] = h_now + r * Pp;
      if (!call.masks.recurrent) continue;
      const real* mask = mask_row(s, r);
      for (int64_t u = 0; u < Pp; u += kLanes<real>)
        store(h_in + r * Pp + u, load(h_now + r * Pp + u) * load_part(mask + u, P - u));
      h_rows[r] = h_in + r * Pp;
    }
  }

  void load_states() {
    for (int64_t r = 0; r < r_end - r_begin; ++r) {
      copy_row(h[0] + r * Pp, as<real>(call.h0) + row(r) * P, P, Pp);
      if (call.c0) copy_row(c + r * Hp, as<real>(call.c0) + row(r) * H, H, Hp);
    }
  }

  void reset_row(int64_t r, real* h_now) {
    copy_row(h_now + r * Pp, as<real>(call.initial_h) + row(r) * P, P, Pp);
    if (call.c0) copy_row(c + r * Hp, as<real>(call.initial_c) + row(r) * H, H, Hp);
  }

  // Before the products of step s: resets, and what backward needs of the old c.
  void begin_step(int64_t s, int64_t n, real* h_now) {
    if (steps.reset)
      for (int64_t r = 0; r < n; ++r)
        if (steps.resets(s, r_begin + r)) reset_row(r, h_now);
    if (!call.c_before) return;
    real* kept = as<real>(call.c_before) + kept_row(s, 0) * Hp;
    for (int64_t r = 0; r < n; ++r)
      std::memcpy(kept + r * Hp + units.begin, c + r * Hp + units.begin, (units.end - units.begin) * sizeof(real));
  }

  void store_states() {
    for (int64_t r = 0; r < r_end - r_begin; ++r) {
      real* now = h[steps.count[r_begin + r] & 1];
      if (steps.ends_reset && steps.ends_reset[r_begin + r]) reset_row(r, now);
      std::memcpy(as<real>(call.h_final) + row(r) * P, now + r * Pp, P * sizeof(real));
      if (call.c0) std::memcpy(as<real>(call.c_final) + row(r) * H, c + r * Hp, H * sizeof(real));
    }
  }

  void store_cells(int64_t s, int64_t n) {
    if (!call.cells) return;
    const int64_t width = least(units.end, H) - units.begin;
    for (int64_t r = 0; r < n; ++r) {
      const int64_t at = row(r) * steps.T + steps.time_of(s, r_begin + r);
      std::memcpy(as<real>(call.cells) + at * H + units.begin, c + r * Hp + units.begin, width * sizeof(real));
    }
  }
};

// rows (n_rows,) times the packed weights of G gates.
template <typename real>
void product_of_gates(int G, const real* const* rows, int64_t n_rows, const real* weights, int64_t K, int64_t H,
                      real* out, int64_t out_stride, const real* start, int64_t start_stride, Range units) {
  const int64_t Hp = padded<real>(H);
  switch (G) {
    case 1:
      return gate_product<real, 1>(rows, n_rows, weights, K, Hp, out, out_stride, start, start_stride, units);
    case 2:
      return gate_product<real, 2>(rows, n_rows, weights, K, Hp, out, out_stride, start, start_stride, units);
    case 3:
      return gate_product<real, 3>(rows, n_rows, weights, K, Hp, out, out_stride, start, start_stride, units);
    default:
      return gate_product<real, 4>(rows, n_rows, weights, K, Hp, out, out_stride, start, start_stride, units);
  }
}

// The input products of steps [s, s_end) into `pre`, rows one after the other.
template <typename real>
void project(Work<real>& work, int64_t s, int64_t s_end) {
  int64_t n = 0;
  for (; s < s_end; ++s)
    for (int64_t r = 0; r < work.rows_at(s); ++r) work.x_rows[n++] = work.x_row(s, r);
  product_of_gates(work.G, work.x_rows, n, work.packed.ih, work.layer.D, work.H, work.pre, work.G * work.Hp,
                   work.layer.norm ? nullptr : work.packed.bias, 0, work.units);
}

// One step of a cell without options but masks: products and gates of a tile, in registers from beginning to end.
template <typename real, Cell kCell>
struct PlainStep {
  using Real = real;
  static constexpr int G = kCell == Cell::rnn ? 1 : kCell == Cell::lstm ? 4 : 3;
  Work<real>& work;
  int64_t s;
  const real* pre;  // (rows, G·Hp) of this step, or null: x is multiplied here
  const real* h_before;
  real* h_after;

  template <int R, int NB>
  OSTINATO_INLINE void run(int64_t row, int64_t block) {
    constexpr int W = kLanes<real>;
    const int64_t Hp = work.Hp;
    Tile<real, R, NB * G> tile;
    [[maybe_unused]] Vector<real> input_n[R][NB];
    if (pre) {
      for (int r = 0; r < R; ++r)
        for (int nb = 0; nb < NB; ++nb)
          for (int g = 0; g < G; ++g)
            tile.at[r][nb * G + g] = load(pre + ((row + r) * G + g) * Hp + (block + nb) * W);
    } else {
      for (int nb = 0; nb < NB; ++nb)
        for (int g = 0; g < G; ++g) {
          const Vector<real> bias = load(work.packed.bias + g * Hp + (block + nb) * W);
          for (int r = 0; r < R; ++r) tile.at[r][nb * G + g] = bias;
        }
      const int64_t stride = work.layer.D * G * W;
      accumulate<real, R, NB, G>(tile, work.x_rows + row, work.packed.ih + block * stride, stride, work.layer.D);
    }
    if constexpr (kCell == Cell::gru)
      for (int nb = 0; nb < NB; ++nb) {
        const Vector<real> bias = load(work.packed.bias_hh + 2 * Hp + (block + nb) * W);
        for (int r = 0; r < R; ++r) {
          input_n[r][nb] = tile.at[r][nb * G + 2];
          tile.at[r][nb * G + 2] = bias;
        }
      }
    const bool zones_h = work.layer.zoneout_h > 0, zones_c = work.layer.zoneout_c > 0;
    const int64_t stride = work.layer.P * G * W;
    accumulate<real, R, NB, G>(tile, work.h_rows + row, work.packed.hh + block * stride, stride, work.layer.P);
    for (int r = 0; r < R; ++r) {
      real* y = work.y_row(s, row + r);
      real* kept = work.gates(s, row + r);
      const Zoneout<real> zoneout_h = zones_h ? work.zoneout_h(s, row + r) : Zoneout<real>{};
      const Zoneout<real> zoneout_c = zones_c ? work.zoneout_c(s, row + r) : Zoneout<real>{};
      for (int nb = 0; nb < NB; ++nb) {
        const int64_t u = (block + nb) * W, at = (row + r) * Hp + u;
        const Vector<real>* a = &tile.at[r][nb * G];
        Vector<real> h;
        if constexpr (kCell == Cell::rnn) {
          h = rnn_activation<real>(a[0], work.layer.relu);
          if (kept) store(kept + u, h);
        } else if constexpr (kCell == Cell::lstm) {
          const Vector<real> old = load(work.c + at);
          const LstmStep<real> now(a[0], a[1], a[2], a[3], old);
          h = now.h;
          store(work.c + at, zones_c ? zoneout_c.of(old, now.c, u, work.H) : now.c);
          if (kept) {
            store(kept + u, now.i);
            store(kept + Hp + u, now.f);
            store(kept + 2 * Hp + u, now.g);
            store(kept + 3 * Hp + u, now.o);
          }
        } else {
          const GruStep<real> now(a[0], a[1], input_n[r][nb], a[2], load(h_before + at));
          h = now.h;
          if (kept) {
            store(kept + u, now.r);
            store(kept + Hp + u, now.z);
            store(kept + 2 * Hp + u, a[2]);
            store(kept + 3 * Hp + u, now.n);
          }
        }
        if (zones_h) h = zoneout_h.of(load(h_before + at), h, u, work.H);
        store(h_after + at, h);
        store_part(y + u, h, work.H - u);
      }
    }
  }
};

// All steps of the rows. A team's threads each take some units, and meet after every step.
template <typename real, Cell kCell>
void plain_rows(Work<real>& work, const Team& team) {
  constexpr int G = PlainStep<real, kCell>::G;
  // With few rows, and where both weights do not fit the cache, the input weights are better read once for several steps.
  const int64_t n_rows = work.r_end - work.r_begin;
  const bool ahead = n_rows < kTileRows<G> || ((work.input_bytes() + work.recurrent_bytes()) / team.n_workers >
                                                   work.kCachedBytes &&
                                               2 * n_rows <= work.chunk_rows);
  int64_t ready = 0;
  const real* pre = nullptr;
  for (int64_t s = 0; s < work.steps.n_steps; ++s) {
    const int64_t n = work.rows_at(s);
    if (n <= 0) break;
    real *before = work.h[s & 1], *after = work.h[~s & 1];
    if (ahead && s == ready) {
      int64_t rows = 0;
      while (ready < work.steps.n_steps && rows + work.rows_at(ready) <= work.chunk_rows &&
             work.rows_at(ready) > 0)
        rows += work.rows_at(ready++);
      project(work, s, ready);
      pre = work.pre;
    }
    work.begin_step(s, n, before);
    work.enter_product(s, n, before);
    for (int64_t r = 0; !ahead && r < n; ++r) work.x_rows[r] = work.x_row(s, r);
    PlainStep<real, kCell> body{work, s, pre, before, after};
    for_tiles<G>(body, n, work.units.begin / kLanes<real>, work.units.end / kLanes<real>, s & 1);
    work.store_cells(s, n);
    if (ahead) pre += n * G * work.Hp;
    team.meet();
  }
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
