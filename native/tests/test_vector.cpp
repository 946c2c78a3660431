// Accuracy of the gate functions in units of the last place, over all magnitudes and at the ends, on every instruction
// set: through cells whose weights make the activation their output.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "driver.h"
#include "schedule.h"
#include "every_isa.h"
#include "testing.h"

using namespace ostinato;

namespace {

template <typename real>
const Kernels& kernels() {
  if constexpr (sizeof(real) == 4)
    return recurrence_kernels()->of_float;
  else
    return recurrence_kernels()->of_double;
}

// The activation of each x: tanh is an RNN's output, sigmoid the c of an LSTM that forgets by it (c0 = 1, g = 0).
template <typename real>
std::vector<real> activation(const std::vector<real>& x, bool is_sigmoid) {
  Layer layer{};
  layer.cell = is_sigmoid ? Cell::lstm : Cell::rnn;
  layer.D = layer.H = layer.P = 1;
  layer.gates = is_sigmoid ? 4 : 1;
  const int64_t B = static_cast<int64_t>(x.size());
  const Schedule schedule(B, 1, nullptr, nullptr, false);
  const real weight_ih[4] = {is_sigmoid ? real(0) : real(1), 1, 0, 0}, zeros[4] = {};
  Weights weights{};
  weights.weight_ih = weight_ih, weights.weight_hh = zeros;
  std::vector<real> h0(x.size(), 0), c0(x.size(), 1), y(x.size()), h(x.size()), c(x.size());
  void* packed = nullptr;
  if (posix_memalign(&packed, 64, static_cast<size_t>(kernels<real>().forward_bytes(layer))) != 0) return {};
  kernels<real>().pack_forward(layer, weights, packed);
  Forward call{};
  call.packed = packed;
  call.x = x.data(), call.x_row = 1, call.x_step = 1;
  call.h0 = h0.data(), call.c0 = is_sigmoid ? c0.data() : nullptr;
  call.y = y.data(), call.h_final = h.data(), call.c_final = is_sigmoid ? c.data() : nullptr;
  run_forward(kernels<real>(), layer, schedule.steps(), call, 1);
  std::free(packed);
  return is_sigmoid ? c : y;
}

template <typename real>
long double exactly(real x, bool is_sigmoid) {
  const long double wide = x;
  return is_sigmoid ? 1 / (1 + std::exp(-wide)) : std::tanh(wide);
}

// Both signs, all magnitudes from `least` to `most`, 2000 numbers to a power of two near 1.
template <typename real>
std::vector<real> sweep(real least, real most) {
  std::vector<real> x;
  for (real magnitude = least; magnitude <= most;
       magnitude *= magnitude > real(0.01) ? real(1.0003) : real(1.02)) {
    x.push_back(magnitude);
    x.push_back(-magnitude);
  }
  return x;
}

template <typename real>
double worst_ulps(const std::vector<real>& x, bool is_sigmoid) {
  const std::vector<real> found = activation(x, is_sigmoid);
  long double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const long double expected = exactly(x[i], is_sigmoid);
    const real near = std::fabs(static_cast<real>(expected));
    const long double ulp = std::nextafter(near, std::numeric_limits<real>::infinity()) - near;
    const long double ulps = std::fabs(found[i] - expected) / ulp;
    worst = ulps <= worst ? worst : ulps;  // NaN stays
  }
  return static_cast<double>(worst);
}

template <typename real>
void check_ends() {
  constexpr real kInfinity = std::numeric_limits<real>::infinity(), kMost = std::numeric_limits<real>::max();
  const std::vector<real> ends{0, -real(0), 100, -100, 1e30f, -1e30f, kMost, -kMost, kInfinity, -kInfinity};
  const std::vector<real> tanhs = activation(ends, false), sigmoids = activation(ends, true);
  CHECK(tanhs[0] == 0 && tanhs[1] == 0 && sigmoids[0] == real(0.5) && sigmoids[1] == real(0.5));
  for (size_t i = 2; i < ends.size(); ++i) {
    CHECK(tanhs[i] == (ends[i] > 0 ? 1 : -1));
    if (std::isinf(ends[i])) continue;  // times the zero weights of the other gates it is NaN
    CHECK(sigmoids[i] >= 0 && std::fabs(sigmoids[i] - (ends[i] > 0 ? 1 : 0)) < 1e-37);
  }
  const std::vector<real> nan(5, std::numeric_limits<real>::quiet_NaN());
  for (real value : activation(nan, false)) CHECK(std::isnan(value));
  for (real value : activation(nan, true)) CHECK(std::isnan(value));
}

}  // namespace

TEST(vector_tanh_and_sigmoid_are_accurate_to_a_few_units_of_the_last_place) {
  testing::on_every_isa([] {
    CHECK_NEAR(worst_ulps(sweep<float>(1e-37f, 30), false), 0, 3);
    CHECK_NEAR(worst_ulps(sweep<float>(1e-37f, 86), true), 0, 2.5);
    CHECK_NEAR(worst_ulps(sweep<double>(1e-300, 50), false), 0, 3);
    CHECK_NEAR(worst_ulps(sweep<double>(1e-300, 700), true), 0, 2.5);
  });
}

TEST(vector_tanh_and_sigmoid_saturate_and_pass_nan_on) {
  testing::on_every_isa([] {
    check_ends<float>();
    check_ends<double>();
  });
}
