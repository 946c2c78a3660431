// Sessions beside the recurrence kernels' run over the whole sequence, bit by bit, on every instruction set: frames,
// ragged chunks, rows alone, threads. Inputs and outputs are heap blocks of exactly their size, for the sanitizers.
#include "session.h"

#include <cstring>
#include <random>
#include <vector>

#include "driver.h"
#include "schedule.h"
#include "every_isa.h"
#include "testing.h"

using namespace ostinato;

namespace {

struct Stack {
  std::vector<SessionLayer> layers;
  std::vector<std::vector<std::vector<float>>> values;  // of each layer, in the order of Weights
  std::vector<Weights> weights;

  void add(Cell cell, int64_t D, int64_t H, const char* options, WeightFormat format, std::mt19937& random) {
    const auto has = [&](char flag) { return std::strchr(options, flag) != nullptr; };
    Layer layer{};
    layer.cell = cell, layer.D = D, layer.H = H, layer.P = has('j') ? (H + 1) / 2 : H;
    layer.reset_before = has('b'), layer.norm = has('n'), layer.peephole = has('p'), layer.projected = has('j');
    layer.gates = cell == Cell::rnn ? 1 : cell == Cell::gru ? 3 : 4;
    layer.zoneout_h = has('z') ? 0.1 : 0;
    const int64_t G = layer.gates * H, P = layer.P;
    const int64_t sizes[10] = {G * D, G * P, G, G, has('j') ? P * H : 0, has('p') ? 3 * H : 0, has('n') ? G : 0,
                               has('n') ? G : 0, has('n') && cell == Cell::lstm ? H : 0,
                               has('n') && cell == Cell::lstm ? H : 0};
    std::uniform_real_distribution<float> uniform(-0.4f, 0.4f);
    std::vector<std::vector<float>> all;
    for (int64_t size : sizes) {
      all.emplace_back(static_cast<size_t>(size));
      for (float& value : all.back()) value = uniform(random);
    }
    layers.push_back({layer, format, has('r') && D == P});
    values.push_back(std::move(all));
  }

  void finish() {
    for (const auto& all : values) {
      const void* at[10];
      for (size_t i = 0; i < 10; ++i) at[i] = all[i].empty() ? nullptr : all[i].data();
      weights.push_back({at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], at[8], at[9]});
    }
  }
};

std::vector<float> draw(int64_t n, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(random);
  return values;
}

// Layer after layer over the whole sequence, from a state of zeros.
std::vector<float> whole_run(const Stack& stack, const std::vector<float>& x, int64_t B, int64_t T) {
  const Kernels& kernels = recurrence_kernels()->of_float;
  const Schedule schedule(B, T, nullptr, nullptr, false);
  std::vector<float> now = x;
  for (size_t i = 0; i < stack.layers.size(); ++i) {
    const Layer& layer = stack.layers[i].layer;
    Buffer packed(kernels.forward_bytes(layer));
    kernels.pack_forward(layer, stack.weights[i], packed.data());
    std::vector<float> y(static_cast<size_t>(B * T * layer.P)), h(static_cast<size_t>(B * layer.P)), h_final = h,
        c(static_cast<size_t>(B * layer.H)), c_final = c;
    Forward call{};
    call.packed = packed.data(), call.x = now.data(), call.x_row = T * layer.D, call.x_step = layer.D;
    call.h0 = h.data(), call.h_final = h_final.data(), call.y = y.data();
    if (layer.cell == Cell::lstm) call.c0 = c.data(), call.c_final = c_final.data();
    run_forward(kernels, layer, schedule.steps(), call, 1);
    if (stack.layers[i].adds_input)
      for (size_t k = 0; k < y.size(); ++k) y[k] += now[k];
    now = std::move(y);
  }
  return now;
}

// The same in chunks of 1, 2, 3, … steps, or of one.
std::vector<float> streamed(Session& session, const std::vector<float>& x, int64_t T, bool by_frames, int n_threads) {
  const int64_t B = session.B(), D = session.D(), P = session.P();
  std::vector<float> y(static_cast<size_t>(B * T * P));
  for (int64_t t = 0, n = 1; t < T; t += n, n = by_frames ? 1 : n + 1) {
    n = n < T - t ? n : T - t;
    std::vector<float> chunk(static_cast<size_t>(B * n * P));
    session.push(x.data() + t * D, T * D, D, n, chunk.data(), n_threads);
    for (int64_t b = 0; b < B; ++b)
      std::memcpy(y.data() + (b * T + t) * P, chunk.data() + b * n * P, static_cast<size_t>(n * P) * sizeof(float));
  }
  return y;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST(session_has_the_bits_of_a_whole_run) {
  testing::on_every_isa([] {
    std::mt19937 random(7);
    for (Cell cell : {Cell::rnn, Cell::lstm, Cell::gru})
      for (const char* options : {"", "r", "n", "z", "pj", "b"})
        for (int64_t B : {1, 3, 9}) {
          if ((*options == 'p' && cell != Cell::lstm) || (*options == 'b' && cell != Cell::gru)) continue;
          Stack stack;
          stack.add(cell, 5, 19, options, WeightFormat::real, random);
          stack.add(cell, stack.layers[0].layer.P, stack.layers[0].layer.P, options, WeightFormat::real, random);
          stack.finish();
          const int64_t T = 17;
          const std::vector<float> x = draw(B * T * 5, random), expected = whole_run(stack, x, B, T);
          Session frames(stack.layers, stack.weights, false, B), chunks(stack.layers, stack.weights, false, B);
          CHECK(same(streamed(frames, x, T, true, 1), expected));
          CHECK(same(streamed(chunks, x, T, false, 2), expected));
        }
  });
}

TEST(session_on_threads_has_the_same_bits) {
  std::mt19937 random(8);
  for (Cell cell : {Cell::rnn, Cell::lstm, Cell::gru})
    for (WeightFormat format : {WeightFormat::real, WeightFormat::bfloat16, WeightFormat::int8}) {
      Stack stack;
      stack.add(cell, 40, 301, "", format, random);
      stack.add(cell, 301, 301, "r", format, random);
      stack.finish();
      for (int64_t B : {1, 6}) {
        const std::vector<float> x = draw(B * 5 * 40, random);
        Session one(stack.layers, stack.weights, false, B), two(stack.layers, stack.weights, false, B);
        CHECK(same(streamed(one, x, 5, true, 1), streamed(two, x, 5, false, 2)));
      }
    }
}

TEST(session_rows_are_independent_and_states_move) {
  testing::on_every_isa([] {
    std::mt19937 random(9);
    for (WeightFormat format : {WeightFormat::real, WeightFormat::bfloat16, WeightFormat::int8}) {
      Stack stack;
      stack.add(Cell::lstm, 7, 21, "", format, random);
      stack.finish();
      const int64_t B = 11, T = 6, D = 7, H = 21;
      const std::vector<float> x = draw(B * T * D, random);
      Session all(stack.layers, stack.weights, false, B), one(stack.layers, stack.weights, false, 1);
      std::vector<float> y(static_cast<size_t>(B * H)), h(H), c(H), alone(H);
      for (int64_t t = 0; t < T; ++t) {
        const int64_t b = t % B;
        all.read_state(0, b, b + 1, h.data(), c.data());
        one.write_state(0, 0, 1, h.data(), c.data());
        all.push(x.data() + t * D, T * D, 0, 1, y.data(), 1);
        one.push(x.data() + (b * T + t) * D, D, 0, 1, alone.data(), 1);
        CHECK(std::memcmp(alone.data(), y.data() + b * H, H * sizeof(float)) == 0);
      }
    }
  });
}
