// Where things lie inside packed weights, kept rows and scratch. Included by files compiled once per instruction set,
// whose vector width the sizes depend on.
#pragma once

#include "product.h"
#include "recurrence.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

// Hands out aligned parts of one piece of memory; with a null base it only counts.
class Parts {
 public:
  explicit Parts(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t n) {
    T* part = base_ ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return part;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// Columns of a kept row: S slots of Hp activations, which backward turns into gradients before the activation.
// rnn: 0 y. lstm: i, f, g, o, or i, g, o. gru: r, z, W_hn h + b_hn, n.
template <typename real>
struct Slots {
  int64_t Hp, n_slots;
  int64_t norm_ih, norm_hh;  // columns of the normalised products (G·Hp each), which become their gradients
  int64_t norm_c;            // column of the normalised c
  int64_t scales;            // columns of 1/sigma: of the input product, of one or two recurrent ones, of c
  int64_t width;

  explicit Slots(const Layer& layer) {
    Hp = padded<real>(layer.H);
    n_slots = layer.cell == Cell::gru ? 4 : layer.gates;
    width = n_slots * Hp;
    norm_ih = norm_hh = norm_c = scales = -1;
    if (layer.norm) {
      norm_ih = width;
      norm_hh = norm_ih + layer.gates * Hp;
      norm_c = norm_hh + layer.gates * Hp;
      scales = norm_c + (layer.cell == Cell::lstm ? Hp : 0);
      width = scales + padded<real>(4);
    }
    // Rows a power of two apart would share few cache sets.
    width += kLanes<real>;
  }

  // Column of the gradient before the activation that gate q's input (recurrent) product meets.
  int64_t ih(const Layer& layer, int q) const {
    if (layer.norm) return norm_ih + q * Hp;
    return (layer.cell == Cell::gru && q == 2 ? 3 : q) * Hp;
  }
  int64_t hh(const Layer& layer, int q) const {
    if (layer.norm) return norm_hh + q * Hp;
    return (layer.reset_before && q == 2 ? 3 : q) * Hp;
  }
  // The same before normalisation's scale: what the biases meet.
  int64_t bias_ih(const Layer& layer, int q) const { return (layer.cell == Cell::gru && q == 2 ? 3 : q) * Hp; }
  int64_t bias_hh(const Layer& layer, int q) const { return (layer.reset_before && q == 2 ? 3 : q) * Hp; }
};

// Packed weights of the forward pass.
template <typename real>
struct PackedForward {
  real* ih;        // (blocks, D, G, W)
  real* hh;        // (blocks, P, G, W); with the reset before: (blocks, H, 2, W), gates r and z
  real* hh_n;      // (blocks, H, 1, W): gate n with the reset before
  real* hr;        // (Pp / W, H, W)
  real* bias;      // (G, Hp) what the input product starts from
  real* bias_hh;   // (G, Hp) what the recurrent product adds: gru's n, and every gate under normalisation
  real *peephole, *norm_ih, *norm_hh, *norm_c, *norm_c_bias;  // rows of Hp
  int64_t bytes;

  PackedForward(const Layer& layer, const void* base) {
    Parts parts(const_cast<void*>(base));
    const int64_t Hp = padded<real>(layer.H), G = layer.gates;
    ih = parts.take<real>(Hp * layer.D * G);
    hh = parts.take<real>(Hp * layer.P * (layer.reset_before ? 2 : G));
    hh_n = layer.reset_before ? parts.take<real>(Hp * layer.P) : nullptr;
    hr = layer.projected ? parts.take<real>(padded<real>(layer.P) * layer.H) : nullptr;
    bias = parts.take<real>(G * Hp);
    bias_hh = parts.take<real>(G * Hp);
    peephole = layer.peephole ? parts.take<real>(3 * Hp) : nullptr;
    norm_ih = layer.norm ? parts.take<real>(G * Hp) : nullptr;
    norm_hh = layer.norm ? parts.take<real>(G * Hp) : nullptr;
    const bool norm_of_c = layer.norm && layer.cell == Cell::lstm;
    norm_c = norm_of_c ? parts.take<real>(Hp) : nullptr;
    norm_c_bias = norm_of_c ? parts.take<real>(Hp) : nullptr;
    bytes = parts.bytes();
  }
};

// Packed weights of the backward pass: k runs over gate q and padded unit, in the order of the kept row.
template <typename real>
struct PackedBackward {
  real* hh;    // (Pp / W, G·Hp, W); with the reset before: gates r and z
  real* hh_n;  // (Pp / W, Hp, W)
  real* ih;    // (Dp / W, G·Hp, W)
  real* hr;    // (Hp / W, P, W)
  int64_t bytes;

  PackedBackward(const Layer& layer, const void* base) {
    Parts parts(const_cast<void*>(base));
    const int64_t Hp = padded<real>(layer.H), Pp = padded<real>(layer.P), G = layer.gates;
    hh = parts.take<real>(Pp * Hp * (layer.reset_before ? 2 : G));
    hh_n = layer.reset_before ? parts.take<real>(Pp * Hp) : nullptr;
    ih = parts.take<real>(padded<real>(layer.D) * G * Hp);
    hr = layer.projected ? parts.take<real>(Hp * layer.P) : nullptr;
    bytes = parts.bytes();
  }
};

// The operands of the weights' gradients, a row for each packed row of a chunk.
template <typename real>
struct Panel {
  int64_t x, h, rh, raw, d_h;  // columns of x, of what the recurrent product saw, r * h, o tanh(c), and dh
  int64_t stride;

  explicit Panel(const Layer& layer) {
    const int64_t Hp = padded<real>(layer.H), Pp = padded<real>(layer.P);
    x = 0;
    h = padded<real>(layer.D);
    rh = h + Pp;
    raw = rh + (layer.reset_before ? Hp : 0);
    d_h = raw + (layer.projected ? Hp : 0);
    stride = d_h + (layer.projected ? Pp : 0) + kLanes<real>;
  }
};

// What all threads of a backward pass share.
template <typename real>
struct Shared {
  static constexpr int64_t kGroup = 8;  // rows whose sums of small parameters are taken together
  real *d_h, *d_c;            // (B, Pp), (B, Hp) by sorted row: gradient of the state, walking back in time
  real* panel;                // (chunk_rows, Panel::stride)
  real *d_ih, *d_hh, *d_hr;   // (G·Hp, Dp), (G·Hp, Pp), (P, Hp)
  real* d_bias;               // (S·Hp,) sums of the slots
  real* d_small;              // (groups, small_width): normalisation's and peepholes' gradients
  int64_t small_width, small_norm_ih, small_norm_hh, small_norm_c, small_peephole;
  int64_t zeroed_bytes, bytes;

  Shared(const Layer& layer, int64_t B, int64_t chunk_rows, void* base) {
    Parts parts(base);
    const int64_t Hp = padded<real>(layer.H), Pp = padded<real>(layer.P), Dp = padded<real>(layer.D);
    const int64_t G = layer.gates;
    d_ih = parts.take<real>(G * Hp * Dp);
    d_hh = parts.take<real>(G * Hp * Pp);
    d_hr = layer.projected ? parts.take<real>(layer.P * Hp) : nullptr;
    d_bias = parts.take<real>(Slots<real>(layer).n_slots * Hp);
    small_norm_ih = 0;
    small_norm_hh = small_norm_ih + (layer.norm ? G * Hp : 0);
    small_norm_c = small_norm_hh + (layer.norm ? G * Hp : 0);
    small_peephole = small_norm_c + (layer.norm ? 2 * Hp : 0);
    small_width = small_peephole + (layer.peephole ? 3 * Hp : 0);
    d_small = parts.take<real>((B + kGroup - 1) / kGroup * small_width);
    zeroed_bytes = parts.bytes();
    d_h = parts.take<real>(B * Pp);
    d_c = parts.take<real>(layer.cell == Cell::lstm ? B * Hp : 0);
    panel = parts.take<real>(chunk_rows * Panel<real>(layer).stride);
    bytes = parts.bytes();
  }
};

template <typename real>
OSTINATO_INLINE const real* as(const void* pointer) {
  return static_cast<const real*>(pointer);
}
template <typename real>
OSTINATO_INLINE real* as(void* pointer) {
  return static_cast<real*>(pointer);
}

OSTINATO_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename real>
OSTINATO_INLINE void copy_row(real* to, const real* from, int64_t n, int64_t n_padded) {
  std::memcpy(to, from, n * sizeof(real));
  for (int64_t i = n; i < n_padded; ++i) to[i] = 0;
}

}  // namespace
}  // namespace OSTINATO_ISA
}  // namespace ostinato
