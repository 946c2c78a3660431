// Random masks in Python: `draw_masks`. Addresses come as integers; who calls keeps tensors alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>

#include "masks.h"

namespace nb = nanobind;

namespace ostinato {
namespace {

// Address, stride of rows, stride of times.
using Numbers = std::array<int64_t, 3>;

MaskNumbers numbers_at(const Numbers& a) { return {reinterpret_cast<const int64_t*>(a[0]), a[1], a[2]}; }

void draw_masks(const std::array<int64_t, 3>& sizes, const std::array<Numbers, 4>& place, uint32_t stream,
                uint64_t threshold, const Numbers& out, int element_bytes, double dropped, double kept) {
  if (threshold > uint64_t{1} << 32) throw nb::value_error("draw_masks: a threshold above 2^32");
  if (element_bytes != 1 && element_bytes != 4 && element_bytes != 8)
    throw nb::value_error("draw_masks: expected elements of 1, 4 or 8 bytes");
  const MaskDraw draw{sizes[0], sizes[1], sizes[2], numbers_at(place[0]), numbers_at(place[1]), numbers_at(place[2]),
                      numbers_at(place[3]), stream, threshold, reinterpret_cast<void*>(out[0]), out[1], out[2]};
  nb::gil_scoped_release release;
  const MaskKernels* kernels = mask_kernels();
  if (element_bytes == 1)
    kernels->of_bytes(draw, static_cast<uint8_t>(dropped), static_cast<uint8_t>(kept));
  else if (element_bytes == 4)
    kernels->of_float(draw, static_cast<float>(dropped), static_cast<float>(kept));
  else
    kernels->of_double(draw, dropped, kept);
}

}  // namespace

void bind_masks(nb::module_& module) {
  module.def("draw_masks", &draw_masks, nb::arg("sizes"), nb::arg("place"), nb::arg("stream"), nb::arg("threshold"),
             nb::arg("out"), nb::arg("element_bytes"), nb::arg("dropped"), nb::arg("kept"),
             "Writes masks of sizes (B, T, width); place: key, row, time and episode, each as (address, stride of B, "
             "stride of T), int64; out likewise, with unit stride in width.");
}

}  // namespace ostinato
