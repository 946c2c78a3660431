// The scan against plain loops in double, on every instruction set, with every rule; and its splits over
// threads.
#include "scan.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "every_isa.h"
#include "testing.h"

using namespace ostinato;

namespace {

struct Rules {
  bool has_mask, has_resets, is_reverse, carries;
};

// A scan of its own memory, with guards of NaN behind every row of units: rows are H + kGuard apart.
template <typename real>
struct Case {
  static constexpr int64_t kGuard = 3;
  int64_t B, T, H, width, n_inputs;
  Gates gates;
  std::vector<real> inputs, start, initial, rate, y, state, d_y, d_state, d_inputs, d_start, d_initial,
      d_rates, d_rate;
  std::vector<uint8_t> mask, resets;
  Scan<real> scan{};

  Case(Gates gates_, int64_t B_, int64_t T_, int64_t H_, Rules rules, unsigned seed)
      : B(B_), T(T_), H(H_), width(H_ + kGuard), n_inputs(inputs_of(gates_)), gates(gates_) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    auto draw = [&](int64_t n, int64_t every, int64_t used) {
      std::vector<real> values(n, std::nan(""));
      for (int64_t i = 0; i < n; ++i)
        if (i % every < used) values[i] = static_cast<real>(normal(random));
      return values;
    };
    inputs = draw(B * T * n_inputs * width, width, H);
    if (gates == Gates::linear)
      for (real& value : inputs) value = std::isnan(value) ? value : value / 3;
    start = draw(B * width, width, H);
    initial = draw(B * width, width, H);
    rate = draw(width, width, H);
    for (real& value : rate) value = std::fabs(value) + real(0.3);  // near 0 differences are inexact
    d_y = draw(B * T * width, width, H);
    d_state = draw(B * width, width, H);
    mask.resize(B * T);
    resets.resize(B * T);
    for (int64_t i = 0; i < B * T; ++i) {
      mask[i] = random() % 10 < 6;
      resets[i] = random() % 10 < 3;
    }
    scan.T = T;
    scan.H = H;
    for (int64_t k = 0; k < n_inputs; ++k)
      scan.inputs[k] = {inputs.data() + k * width, T * n_inputs * width, n_inputs * width};
    scan.rate = gates == Gates::rglru ? rate.data() : nullptr;
    scan.start = {start.data(), width};
    scan.mask = rules.has_mask ? mask.data() : nullptr;
    scan.resets = rules.has_resets ? resets.data() : nullptr;
    if (rules.has_resets) scan.initial = {initial.data(), width};
    scan.is_reverse = rules.is_reverse;
    scan.carries = rules.carries;
  }

  void run(int n_threads) {
    const real nan = static_cast<real>(std::nan(""));
    for (auto* array : {&y, &d_inputs})
      array->assign(array == &y ? B * T * width : B * T * n_inputs * width, nan);
    for (auto* array : {&state, &d_start, &d_initial, &d_rates}) array->assign(B * width, nan);
    d_rate.assign(width, nan);
    scan_forward(gates, B, scan, ScanOutputs<real>{{y.data(), T * width, width}, {state.data(), width}},
                 n_threads);
    ScanGradients<real> out{};
    out.y = {y.data(), T * width, width};
    out.d_y = {d_y.data(), T * width, width};
    out.d_state = {d_state.data(), width};
    for (int64_t k = 0; k < n_inputs; ++k)
      out.d_inputs[k] = {d_inputs.data() + k * width, T * n_inputs * width, n_inputs * width};
    out.d_start = {d_start.data(), width};
    out.d_initial = {d_initial.data(), width};
    out.d_rate = {d_rates.data(), width};
    scan_backward(gates, B, scan, out, gates == Gates::rglru ? d_rate.data() : nullptr, n_threads);
  }

  // sum of y * d_y + state * d_state of one unit of one row, by the equations and nothing else.
  double value(int64_t row, int64_t u, int64_t changed, double change) const {
    int64_t next = 0;  // numbers the values that gradients are taken of
    auto read = [&](real stored) { return stored + (next++ == changed ? change : 0.0); };
    const double from = read(start[row * width + u]), fresh = read(initial[row * width + u]),
                 pace = read(rate[u]);
    double h = from, total = 0;
    for (int64_t s = 0; s < T; ++s) {
      const int64_t t = scan.is_reverse ? T - 1 - s : s, flag = row * T + t;
      if (scan.resets && !scan.is_reverse && resets[flag]) h = fresh;
      double in[3];
      next = 3 + t * n_inputs;
      for (int64_t k = 0; k < n_inputs; ++k) in[k] = read(inputs[((row * T + t) * n_inputs + k) * width + u]);
      const bool is_real = !scan.mask || mask[flag];
      if (is_real) h = step(in, pace, h);
      if (is_real || scan.carries) {
        total += h * d_y[(row * T + t) * width + u];
      }
      if (scan.resets && scan.is_reverse && resets[flag]) h = fresh;
    }
    return total + h * d_state[row * width + u];
  }

  double step(const double* in, double pace, double h) const {
    auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    auto g = [&](double x) { return x >= 0 ? x + 0.5 : sigmoid(x); };
    switch (gates) {
      case Gates::linear:
        return in[0] * h + in[1];
      case Gates::mingru:
        return h + sigmoid(in[0]) * (g(in[1]) - h);
      case Gates::mingru_linear:
        return h + sigmoid(in[0]) * (in[1] - h);
      case Gates::minlstm:
      case Gates::minlstm_linear: {
        const double i = sigmoid(in[0]), f = sigmoid(in[1]);
        return (f * h + i * (gates == Gates::minlstm ? g(in[2]) : in[2])) / (i + f);
      }
      case Gates::rglru: {
        const double d = std::exp(-pace * sigmoid(in[0]));
        return d * h + std::sqrt(1 - d * d) * sigmoid(in[1]) * in[2];
      }
    }
    return std::nan("");
  }
};

// Outputs through their weighted sum, and every gradient by central differences of it.
void check(Gates gates, int64_t B, int64_t T, int64_t H, Rules rules) {
  Case<double> one(gates, B, T, H, rules, static_cast<unsigned>(H * 7 + T));
  one.run(1);
  const double eps = 1e-5, tolerance = 2e-8;
  for (int64_t row = 0; row < B; ++row) {
    for (int64_t u = 0; u < H; ++u) {
      double total = one.state[row * one.width + u] * one.d_state[row * one.width + u];
      for (int64_t t = 0; t < T; ++t)
        total += one.y[(row * T + t) * one.width + u] * one.d_y[(row * T + t) * one.width + u];
      CHECK_NEAR(total, one.value(row, u, -1, 0), 1e-11);
      auto slope = [&](int64_t changed) {
        return (one.value(row, u, changed, eps) - one.value(row, u, changed, -eps)) / (2 * eps);
      };
      CHECK_NEAR(one.d_start[row * one.width + u], slope(0), tolerance);
      if (rules.has_resets) CHECK_NEAR(one.d_initial[row * one.width + u], slope(1), tolerance);
      if (gates == Gates::rglru) CHECK_NEAR(one.d_rates[row * one.width + u], slope(2), tolerance);
      for (int64_t i = 0; i < T * one.n_inputs; ++i)
        CHECK_NEAR(one.d_inputs[(row * T * one.n_inputs + i) * one.width + u], slope(3 + i), tolerance);
    }
    for (int64_t i = 0; i < T; ++i)
      for (int64_t u = H; u < one.width; ++u) CHECK(std::isnan(one.y[(row * T + i) * one.width + u]));
    for (int64_t u = H; u < one.width; ++u) {
      CHECK(std::isnan(one.state[row * one.width + u]));
      CHECK(std::isnan(one.d_start[row * one.width + u]));
    }
  }
}

template <typename real>
bool same(const std::vector<real>& one, const std::vector<real>& other) {
  return one.size() == other.size() && std::memcmp(one.data(), other.data(), one.size() * sizeof(real)) == 0;
}

template <typename real>
void check_threads() {
  for (int gates = 0; gates < kNGates; ++gates) {
    // More than the smallest work that is split, and units in several blocks.
    Case<real> one(static_cast<Gates>(gates), 3, 40, 200, {true, true, false, false}, 5);
    one.run(1);
    const auto y = one.y, state = one.state, d_inputs = one.d_inputs, d_start = one.d_start,
               d_rate = one.d_rate;
    for (int n_threads : {2, 3, 8}) {
      one.run(n_threads);
      CHECK(same(one.y, y) && same(one.state, state) && same(one.d_inputs, d_inputs) &&
            same(one.d_start, d_start));
      CHECK(static_cast<Gates>(gates) != Gates::rglru || same(one.d_rate, d_rate));
    }
  }
}

}  // namespace

TEST(scan_outputs_and_gradients_are_those_of_the_equations) {
  testing::on_every_isa([] {
    for (int gates = 0; gates < kNGates; ++gates)
      for (int rules = 0; rules < 16; ++rules)
        check(static_cast<Gates>(gates), 2, 5, 3,
              {(rules & 1) != 0, (rules & 2) != 0, (rules & 4) != 0, (rules & 8) != 0});
  });
}

TEST(scan_of_every_width_stays_inside_its_rows) {
  testing::on_every_isa([] {
    for (int gates = 0; gates < kNGates; ++gates)
      for (int64_t H = 1; H <= 19; ++H) check(static_cast<Gates>(gates), 1, 2, H, {});
  });
}

TEST(scan_of_nothing_is_its_start) {
  Case<float> one(Gates::linear, 2, 0, 5, {}, 1);
  one.run(2);
  for (int64_t row = 0; row < 2; ++row)
    for (int64_t u = 0; u < 5; ++u) {
      CHECK(one.state[row * one.width + u] == one.start[row * one.width + u]);
      CHECK(one.d_start[row * one.width + u] == one.d_state[row * one.width + u]);
    }
}

TEST(scan_has_the_same_bits_on_any_number_of_threads) {
  testing::on_every_isa([] {
    check_threads<float>();
    check_threads<double>();
  });
}
