// Scans for Python. Tensors come as addresses and strides; kernels/scan.py owns them and has checked their
// sizes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.h"
#include "scan.h"

namespace nb = nanobind;

namespace ostinato {
namespace {

using Numbers = std::vector<int64_t>;

Gates gates_named(const std::string& name) {
  constexpr const char* kNames[kNGates] = {"linear",  "mingru",         "mingru_linear",
                                           "minlstm", "minlstm_linear", "rglru"};
  for (int i = 0; i < kNGates; ++i)
    if (name == kNames[i]) return static_cast<Gates>(i);
  std::string known;
  for (const char* one : kNames) known += (known.empty() ? "" : ", ") + std::string(one);
  throw nb::value_error(("unknown gates '" + name + "'; known: " + known).c_str());
}

template <typename Pointer>
Pointer pointer(int64_t address) {
  return reinterpret_cast<Pointer>(static_cast<uintptr_t>(address));
}

// (address, stride of rows, stride of steps).
template <typename real>
Series<real> series(const Numbers& numbers, const char* what, size_t first = 0) {
  if (numbers.size() < first + 3)
    throw nb::value_error((std::string(what) + ": expected (address, row stride, step stride)").c_str());
  return {pointer<real*>(numbers[first]), numbers[first + 1], numbers[first + 2]};
}

// (address, stride of rows).
template <typename real>
Rows<real> rows(const Numbers& numbers, const char* what) {
  if (numbers.size() != 2)
    throw nb::value_error((std::string(what) + ": expected (address, row stride)").c_str());
  return {pointer<real*>(numbers[0]), numbers[1]};
}

// For outputs of (B, T, H) with steps that follow each other.
template <typename real>
void expect_writes(const Series<real>& out, int64_t B, int64_t T) {
  const int64_t kSmall = int64_t{1} << 20,
                bytes = B * T * out.step_stride * static_cast<int64_t>(sizeof(real));
  if (out.data && bytes > kSmall && out.row_stride == T * out.step_stride) prefer_huge_pages(out.data, bytes);
}

// What both passes take, as Python names it.
struct Call {
  Gates gates;
  int64_t B, T, H;
  Numbers inputs, start, initial;
  int64_t rate, mask, resets;
  bool is_reverse, carries;
  int n_threads;
};

Call read(const std::string& gates, const Numbers& sizes, const Numbers& inputs, const Numbers& start,
          const Numbers& initial, const Numbers& rest, bool is_reverse, bool carries, int n_threads) {
  if (sizes.size() != 3 || rest.size() != 3)
    throw nb::value_error("expected sizes (B, T, H) and (rate, mask, resets)");
  Call call{
      gates_named(gates), sizes[0], sizes[1], sizes[2], inputs, start, initial, rest[0], rest[1], rest[2],
      is_reverse,         carries,  n_threads};
  for (int64_t size : sizes)
    if (size < 0) throw nb::value_error("sizes: expected B, T, H of at least 0");
  if (inputs.size() != 3u * inputs_of(call.gates))
    throw nb::value_error("inputs: wrong number for these gates");
  if ((call.gates == Gates::rglru) != (call.rate != 0))
    throw nb::value_error("rate: goes with rglru, and only with it");
  if ((call.resets != 0) != (initial.size() == 2 && initial[0] != 0))
    throw nb::value_error("resets and initial go together");
  return call;
}

template <typename real>
Scan<real> scan_of(const Call& call) {
  Scan<real> scan{};
  scan.T = call.T;
  scan.H = call.H;
  for (int k = 0; k < inputs_of(call.gates); ++k)
    scan.inputs[k] = series<const real>(call.inputs, "inputs", 3 * k);
  scan.rate = pointer<const real*>(call.rate);
  scan.start = rows<const real>(call.start, "start");
  scan.initial = rows<const real>(call.initial, "initial");
  scan.mask = pointer<const uint8_t*>(call.mask);
  scan.resets = pointer<const uint8_t*>(call.resets);
  scan.is_reverse = call.is_reverse;
  scan.carries = call.carries;
  return scan;
}

template <typename real>
void forward(const Call& call, const Numbers& y, const Numbers& state) {
  const Scan<real> scan = scan_of<real>(call);
  const ScanOutputs<real> out{series<real>(y, "y"), rows<real>(state, "state")};
  nb::gil_scoped_release release;
  expect_writes(out.y, call.B, call.T);
  scan_forward(call.gates, call.B, scan, out, call.n_threads);
}

template <typename real>
void backward(const Call& call, const Numbers& y, const Numbers& d_y, const Numbers& d_state,
              const Numbers& d_inputs, const Numbers& d_start, const Numbers& d_initial,
              const Numbers& d_rate) {
  const Scan<real> scan = scan_of<real>(call);
  ScanGradients<real> out{};
  out.y = series<const real>(y, "y");
  out.d_y = series<const real>(d_y, "d_y");
  out.d_state = rows<const real>(d_state, "d_state");
  for (int k = 0; k < inputs_of(call.gates); ++k) out.d_inputs[k] = series<real>(d_inputs, "d_inputs", 3 * k);
  out.d_start = rows<real>(d_start, "d_start");
  out.d_initial = rows<real>(d_initial, "d_initial");
  if (d_rate.size() != 3)
    throw nb::value_error("d_rate: expected (address of rows, row stride, address of sum)");
  out.d_rate = {pointer<real*>(d_rate[0]), d_rate[1]};
  nb::gil_scoped_release release;
  // Of a cell the gates lie in one array, which begins with the first.
  const int n_arrays = call.gates == Gates::linear ? 2 : 1;
  for (int k = 0; k < n_arrays; ++k) expect_writes(out.d_inputs[k], call.B, call.T);
  scan_backward(call.gates, call.B, scan, out, pointer<real*>(d_rate[2]), call.n_threads);
}

}  // namespace

void bind_scan(nb::module_& module) {
  module.def(
      "scan_forward",
      [](bool is_double, const std::string& gates, const Numbers& sizes, const Numbers& inputs,
         const Numbers& start, const Numbers& initial, const Numbers& rest, bool is_reverse, bool carries,
         int n_threads, const Numbers& y, const Numbers& state) {
        const Call call = read(gates, sizes, inputs, start, initial, rest, is_reverse, carries, n_threads);
        is_double ? forward<double>(call, y, state) : forward<float>(call, y, state);
      },
      nb::arg("is_double"), nb::arg("gates"), nb::arg("sizes"), nb::arg("inputs"), nb::arg("start"),
      nb::arg("initial"), nb::arg("rest"), nb::arg("is_reverse"), nb::arg("carries"), nb::arg("n_threads"),
      nb::arg("y"), nb::arg("state"),
      "Writes y (B, T, H) and the final state (B, H); arrays as (address, strides), rest as (rate, mask, "
      "resets).");
  module.def(
      "scan_backward",
      [](bool is_double, const std::string& gates, const Numbers& sizes, const Numbers& inputs,
         const Numbers& start, const Numbers& initial, const Numbers& rest, bool is_reverse, bool carries,
         int n_threads, const Numbers& y, const Numbers& d_y, const Numbers& d_state, const Numbers& d_inputs,
         const Numbers& d_start, const Numbers& d_initial, const Numbers& d_rate) {
        const Call call = read(gates, sizes, inputs, start, initial, rest, is_reverse, carries, n_threads);
        is_double ? backward<double>(call, y, d_y, d_state, d_inputs, d_start, d_initial, d_rate)
                  : backward<float>(call, y, d_y, d_state, d_inputs, d_start, d_initial, d_rate);
      },
      nb::arg("is_double"), nb::arg("gates"), nb::arg("sizes"), nb::arg("inputs"), nb::arg("start"),
      nb::arg("initial"), nb::arg("rest"), nb::arg("is_reverse"), nb::arg("carries"), nb::arg("n_threads"),
      nb::arg("y"), nb::arg("d_y"), nb::arg("d_state"), nb::arg("d_inputs"), nb::arg("d_start"),
      nb::arg("d_initial"), nb::arg("d_rate"),
      "Writes the gradients of the inputs, of the start, of the initial state and of rate; see "
      "native/scan.h.");
}

}  // namespace ostinato
