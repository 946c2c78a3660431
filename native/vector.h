// Vectors of the width of one instruction set, and the gate functions on them.
//
// Included by files that are compiled once per instruction set, inside `namespace ostinato::OSTINATO_ISA`. The
// compiler's vector extensions carry everything but two things, which need intrinsics: the fused multiply-add
// (contraction by the compiler would depend on how a loop was unrolled, and with it the bits) and the fast
// reciprocal of AVX-512. Files that include this are compiled with -ffp-contract=off.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define OSTINATO_INLINE inline __attribute__((always_inline))

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float VectorF __attribute__((vector_size(kVectorBytes)));
typedef int32_t VectorFI __attribute__((vector_size(kVectorBytes)));
typedef double VectorD __attribute__((vector_size(kVectorBytes)));
typedef int64_t VectorDI __attribute__((vector_size(kVectorBytes)));
// A byte for each lane.
typedef int8_t VectorFB __attribute__((vector_size(kVectorBytes / 4)));
typedef int8_t VectorDB __attribute__((vector_size(kVectorBytes / 8)));

template <typename real>
struct VectorOf;

template <>
struct VectorOf<float> {
  using Type = VectorF;
  using Int = VectorFI;
  using Bytes = VectorFB;
};

template <>
struct VectorOf<double> {
  using Type = VectorD;
  using Int = VectorDI;
  using Bytes = VectorDB;
};

template <typename real>
using Vector = typename VectorOf<real>::Type;

// W: elements in a vector.
template <typename real>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(real));

// n rounded up to whole vectors.
template <typename real>
OSTINATO_INLINE constexpr int64_t padded(int64_t n) {
  return (n + kLanes<real> - 1) / kLanes<real> * kLanes<real>;
}

template <typename real>
OSTINATO_INLINE Vector<real> load(const real* from) {
  Vector<real> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename real>
OSTINATO_INLINE void store(real* to, Vector<real> v) {
  std::memcpy(to, &v, sizeof v);
}

// The first n <= W elements, zeros behind; reads nothing beyond them.
template <typename real>
OSTINATO_INLINE Vector<real> load_part(const real* from, int64_t n) {
  if (n >= kLanes<real>) return load(from);
  Vector<real> v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = from[i];
  return v;
}

template <typename real>
OSTINATO_INLINE void store_part(real* to, Vector<real> v, int64_t n) {
  if (n >= kLanes<real>) return store(to, v);
  for (int64_t i = 0; i < n; ++i) to[i] = v[i];
}

#if defined(__AVX512F__)
template <>
OSTINATO_INLINE VectorF load_part<float>(const float* from, int64_t n) {
  return (VectorF)_mm512_maskz_loadu_ps(n >= 16 ? 0xFFFF : (1u << n) - 1u, from);
}
template <>
OSTINATO_INLINE void store_part<float>(float* to, VectorF v, int64_t n) {
  _mm512_mask_storeu_ps(to, n >= 16 ? 0xFFFF : (1u << n) - 1u, (__m512)v);
}
#endif

template <typename real>
OSTINATO_INLINE Vector<real> broadcast(real x) {
  return x - Vector<real>{};
}

OSTINATO_INLINE VectorF fma(VectorF a, VectorF b, VectorF c) {
#if defined(__AVX512F__)
  return (VectorF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (VectorF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (VectorF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

OSTINATO_INLINE VectorD fma(VectorD a, VectorD b, VectorD c) {
#if defined(__AVX512F__)
  return (VectorD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (VectorD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (VectorD)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

template <typename real, int kBytes, typename V>
OSTINATO_INLINE real sum_of_halves(V v) {
  if constexpr (kBytes > 16) {
    typedef real Half __attribute__((vector_size(kBytes / 2)));
    Half low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return sum_of_halves<real, kBytes / 2>(low + high);
  } else if constexpr (sizeof(real) == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    return v[0] + v[1];
  }
}

// The sum of all lanes, in one order: upper half plus lower half, and again.
template <typename real>
OSTINATO_INLINE real sum_of(Vector<real> v) {
  // The zero makes another vector of it: taking halves would keep the sum itself in memory, in every loop that adds to it.
  return sum_of_halves<real, kVectorBytes>(v + Vector<real>{});
}

// Which of the first n bytes are not 0, as a condition by lane; false behind them.
template <typename real>
OSTINATO_INLINE typename VectorOf<real>::Int load_flags(const uint8_t* from, int64_t n) {
  typename VectorOf<real>::Bytes flags = {};
  if (n >= kLanes<real>)
    std::memcpy(&flags, from, sizeof flags);
  else
    for (int64_t i = 0; i < n; ++i) flags[i] = static_cast<int8_t>(from[i]);
  return __builtin_convertvector(flags, typename VectorOf<real>::Int) != 0;
}

template <typename real>
OSTINATO_INLINE Vector<real> clamp(Vector<real> x, real low, real high) {
  // A comparison with NaN is false, so NaN passes through.
  x = x < low ? broadcast<real>(low) : x;
  return x > high ? broadcast<real>(high) : x;
}

// num / den for finite den away from the subnormals; 1 ulp.
OSTINATO_INLINE VectorF divide(VectorF num, VectorF den) {
#if defined(__AVX512F__)
  // 512-bit divisions issue every 16 cycles: an estimate of 14 bits and one Newton step are four times faster.
  VectorF y = (VectorF)_mm512_maskz_rcp14_ps(0xFFFF, (__m512)den);  // without a mask GCC 12 warns of its own header
  y = fma(fma(-den, y, broadcast(1.0f)), y, y);
  const VectorF q = num * y;
  return fma(fma(-q, den, num), y, q);
#else
  return num / den;
#endif
}

OSTINATO_INLINE VectorD divide(VectorD num, VectorD den) { return num / den; }

// exp(x) = 2^n (1 + p): |x - n ln2| <= ln2 / 2, p = expm1 of that remainder. |x| must stay below 87 (708).
template <typename real>
struct Exponential;

template <>
struct Exponential<float> {
  VectorF scale, p;

  OSTINATO_INLINE explicit Exponential(VectorF x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const VectorF shifted = fma(x, broadcast(1.44269504088896341f), broadcast(12582912.0f));
    const VectorF n = shifted - 12582912.0f;
    VectorF r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.1219444005469058e-4f), r);
    VectorF q = broadcast(1.3926213466332443e-3f);
    q = fma(q, r, broadcast(8.3632029715758549e-3f));
    q = fma(q, r, broadcast(4.1666554437685939e-2f));
    q = fma(q, r, broadcast(0.16666576845993976f));
    q = fma(q, r, broadcast(0.5f));
    p = fma(q, r * r, r);
    scale = (VectorF)(((VectorFI)shifted << 23) + (127 << 23));
  }
};

template <>
struct Exponential<double> {
  VectorD scale, p;

  OSTINATO_INLINE explicit Exponential(VectorD x) {
    const VectorD shifted = fma(x, broadcast(1.4426950408889634074), broadcast(6755399441055744.0));
    const VectorD n = shifted - 6755399441055744.0;
    VectorD r = fma(n, broadcast(-0.6931471805592082), x);
    r = fma(n, broadcast(-7.37100256516779890183e-13), r);
    VectorD q = broadcast(2.5100424157005066788e-8);
    q = fma(q, r, broadcast(2.7620138719733995569e-7));
    q = fma(q, r, broadcast(2.7557268378684192873e-6));
    q = fma(q, r, broadcast(2.4801521190217727651e-5));
    q = fma(q, r, broadcast(1.9841269863105968748e-4));
    q = fma(q, r, broadcast(1.3888888917281793308e-3));
    q = fma(q, r, broadcast(8.3333333333300513464e-3));
    q = fma(q, r, broadcast(4.1666666666623991516e-2));
    q = fma(q, r, broadcast(0.16666666666666667456));
    q = fma(q, r, broadcast(0.5));
    p = fma(q, r * r, r);
    scale = (VectorD)(((VectorDI)shifted << 52) + (int64_t{1023} << 52));
  }
};

template <typename real>
constexpr real kExpLimit = sizeof(real) == 4 ? real(87) : real(708);
template <typename real>
constexpr real kTanhLimit = sizeof(real) == 4 ? real(20) : real(44);

// exp(x), x clamped to where it is neither 0 nor infinite.
template <typename V, typename real>
OSTINATO_INLINE V exp_of(V x) {
  const Exponential<real> e(clamp<real>(x, -kExpLimit<real>, kExpLimit<real>));
  return fma(e.scale, e.p, e.scale);
}
OSTINATO_INLINE VectorF exp(VectorF x) { return exp_of<VectorF, float>(x); }
OSTINATO_INLINE VectorD exp(VectorD x) { return exp_of<VectorD, double>(x); }

// exp(x) - 1, accurate near 0.
OSTINATO_INLINE VectorF expm1(VectorF x) {
  const Exponential<float> e(clamp<float>(x, -kExpLimit<float>, kExpLimit<float>));
  return fma(e.scale, e.p, e.scale - 1.0f);
}
OSTINATO_INLINE VectorD expm1(VectorD x) {
  const Exponential<double> e(clamp<double>(x, -kExpLimit<double>, kExpLimit<double>));
  return fma(e.scale, e.p, e.scale - 1.0);
}

// 1 / (1 + exp(-x)), 2 ulp on both sides.
OSTINATO_INLINE VectorF sigmoid(VectorF x) { return divide(broadcast(1.0f), exp(-x) + 1.0f); }
OSTINATO_INLINE VectorD sigmoid(VectorD x) { return divide(broadcast(1.0), exp(-x) + 1.0); }

// tanh(x) = m / (m + 2), m = expm1(2x), 3 ulp.
OSTINATO_INLINE VectorF tanh(VectorF x) {
  const Exponential<float> e(clamp<float>(x + x, -kTanhLimit<float>, kTanhLimit<float>));
  const VectorF m = fma(e.scale, e.p, e.scale - 1.0f);
  return divide(m, m + 2.0f);
}
OSTINATO_INLINE VectorD tanh(VectorD x) {
  const Exponential<double> e(clamp<double>(x + x, -kTanhLimit<double>, kTanhLimit<double>));
  const VectorD m = fma(e.scale, e.p, e.scale - 1.0);
  return divide(m, m + 2.0);
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
