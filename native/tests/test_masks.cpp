// Random masks against the hash as one writes it for one element, on every instruction set.
#include <cstring>
#include <random>
#include <vector>

#include "every_isa.h"
#include "masks.h"
#include "testing.h"

using namespace ostinato;

namespace {

uint64_t mix(uint64_t x) {
  x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF;
  x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF;
  return x ^ (x >> 15);
}

uint64_t absorb(uint64_t seed, int64_t value) {
  const uint64_t bits = static_cast<uint64_t>(value);
  const uint64_t low = mix(((seed ^ (bits & 0xFFFFFFFF)) + 0x9E3779B9) & 0xFFFFFFFF);
  return mix(low ^ (bits >> 32));
}

uint64_t place(uint64_t salt, int64_t key, int64_t row, int64_t episode, int64_t t) {
  return absorb(absorb(absorb(absorb(salt, key), row), episode), t);
}

struct Case {
  int64_t B, T, width;
  uint64_t threshold;
  bool is_time_major, one_episode;
};

template <typename real>
void check(const Case& c, void (*run)(const MaskDraw&, real, real), real dropped, real kept) {
  std::mt19937_64 random(7);
  std::vector<int64_t> key(c.B), row(c.B), t(c.B * c.T), episode(c.B * (c.one_episode ? 1 : c.T));
  for (auto* numbers : {&key, &row, &t}) for (int64_t& number : *numbers) number = static_cast<int64_t>(random());
  for (int64_t& number : episode) number = static_cast<int64_t>(random() % 2) - 1;
  const int64_t gap = 3, stride = c.width + gap;
  const real untouched = 77;
  std::vector<real> out(c.B * c.T * stride, untouched);
  const int64_t out_row = c.is_time_major ? stride : c.T * stride, out_step = c.is_time_major ? c.B * stride : stride;
  const uint32_t stream = 12345;
  run({c.B, c.T, c.width, {key.data(), 1, 0}, {row.data(), 1, 0}, {t.data(), c.T, 1},
       {episode.data(), c.one_episode ? 1 : c.T, c.one_episode ? 0 : 1}, stream, c.threshold, out.data(), out_row,
       out_step}, dropped, kept);
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t s = 0; s < c.T; ++s) {
      const real* found = out.data() + b * out_row + s * out_step;
      const int64_t now = episode[c.one_episode ? b : b * c.T + s], time = t[b * c.T + s];
      const uint64_t one = place(0x2545F491, key[b], row[b], now, time);
      const uint64_t other = place(0x6C8E9CF5, key[b], row[b], now, time);
      int64_t n_wrong = 0;
      for (int64_t u = 0; u < c.width; ++u) {
        const uint64_t bits = mix(mix(one ^ absorb(0x632BE5AB ^ stream, u)) ^ other);
        n_wrong += found[u] != (bits >= c.threshold ? kept : dropped);
      }
      CHECK(n_wrong == 0);
      for (int64_t u = c.width; u < stride; ++u) CHECK(found[u] == untouched);
    }
}

}  // namespace

TEST(masks_equal_the_hash_of_each_element) {
  testing::on_every_isa([] {
    for (int64_t width : {1, 2, 7, 15, 16, 17, 31, 40, 64, 1023, 1024, 1025, 2100})
      for (uint64_t threshold : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 30, uint64_t{3} << 30, (uint64_t{1} << 32) - 1,
                                 uint64_t{1} << 32})
        for (int variant = 0; variant < 4; ++variant) {
          const Case c{3, 5, width, threshold, variant % 2 == 1, variant / 2 == 1};
          check<uint8_t>(c, mask_kernels()->of_bytes, 0, 1);
          check<float>(c, mask_kernels()->of_float, 0, 1.25f);
          check<double>(c, mask_kernels()->of_double, 1, 0);
        }
  });
}

TEST(masks_of_no_row_no_step_and_no_unit_write_nothing) {
  testing::on_every_isa([] {
    for (const Case& c : {Case{0, 5, 8, 1, false, true}, Case{2, 0, 8, 1, false, false}, Case{2, 3, 0, 1, true, true}})
      check<float>(c, mask_kernels()->of_float, 0, 1);
  });
}
