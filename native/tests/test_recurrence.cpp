// Forward against plain loops in double, backward against differences of forward, on every instruction set. Every
// tensor is a heap block of exactly the documented size, one element off any alignment, so that the address sanitizer
// sees each element read or written beyond it; what is to be written starts as NaN, and so does scratch (memory.cpp).
#include "recurrence.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"
#include "schedule.h"
#include "every_isa.h"
#include "testing.h"

using namespace ostinato;

namespace {

// n elements, all bits set (NaN), `offset` elements into their heap block.
template <typename T>
class Exact {
 public:
  explicit Exact(int64_t n = 0, int64_t alignment = 0) : n_(n) {
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    if (alignment > 0) {
      if (posix_memalign(&block_, static_cast<size_t>(alignment), bytes > 0 ? bytes : 1) != 0) std::abort();
      data_ = static_cast<T*>(block_);
    } else {
      block_ = std::malloc(bytes + sizeof(T));
      data_ = static_cast<T*>(block_) + 1;
    }
    std::memset(static_cast<void*>(data_), 0xFF, bytes);
  }
  ~Exact() { std::free(block_); }
  Exact(Exact&& other) noexcept : block_(std::exchange(other.block_, nullptr)), data_(other.data_), n_(other.n_) {}
  Exact& operator=(Exact&& other) noexcept {
    std::swap(block_, other.block_), std::swap(data_, other.data_), std::swap(n_, other.n_);
    return *this;
  }

  // Null where there is nothing, as the contract has it.
  T* data() const { return n_ > 0 ? data_ : nullptr; }
  T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return n_; }

 private:
  void* block_;
  T* data_;
  int64_t n_;
};

struct Kind {
  const char* name;
  Cell cell;
  bool relu, before, norm, peephole, coupled, projected, zoneout, random, dropout;
};

constexpr Kind kKinds[] = {
    {"rnn", Cell::rnn, 0, 0, 0, 0, 0, 0, 0, 0, 0},
    {"rnn relu", Cell::rnn, 1, 0, 0, 0, 0, 0, 0, 0, 1},
    {"rnn norm zoneout", Cell::rnn, 0, 0, 1, 0, 0, 0, 1, 0, 0},
    {"rnn zoneout", Cell::rnn, 0, 0, 0, 0, 0, 0, 1, 1, 0},
    {"lstm", Cell::lstm, 0, 0, 0, 0, 0, 0, 0, 0, 0},
    {"lstm dropout", Cell::lstm, 0, 0, 0, 0, 0, 0, 0, 0, 1},
    {"lstm zoneout", Cell::lstm, 0, 0, 0, 0, 0, 0, 1, 1, 0},
    {"lstm mean zoneout dropout", Cell::lstm, 0, 0, 0, 0, 0, 0, 1, 0, 1},
    {"lstm peephole zoneout", Cell::lstm, 0, 0, 0, 1, 0, 0, 1, 0, 0},
    {"lstm coupled", Cell::lstm, 0, 0, 0, 0, 1, 0, 0, 0, 0},
    {"lstm projected", Cell::lstm, 0, 0, 0, 0, 0, 1, 0, 0, 0},
    {"lstm norm peephole", Cell::lstm, 0, 0, 1, 1, 0, 0, 0, 0, 0},
    {"lstm everything", Cell::lstm, 0, 0, 1, 1, 1, 1, 1, 1, 1},
    {"gru", Cell::gru, 0, 0, 0, 0, 0, 0, 0, 0, 0},
    {"gru zoneout", Cell::gru, 0, 0, 0, 0, 0, 0, 1, 1, 0},
    {"gru mean zoneout", Cell::gru, 0, 0, 0, 0, 0, 0, 1, 0, 0},
    {"gru zoneout dropout", Cell::gru, 0, 0, 0, 0, 0, 0, 1, 1, 1},
    {"gru before", Cell::gru, 0, 1, 0, 0, 0, 0, 0, 0, 0},
    {"gru norm", Cell::gru, 0, 0, 1, 0, 0, 0, 0, 0, 0},
    {"gru norm before", Cell::gru, 0, 1, 1, 0, 0, 0, 1, 1, 0},
};

enum class Rows { dense, lengths, holes, resets, empty };

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

template <typename real>
struct Problem {
  enum { kX, kH0, kC0, kInitialH, kInitialC, kFirstWeight, kTensors = kFirstWeight + 10 };
  enum { kY, kHFinal, kCFinal, kCells, kOutputs };

  Layer layer{};
  int64_t B, T, x_row, x_step;
  Exact<real> inputs[kTensors], recurrent, d_outputs[kOutputs], outputs[kOutputs], gates, c_before;
  Exact<uint8_t> zoneout_h, zoneout_c, mask, resets;
  std::unique_ptr<Schedule> schedule;
  bool recompute, has_reset;
  std::mt19937 random;

  const Kernels& kernels() const {
    if constexpr (sizeof(real) == 4)
      return recurrence_kernels()->of_float;
    else
      return recurrence_kernels()->of_double;
  }

  Problem(const Kind& kind, Rows rows, bool is_reverse, bool recompute_, int64_t B_, int64_t T_, int64_t D, int64_t H,
          unsigned seed)
      : B(B_), T(T_), recompute(recompute_), has_reset(rows == Rows::resets), random(seed) {
    layer.cell = kind.cell;
    layer.D = D, layer.H = H;
    layer.projected = kind.projected && H > 1;
    layer.P = layer.projected ? (H + 1) / 2 : H;
    layer.gates = kind.cell == Cell::rnn ? 1 : kind.cell == Cell::gru || kind.coupled ? 3 : 4;
    layer.relu = kind.relu, layer.reset_before = kind.before, layer.norm = kind.norm;
    layer.peephole = kind.peephole, layer.coupled = kind.coupled, layer.random = kind.random;
    layer.zoneout_h = kind.zoneout ? 0.3 : 0;
    layer.zoneout_c = kind.zoneout && kind.cell == Cell::lstm ? 0.2 : 0;
    const int64_t GH = layer.gates * H, P = layer.P;
    const bool is_lstm = kind.cell == Cell::lstm;
    x_step = D + 2, x_row = T * x_step + 1;
    inputs[kX] = drawn((B - 1) * x_row + (T - 1) * x_step + D, 1);
    inputs[kH0] = drawn(B * P, 0.7);
    if (is_lstm) inputs[kC0] = drawn(B * H, 0.7);
    if (has_reset) inputs[kInitialH] = drawn(B * P, 0.7);
    if (has_reset && is_lstm) inputs[kInitialC] = drawn(B * H, 0.7);
    const double scale = 1 / std::sqrt(static_cast<double>(D > H ? D : H));
    const int64_t sizes[10] = {GH * D, GH * P, GH, GH, layer.projected ? P * H : 0,
                               kind.peephole ? (kind.coupled ? 2 : 3) * H : 0, kind.norm ? GH : 0,
                               kind.norm ? GH : 0, kind.norm && is_lstm ? H : 0, kind.norm && is_lstm ? H : 0};
    for (int i = 0; i < 10; ++i) inputs[kFirstWeight + i] = drawn(sizes[i], i < 2 ? scale : 0.6);
    if (kind.dropout) recurrent = drawn((seed % 2 ? T : 1) * B * P, 1);
    if (layer.zoneout_h > 0 && kind.random) zoneout_h = flags(T * B * P, 30);
    if (layer.zoneout_c > 0 && kind.random) zoneout_c = flags(T * B * H, 30);
    if (rows != Rows::dense) {
      mask = flags(B * T, rows == Rows::empty ? 0 : 60);
      for (int64_t b = 0; rows == Rows::lengths && b < B; ++b)
        for (int64_t t = 0, n = static_cast<int64_t>(random() % (T + 1)); t < T; ++t) mask[b * T + t] = t < n;
    }
    if (has_reset) resets = flags(B * T, 30);
    schedule = std::make_unique<Schedule>(B, T, mask.data(), resets.data(), is_reverse);
    const int64_t out[kOutputs] = {B * T * P, B * P, is_lstm ? B * H : 0, is_lstm && seed % 3 ? B * T * H : 0};
    for (int i = 0; i < kOutputs; ++i) outputs[i] = Exact<real>(out[i]), d_outputs[i] = drawn(out[i], 1);
  }

  Exact<real> drawn(int64_t n, double scale) {
    std::normal_distribution<double> normal;
    Exact<real> values(n);
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<real>(scale * normal(random));
    return values;
  }
  Exact<uint8_t> flags(int64_t n, unsigned percent) {
    Exact<uint8_t> values(n);
    for (int64_t i = 0; i < n; ++i) values[i] = random() % 100 < percent;
    return values;
  }

  Weights weights(const Exact<real>* from) const {
    const Exact<real>* w = from + kFirstWeight;
    return {w[0].data(), w[1].data(), w[2].data(), w[3].data(), w[4].data(),
            w[5].data(), w[6].data(), w[7].data(), w[8].data(), w[9].data()};
  }
  Masks masks() const {
    return {recurrent.data(), recurrent.size() > B * layer.P ? B * layer.P : 0, zoneout_h.data(), zoneout_c.data()};
  }
  Exact<char> packed(bool backward) const {
    Exact<char> memory(backward ? kernels().backward_bytes(layer) : kernels().forward_bytes(layer), 64);
    (backward ? kernels().pack_backward : kernels().pack_forward)(layer, weights(inputs), memory.data());
    return memory;
  }

  void forward(int n_threads, bool keeps) {
    const Exact<char> memory = packed(false);
    const int64_t n = schedule->steps().n_packed;
    gates = Exact<real>(keeps && !recompute ? n * kernels().saved_width(layer) : 0, 64);
    c_before = Exact<real>(keeps ? n * kernels().saved_cells(layer) : 0, 64);
    for (Exact<real>& output : outputs) output = Exact<real>(output.size());
    // Rows of steps that are not real are not written.
    for (int64_t i = 0; i < outputs[kY].size(); ++i) outputs[kY][i] = 0;
    for (int64_t i = 0; i < outputs[kCells].size(); ++i) outputs[kCells][i] = 0;
    Forward call{};
    call.packed = memory.data();
    call.x = inputs[kX].data(), call.x_row = x_row, call.x_step = x_step;
    call.h0 = inputs[kH0].data(), call.c0 = inputs[kC0].data();
    call.initial_h = inputs[kInitialH].data(), call.initial_c = inputs[kInitialC].data();
    call.masks = masks();
    call.y = outputs[kY].data(), call.h_final = outputs[kHFinal].data(), call.c_final = outputs[kCFinal].data();
    call.cells = outputs[kCells].data(), call.gates = gates.data(), call.c_before = c_before.data();
    run_forward(kernels(), layer, schedule->steps(), call, n_threads);
  }

  // Gradients in the order of `inputs`, from d_outputs; forward has kept what is needed, and it is used up.
  std::vector<Exact<real>> backward(int n_threads) {
    const Exact<char> memory = packed(true), memory_forward = packed(false);
    const Steps& steps = schedule->steps();
    std::vector<Exact<real>> grads;
    for (const Exact<real>& input : inputs) grads.emplace_back(input.size());
    grads[kX] = Exact<real>(B * T * layer.D);
    for (int64_t i = 0; i < grads[kX].size(); ++i) grads[kX][i] = 0;
    if (recompute) {
      const int64_t rows = largest_chunk(kernels(), layer, steps, sizeof(real));
      gates = Exact<real>(rows * kernels().saved_width(layer), 64);
    }
    Backward call{};
    call.packed = memory.data(), call.packed_forward = memory_forward.data();
    call.x = inputs[kX].data(), call.x_row = x_row, call.x_step = x_step;
    call.h0 = inputs[kH0].data(), call.c0 = inputs[kC0].data();
    call.initial_h = inputs[kInitialH].data(), call.initial_c = inputs[kInitialC].data();
    call.masks = masks();
    call.y = outputs[kY].data(), call.gates = gates.data(), call.c_before = c_before.data();
    call.recompute = recompute;
    call.d_y = d_outputs[kY].data(), call.d_cells = d_outputs[kCells].data();
    call.d_h_final = d_outputs[kHFinal].data(), call.d_c_final = d_outputs[kCFinal].data();
    call.d_x = grads[kX].data(), call.d_h0 = grads[kH0].data(), call.d_c0 = grads[kC0].data();
    call.d_initial_h = grads[kInitialH].data(), call.d_initial_c = grads[kInitialC].data();
    if (steps.n_packed > 0) call.d_weights = weights(grads.data());
    run_backward(kernels(), layer, steps, call, sizeof(real), n_threads);
    for (int i = kFirstWeight; i < kTensors && steps.n_packed == 0; ++i)
      for (int64_t k = 0; k < grads[i].size(); ++k) grads[i][k] = 0;
    return grads;
  }

  bool is_real(int64_t b, int64_t t) const { return mask.size() == 0 || mask[b * T + t]; }

  // Outputs of real steps times their upstream gradients.
  double value() const {
    double total = 0;
    for (int i = 0; i < kOutputs; ++i)
      for (int64_t k = 0; k < outputs[i].size(); ++k)
        if (i == kHFinal || i == kCFinal || is_real(k * T * B / outputs[i].size() / T, k * T * B / outputs[i].size() % T))
          total += static_cast<double>(outputs[i][k]) * d_outputs[i][k];
    return total;
  }

  using Values = std::vector<double>;

  // Rows [first, first + n) of a weight times v, normalised, plus bias.
  void affine(int which, const Values& v, int64_t first, int64_t n, Values& out) const {
    const Exact<real>&w = inputs[kFirstWeight + which], &bias = inputs[kFirstWeight + 2 + which],
               &gamma = inputs[kFirstWeight + 6 + which];
    const int64_t K = static_cast<int64_t>(v.size());
    double mean = 0, variance = 0;
    for (int64_t i = first; i < first + n; ++i) {
      out[i] = 0;
      for (int64_t k = 0; k < K; ++k) out[i] += static_cast<double>(w[i * K + k]) * v[k];
      mean += out[i] / n;
    }
    for (int64_t i = first; i < first + n; ++i) variance += (out[i] - mean) * (out[i] - mean) / n;
    for (int64_t i = first; i < first + n; ++i) {
      if (layer.norm) out[i] = (out[i] - mean) / std::sqrt(variance + 1e-5) * gamma[i];
      out[i] += bias[i];
    }
  }

  void step(int64_t b, int64_t t, int64_t position, Values& h, Values& c) const {
    const int64_t H = layer.H, P = layer.P, GH = layer.gates * H;
    const Exact<real>* w = inputs + kFirstWeight;
    Values x(layer.D), seen = h, a(GH), u(GH), h_new(H), c_new = c;
    for (int64_t k = 0; k < layer.D; ++k) x[k] = inputs[kX][b * x_row + t * x_step + k];
    if (recurrent.size())
      for (int64_t k = 0; k < P; ++k) seen[k] *= recurrent[position * masks().recurrent_step + b * P + k];
    affine(0, x, 0, GH, a);
    affine(1, seen, 0, layer.reset_before ? 2 * H : GH, u);
    if (layer.cell == Cell::rnn) {
      for (int64_t k = 0; k < H; ++k) h_new[k] = layer.relu ? std::fmax(a[k] + u[k], 0) : std::tanh(a[k] + u[k]);
    } else if (layer.cell == Cell::gru) {
      Values r(H);
      for (int64_t k = 0; k < H; ++k) r[k] = logistic(a[k] + u[k]);
      if (layer.reset_before) {
        Values product = seen;
        for (int64_t k = 0; k < H; ++k) product[k] *= r[k];
        affine(1, product, 2 * H, H, u);
      }
      for (int64_t k = 0; k < H; ++k) {
        const double z = logistic(a[H + k] + u[H + k]);
        const double n = std::tanh(a[2 * H + k] + (layer.reset_before ? 1 : r[k]) * u[2 * H + k]);
        h_new[k] = (1 - z) * n + z * h[k];
      }
    } else {
      const int64_t g_g = layer.coupled ? 1 : 2, g_o = g_g + 1;
      const auto peep = [&](int64_t row, int64_t k, double v) { return w[5].size() ? w[5][row * H + k] * v : 0.0; };
      double mean = 0, variance = 0;
      for (int64_t k = 0; k < H; ++k) {
        const double i = logistic(a[k] + u[k] + peep(0, k, c[k]));
        const double f = layer.coupled ? 1 - i : logistic(a[H + k] + u[H + k] + peep(1, k, c[k]));
        c_new[k] = f * c[k] + i * std::tanh(a[g_g * H + k] + u[g_g * H + k]);
        mean += c_new[k] / H;
      }
      for (int64_t k = 0; k < H; ++k) variance += (c_new[k] - mean) * (c_new[k] - mean) / H;
      for (int64_t k = 0; k < H; ++k) {
        const double shown =
            layer.norm ? (c_new[k] - mean) / std::sqrt(variance + 1e-5) * w[8][k] + w[9][k] : c_new[k];
        h_new[k] = logistic(a[g_o * H + k] + u[g_o * H + k] + peep(g_o - 1, k, c_new[k])) * std::tanh(shown);
      }
      if (layer.projected) {
        const Values wide = h_new;
        h_new.assign(P, 0);
        for (int64_t p = 0; p < P; ++p)
          for (int64_t k = 0; k < H; ++k) h_new[p] += static_cast<double>(w[4][p * H + k]) * wide[k];
      }
    }
    const auto mix = [&](Values& old, const Values& now, double p, const Exact<uint8_t>& stays) {
      const int64_t n = static_cast<int64_t>(old.size());
      for (int64_t k = 0; k < n; ++k) {
        const double share = stays.size() ? stays[(position * B + b) * n + k] : p;
        old[k] = share * old[k] + (1 - share) * now[k];
      }
    };
    mix(h, h_new, layer.zoneout_h, zoneout_h);
    mix(c, c_new, layer.zoneout_c, zoneout_c);
  }

  // The largest difference of what forward has left from plain loops, over the largest value.
  double forward_error() const {
    double most = 0, largest = 1e-2;
    const auto check = [&](const Exact<real>& found, int64_t at, const Values& expected) {
      for (size_t k = 0; k < expected.size(); ++k) {
        const double difference = std::fabs(found[at + static_cast<int64_t>(k)] - expected[k]);
        most = difference <= most ? most : difference;  // NaN stays
        largest = std::fmax(largest, std::fabs(expected[k]));
      }
    };
    for (int64_t b = 0; b < B; ++b) {
      const auto row = [&](int which, int64_t n) {
        const real* from = inputs[which].data();
        return from ? Values(from + b * n, from + (b + 1) * n) : Values();
      };
      Values h = row(kH0, layer.P), c = row(kC0, layer.H);
      for (int64_t i = 0; i < T; ++i) {
        const int64_t t = schedule->steps().is_reverse ? T - 1 - i : i;
        const bool resets_here = has_reset && resets[b * T + t];
        const auto reset = [&] { h = row(kInitialH, layer.P), c = row(kInitialC, layer.H); };
        if (resets_here && !schedule->steps().is_reverse) reset();
        if (is_real(b, t)) {
          step(b, t, i, h, c);
          check(outputs[kY], (b * T + t) * layer.P, h);
          if (outputs[kCells].size()) check(outputs[kCells], (b * T + t) * layer.H, c);
        }
        if (resets_here && schedule->steps().is_reverse) reset();
      }
      check(outputs[kHFinal], b * layer.P, h);
      if (outputs[kCFinal].size()) check(outputs[kCFinal], b * layer.H, c);
    }
    return most / largest;
  }

  // The derivative of `value` along a random direction: from gradients, and from differences of forward (double).
  void check_derivative(const char* name) {
    forward(1, true);
    const std::vector<Exact<real>> grads = backward(1);
    const double step = 1e-5;
    double expected = 0, found = 0;
    std::vector<Exact<real>> directions;
    for (Exact<real>& input : inputs) directions.push_back(drawn(input.size(), 1));
    for (int i = 0; i < kTensors; ++i)
      for (int64_t k = 0; k < grads[i].size(); ++k) {
        const int64_t at = i == kX ? k / (T * layer.D) * x_row + k / layer.D % T * x_step + k % layer.D : k;
        found += grads[i][k] * directions[i][at];
      }
    for (int sign : {1, -1}) {
      for (int i = 0; i < kTensors; ++i)
        for (int64_t k = 0; k < inputs[i].size(); ++k) inputs[i][k] += (sign == 1 ? 1 : -2) * step * directions[i][k];
      forward(1, false);
      expected += sign * value() / (2 * step);
    }
    const double bound = 1e-6 * (1 + std::fabs(expected));
    if (!(std::fabs(found - expected) <= bound)) std::fprintf(stderr, "%s: B=%ld T=%ld D=%ld H=%ld\n", name,
        static_cast<long>(B), static_cast<long>(T), static_cast<long>(layer.D), static_cast<long>(layer.H));
    CHECK_NEAR(found, expected, bound);
  }
};

// Calls body(name, kind, rows, seed) for everything on every instruction set.
template <typename Body>
void for_every_kind(Body&& body) {
  testing::on_every_isa([&] {
    unsigned seed = 0;
    for (const Kind& kind : kKinds)
      for (Rows rows : {Rows::dense, Rows::lengths, Rows::holes, Rows::resets, Rows::empty}) {
        const std::string name = std::string(isa_name(active_isa())) + " " + kind.name + " rows " +
                                 std::to_string(static_cast<int>(rows));
        body(name.c_str(), kind, rows, seed++);
      }
  });
}

bool is_plain(const Kind& kind) {
  return !(kind.before || kind.norm || kind.peephole || kind.coupled || kind.projected || kind.zoneout);
}

template <typename real>
bool same(const Exact<real>& a, const Exact<real>& b) {
  return a.size() == b.size() && (a.size() == 0 || std::memcmp(a.data(), b.data(), a.size() * sizeof(real)) == 0);
}

}  // namespace

TEST(recurrence_forward_equals_plain_loops_and_backward_its_differences) {
  constexpr int64_t kSizes[][4] = {{1, 1, 1, 1}, {2, 3, 5, 3}, {9, 4, 3, 17}, {3, 5, 18, 7}, {5, 2, 1, 33}};
  for_every_kind([&](const char* name, const Kind& kind, Rows rows, unsigned seed) {
    for (int repeat = 0; repeat < 2; ++repeat, seed += 3) {
      const auto& size = kSizes[seed % 5];
      const bool recompute = is_plain(kind) && seed % 2;
      Problem<double> exact(kind, rows, seed / 2 % 2, recompute, size[0], size[1], size[2], size[3], seed);
      exact.forward(1, false);
      const double error = exact.forward_error();
      if (!(error <= 1e-12)) std::fprintf(stderr, "%s\n", name);
      CHECK_NEAR(error, 0, 1e-12);
      exact.check_derivative(name);
      Problem<float> single(kind, rows, seed / 2 % 2, recompute, size[0], size[1], size[2], size[3], seed);
      single.forward(1, true);
      if (!kind.norm || size[3] > 3) CHECK_NEAR(single.forward_error(), 0, 2e-5);
      for (const Exact<float>& grad : single.backward(1))
        for (int64_t i = 0; i < grad.size(); ++i)
          if (!std::isfinite(grad[i])) return testing::fail(__FILE__, __LINE__, name);
    }
  });
}

TEST(recurrence_has_the_same_bits_on_three_threads) {
  for_every_kind([](const char* name, const Kind& kind, Rows rows, unsigned seed) {
    const bool recompute = is_plain(kind) && seed % 2;
    std::vector<Exact<float>> first;
    for (int n_threads : {1, 3}) {
      Problem<float> problem(kind, rows, seed / 2 % 2, recompute, 37, 7, 19, 34, seed);
      problem.forward(n_threads, true);
      std::vector<Exact<float>> all = problem.backward(n_threads);
      for (Exact<float>& output : problem.outputs) all.push_back(std::move(output));
      for (size_t i = 0; i < first.size(); ++i)
        if (!same(all[i], first[i])) testing::fail(__FILE__, __LINE__, name);
      first = std::move(all);
    }
  });
}

TEST(recurrence_has_the_same_bits_where_two_threads_share_the_units) {
  // Sizes at which the driver lets the threads of a gang take one row together; whether it gets the threads, it decides.
  constexpr Rows kRows[] = {Rows::dense, Rows::lengths, Rows::holes};
  for_every_kind([&](const char* name, const Kind& kind, Rows rows, unsigned seed) {
    if (!is_plain(kind) || kind.dropout || (rows != kRows[0] && rows != kRows[1] && rows != kRows[2])) return;
    const int64_t H = kind.cell == Cell::rnn ? 251 : kind.cell == Cell::gru ? 147 : 127;
    std::vector<Exact<float>> first;
    for (int n_threads : {1, 2, 2}) {
      Problem<float> problem(kind, rows, seed % 2, seed / 2 % 2, 1, 9, 5, H, seed);
      problem.forward(n_threads, true);
      std::vector<Exact<float>> all = problem.backward(n_threads);
      for (Exact<float>& output : problem.outputs) all.push_back(std::move(output));
      for (size_t i = 0; i < first.size(); ++i)
        if (!same(all[i], first[i])) testing::fail(__FILE__, __LINE__, name);
      first = std::move(all);
    }
  });
}
