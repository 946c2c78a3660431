// Random masks for one instruction set.
#include "masks.h"

#include <initializer_list>
#include <type_traits>

#include "vector.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

constexpr int W = kLanes<float>;
constexpr int64_t kBlock = 1024;  // units whose words are kept at a time

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

OSTINATO_INLINE Words load_words(const uint32_t* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

// Of one word as of a vector of them.
template <typename T>
OSTINATO_INLINE T mix(T x) {
  x = (x ^ (x >> 16)) * 0x21F0AAADu;
  x = (x ^ (x >> 15)) * 0x735A2D97u;
  return x ^ (x >> 15);
}

// Hashes both halves of a number into a word.
template <typename T>
OSTINATO_INLINE T absorb(T seed, T low, T high) {
  return mix(mix((seed ^ low) + 0x9E3779B9u) ^ high);
}

// Two words of a place's hash, of which a unit's word is made: with one, 2^16 places would begin to share masks.
template <typename T>
struct Pair {
  T one, other;

  OSTINATO_INLINE void absorb_halves(T low, T high) {
    one = absorb(one, low, high);
    other = absorb(other, low, high);
  }
};

struct Halves {
  uint32_t low, high;

  explicit Halves(int64_t number)
      : low(static_cast<uint32_t>(number)), high(static_cast<uint32_t>(static_cast<uint64_t>(number) >> 32)) {}
};

// The numbers of row b at times [t, t + n), n <= W.
OSTINATO_INLINE void absorb_times(Pair<Words>& words, const MaskNumbers& numbers, int64_t b, int64_t t, int64_t n) {
  uint32_t low[W] = {}, high[W] = {};
  for (int64_t i = 0; i < n; ++i) {
    const Halves halves(numbers.at(b, t + i));
    low[i] = halves.low;
    high[i] = halves.high;
  }
  words.absorb_halves(load_words(low), load_words(high));
}

// One of two values by lane; those of bytes are made as words, which become narrower after the choice.
template <typename real>
OSTINATO_INLINE void store_choice(real* to, VectorFI is_kept, real dropped, real kept, int64_t n) {
  using wide = typename std::conditional<sizeof(real) == 1, uint32_t, real>::type;
  typedef wide Values __attribute__((vector_size(W * sizeof(wide))));
  typedef real Narrow __attribute__((vector_size(W * sizeof(real))));
  typedef decltype(Values{} == Values{}) Choice;
  const Values values = __builtin_convertvector(is_kept, Choice) ? wide(kept) - Values{} : wide(dropped) - Values{};
  const Narrow chosen = __builtin_convertvector(values, Narrow);
  std::memcpy(to, &chosen, (n < W ? n : W) * sizeof(real));
}

// Units [first, first + n) of one place.
template <typename real>
void draw_units(uint32_t one, uint32_t other, const uint32_t* units, int64_t n, uint32_t threshold, real dropped,
                real kept, real* to) {
  const auto draw = [&](int64_t u, int64_t n_units) {
    const Words bits = mix(mix(load_words(units + u) ^ one) ^ other);
    store_choice(to + u, (VectorFI)(bits >= threshold), dropped, kept, n_units);
  };
  int64_t u = 0;
  for (; u + W <= n; u += W) draw(u, W);
  if (u < n) draw(u, n - u);
}

template <typename real>
void fill(const MaskDraw& draw, real value) {
  for (int64_t b = 0; b < draw.B; ++b)
    for (int64_t t = 0; t < draw.T; ++t) {
      real* to = static_cast<real*>(draw.out) + b * draw.out_row + t * draw.out_step;
      for (int64_t u = 0; u < draw.width; ++u) to[u] = value;
    }
}

template <typename real>
void run(const MaskDraw& draw, real dropped, real kept) {
  if (draw.threshold >> 32 || draw.threshold == 0) return fill(draw, draw.threshold ? dropped : kept);
  alignas(64) uint32_t units[kBlock];
  Words lanes;
  for (int i = 0; i < W; ++i) lanes[i] = static_cast<uint32_t>(i);
  for (int64_t first = 0; first < draw.width; first += kBlock) {
    const int64_t n = draw.width - first < kBlock ? draw.width - first : kBlock;
    const Words seed = (0x632BE5ABu ^ draw.stream) + Words{};
    for (int64_t u = 0; u < n; u += W) {
      // Whole vectors lie on one side of a multiple of 2^32.
      const uint64_t unit = static_cast<uint64_t>(first + u);
      const Words word = absorb(seed, lanes + static_cast<uint32_t>(unit), static_cast<uint32_t>(unit >> 32) + Words{});
      std::memcpy(units + u, &word, sizeof word);
    }
    for (int64_t b = 0; b < draw.B; ++b) {
      Pair<uint32_t> of_row{0x2545F491u, 0x6C8E9CF5u};
      for (const MaskNumbers* numbers : {&draw.key, &draw.rows}) {
        const Halves halves(numbers->at(b, 0));
        of_row.absorb_halves(halves.low, halves.high);
      }
      for (int64_t t = 0; t < draw.T; t += W) {
        const int64_t n_times = draw.T - t < W ? draw.T - t : W;
        Pair<Words> words{of_row.one + Words{}, of_row.other + Words{}};
        absorb_times(words, draw.episodes, b, t, n_times);
        absorb_times(words, draw.times, b, t, n_times);
        uint32_t one[W], other[W];
        std::memcpy(one, &words.one, sizeof one);
        std::memcpy(other, &words.other, sizeof other);
        real* to = static_cast<real*>(draw.out) + b * draw.out_row + t * draw.out_step + first;
        for (int64_t i = 0; i < n_times; ++i)
          draw_units(one[i], other[i], units, n, static_cast<uint32_t>(draw.threshold), dropped, kept,
                     to + i * draw.out_step);
      }
    }
  }
}

constexpr MaskKernels kTable = {run<uint8_t>, run<float>, run<double>};

}  // namespace

const MaskKernels* mask_kernels() { return &kTable; }

}  // namespace OSTINATO_ISA
}  // namespace ostinato
