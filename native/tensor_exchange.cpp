#include "tensor_exchange.h"

namespace ostinato {
namespace {

// Set by `look_at_tensors`; what they point to lives as long as the interpreter.
const ExchangeTable* table = nullptr;
PyTypeObject* classes[2] = {nullptr, nullptr};

}  // namespace

bool set_exchange(const ExchangeTable* from, PyTypeObject* tensor, PyTypeObject* parameter) {
  if (from->version.major != 1) return false;
  table = from, classes[0] = tensor, classes[1] = parameter;
  return true;
}

bool is_plain_tensor(PyObject* object) {
  return table && (Py_TYPE(object) == classes[0] || Py_TYPE(object) == classes[1]);
}

bool look_at_tensor(PyObject* object, ExchangeTensor* out) {
  if (!is_plain_tensor(object)) return false;
  if (table->look_at(object, out) == 0) return true;
  PyErr_Clear();
  return false;
}

PyObject* new_tensor(int n_axes, int64_t* shape, bool is_double) {
  int64_t strides[4];
  int64_t stride = 1;
  for (int i = n_axes - 1; i >= 0; --i) strides[i] = stride, stride *= shape[i];
  ExchangeTensor wanted{nullptr, {1, 0}, n_axes, {2, static_cast<uint8_t>(is_double ? 64 : 32), 1}, shape, strides, 0};
  void *managed = nullptr, *object = nullptr;
  const auto ignore = [](void*, const char*, const char*) {};
  if (table->allocate(&wanted, &managed, nullptr, ignore) == 0 && table->to_python(managed, &object) == 0)
    return static_cast<PyObject*>(object);
  PyErr_Clear();
  return nullptr;
}

}  // namespace ostinato
