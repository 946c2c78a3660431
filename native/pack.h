// Packing of weights for the products. Included by files compiled once per instruction set.
#pragma once

#include "layout.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

// Rows gate·H + unit of (·, K) row-major -> (blocks, K, G, W) for gates [first, first + G), zeros behind H.
template <typename real>
void pack_gates(const real* weight, int64_t H, int64_t K, int first, int G, real* to) {
  constexpr int W = kLanes<real>;
  for (int64_t u = 0; u < H; u += W, to += K * G * W)
    for (int g = 0; g < G; ++g) {
      const real* row = weight + ((first + g) * H + u) * K;
      const int64_t n = least(W, H - u);
      for (int64_t k = 0; k < K; ++k) {
        real* line = to + (k * G + g) * W;
        for (int64_t lane = 0; lane < n; ++lane) line[lane] = row[lane * K + k];
        for (int64_t lane = n; lane < W; ++lane) line[lane] = 0;
      }
    }
}

template <typename real>
void pack_rows(const void* from, int64_t n_rows, int64_t H, real* to) {
  const int64_t Hp = padded<real>(H);
  for (int64_t i = 0; i < n_rows; ++i) copy_row(to + i * Hp, as<real>(from) + i * H, H, Hp);
}

// What the sums start from, (G, Hp) each; see PackedForward.
template <typename real>
void pack_biases(const Layer& layer, const Weights& w, real* bias, real* bias_hh) {
  const int64_t H = layer.H, Hp = padded<real>(H);
  for (int q = 0; q < layer.gates; ++q) {
    // Where the two products simply add, one bias stands for both.
    const bool apart = layer.norm || (layer.cell == Cell::gru && q == 2 && !layer.reset_before);
    for (int64_t u = 0; u < Hp; ++u) {
      const real ih = w.bias_ih && u < H ? as<real>(w.bias_ih)[q * H + u] : 0;
      const real hh = w.bias_hh && u < H ? as<real>(w.bias_hh)[q * H + u] : 0;
      bias[q * Hp + u] = apart ? ih : ih + hh;
      bias_hh[q * Hp + u] = apart ? hh : 0;
    }
  }
}

template <typename real>
void pack_forward(const Layer& layer, const Weights& w, void* base) {
  const PackedForward<real> packed(layer, base);
  const int64_t H = layer.H;
  const int G = layer.gates;
  pack_gates(as<real>(w.weight_ih), H, layer.D, 0, G, packed.ih);
  pack_gates(as<real>(w.weight_hh), H, layer.P, 0, layer.reset_before ? 2 : G, packed.hh);
  if (layer.reset_before) pack_gates(as<real>(w.weight_hh), H, layer.P, 2, 1, packed.hh_n);
  if (layer.projected) pack_blocks(as<real>(w.weight_hr), H, layer.P, 1, H, packed.hr);
  pack_biases(layer, w, packed.bias, packed.bias_hh);
  if (layer.peephole) pack_rows(w.peephole, layer.coupled ? 2 : 3, H, packed.peephole);
  if (layer.norm) {
    pack_rows(w.norm_ih, G, H, packed.norm_ih);
    pack_rows(w.norm_hh, G, H, packed.norm_hh);
  }
  if (packed.norm_c) {
    pack_rows(w.norm_c, 1, H, packed.norm_c);
    pack_rows(w.norm_c_bias, 1, H, packed.norm_c_bias);
  }
}

// Rows of gates [first, first + G), units padded with zero rows, as k of blocks over the N columns.
template <typename real>
void pack_transposed(const real* weight, int64_t H, int64_t N, int first, int G, real* to) {
  constexpr int W = kLanes<real>;
  const int64_t Hp = padded<real>(H);
  for (int64_t n = 0; n < N; n += W)
    for (int g = 0; g < G; ++g)
      for (int64_t u = 0; u < Hp; ++u, to += W)
        store(to, u < H ? load_part(weight + ((first + g) * H + u) * N + n, least(W, N - n)) : Vector<real>{});
}

template <typename real>
void pack_backward(const Layer& layer, const Weights& w, void* base) {
  const PackedBackward<real> packed(layer, base);
  const int G = layer.gates;
  pack_transposed(as<real>(w.weight_hh), layer.H, layer.P, 0, layer.reset_before ? 2 : G, packed.hh);
  if (layer.reset_before) pack_transposed(as<real>(w.weight_hh), layer.H, layer.P, 2, 1, packed.hh_n);
  pack_transposed(as<real>(w.weight_ih), layer.H, layer.D, 0, G, packed.ih);
  if (layer.projected) pack_blocks(as<real>(w.weight_hr), layer.P, layer.H, layer.H, 1, packed.hr);
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
