// PyTorch's tensors as seen from C, without its headers: the exchange table of DLPack 1.3, which `torch.Tensor` carries
// as `__dlpack_c_exchange_api__`. A look at a tensor costs as much as asking it for one of its attributes.
#pragma once

#include <Python.h>

#include <cstdint>

namespace ostinato {

struct ExchangeDevice {
  int32_t type;  // 1: CPU
  int32_t id;
};

struct ExchangeType {
  uint8_t code;  // 2: float
  uint8_t bits;
  uint16_t lanes;
};

// A borrowed view; shape and strides (in elements) live as long as the tensor.
struct ExchangeTensor {
  void* data;
  ExchangeDevice device;
  int32_t n_axes;
  ExchangeType type;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeVersion {
  uint32_t major, minor;
};

struct ExchangeTable {
  ExchangeVersion version;
  ExchangeTable* previous;
  int (*allocate)(ExchangeTensor* prototype, void** out, void* error_context,
                  void (*set_error)(void* error_context, const char* kind, const char* message));
  int (*from_python)(void* object, void** out);
  int (*to_python)(void* managed, void** out_object);
  int (*look_at)(void* object, ExchangeTensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

// Takes instances of exactly these classes as tensors from now on; false where the table is of an unknown version.
bool set_exchange(const ExchangeTable* table, PyTypeObject* tensor, PyTypeObject* parameter);

bool is_plain_tensor(PyObject* object);

// False for what is no tensor of those classes, or cannot be looked at.
bool look_at_tensor(PyObject* object, ExchangeTensor* out);

// A new reference to a contiguous float tensor on the CPU of up to four axes, uninitialised; null where there is none
// to be had.
PyObject* new_tensor(int n_axes, int64_t* shape, bool is_double);

}  // namespace ostinato
