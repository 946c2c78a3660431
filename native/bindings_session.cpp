// `Session` in Python. Tensors of the usual kind are looked at from C; anything else is left to the caller, who says
// what is wrong with it or passes addresses.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <tuple>
#include <vector>

#include "bindings_layer.h"
#include "session.h"
#include "tensor_exchange.h"

namespace nb = nanobind;

namespace ostinato {
namespace {

using Addresses = std::array<Address, kWeights>;

// Multiply-adds of a call (8 µs or so) from which a second thread may be of use, and from which other Python threads
// should run meanwhile.
constexpr double kWorthThreads = 1.5e5;

// Set by `ask_for_threads`: () -> number of threads.
PyObject* threads_wanted = nullptr;

struct Entered {
  Session& session;
  explicit Entered(Session& s) : session(s) {
    if (!session.enter()) throw std::runtime_error("the session is at work in another thread");
  }
  ~Entered() { session.leave(); }
};

std::vector<Weights> weights_of(const std::vector<Addresses>& addresses) {
  std::vector<Weights> weights;
  for (const Addresses& one : addresses) weights.push_back(weights_at(one));
  return weights;
}

int n_threads() {
  if (!threads_wanted) return 1;
  return nb::cast<int>(nb::handle(threads_wanted)());
}

struct BoundSession {
  Session session;

  BoundSession(std::vector<SessionLayer> layers, const std::vector<Weights>& weights, bool is_double, int64_t B)
      : session(std::move(layers), weights, is_double, B) {}

  void push(const void* x, int64_t x_row, int64_t x_step, int64_t T, void* y) {
    const Entered entered(session);
    if (T == 0) return;
    const double work = session.step_work() * static_cast<double>(session.B() * T);
    if (work < kWorthThreads) return session.push(x, x_row, x_step, T, y, 1);
    const int n = n_threads();
    nb::gil_scoped_release release;
    session.push(x, x_row, x_step, T, y, n);
  }
};

void make_session(BoundSession* self, const std::vector<std::tuple<BoundLayer*, int, bool>>& layers,
                  const std::vector<Addresses>& weights, int64_t B) {
  if (layers.empty() || layers.size() != weights.size() || B < 1) throw nb::value_error("Session: sizes do not fit");
  std::vector<SessionLayer> all;
  const bool is_double = std::get<0>(layers[0])->is_double;
  for (const auto& [bound, format, adds_input] : layers) {
    const Layer& layer = bound->layer;
    const bool is_reduced = format != 0;
    if (bound->is_double != is_double || (!all.empty() && all.back().layer.P != layer.D) || layer.random ||
        format < 0 || format > 2 || (is_reduced && (is_double || !layer.is_plain())) ||
        (adds_input && layer.D != layer.P))
      throw nb::value_error("Session: layers do not fit together, or are not for streaming");
    all.push_back({layer, static_cast<WeightFormat>(format), adds_input});
  }
  new (self) BoundSession(std::move(all), weights_of(weights), is_double, B);
}

// A tensor or array (B, width) or (B, T, width) of the session's type, with unit stride in the last axis; an array's
// memory is held while this lives.
struct View {
  char* data;
  int64_t T, row, step;  // strides in elements
  bool is_frame;
  Py_buffer held;

  View() { held.obj = nullptr; }
  ~View() { PyBuffer_Release(&held); }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  // One past the last byte that is read or written.
  const char* end(int64_t B, int64_t width, int64_t bytes) const {
    return data + ((B - 1) * row + (T - 1) * step + width) * bytes;
  }

  // unit: what strides count in, in bytes.
  bool set(void* from, int n, const int64_t* shape, const int64_t* strides, int64_t unit, const Session& session,
           int64_t width) {
    const int64_t bytes = session.is_double() ? 8 : 4;
    if ((n != 2 && n != 3) || shape[0] != session.B() || shape[n - 1] != width) return false;
    if (strides[n - 1] * unit != bytes && width != 1) return false;
    data = static_cast<char*>(from), is_frame = n == 2, T = is_frame ? 1 : shape[1];
    row = strides[0] * unit / bytes, step = is_frame ? 0 : strides[1] * unit / bytes;
    // Where there is one row or step, its stride may be anything.
    if (session.B() == 1) row = 0;
    if (T == 1) step = 0;
    const bool is_whole = strides[0] * unit % bytes == 0 && (is_frame || strides[1] * unit % bytes == 0);
    return is_whole && row >= 0 && step >= 0 && reinterpret_cast<uintptr_t>(data) % static_cast<size_t>(bytes) == 0;
  }
};

bool look_at_array(nb::handle object, bool is_written, const Session& session, int64_t width, View* view) {
  if (!PyObject_CheckBuffer(object.ptr())) return false;
  if (PyObject_GetBuffer(object.ptr(), &view->held, PyBUF_STRIDED_RO | PyBUF_FORMAT | (is_written ? PyBUF_WRITABLE : 0))) {
    view->held.obj = nullptr;
    PyErr_Clear();
    return false;
  }
  const Py_buffer& held = view->held;
  const char* type = session.is_double() ? "d" : "f";
  if (!held.format || std::strcmp(held.format, type) != 0 || (held.ndim != 2 && held.ndim != 3)) return false;
  int64_t shape[3], strides[3];
  for (int i = 0; i < held.ndim; ++i) shape[i] = held.shape[i], strides[i] = held.strides[i];
  return view->set(held.buf, held.ndim, shape, strides, 1, session, width);
}

bool look(nb::handle object, bool is_written, const Session& session, int64_t width, View* view) {
  if (!is_plain_tensor(object.ptr())) return look_at_array(object, is_written, session, width, view);
  ExchangeTensor t;
  if (!look_at_tensor(object.ptr(), &t)) return false;
  const int64_t bytes = session.is_double() ? 8 : 4;
  if (t.device.type != 1 || t.type.code != 2 || t.type.bits != 8 * bytes || t.type.lanes != 1 || !t.strides) return false;
  return view->set(static_cast<char*>(t.data) + t.byte_offset, t.n_axes, t.shape, t.strides, bytes, session, width);
}

// y, or None where x or out is not what this function knows.
nb::object push_tensor(BoundSession& self, nb::handle x, nb::handle out) {
  Session& session = self.session;
  View from, to;
  if (!look(x, false, session, session.D(), &from) || from.T == 0) return nb::none();
  const int64_t B = session.B(), P = session.P(), bytes = session.is_double() ? 8 : 4;
  if (!out.is_none()) {
    if (!look(out, true, session, P, &to) || to.T != from.T || to.is_frame != from.is_frame) return nb::none();
    if ((B > 1 && to.row != to.T * P) || (to.T > 1 && to.step != P)) return nb::none();
    if (to.data < from.end(B, session.D(), bytes) && from.data < to.end(B, P, bytes)) return nb::none();
    self.push(from.data, from.row, from.step, from.T, to.data);
    return nb::borrow(out);
  }
  // Where x is an array y should be one too, which the caller makes.
  if (from.held.obj) return nb::none();
  int64_t shape[3] = {B, from.is_frame ? P : from.T, P};
  nb::object y = nb::steal(new_tensor(from.is_frame ? 2 : 3, shape, session.is_double()));
  if (!y) return nb::none();
  if (!look(y, true, session, P, &to)) return nb::none();
  self.push(from.data, from.row, from.step, from.T, to.data);
  return y;
}

void check_rows(const Session& session, int64_t layer, int64_t row, int64_t row_end) {
  if (layer < 0 || layer >= session.n_layers() || row < 0 || row > row_end || row_end > session.B())
    throw nb::index_error("Session: no such layer or rows");
}

}  // namespace

void bind_session(nb::module_& module) {
  module.def(
      "ask_for_threads",
      [](nb::object wanted) {
        nb::object before = nb::steal(threads_wanted);
        threads_wanted = wanted.release().ptr();
      },
      "Takes a function () -> how many threads sessions may work on; called where more than one may be of use.");
  nb::class_<BoundSession>(module, "Session")
      .def("__init__", &make_session, nb::arg("layers"), nb::arg("weights"), nb::arg("B"))
      .def("push", &push_tensor, nb::arg("x"), nb::arg("out").none() = nb::none())
      .def("push_at",
           [](BoundSession& self, Address x, int64_t x_row, int64_t x_step, int64_t T, Address y) {
             self.push(at(x), x_row, x_step, T, at_mutable(y));
           })
      .def("read_state",
           [](BoundSession& self, int64_t layer, int64_t row, int64_t row_end, Address h, Address c) {
             check_rows(self.session, layer, row, row_end);
             const Entered entered(self.session);
             self.session.read_state(layer, row, row_end, at_mutable(h), at_mutable(c));
           })
      .def("write_state",
           [](BoundSession& self, int64_t layer, int64_t row, int64_t row_end, Address h, Address c) {
             check_rows(self.session, layer, row, row_end);
             const Entered entered(self.session);
             self.session.write_state(layer, row, row_end, at(h), at(c));
           })
      .def("pack",
           [](BoundSession& self, const std::vector<Addresses>& weights) {
             if (static_cast<int64_t>(weights.size()) != self.session.n_layers())
               throw nb::value_error("Session: sizes do not fit");
             const Entered entered(self.session);
             self.session.pack(weights_of(weights));
           })
      .def_prop_ro("step_work", [](const BoundSession& self) { return self.session.step_work(); })
      .def_prop_ro("packed_bytes", [](const BoundSession& self) { return self.session.packed_bytes(); });
}

}  // namespace ostinato
