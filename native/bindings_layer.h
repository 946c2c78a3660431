// A layer and its weights as Python describes them, for the bindings of all parts that take them.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <string>

#include "memory.h"
#include "recurrence.h"

namespace ostinato {

using Address = uintptr_t;

inline const void* at(Address address) { return reinterpret_cast<const void*>(address); }
inline void* at_mutable(Address address) { return reinterpret_cast<void*>(address); }

// In the order of reference.CellSpec.parameter_shapes' names; 0 where there is none.
constexpr size_t kWeights = 10;
inline Weights weights_at(const std::array<Address, kWeights>& a) {
  return {at(a[0]), at(a[1]), at(a[2]), at(a[3]), at(a[4]), at(a[5]), at(a[6]), at(a[7]), at(a[8]), at(a[9])};
}

struct BoundLayer {
  Layer layer;
  bool is_double;

  const Kernels& kernels() const {
    const RecurrenceKernels* all = recurrence_kernels();
    return is_double ? all->of_double : all->of_float;
  }
  int64_t element_bytes() const { return is_double ? 8 : 4; }
};

// Weights in the order of the products; they stay on the instruction set that packed them.
struct Packed {
  const Kernels* kernels;
  Buffer memory;
};

// Elements of each weight.
inline std::array<int64_t, kWeights> weight_sizes(const Layer& l) {
  const int64_t rows = l.gates * l.H;
  return {rows * l.D, rows * l.P, rows, rows, l.P * l.H, (l.coupled ? 2 : 3) * l.H, rows, rows, l.H, l.H};
}

// A number that tells the contents of all weights apart: of all bytes, or of about `most_bytes` if they are more.
uint64_t digest(const BoundLayer& self, const std::array<Address, kWeights>& weights, int64_t most_bytes);

inline BoundLayer make_layer(int cell, int64_t D, int64_t H, int64_t P, const std::string& flags, double zoneout_h,
                      double zoneout_c, bool is_double) {
  if (cell < 0 || cell > 2 || D < 1 || H < 1 || P < 1 || P > H) throw nanobind::value_error("Layer: a size below 1");
  const auto has = [&](char flag) { return flags.find(flag) != std::string::npos; };
  Layer layer{};
  layer.cell = static_cast<Cell>(cell);
  layer.D = D, layer.H = H, layer.P = P;
  layer.relu = has('r'), layer.reset_before = has('b'), layer.norm = has('n'), layer.peephole = has('p');
  layer.coupled = has('c'), layer.projected = has('j'), layer.random = has('z');
  layer.zoneout_h = zoneout_h, layer.zoneout_c = zoneout_c;
  layer.gates = layer.cell == Cell::rnn ? 1 : layer.cell == Cell::gru ? 3 : layer.coupled ? 3 : 4;
  return {layer, is_double};
}

}  // namespace ostinato
