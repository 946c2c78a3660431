// Gated recurrences in Python: `Layer`, `Steps`, `Packed`. Addresses come as integers; who calls keeps tensors alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include <array>
#include <cstring>
#include <string>

#include "bindings_layer.h"
#include "driver.h"
#include "memory.h"

namespace nb = nanobind;

namespace ostinato {

uint64_t digest(const BoundLayer& self, const std::array<Address, kWeights>& a, int64_t most_bytes) {
  const Layer& l = self.layer;
  const int64_t rows = l.gates * l.H;
  const std::array<int64_t, kWeights> sizes = weight_sizes(l);
  const int64_t stride = 1 + rows * (l.D + l.P) * self.element_bytes() / most_bytes;
  uint64_t whole = 0;
  for (size_t i = 0; i < kWeights; ++i)
    if (a[i]) whole = digest_of(static_cast<const char*>(at(a[i])), sizes[i] * self.element_bytes(), stride, whole);
  return whole;
}

namespace {

Packed pack(const BoundLayer& self, const std::array<Address, kWeights>& weights, bool backward) {
  const Kernels& kernels = self.kernels();
  Packed packed{&kernels,
                Buffer(backward ? kernels.backward_bytes(self.layer) : kernels.forward_bytes(self.layer))};
  const Weights w = weights_at(weights);
  nb::gil_scoped_release release;
  (backward ? kernels.pack_backward : kernels.pack_forward)(self.layer, w, packed.memory.data());
  return packed;
}

// Addresses and strides of one call, in this order on both sides.
enum Input { kX, kXRow, kXStep, kH0, kC0, kInitialH, kInitialC, kMask, kMaskStep, kZoneoutH, kZoneoutC, kInputs };
enum Output { kY, kHFinal, kCFinal, kCells, kGates, kCBefore, kOutputs };
enum Gradient { kDY, kDCells, kDHFinal, kDCFinal, kDX, kDH0, kDC0, kDInitialH, kDInitialC, kGradients };
using Inputs = std::array<Address, kInputs>;
using Outputs = std::array<Address, kOutputs>;
using Gradients = std::array<Address, kGradients>;

Masks masks_of(const Inputs& in) {
  return {at(in[kMask]), static_cast<int64_t>(in[kMaskStep]), static_cast<const uint8_t*>(at(in[kZoneoutH])),
          static_cast<const uint8_t*>(at(in[kZoneoutC]))};
}

void forward(const BoundLayer& self, const Packed& packed, const Schedule& schedule, const Inputs& in,
             const Outputs& out, int n_threads) {
  Forward call{};
  call.packed = packed.memory.data();
  call.x = at(in[kX]), call.x_row = static_cast<int64_t>(in[kXRow]), call.x_step = static_cast<int64_t>(in[kXStep]);
  call.h0 = at(in[kH0]), call.c0 = at(in[kC0]);
  call.initial_h = at(in[kInitialH]), call.initial_c = at(in[kInitialC]);
  call.masks = masks_of(in);
  call.y = at_mutable(out[kY]), call.h_final = at_mutable(out[kHFinal]), call.c_final = at_mutable(out[kCFinal]);
  call.cells = at_mutable(out[kCells]), call.gates = at_mutable(out[kGates]);
  call.c_before = at_mutable(out[kCBefore]);
  nb::gil_scoped_release release;
  run_forward(*packed.kernels, self.layer, schedule.steps(), call, n_threads);
}

void backward(const BoundLayer& self, const Packed& packed, const Packed& packed_forward, const Schedule& schedule,
              const Inputs& in, const Outputs& out, const Gradients& gradients,
              const std::array<Address, kWeights>& d_weights, bool recompute, int n_threads) {
  if (packed.kernels != packed_forward.kernels)
    throw nb::value_error("backward: the weights were packed for two instruction sets");
  Backward call{};
  call.packed = packed.memory.data(), call.packed_forward = packed_forward.memory.data();
  call.x = at(in[kX]), call.x_row = static_cast<int64_t>(in[kXRow]), call.x_step = static_cast<int64_t>(in[kXStep]);
  call.h0 = at(in[kH0]), call.c0 = at(in[kC0]);
  call.initial_h = at(in[kInitialH]), call.initial_c = at(in[kInitialC]);
  call.masks = masks_of(in);
  call.y = at(out[kY]), call.gates = at_mutable(out[kGates]), call.c_before = at(out[kCBefore]);
  call.recompute = recompute;
  call.d_y = at(gradients[kDY]), call.d_cells = at(gradients[kDCells]);
  call.d_h_final = at(gradients[kDHFinal]), call.d_c_final = at(gradients[kDCFinal]);
  call.d_x = at_mutable(gradients[kDX]), call.d_h0 = at_mutable(gradients[kDH0]);
  call.d_c0 = at_mutable(gradients[kDC0]);
  call.d_initial_h = at_mutable(gradients[kDInitialH]), call.d_initial_c = at_mutable(gradients[kDInitialC]);
  call.d_weights = weights_at(d_weights);
  nb::gil_scoped_release release;
  Buffer chunk(0);
  if (recompute) {
    const int64_t rows = largest_chunk(*packed.kernels, self.layer, schedule.steps(), self.element_bytes());
    chunk = Buffer(rows * packed.kernels->saved_width(self.layer) * self.element_bytes());
    call.gates = chunk.data();
  }
  run_backward(*packed.kernels, self.layer, schedule.steps(), call, self.element_bytes(), n_threads);
}

}  // namespace

void bind_recurrence(nb::module_& module) {
  nb::class_<Packed>(module, "Packed");
  nb::class_<Schedule>(module, "Schedule")
      .def(
          "__init__",
          [](Schedule* self, int64_t B, int64_t T, Address mask, Address resets, bool is_reverse) {
            if (B < 0 || T < 0 || T > INT32_MAX) throw nb::value_error("Schedule: a size out of range");
            new (self) Schedule(B, T, static_cast<const uint8_t*>(at(mask)), static_cast<const uint8_t*>(at(resets)),
                                is_reverse);
          },
          nb::arg("B"), nb::arg("T"), nb::arg("mask"), nb::arg("resets"), nb::arg("is_reverse"))
      .def_prop_ro("n_packed", [](const Schedule& self) { return self.steps().n_packed; });
  nb::class_<BoundLayer>(module, "Layer")
      .def("__init__", [](BoundLayer* self, int cell, int64_t D, int64_t H, int64_t P, const std::string& flags,
                          double zoneout_h, double zoneout_c,
                          bool is_double) { new (self) BoundLayer(make_layer(cell, D, H, P, flags, zoneout_h, zoneout_c, is_double)); })
      .def("pack", &pack, nb::arg("weights"), nb::arg("backward"))
      .def("digest", &digest, nb::arg("weights"), nb::arg("most_bytes"))
      .def("forward", &forward)
      .def("backward", &backward)
      .def_prop_ro("saved_width", [](const BoundLayer& self) { return self.kernels().saved_width(self.layer); })
      .def_prop_ro("saved_cells", [](const BoundLayer& self) { return self.kernels().saved_cells(self.layer); });
  module.def("release_cached_memory", &release_cached_memory, "Gives scratch memory that is kept for the next call back.");
}

}  // namespace ostinato
