#include "program.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "testing.h"

using namespace ostinato;

namespace {

constexpr int64_t kH = 19;

Operand operand(int64_t buffer, int64_t s2, int64_t offset = 0) { return {buffer, offset, {0, 0, s2}}; }

Instruction elementwise(Operator op, int64_t n_inputs, Operand to, Operand a, Operand b = {-1, 0, {}},
                        Operand c = {-1, 0, {}}) {
  return {static_cast<int64_t>(op), n_inputs, 0, {1, 1, kH, 1}, 0.0, {to, a, b, c}};
}

// h' = tanh(x W + u h), y = h'; W (H, H) and u are constants, rows are H wide.
struct Example {
  std::vector<Instruction> instructions;
  std::vector<Segment> segments;
  std::vector<Buffer> buffers;
  std::vector<StepSeries> inputs, outputs;
  std::vector<Pack> packs;
  std::vector<int64_t> leaf_widths{kH};
  Program program{};

  Example() {
    const int64_t stride = 32;
    buffers = {{static_cast<int64_t>(Scope::chunk), stride, 0},           // 0: x
               {static_cast<int64_t>(Scope::chunk), stride, stride},      // 1: x W
               {static_cast<int64_t>(Scope::constant), 0, 1},             // 2: u
               {static_cast<int64_t>(Scope::state), stride, 0},           // 3: h
               {static_cast<int64_t>(Scope::next), stride, 0},            // 4: h'
               {static_cast<int64_t>(Scope::strip), stride, 0},           // 5
               {static_cast<int64_t>(Scope::chunk), stride, 2 * stride}}; // 6: y
    Instruction product = elementwise(Operator::matmul, 3, {1, 0, {0, 1, 0}}, {0, 0, {0, 1, 0}}, {-1, 0, {}}, {0, 0, {}});
    product.size[0] = 1, product.size[1] = kH, product.size[2] = kH, product.size[3] = 0;
    instructions = {product,
                    elementwise(Operator::mul_add, 3, operand(5, 1), operand(2, 1), operand(3, 1), operand(1, 1)),
                    elementwise(Operator::tanh, 1, operand(6, 1), operand(5, 1)),
                    elementwise(Operator::copy, 1, operand(4, 1), operand(6, 1))};
    segments = {{0, 0, 1, 1}, {1, 1, 4, 0}};
    inputs = {{kH, 0}};
    outputs = {{kH, 6}};
    packs = {{0, 0, kH, kH, kH, 1, 0}};
    program.instructions = instructions.data();
    program.segments = segments.data();
    program.buffers = buffers.data();
    program.inputs = inputs.data();
    program.outputs = outputs.data();
    program.packs = packs.data();
    program.leaf_widths = leaf_widths.data();
    program.n_instructions = 4, program.n_segments = 2, program.n_buffers = 7;
    program.n_inputs = program.n_outputs = program.n_packs = program.n_leaves = 1;
    program.strip_width = stride, program.chunk_width = 3 * stride;
  }
};

struct Result {
  std::vector<float> y, h;
};

Result run(const Example& example, int64_t B, int64_t T, int64_t tile_rows, int64_t chunk_rows, bool is_ragged) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 0.5f);
  const auto draw = [&](int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = normal(random);
    return values;
  };
  std::vector<float> W = draw(kH * kH), u = draw(kH), x = draw(B * T * kH), start = draw(B * kH), initial = draw(B * kH);
  std::vector<uint8_t> mask(static_cast<size_t>(B * T)), resets(static_cast<size_t>(B * T));
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = random() % 3 != 0, resets[i] = random() % 7 == 0;
  Result result{std::vector<float>(static_cast<size_t>(B * T * kH)), std::vector<float>(static_cast<size_t>(B * kH))};
  const void* constants[] = {W.data(), u.data()};
  std::vector<float> packed(kH * 64);
  const ProgramKernels& kernels = *program_kernels();
  kernels.pack[0](example.program, constants, packed.data());
  const Strided in{x.data(), T * kH, kH}, out{result.y.data(), T * kH, kH};
  const Leaf leaf{start.data(), initial.data(), result.h.data(), nullptr, {nullptr, 0, 0}};
  ProgramRun call{};
  call.B = B, call.T = T, call.tile_rows = tile_rows, call.chunk_rows = chunk_rows, call.tiles_of_group = 1;
  call.mask = is_ragged ? mask.data() : nullptr;
  call.resets = is_ragged ? resets.data() : nullptr;
  call.constants = constants;
  call.packed = packed.data();
  call.inputs = &in;
  call.outputs = &out;
  call.leaves = &leaf;
  const int64_t bytes = kernels.scratch_bytes[0](example.program, call);
  std::vector<char> memory(static_cast<size_t>(bytes + 64));
  char* scratch = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  for (int64_t group = 0; group < call.n_groups(); ++group) kernels.run_group[0](example.program, call, group, scratch);

  // The same by hand, into what the test compares with.
  std::vector<float> h = start;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t) {
      if (is_ragged && resets[static_cast<size_t>(b * T + t)])
        std::memcpy(&h[static_cast<size_t>(b * kH)], &initial[static_cast<size_t>(b * kH)], kH * sizeof(float));
      if (is_ragged && !mask[static_cast<size_t>(b * T + t)]) continue;
      for (int64_t j = 0; j < kH; ++j) {
        double a = 0;
        for (int64_t k = 0; k < kH; ++k) a += double(x[static_cast<size_t>((b * T + t) * kH + k)]) * W[static_cast<size_t>(k * kH + j)];
        float& now = h[static_cast<size_t>(b * kH + j)];
        now = static_cast<float>(std::tanh(a + double(u[static_cast<size_t>(j)]) * now));
        CHECK_NEAR(result.y[static_cast<size_t>((b * T + t) * kH + j)], now, 3e-6);
      }
    }
  for (size_t i = 0; i < h.size(); ++i) CHECK_NEAR(result.h[i], h[i], 3e-6);
  return result;
}

bool is_equal(const Result& one, const Result& other) { return one.y == other.y && one.h == other.h; }

}  // namespace

TEST(program_equals_its_equations_whatever_the_tiles_and_chunks) {
  const Example example;
  for (int64_t B : {1, 7, 33})
    for (int64_t T : {1, 13}) {
      const Result first = run(example, B, T, 1, 1, false), ragged = run(example, B, T, 1, 1, true);
      for (int64_t tile_rows : {2, 8, 32})
        for (int64_t chunk_rows : {32, 100, 500}) {
          CHECK(is_equal(first, run(example, B, T, tile_rows, chunk_rows, false)));
          CHECK(is_equal(ragged, run(example, B, T, tile_rows, chunk_rows, true)));
        }
    }
}
