// The row-local operators of step programs. Included by files compiled once per instruction set.
#pragma once

#include "program.h"
#include "vector.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

// Where the operands of one instruction begin for the first row, and how far the next row is.
template <typename real>
struct Arguments {
  real* at[4];
  int64_t row[4];
};

// Functions of the C library by the type of their argument; <cmath> would define inline functions for all sets at once.
#define OSTINATO_LIBRARY(name)                                                          \
  OSTINATO_INLINE float library_##name(float v) { return __builtin_##name##f(v); }      \
  OSTINATO_INLINE double library_##name(double v) { return __builtin_##name(v); }
OSTINATO_LIBRARY(sqrt)
OSTINATO_LIBRARY(log)
OSTINATO_LIBRARY(log1p)
OSTINATO_LIBRARY(sin)
OSTINATO_LIBRARY(cos)
OSTINATO_LIBRARY(erf)
OSTINATO_LIBRARY(floor)
#undef OSTINATO_LIBRARY
OSTINATO_INLINE float library_pow(float a, float b) { return __builtin_powf(a, b); }
OSTINATO_INLINE double library_pow(double a, double b) { return __builtin_pow(a, b); }

// f applied lane by lane: for functions that are rare enough not to have a vector form.
template <typename real, typename Function>
OSTINATO_INLINE Vector<real> lane_by_lane(Vector<real> x, Function f) {
  for (int i = 0; i < kLanes<real>; ++i) x[i] = f(x[i]);
  return x;
}

template <typename real>
OSTINATO_INLINE Vector<real> square_root(Vector<real> x) {
  return lane_by_lane<real>(x, [](real v) { return library_sqrt(v); });
}

// exp over its whole range: 0 and infinity where they belong.
template <typename real>
OSTINATO_INLINE Vector<real> full_exp(Vector<real> x) {
  const Vector<real> root = exp(x * real(0.5));
  return root * root;
}

template <typename real>
OSTINATO_INLINE Vector<real> full_expm1(Vector<real> x) {
  const real far = sizeof(real) == 4 ? real(40) : real(60);
  return x > far ? full_exp<real>(x) : expm1(x);
}

template <typename real>
OSTINATO_INLINE Vector<real> from_flags(typename VectorOf<real>::Int flags) {
  return flags ? broadcast<real>(1) : broadcast<real>(0);
}

// One struct an operator: `of` on vectors. Comparisons give 0 and 1; NaN comes through as in torch.
#define OSTINATO_UNARY(name, text)                                                            \
  template <typename real>                                                                    \
  struct Apply_##name {                                                                       \
    static constexpr int n = 1;                                                               \
    static OSTINATO_INLINE Vector<real> of(Vector<real> a, Vector<real>, Vector<real>) { return text; } \
  };
#define OSTINATO_BINARY(name, text)                                                           \
  template <typename real>                                                                    \
  struct Apply_##name {                                                                       \
    static constexpr int n = 2;                                                               \
    static OSTINATO_INLINE Vector<real> of(Vector<real> a, Vector<real> b, Vector<real>) { return text; } \
  };
#define OSTINATO_TERNARY(name, text)                                                          \
  template <typename real>                                                                    \
  struct Apply_##name {                                                                       \
    static constexpr int n = 3;                                                               \
    static OSTINATO_INLINE Vector<real> of(Vector<real> a, Vector<real> b, Vector<real> c) { return text; } \
  };

OSTINATO_UNARY(copy, a)
OSTINATO_UNARY(neg, -a)
OSTINATO_UNARY(reciprocal, real(1) / a)
OSTINATO_UNARY(sqrt, square_root<real>(a))
OSTINATO_UNARY(rsqrt, real(1) / square_root<real>(a))
OSTINATO_UNARY(exp, full_exp<real>(a))
OSTINATO_UNARY(expm1, full_expm1<real>(a))
OSTINATO_UNARY(log, lane_by_lane<real>(a, [](real v) { return library_log(v); }))
OSTINATO_UNARY(log1p, lane_by_lane<real>(a, [](real v) { return library_log1p(v); }))
OSTINATO_UNARY(abs, a < real(0) ? -a : a)
OSTINATO_UNARY(sign, from_flags<real>(a > real(0)) - from_flags<real>(a < real(0)))
OSTINATO_UNARY(sin, lane_by_lane<real>(a, [](real v) { return library_sin(v); }))
OSTINATO_UNARY(cos, lane_by_lane<real>(a, [](real v) { return library_cos(v); }))
OSTINATO_UNARY(sigmoid, sigmoid(a))
OSTINATO_UNARY(tanh, tanh(a))
OSTINATO_UNARY(relu, a < real(0) ? broadcast<real>(0) : a)
OSTINATO_UNARY(square, a* a)
OSTINATO_UNARY(softplus, (a > real(0) ? a : broadcast<real>(0)) +
                             lane_by_lane<real>(full_exp<real>(a > real(0) ? -a : a), [](real v) { return library_log1p(v); }))
OSTINATO_UNARY(erf, lane_by_lane<real>(a, [](real v) { return library_erf(v); }))
OSTINATO_UNARY(floor, lane_by_lane<real>(a, [](real v) { return library_floor(v); }))
OSTINATO_BINARY(add, a + b)
OSTINATO_BINARY(sub, a - b)
OSTINATO_BINARY(mul, a* b)
OSTINATO_BINARY(div, a / b)
OSTINATO_BINARY(max, ((a > b) | (a != a)) ? a : b)
OSTINATO_BINARY(min, ((a < b) | (a != a)) ? a : b)
OSTINATO_BINARY(gt, from_flags<real>(a > b))
OSTINATO_BINARY(ge, from_flags<real>(a >= b))
OSTINATO_BINARY(lt, from_flags<real>(a < b))
OSTINATO_BINARY(le, from_flags<real>(a <= b))
OSTINATO_BINARY(eq, from_flags<real>(a == b))
OSTINATO_BINARY(ne, from_flags<real>(a != b))
OSTINATO_BINARY(tanh_gradient, a* fma(-b, b, broadcast<real>(1)))
OSTINATO_BINARY(sigmoid_gradient, a*(b * (real(1) - b)))
OSTINATO_BINARY(relu_gradient, b > real(0) ? a : broadcast<real>(0))
OSTINATO_TERNARY(where, a != real(0) ? b : c)
OSTINATO_TERNARY(mul_add, fma(a, b, c))
OSTINATO_TERNARY(negative_mul_add, fma(-a, b, c))
OSTINATO_TERNARY(sub_mul, (a - b) * c)

template <typename real>
struct Apply_pow {
  static constexpr int n = 2;
  static OSTINATO_INLINE Vector<real> of(Vector<real> a, Vector<real> b, Vector<real>) {
    for (int i = 0; i < kLanes<real>; ++i) a[i] = library_pow(a[i], b[i]);
    return a;
  }
};

#undef OSTINATO_UNARY
#undef OSTINATO_BINARY
#undef OSTINATO_TERNARY

// n elements in vectors; operand k of stride 0 is the same for all of them.
template <typename real, typename Apply>
__attribute__((noinline)) void map_line(real* to, real* const* from, const bool* is_fixed, int64_t n) {
  constexpr int W = kLanes<real>;
  Vector<real> v[3] = {};
  for (int k = 0; k < Apply::n; ++k)
    if (is_fixed[k]) v[k] = broadcast(*from[k]);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    for (int k = 0; k < Apply::n; ++k)
      if (!is_fixed[k]) v[k] = load(from[k] + i);
    store(to + i, Apply::of(v[0], v[1], v[2]));
  }
  if (i < n) {
    for (int k = 0; k < Apply::n; ++k)
      if (!is_fixed[k]) v[k] = load_part(from[k] + i, n - i);
    store_part(to + i, Apply::of(v[0], v[1], v[2]), n - i);
  }
}

// The same for any strides; stride[0] is that of `to`.
template <typename real, typename Apply>
__attribute__((noinline)) void map_strided(real* to, real* const* from, const int64_t* stride, int64_t n) {
  constexpr int W = kLanes<real>;
  for (int64_t i = 0; i < n; i += W) {
    const int64_t m = n - i < W ? n - i : W;
    Vector<real> v[3] = {};
    for (int k = 0; k < Apply::n; ++k)
      for (int64_t lane = 0; lane < m; ++lane) v[k][lane] = from[k][(i + lane) * stride[k + 1]];
    const Vector<real> result = Apply::of(v[0], v[1], v[2]);
    for (int64_t lane = 0; lane < m; ++lane) to[(i + lane) * stride[0]] = result[lane];
  }
}

template <typename real, typename Apply>
void map_rows(const Instruction& ins, const Arguments<real>& args, int64_t n_rows) {
  constexpr int n = Apply::n;
  bool is_fixed[3] = {false, false, false};
  if (ins.runs) {
    real* from[3] = {args.at[1], args.at[2], args.at[3]};
    return map_line<real, Apply>(args.at[0], from, is_fixed, n_rows * args.row[0]);
  }
  const Operand* operand = ins.operand;
  bool in_line = operand[0].stride[2] == 1 || ins.size[2] == 1;
  int64_t stride[4];
  for (int k = 0; k <= n; ++k) {
    stride[k] = operand[k].stride[2];
    if (k > 0) is_fixed[k - 1] = stride[k] == 0 || ins.size[2] == 1;
    in_line = in_line && (k == 0 || stride[k] == 1 || is_fixed[k - 1]);
  }
  for (int64_t r = 0; r < n_rows; ++r)
    for (int64_t i = 0; i < ins.size[0]; ++i)
      for (int64_t j = 0; j < ins.size[1]; ++j) {
        real* at[4];
        for (int k = 0; k <= n; ++k)
          at[k] = args.at[k] + r * args.row[k] + i * operand[k].stride[0] + j * operand[k].stride[1];
        if (in_line)
          map_line<real, Apply>(at[0], at + 1, is_fixed, ins.size[2]);
        else
          map_strided<real, Apply>(at[0], at + 1, stride, ins.size[2]);
      }
}

// Along the last axis ------------------------------------------------------------------------------------

// The lanes' sum, in pairs: one order, and a short chain.
template <typename real>
OSTINATO_INLINE real paired_sum(Vector<real> v) {
  real lanes[kLanes<real>];
  store(lanes, v);
  for (int half = kLanes<real> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// Sum over i < n of f(element(s)); zero elements must give zero.
template <typename real, typename Load>
OSTINATO_INLINE real sum_over(int64_t n, Load value) {
  constexpr int W = kLanes<real>;
  Vector<real> total[2] = {};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    total[0] += value(i, W);
    total[1] += value(i + W, W);
  }
  for (; i < n; i += W) total[0] += value(i, n - i < W ? n - i : W);
  return paired_sum<real>(total[0] + total[1]);
}

// Elements i … i + m of a line of any stride, zeros behind.
template <typename real>
OSTINATO_INLINE Vector<real> take(const real* from, int64_t stride, int64_t i, int64_t m) {
  if (stride == 1) return load_part(from + i, m);
  Vector<real> v = {};
  for (int64_t lane = 0; lane < m; ++lane) v[lane] = from[(i + lane) * stride];
  return v;
}

// to = scale (d - mean(d) - y mean(d y)): the gradient before y = (x - mean) scale, from that of y.
template <typename real>
void normalise_gradient(const Instruction& ins, real* const* at) {
  const int64_t n = ins.size[2];
  const int64_t stride[4] = {ins.operand[0].stride[2], ins.operand[1].stride[2], ins.operand[2].stride[2], 0};
  const real *d = at[1], *y = at[2], scale = *at[3];
  const real mean = sum_over<real>(n, [&](int64_t i, int64_t m) { return take(d, stride[1], i, m); }) / real(n);
  const real slope = sum_over<real>(n, [&](int64_t i, int64_t m) {
    return take(d, stride[1], i, m) * take(y, stride[2], i, m);
  }) / real(n);
  constexpr int W = kLanes<real>;
  for (int64_t i = 0; i < n; i += W) {
    const int64_t m = n - i < W ? n - i : W;
    const Vector<real> centred = take(d, stride[1], i, m) - mean;
    const Vector<real> result = scale * fma(-take(y, stride[2], i, m), broadcast(slope), centred);
    if (stride[0] == 1)
      store_part(at[0] + i, result, m);
    else
      for (int64_t lane = 0; lane < m; ++lane) at[0][(i + lane) * stride[0]] = result[lane];
  }
}

template <typename real>
void along_line(const Instruction& ins, real* const* at) {
  const int64_t n = ins.size[2];
  const int64_t a_stride = ins.operand[1].stride[2], b_stride = ins.operand[2].stride[2];
  const real *a = at[1], *b = at[2];
  switch (static_cast<Operator>(ins.op)) {
    case Operator::sum:
      *at[0] = sum_over<real>(n, [&](int64_t i, int64_t m) { return take(a, a_stride, i, m); });
      return;
    case Operator::dot:
      *at[0] = sum_over<real>(
          n, [&](int64_t i, int64_t m) { return take(a, a_stride, i, m) * take(b, b_stride, i, m); });
      return;
    case Operator::amax:
    case Operator::amin: {
      const bool is_max = static_cast<Operator>(ins.op) == Operator::amax;
      real best = a[0];
      for (int64_t i = 1; i < n; ++i) {
        const real v = a[i * a_stride];
        if ((is_max ? v > best : v < best) || v != v) best = v;
      }
      *at[0] = best;
      return;
    }
    case Operator::moments: {
      const real mean = sum_over<real>(n, [&](int64_t i, int64_t m) { return take(a, a_stride, i, m); }) / real(n);
      const real variance = sum_over<real>(n, [&](int64_t i, int64_t m) {
        Vector<real> d = take(a, a_stride, i, m) - mean;
        if (m < kLanes<real>)
          for (int64_t lane = m; lane < kLanes<real>; ++lane) d[lane] = 0;
        return d * d;
      }) / real(n);
      at[0][0] = mean;
      at[0][1] = real(1) / library_sqrt(variance + real(ins.attr));
      return;
    }
    case Operator::cumsum: {
      real total = 0;
      for (int64_t i = 0; i < n; ++i) at[0][i * ins.operand[0].stride[2]] = total += a[i * a_stride];
      return;
    }
    case Operator::normalise_gradient: return normalise_gradient<real>(ins, at);
    default:
      return;
  }
}

template <typename real>
void along_rows(const Instruction& ins, const Arguments<real>& args, int64_t n_rows) {
  const int n = static_cast<int>(ins.n_inputs);
  for (int64_t r = 0; r < n_rows; ++r)
    for (int64_t i = 0; i < ins.size[0]; ++i)
      for (int64_t j = 0; j < ins.size[1]; ++j) {
        real* at[4] = {};
        for (int k = 0; k <= n; ++k)
          at[k] = args.at[k] + r * args.row[k] + i * ins.operand[k].stride[0] + j * ins.operand[k].stride[1];
        along_line<real>(ins, at);
      }
}

// to[…] += sum over rows of from[r, …], rows rising.
template <typename real>
void rowsum(const Instruction& ins, const Arguments<real>& args, int64_t n_rows) {
  constexpr int W = kLanes<real>;
  const Operand &to = ins.operand[0], &from = ins.operand[1];
  for (int64_t i = 0; i < ins.size[0]; ++i)
    for (int64_t j = 0; j < ins.size[1]; ++j) {
      real* out = args.at[0] + i * to.stride[0] + j * to.stride[1];
      const real* in = args.at[1] + i * from.stride[0] + j * from.stride[1];
      for (int64_t k = 0; k < ins.size[2]; k += W) {
        const int64_t m = ins.size[2] - k < W ? ins.size[2] - k : W;
        Vector<real> total = load_part(out + k, m);
        for (int64_t r = 0; r < n_rows; ++r) total += take(in + r * args.row[1], from.stride[2], k, m);
        store_part(out + k, total, m);
      }
    }
}

// Small products inside a row: to (n, p) = a (n, k) b (k, p).
template <typename real>
void small_product(const Instruction& ins, real* const* at) {
  constexpr int W = kLanes<real>;
  const int64_t n = ins.size[1], K = ins.size[2], P = ins.size[3];
  const int64_t* to = ins.operand[0].stride;
  const int64_t *sa = ins.operand[1].stride, *sb = ins.operand[2].stride;
  for (int64_t i = 0; i < n; ++i) {
    const real* a = at[1] + i * sa[1];
    real* out = at[0] + i * to[1];
    if (sb[2] == 1 && to[2] == 1 && P > 1) {
      for (int64_t p = 0; p < P; p += W) {
        const int64_t m = P - p < W ? P - p : W;
        Vector<real> total = {};
        for (int64_t k = 0; k < K; ++k) total = fma(broadcast(a[k * sa[2]]), load_part(at[2] + k * sb[1] + p, m), total);
        store_part(out + p, total, m);
      }
      continue;
    }
    for (int64_t p = 0; p < P; ++p) {
      const real* b = at[2] + p * sb[2];
      out[p * to[2]] = sum_over<real>(
          K, [&](int64_t k, int64_t m) { return take(a, sa[2], k, m) * take(b, sb[1], k, m); });
    }
  }
}

template <typename real>
void small_products(const Instruction& ins, const Arguments<real>& args, int64_t n_rows) {
  for (int64_t r = 0; r < n_rows; ++r)
    for (int64_t i = 0; i < ins.size[0]; ++i) {
      real* at[3];
      for (int k = 0; k < 3; ++k) at[k] = args.at[k] + r * args.row[k] + i * ins.operand[k].stride[0];
      small_product<real>(ins, at);
    }
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
