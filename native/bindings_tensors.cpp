// Gated recurrences on tensors that are looked at from C: calls without masks, resets and random numbers, for which
// the way through addresses costs more than a small recurrence. None, or False, where a tensor is not of the plain
// kind; the caller then takes that way, or finds out what is wrong.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <vector>

#include "bindings_layer.h"
#include "driver.h"
#include "tensor_exchange.h"

namespace nb = nanobind;

namespace ostinato {
namespace {

struct Seen : ExchangeTensor {
  char* at() const { return static_cast<char*>(data) + byte_offset; }
};

// A tensor of the layer's type on the CPU.
bool see(nb::handle object, bool is_double, Seen* t) {
  return look_at_tensor(object.ptr(), t) && t->device.type == 1 && t->type.code == 2 && t->type.lanes == 1 &&
         t->type.bits == (is_double ? 64 : 32) && t->strides;
}

bool is_contiguous(const ExchangeTensor& t, int64_t n_elements) {
  int64_t stride = 1;
  for (int i = t.n_axes - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != stride) return false;
    stride *= t.shape[i];
  }
  return stride == n_elements;
}

// Null for None; `fits` becomes false for anything but a contiguous tensor of so many elements.
char* optional(nb::handle object, bool is_double, int64_t n_elements, bool* fits) {
  if (object.is_none()) return nullptr;
  Seen t;
  if (see(object, is_double, &t) && is_contiguous(t, n_elements)) return t.at();
  *fits = false;
  return nullptr;
}

// The way of x, state and sizes into a call.
struct Input {
  const char *x, *h0, *c0;
  int64_t B, T, row, step;
};

bool read(const BoundLayer& self, const Schedule& schedule, nb::handle x, nb::handle h0, nb::handle c0, Input* in) {
  const Layer& l = self.layer;
  Seen t;
  if (!see(x, self.is_double, &t) || t.n_axes != 3 || t.shape[2] != l.D) return false;
  if (t.strides[2] != 1 && t.shape[2] != 1) return false;
  *in = {t.at(), nullptr, nullptr, t.shape[0], t.shape[1], t.strides[0], t.strides[1]};
  if (schedule.steps().B != in->B || schedule.steps().T != in->T || in->B < 1 || in->T < 1) return false;
  bool fits = !h0.is_none() && c0.is_none() == (l.cell != Cell::lstm);
  in->h0 = optional(h0, self.is_double, in->B * l.P, &fits);
  in->c0 = optional(c0, self.is_double, in->B * l.H, &fits);
  return fits;
}

nb::object tensor_like(nb::handle one, bool is_double) {
  Seen t;
  look_at_tensor(one.ptr(), &t);
  return nb::steal(new_tensor(t.n_axes, t.shape, is_double));
}

nb::object tensor_of(std::array<int64_t, 3> shape, int n_axes, bool is_double) {
  return nb::steal(new_tensor(n_axes, shape.data(), is_double));
}

char* data_of(nb::handle tensor) {
  Seen t;
  if (!tensor.is_valid() || tensor.is_none()) return nullptr;
  return look_at_tensor(tensor.ptr(), &t) ? t.at() : nullptr;
}

// Whether these are still the weights at these addresses, slots[i] being the place of the i-th, with that digest.
bool matches(const BoundLayer& self, nb::list weights, const std::vector<int>& slots,
             const std::array<Address, kWeights>& addresses, int64_t most_bytes, uint64_t expected) {
  const std::array<int64_t, kWeights> sizes = weight_sizes(self.layer);
  if (weights.size() != slots.size()) return false;
  for (size_t i = 0; i < slots.size(); ++i) {
    Seen t;
    const auto slot = static_cast<size_t>(slots[i]);
    if (slot >= kWeights || !see(weights[i], self.is_double, &t) || !is_contiguous(t, sizes[slot]) ||
        reinterpret_cast<Address>(t.at()) != addresses[slot])
      return false;
  }
  return digest(self, addresses, most_bytes) == expected;
}

// (outputs, saved): y, h and c of the final state; gates and the cell states before each step, if `saves`.
nb::object forward(const BoundLayer& self, const Packed& packed, const Schedule& schedule, nb::handle x, nb::handle h0,
                   nb::handle c0, bool saves, int n_threads) {
  const Layer& l = self.layer;
  const bool d = self.is_double;
  Input in;
  if (packed.kernels != &self.kernels() || !read(self, schedule, x, h0, c0, &in)) return nb::none();
  nb::list outputs, saved;
  outputs.append(tensor_of({in.B, in.T, l.P}, 3, d));
  outputs.append(tensor_like(h0, d));
  if (!c0.is_none()) outputs.append(tensor_like(c0, d));
  const int64_t cells = packed.kernels->saved_cells(l);
  if (saves) saved.append(tensor_of({in.B * in.T, packed.kernels->saved_width(l), 0}, 2, d));
  if (saves && cells) saved.append(tensor_of({in.B * in.T, cells, 0}, 2, d));
  Forward call{};
  call.packed = packed.memory.data();
  call.x = in.x, call.x_row = in.row, call.x_step = in.step;
  call.h0 = in.h0, call.c0 = in.c0;
  call.y = data_of(outputs[0]), call.h_final = data_of(outputs[1]);
  if (!c0.is_none()) call.c_final = data_of(outputs[2]);
  if (saves) call.gates = data_of(saved[0]);
  if (saves && cells) call.c_before = data_of(saved[1]);
  if (!call.y || !call.h_final || (in.c0 && !call.c_final) || (saves && (!call.gates || (cells && !call.c_before))))
    return nb::none();
  {
    nb::gil_scoped_release release;
    run_forward(*packed.kernels, l, schedule.steps(), call, n_threads);
  }
  return nb::make_tuple(outputs, saved);
}

// Upstream gradients or None, and which gradients are wanted: (d_x or None, d_h0, d_c0 if any, then of all weights).
nb::object backward(const BoundLayer& self, const Packed& packed, const Packed& packed_forward,
                    const Schedule& schedule, const std::vector<nb::object>& given, nb::list weights,
                    const std::vector<int>& slots, bool wants_x, bool wants_weights, int n_threads) {
  // given: x, h0, c0 or None; y, gates, c before or None; d_y, d_h, d_c, each or None.
  const Layer& l = self.layer;
  const bool d = self.is_double;
  Input in;
  if (given.size() != 9 || packed.kernels != &self.kernels() || packed.kernels != packed_forward.kernels) return nb::none();
  if (!read(self, schedule, given[0], given[1], given[2], &in) || weights.size() != slots.size()) return nb::none();
  const int64_t steps = in.B * in.T;
  bool fits = !given[4].is_none() && !given[3].is_none();
  Backward call{};
  call.packed = packed.memory.data(), call.packed_forward = packed_forward.memory.data();
  call.x = in.x, call.x_row = in.row, call.x_step = in.step;
  call.h0 = in.h0, call.c0 = in.c0;
  call.y = optional(given[3], d, steps * l.P, &fits);
  call.gates = optional(given[4], d, steps * packed.kernels->saved_width(l), &fits);
  call.c_before = optional(given[5], d, steps * packed.kernels->saved_cells(l), &fits);
  fits = fits && given[5].is_none() == (packed.kernels->saved_cells(l) == 0);
  call.d_y = optional(given[6], d, steps * l.P, &fits);
  call.d_h_final = optional(given[7], d, in.B * l.P, &fits);
  call.d_c_final = optional(given[8], d, in.B * l.H, &fits);
  if (!fits) return nb::none();
  nb::list found;
  if (wants_x) found.append(tensor_of({in.B, in.T, l.D}, 3, d));
  else found.append(nb::none());
  found.append(tensor_like(given[1], d));
  if (in.c0) found.append(tensor_like(given[2], d));
  const size_t first = found.size();
  std::array<Address, kWeights> d_weights{};
  for (size_t i = 0; i < slots.size(); ++i) {
    if (!wants_weights) {
      found.append(nb::none());
      continue;
    }
    if (slots[i] < 0 || static_cast<size_t>(slots[i]) >= kWeights || !is_plain_tensor(nb::object(weights[i]).ptr()))
      return nb::none();
    found.append(tensor_like(weights[i], d));
    d_weights[static_cast<size_t>(slots[i])] = reinterpret_cast<Address>(data_of(found[first + i]));
    if (!data_of(found[first + i])) return nb::none();
  }
  call.d_x = wants_x ? data_of(found[0]) : nullptr;
  call.d_h0 = data_of(found[1]);
  if (in.c0) call.d_c0 = data_of(found[2]);
  if ((wants_x && !call.d_x) || !call.d_h0 || (in.c0 && !call.d_c0)) return nb::none();
  call.d_weights = weights_at(d_weights);
  {
    nb::gil_scoped_release release;
    run_backward(*packed.kernels, l, schedule.steps(), call, d ? 8 : 4, n_threads);
  }
  return found;
}

}  // namespace

void bind_tensors(nb::module_& module) {
  module.def(
      "look_at_tensors",
      [](nb::handle tensor, nb::handle parameter) {
        const nb::object capsule = nb::getattr(tensor, "__dlpack_c_exchange_api__", nb::none());
        if (capsule.is_none()) return false;
        const auto* table =
            static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (!table) throw nb::python_error();
        return set_exchange(table, reinterpret_cast<PyTypeObject*>(tensor.ptr()),
                            reinterpret_cast<PyTypeObject*>(parameter.ptr()));
      },
      "Takes instances of exactly these classes as tensors from now on; False where their exchange table is not known.");
  module.def("matches", &matches);
  module.def("forward_tensors", &forward, nb::arg("layer"), nb::arg("packed"), nb::arg("schedule"), nb::arg("x"), nb::arg("h0"),
             nb::arg("c0").none(), nb::arg("saves"), nb::arg("n_threads"));
  module.def("backward_tensors", &backward);
}

}  // namespace ostinato
