// Matrix products in register tiles. Included by files compiled once per instruction set.
//
// A tile is R rows by NB blocks of W units by G gates. Each of its elements is one chain of fused multiply-adds with
// k rising, so that its bits depend on neither the tile nor the rows around it.
#pragma once

#include "vector.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

// Accumulators of a tile: what the registers hold beside the weights of one k and one row's element.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif

constexpr int kMostRows = 8;

// Most rows of a tile with G vectors a block.
template <int G>
constexpr int kTileRows = G == 1 ? 6 : (kAccumulators / G < kMostRows ? kAccumulators / G : kMostRows);

// Most blocks of a tile with R rows: a power of two, so that the tail is covered by halving. In double precision, which
// is for checking, one block does.
template <typename real>
constexpr int blocks_of_tile(int R, int G) {
  int n = 1;
  while (sizeof(real) == 4 && 2 * n * R * G <= kAccumulators && n < 8) n *= 2;
  return n;
}

template <typename real, int R, int V>
struct Tile {
  Vector<real> at[R][V];

  OSTINATO_INLINE void clear() {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) at[r][v] = Vector<real>{};
  }
};

// tile[r][nb·G + g] += sum over k of rows[r][k] · weights[nb][k][g]; blocks are block_stride elements apart.
template <typename real, int R, int NB, int G, int V>
OSTINATO_INLINE void accumulate(Tile<real, R, V>& tile, const real* const* rows, const real* weights,
                                int64_t block_stride, int64_t K) {
  static_assert(V == NB * G, "a tile has G vectors a block");
  constexpr int W = kLanes<real>;
  const real* row[R];
  for (int r = 0; r < R; ++r) row[r] = rows[r];
  Vector<real> acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[r][v] = tile.at[r][v];
  for (int64_t k = 0; k < K; ++k) {
    // Whichever are fewer stay in registers: the elements of the rows, or the weights.
    if constexpr (R < V) {
      Vector<real> a[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) a[r] = broadcast(row[r][k]);
#pragma GCC unroll 8
      for (int nb = 0; nb < NB; ++nb)
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          const Vector<real> w = load(weights + nb * block_stride + (k * G + g) * W);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) acc[r][nb * G + g] = fma(a[r], w, acc[r][nb * G + g]);
        }
    } else {
      Vector<real> w[V];
#pragma GCC unroll 8
      for (int nb = 0; nb < NB; ++nb)
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) w[nb * G + g] = load(weights + nb * block_stride + (k * G + g) * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vector<real> a = broadcast(row[r][k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = fma(a, w[v], acc[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) tile.at[r][v] = acc[r][v];
}

// One tile; a function of its own, so that each shape is compiled once.
template <int R, int NB, typename Body>
__attribute__((noinline)) void run_tile(Body& body, int64_t row, int64_t block) {
  body.template run<R, NB>(row, block);
}

template <int R, int NB, typename Body>
OSTINATO_INLINE void run_rows(Body& body, int64_t n_rows, int64_t n_full, int64_t block) {
  // n_full tiles of R rows, then tiles of R - 1.
  int64_t row = 0;
  for (int64_t i = 0; i < n_full; ++i, row += R) run_tile<R, NB>(body, row, block);
  if constexpr (R > 1)
    for (; row < n_rows; row += R - 1) run_tile<R - 1, NB>(body, row, block);
}

template <int R, int NB, typename Body>
void run_blocks(Body& body, int64_t n_rows, int64_t n_full, int64_t block, int64_t block_end, bool from_end) {
  const int64_t n_groups = (block_end - block) / NB, rest = block + n_groups * NB;
  if constexpr (NB > 1)
    if (from_end && rest < block_end) run_blocks<R, NB / 2>(body, n_rows, n_full, rest, block_end, true);
  for (int64_t i = 0; i < n_groups; ++i)
    run_rows<R, NB>(body, n_rows, n_full, block + (from_end ? n_groups - 1 - i : i) * NB);
  if constexpr (NB > 1)
    if (!from_end && rest < block_end) run_blocks<R, NB / 2>(body, n_rows, n_full, rest, block_end, false);
}

template <int G, int R, typename Body>
void run_tiles(Body& body, int64_t n_rows, int64_t n_tiles, int64_t block, int64_t block_end, bool from_end) {
  // Tiles of R and R - 1 rows: as even as can be, because a thin last tile would load the weights for little.
  if ((n_rows + n_tiles - 1) / n_tiles == R) {
    const int64_t n_full = n_rows - n_tiles * (R - 1);
    run_blocks<R, blocks_of_tile<typename Body::Real>(R, G)>(body, n_rows, n_full, block, block_end, from_end);
  } else if constexpr (R > 1) {
    run_tiles<G, R - 1>(body, n_rows, n_tiles, block, block_end, from_end);
  }
}

// Calls body.run<R, NB>(row, block) so that the tiles cover n_rows by blocks [block, block_end), blocks outermost:
// the weights of a block are read once for all rows. Who comes back for the same weights step after step goes from
// the end every other time: of weights larger than the cache it then finds those it used last.
template <int G, typename Body>
OSTINATO_INLINE void for_tiles(Body& body, int64_t n_rows, int64_t block, int64_t block_end, bool from_end = false) {
  constexpr int R = kTileRows<G>;
  if (n_rows > 0) run_tiles<G, R>(body, n_rows, (n_rows + R - 1) / R, block, block_end, from_end);
}

// out[row] = start + rows[row] · weights for G gates: out and start have one run of units for each gate, Hp apart.
template <typename real, int G>
struct GateProduct {
  using Real = real;
  const real* const* rows;  // (n_rows,) of K elements
  const real* weights;      // (blocks, K, G, W)
  int64_t K;
  int64_t block_stride;     // elements from block to block of the weights
  real* out;                // (n_rows, out_stride); whole vectors are written
  int64_t out_stride;
  const real* start;        // (n_rows, start_stride), may be `out`; stride 0: the same for every row; null: zeros
  int64_t start_stride;
  int64_t Hp;               // from gate to gate in out and start

  template <int R, int NB>
  OSTINATO_INLINE void run(int64_t row, int64_t block) {
    constexpr int W = kLanes<real>;
    Tile<real, R, NB * G> tile;
    for (int r = 0; r < R; ++r)
      for (int nb = 0; nb < NB; ++nb)
        for (int g = 0; g < G; ++g)
          tile.at[r][nb * G + g] =
              start ? load(start + (row + r) * start_stride + g * Hp + (block + nb) * W) : Vector<real>{};
    accumulate<real, R, NB, G>(tile, rows + row, weights + block * block_stride, block_stride, K);
    for (int r = 0; r < R; ++r)
      for (int nb = 0; nb < NB; ++nb)
        for (int g = 0; g < G; ++g)
          store(out + (row + r) * out_stride + g * Hp + (block + nb) * W, tile.at[r][nb * G + g]);
  }
};

// Padded columns of a product, units of a layer: all, or the part of one thread. Whole vectors.
struct Range {
  int64_t begin, end;
};

// GateProduct over n_rows rows and the columns of a range, of n_columns (padded) that the weights have.
template <typename real, int G>
void gate_product(const real* const* rows, int64_t n_rows, const real* weights, int64_t K, int64_t n_columns,
                  real* out, int64_t out_stride, const real* start, int64_t start_stride, Range range,
                  int64_t K_behind = 0, bool from_end = false) {
  constexpr int W = kLanes<real>;
  GateProduct<real, G> body{rows, weights, K, (K + K_behind) * G * W, out, out_stride, start, start_stride,
                            n_columns};
  for_tiles<G>(body, n_rows, range.begin / W, range.end / W, from_end);
}

// (K, N) with element (k, n) at from[k·k_stride + n·n_stride] -> (blocks, K, W), zeros behind N.
template <typename real>
void pack_blocks(const real* from, int64_t K, int64_t N, int64_t k_stride, int64_t n_stride, real* to) {
  constexpr int W = kLanes<real>;
  for (int64_t block = 0; block * W < N; ++block) {
    const int64_t n = N - block * W < W ? N - block * W : W;
    const real* base = from + block * W * n_stride;
    if (n_stride == 1) {
      for (int64_t k = 0; k < K; ++k, to += W) store(to, load_part(base + k * k_stride, n));
      continue;
    }
    for (int64_t lane = 0; lane < W; ++lane) {
      if (lane < n) {
        const real* source = base + lane * n_stride;
        for (int64_t k = 0; k < K; ++k) to[k * W + lane] = source[k * k_stride];
      } else {
        for (int64_t k = 0; k < K; ++k) to[k * W + lane] = 0;
      }
    }
    to += K * W;
  }
}

// C[i, :] += sum over rows p of A[p, i] · B[p, :] for R columns i of A and V vectors of B.
template <typename real, int R, int V>
OSTINATO_INLINE void outer_tile(const real* A, int64_t a_stride, const real* B, int64_t b_stride, int64_t n_rows,
                                real* C, int64_t c_stride) {
  constexpr int W = kLanes<real>;
  Vector<real> acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[r][v] = load(C + r * c_stride + v * W);
  for (int64_t p = 0; p < n_rows; ++p) {
    Vector<real> b[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) b[v] = load(B + p * b_stride + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector<real> a = broadcast(A[p * a_stride + r]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(C + r * c_stride + v * W, acc[r][v]);
}

constexpr int kOuterRows = 6;

template <typename real, int R, int V>
void outer_rows(const real* A, int64_t a_stride, int64_t n_columns, const real* B, int64_t b_stride,
                int64_t n_rows, real* C, int64_t c_stride) {
  int64_t i = 0;
  for (; i + R <= n_columns; i += R)
    outer_tile<real, R, V>(A + i, a_stride, B, b_stride, n_rows, C + i * c_stride, c_stride);
  if constexpr (R > 1)
    if (i < n_columns)
      outer_rows<real, R / 2, V>(A + i, a_stride, n_columns - i, B, b_stride, n_rows, C + i * c_stride, c_stride);
}

// C (n_columns, n_vectors·W) += A^T B over n_rows rows, in slices of rows that leave B's part in the first cache.
template <typename real>
void outer_product(const real* A, int64_t a_stride, int64_t n_columns, const real* B, int64_t b_stride,
                   int64_t n_vectors, int64_t n_rows, real* C, int64_t c_stride) {
  constexpr int W = kLanes<real>;
  constexpr int V = kAccumulators / kOuterRows;
  constexpr int64_t kSlice = 128;
  for (int64_t p = 0; p < n_rows; p += kSlice) {
    const int64_t n = n_rows - p < kSlice ? n_rows - p : kSlice;
    const real *a = A + p * a_stride, *b = B + p * b_stride;
    int64_t v = 0;
    for (; v + V <= n_vectors; v += V)
      outer_rows<real, kOuterRows, V>(a, a_stride, n_columns, b + v * W, b_stride, n, C + v * W, c_stride);
    for (; v + 2 <= n_vectors && V > 2; v += 2)
      outer_rows<real, kOuterRows, 2>(a, a_stride, n_columns, b + v * W, b_stride, n, C + v * W, c_stride);
    for (; v < n_vectors; ++v)
      outer_rows<real, kOuterRows, 1>(a, a_stride, n_columns, b + v * W, b_stride, n, C + v * W, c_stride);
  }
}

// sums[i] += sum over rows p of A[p, i], i in [0, n_vectors·W).
template <typename real>
void sum_rows(const real* A, int64_t a_stride, int64_t n_vectors, int64_t n_rows, real* sums) {
  constexpr int W = kLanes<real>;
  for (int64_t v = 0; v < n_vectors; ++v) {
    Vector<real> total = load(sums + v * W);
    for (int64_t p = 0; p < n_rows; ++p) total += load(A + p * a_stride + v * W);
    store(sums + v * W, total);
  }
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
