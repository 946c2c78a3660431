// Weights of a session in fewer bits. Included by stream.cpp, once per instruction set.
#pragma once

#include "pack.h"
#include "stream.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

typedef uint32_t VectorBits __attribute__((vector_size(kVectorBytes)));

// Bytes of one block of W units by G gates over K inputs.
constexpr int64_t block_bytes(WeightFormat format, int64_t K, int64_t G) {
  const int64_t n = format == WeightFormat::int8 ? K : (K + 1) / 2 * 4;
  return n * G * kLanes<float>;
}

// Two weights to a lane, k even in the low half, so that either is one operation away from a float.
OSTINATO_INLINE VectorF even_weights(VectorBits pair) { return (VectorF)(pair << 16); }
OSTINATO_INLINE VectorF odd_weights(VectorBits pair) { return (VectorF)(pair & 0xFFFF0000u); }

// W bytes as floats. The compiler's own conversion of short vectors takes them apart.
OSTINATO_INLINE VectorF widened(const int8_t* from) {
#if defined(__AVX512F__)
  return (VectorF)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
  return (VectorF)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
  uint32_t four;
  std::memcpy(&four, from, sizeof four);
  const VectorBits lanes = {four << 24, four << 16, four << 8, four};
  return __builtin_convertvector((VectorFI)lanes >> 24, VectorF);
#endif
}

// tile[r][nb·G + g] += sum over k, rising, of rows[r][k] · weights[nb][k][g]; blocks are block_bytes(…, K, G) apart.
template <WeightFormat kFormat, int R, int NB, int G, int V>
OSTINATO_INLINE void accumulate_format(Tile<float, R, V>& tile, const float* const* rows, const char* weights,
                                       int64_t K) {
  constexpr int W = kLanes<float>;
  const int64_t stride = block_bytes(kFormat, K, G);
  VectorF acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 24
    for (int v = 0; v < V; ++v) acc[r][v] = tile.at[r][v];
  if constexpr (kFormat == WeightFormat::bfloat16) {
    int64_t k = 0;
    for (; k + 1 < K; k += 2) {
#pragma GCC unroll 24
      for (int v = 0; v < V; ++v) {
        VectorBits pair;
        std::memcpy(&pair, weights + (v / G) * stride + (k / 2 * G + v % G) * W * 4, sizeof pair);
        const VectorF even = even_weights(pair), odd = odd_weights(pair);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          acc[r][v] = fma(broadcast(rows[r][k]), even, acc[r][v]);
          acc[r][v] = fma(broadcast(rows[r][k + 1]), odd, acc[r][v]);
        }
      }
    }
    if (k < K) {
#pragma GCC unroll 24
      for (int v = 0; v < V; ++v) {
        VectorBits pair;
        std::memcpy(&pair, weights + (v / G) * stride + (k / 2 * G + v % G) * W * 4, sizeof pair);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][v] = fma(broadcast(rows[r][k]), even_weights(pair), acc[r][v]);
      }
    }
  } else {
    const int8_t* q = reinterpret_cast<const int8_t*>(weights);
    for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 24
      for (int v = 0; v < V; ++v) {
        const VectorF w = widened(q + (v / G) * stride + (k * G + v % G) * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][v] = fma(broadcast(rows[r][k]), w, acc[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 24
    for (int v = 0; v < V; ++v) tile.at[r][v] = acc[r][v];
}

// Where things lie: `real` as PackedForward, the others here.
template <typename real>
struct PackedStream {
  char *ih, *hh;             // (blocks, ·, G, W)
  real *scale_ih, *scale_hh; // (G, Hp); int8 only
  real *bias, *bias_hh;      // (G, Hp), as PackedForward has them
  int64_t bytes;

  PackedStream(const Layer& layer, WeightFormat format, const void* base) {
    scale_ih = scale_hh = nullptr;
    if (format == WeightFormat::real) {
      const PackedForward<real> whole(layer, base);
      ih = reinterpret_cast<char*>(whole.ih), hh = reinterpret_cast<char*>(whole.hh);
      bias = whole.bias, bias_hh = whole.bias_hh, bytes = whole.bytes;
      return;
    }
    Parts parts(const_cast<void*>(base));
    const int64_t Hp = padded<real>(layer.H), G = layer.gates, n_blocks = Hp / kLanes<real>;
    ih = parts.take<char>(n_blocks * block_bytes(format, layer.D, G));
    hh = parts.take<char>(n_blocks * block_bytes(format, layer.P, G));
    if (format == WeightFormat::int8) {
      scale_ih = parts.take<real>(G * Hp);
      scale_hh = parts.take<real>(G * Hp);
    }
    bias = parts.take<real>(G * Hp);
    bias_hh = parts.take<real>(G * Hp);
    bytes = parts.bytes();
  }
};

// The upper half of a float, rounded to nearest, ties to even. NaN stays one.
inline uint32_t rounded_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return (bits >> 16) | 0x40u;
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}

inline float largest(const float* row, int64_t K) {
  float most = 0;
  for (int64_t k = 0; k < K; ++k) {
    const float size = row[k] < 0 ? -row[k] : row[k];
    // NaN is taken, and stays: the row's scale and all that it touches become NaN.
    if (most == most && !(size <= most)) most = size;
  }
  return most;
}

// Rows gate·H + unit of (G·H, K) row-major -> (blocks, ·, G, W), zeros behind H.
inline void pack_format(WeightFormat format, const float* weight, int64_t H, int64_t K, int G, char* to,
                        float* scales) {
  constexpr int W = kLanes<float>;
  const int64_t Hp = padded<float>(H), stride = block_bytes(format, K, G);
  std::memset(to, 0, Hp / W * stride);
  for (int g = 0; g < G; ++g)
    for (int64_t u = 0; u < Hp; ++u) {
      if (scales) scales[g * Hp + u] = 0;
      if (u >= H) continue;
      const float* row = weight + (g * H + u) * K;
      char* block = to + u / W * stride;
      if (format == WeightFormat::bfloat16) {
        for (int64_t k = 0; k < K; ++k) {
          const uint16_t half = static_cast<uint16_t>(rounded_to_bfloat16(row[k]));
          char* lane = block + ((k / 2 * G + g) * W + u % W) * 4;
          uint32_t pair;
          std::memcpy(&pair, lane, 4);
          pair |= k % 2 ? static_cast<uint32_t>(half) << 16 : half;
          std::memcpy(lane, &pair, 4);
        }
        continue;
      }
      const float most = largest(row, K), scale = most / 127;
      scales[g * Hp + u] = scale;
      for (int64_t k = 0; k < K; ++k) {
        // A row too small for its scale to be told from zero, or with NaN, has no sensible quotients.
        const float quotient = scale > 0 ? row[k] / scale : 0;
        const float near = quotient > 127 ? 127 : quotient < -127 ? -127 : quotient == quotient ? quotient : 0;
        reinterpret_cast<int8_t*>(block)[(k * G + g) * W + u % W] = static_cast<int8_t>(__builtin_rintf(near));
      }
    }
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
