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

// v with zeros behind its first n lanes.
template <typename real>
OSTINATO_INLINE Vector<real> first_lanes(Vector<real> v, int64_t n) {
  if (n >= kLanes<real>) return v;
  for (int64_t i = n < 0 ? 0 : n; i < kLanes<real>; ++i) v[i] = 0;
  return v;
}

constexpr double kNormEpsilon = 1e-5;

// x (n_gates, Hp) of which H are real -> normalised over all n_gates·H of them, in place; padding becomes 0.
// Returns 1 / sqrt(variance + epsilon).
template <typename real>
real normalise(real* x, int n_gates, int64_t H, int64_t Hp) {
  constexpr int W = kLanes<real>;
  Vector<real> total = {};
  for (int q = 0; q < n_gates; ++q)
    for (int64_t u = 0; u < H; u += W) total += first_lanes<real>(load(x + q * Hp + u), H - u);
  const real n = static_cast<real>(n_gates * H), mean = sum_of<real>(total) / n;
  Vector<real> squares = {};
  for (int q = 0; q < n_gates; ++q)
    for (int64_t u = 0; u < H; u += W) {
      const Vector<real> d = first_lanes<real>(load(x + q * Hp + u) - mean, H - u);
      store(x + q * Hp + u, d);
      squares = fma(d, d, squares);
    }
  const real scale = real(1) / __builtin_sqrt(sum_of<real>(squares) / n + static_cast<real>(kNormEpsilon));
  for (int q = 0; q < n_gates; ++q)
    for (int64_t u = 0; u < H; u += W) store(x + q * Hp + u, load(x + q * Hp + u) * scale);
  return scale;
}

// Gradient through `normalise` and the factors gamma after it: d (n_gates, Hp) is the gradient of gamma·x_hat, x_hat is
// what `normalise` left and becomes the gradient of its input; d_gamma (n_gates, Hp) += d·x_hat.
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
