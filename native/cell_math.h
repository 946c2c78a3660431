// The gates of each cell in one step, forwards, and layer normalisation of rows. Included by files compiled once
// per instruction set.
#pragma once

#include "layout.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

template <typename real>
struct LstmStep {
  Vector<real> i, f, g, o, c, h;

  // From the four sums before the activation and the old c; without options inside the step.
  OSTINATO_INLINE LstmStep(Vector<real> a_i, Vector<real> a_f, Vector<real> a_g, Vector<real> a_o,
                           Vector<real> c_before) {
    i = sigmoid(a_i);
    f = sigmoid(a_f);
    g = tanh(a_g);
    o = sigmoid(a_o);
    c = fma(f, c_before, i * g);
    h = o * tanh(c);
  }
};

template <typename real>
struct GruStep {
  Vector<real> r, z, n, h;

  // u_n = W_hn h + b_hn, which the reset gate multiplies.
  OSTINATO_INLINE GruStep(Vector<real> a_r, Vector<real> a_z, Vector<real> a_n, Vector<real> u_n,
                          Vector<real> h_before) {
    r = sigmoid(a_r);
    z = sigmoid(a_z);
    n = tanh(fma(r, u_n, a_n));
    h = fma(z, h_before - n, n);
  }
};

template <typename real>
OSTINATO_INLINE Vector<real> rnn_activation(Vector<real> a, bool relu) {
  const Vector<real> zero = {};
  // NaN compares false: written so that it passes through.
  return relu ? (a < zero ? zero : a) : tanh(a);
}

// One row of a leaf under zoneout.
template <typename real>
struct Zoneout {
  const uint8_t* stays;  // nonzero: the old value stays; null: the expectation of that
  real p;

  // Units [u, n), as many as are lanes.
  OSTINATO_INLINE Vector<real> of(Vector<real> old, Vector<real> fresh, int64_t u, int64_t n) const {
    if (stays) return load_flags<real>(stays + u, n - u) ? old : fresh;
    return p * old + (1 - p) * fresh;
  }
};

// v with zeros behind its first n lanes.
template <typename real>
OSTINATO_INLINE Vector<real> first_lanes(Vector<real> v, int64_t n) {
  if (n >= kLanes<real>) return v;
  // Not lane by lane, which would keep a sum of such vectors in memory.
  using Int = typename VectorOf<real>::Int;
  Int lane;
  for (int i = 0; i < kLanes<real>; ++i) lane[i] = i;
  return lane < static_cast<decltype(lane[0] + 0)>(n) ? v : Vector<real>{};
}

OSTINATO_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
OSTINATO_INLINE double square_root(double x) { return __builtin_sqrt(x); }

constexpr double kNormEpsilon = 1e-5;

// What layer normalisation takes x to: (x - mean) * scale.
template <typename real>
struct Normal {
  Vector<real> mean;
  real scale;  // 1 / sqrt(variance + epsilon)

  // Over x (n_gates, Hp), of which H of each gate are real.
  Normal(const real* x, int n_gates, int64_t H, int64_t Hp) {
    constexpr int W = kLanes<real>;
    // Two sums at a time, each of which waits for itself only.
    Vector<real> even = {}, odd = {};
    for (int q = 0; q < n_gates; ++q, x += Hp) {
      int64_t u = 0;
      for (; u + 2 * W <= H; u += 2 * W) even += load(x + u), odd += load(x + u + W);
      for (; u < H; u += W) even += first_lanes<real>(load(x + u), H - u);
    }
    const real n = static_cast<real>(n_gates * H);
    mean = broadcast(sum_of<real>(even + odd) / n);
    x -= n_gates * Hp;
    even = odd = Vector<real>{};
    for (int q = 0; q < n_gates; ++q, x += Hp) {
      int64_t u = 0;
      for (; u + 2 * W <= H; u += 2 * W) {
        const Vector<real> d = load(x + u) - mean, e = load(x + u + W) - mean;
        even = fma(d, d, even);
        odd = fma(e, e, odd);
      }
      for (; u < H; u += W) {
        const Vector<real> d = first_lanes<real>(load(x + u) - mean, H - u);
        even = fma(d, d, even);
      }
    }
    scale = real(1) / square_root(sum_of<real>(even + odd) / n + static_cast<real>(kNormEpsilon));
  }
  // Of n lanes; the rest becomes 0.
  OSTINATO_INLINE Vector<real> of(Vector<real> x, int64_t n) const { return first_lanes<real>((x - mean) * scale, n); }
};

// Gradient through `Normal` and the factors gamma after it: d (n_gates, Hp) is the gradient of gamma·x_hat, x_hat is
// what `Normal` made of x and becomes the gradient of its input; d_gamma (n_gates, Hp) += d·x_hat.
template <typename real>
void normalise_backward(const real* d, real* x_hat, const real* gamma, real* d_gamma, real scale, int n_gates,
                        int64_t H, int64_t Hp) {
  constexpr int W = kLanes<real>;
  Vector<real> total = {}, moment = {};
  for (int q = 0; q < n_gates; ++q)
    for (int64_t u = 0; u < H; u += W) {
      const int64_t at = q * Hp + u;
      const Vector<real> dv = first_lanes<real>(load(d + at), H - u), xv = load(x_hat + at);
      const Vector<real> dx = dv * load(gamma + at);
      store(d_gamma + at, fma(dv, xv, load(d_gamma + at)));
      total += dx;
      moment = fma(dx, xv, moment);
    }
  const real n = static_cast<real>(n_gates * H);
  const Vector<real> mean = broadcast(sum_of<real>(total) / n), slope = broadcast(sum_of<real>(moment) / n);
  for (int q = 0; q < n_gates; ++q)
    for (int64_t u = 0; u < H; u += W) {
      const int64_t at = q * Hp + u;
      const Vector<real> dx = load(d + at) * load(gamma + at);
      const Vector<real> inner = dx - fma(load(x_hat + at), slope, mean);
      store(x_hat + at, first_lanes<real>(inner * scale, H - u));
    }
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
