// The products of step programs: rows by packed weights, and sums of outer products over rows. Included by files
// compiled once per instruction set.
#pragma once

#include "product.h"
#include "program_operators.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

constexpr int64_t kRowsAtOnce = 96;

// to[i] = start[i] + from[i] · weights for rows that lie anywhere; columns [0, N) are written and no others.
template <typename real>
struct RowProduct {
  using Real = real;
  const real* from[kRowsAtOnce];
  const real* start[kRowsAtOnce];  // null in the first: zeros
  real* to[kRowsAtOnce];
  const real* weights;  // (blocks, K, W)
  int64_t K, N, start_stride;

  OSTINATO_INLINE Vector<real> first(int64_t row, int64_t n) const {
    const int64_t left = N - n < kLanes<real> ? N - n : kLanes<real>;
    if (start_stride == 0) return broadcast(*start[row]);
    return take(start[row] + n * start_stride, start_stride, 0, left);
  }

  template <int R, int NB>
  OSTINATO_INLINE void run(int64_t row, int64_t block) {
    constexpr int W = kLanes<real>;
    Tile<real, R, NB> tile;
    for (int r = 0; r < R; ++r)
      for (int nb = 0; nb < NB; ++nb) tile.at[r][nb] = start[0] ? first(row + r, (block + nb) * W) : Vector<real>{};
    accumulate<real, R, NB, 1>(tile, from + row, weights + block * K * W, K * W, K);
    for (int r = 0; r < R; ++r)
      for (int nb = 0; nb < NB; ++nb) {
        const int64_t n = (block + nb) * W;
        store_part(to[row + r] + n, tile.at[r][nb], N - n < W ? N - n : W);
      }
  }
};

template <typename real>
void matmul(const Instruction& ins, const Arguments<real>& args, int64_t n_rows, const real* weights) {
  const int64_t M = ins.size[0], total = n_rows * M;
  RowProduct<real> product;
  product.weights = weights;
  product.K = ins.size[1];
  product.N = ins.size[2];
  product.start_stride = ins.operand[2].stride[1];
  product.start[0] = nullptr;
  const int64_t n_blocks = (product.N + kLanes<real> - 1) / kLanes<real>;
  for (int64_t done = 0; done < total; done += kRowsAtOnce) {
    const int64_t n = total - done < kRowsAtOnce ? total - done : kRowsAtOnce;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t r = (done + i) / M, m = (done + i) % M;
      product.to[i] = args.at[0] + r * args.row[0] + m * ins.operand[0].stride[0];
      product.from[i] = args.at[1] + r * args.row[1] + m * ins.operand[1].stride[0];
      if (ins.size[3]) product.start[i] = args.at[2] + r * args.row[2] + m * ins.operand[2].stride[0];
    }
    for_tiles<1>(product, n, 0, n_blocks);
  }
}

// sum (N, K padded) += gradient^T left over rows. `left` is read in whole vectors, into what follows it.
template <typename real>
void outer(const Instruction& ins, const Arguments<real>& args, int64_t n_rows) {
  const int64_t M = ins.size[0], K = ins.size[1], N = ins.size[2];
  const int64_t sum_stride = ins.operand[0].stride[0], n_vectors = (K + kLanes<real> - 1) / kLanes<real>;
  const int64_t left = ins.operand[1].stride[0], gradient = ins.operand[2].stride[0];
  if (M == 1 || (left * M == args.row[1] && gradient * M == args.row[2])) {
    outer_product(args.at[2], M == 1 ? args.row[2] : gradient, N, args.at[1], M == 1 ? args.row[1] : left,
                  n_vectors, n_rows * M, args.at[0], sum_stride);
    return;
  }
  for (int64_t m = 0; m < M; ++m)
    outer_product(args.at[2] + m * gradient, args.row[2], N, args.at[1] + m * left, args.row[1], n_vectors, n_rows,
                  args.at[0], sum_stride);
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
