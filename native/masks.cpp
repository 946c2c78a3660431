// Random masks for one instruction set.
#include "masks.h"

#include "vector.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

constexpr int W = kLanes<float>;
constexpr int64_t kBlock = 1024;  // units whose words are kept at a time

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// Of one word as of a vector of them.
template <typename T>
OSTINATO_INLINE T mix(T x) {
  x = (x ^ (x >> 16)) * 0x21F0AAADu;
  x = (x ^ (x >> 15)) * 0x735A2D97u;
  return x ^ (x >> 15);
}

// Hashes both halves of a number into a word.
template <typename T>
OSTINATO_INLINE T absorb(T seed, T low, uint32_t high) {
  return mix(mix((seed ^ low) + 0x9E3779B9u) ^ high);
}

// Two words of a number's hash, of which a unit's word is made: with one, 2^16 places would begin to share masks.
struct Pair {
  uint32_t one, other;

  OSTINATO_INLINE void absorb_number(int64_t value) {
    const uint32_t low = static_cast<uint32_t>(value), high = static_cast<uint32_t>(static_cast<uint64_t>(value) >> 32);
    one = absorb(one, low, high);
    other = absorb(other, low, high);
  }
};

template <typename real>
OSTINATO_INLINE void store_choice(real* to, VectorFI is_kept, real dropped, real kept, int64_t n) {
  typedef real Values __attribute__((vector_size(W * sizeof(real))));
  typedef decltype(Values{} == Values{}) Choice;
  const Values chosen = __builtin_convertvector(is_kept, Choice) ? kept - Values{} : dropped - Values{};
  std::memcpy(to, &chosen, (n < W ? n : W) * sizeof(real));
}

// Units [first, first + n) of one place.
template <typename real>
void draw_units(const Pair& words, const uint32_t* units, int64_t n, uint32_t threshold, real dropped, real kept,
                real* to) {
  for (int64_t u = 0; u < n; u += W) {
    Words unit;
    std::memcpy(&unit, units + u, sizeof unit);
    const Words bits = mix(mix(unit ^ words.one) ^ words.other);
    const VectorFI is_kept = (VectorFI)(bits >= threshold);
    if (n - u >= W)
      store_choice(to + u, is_kept, dropped, kept, W);
    else
      store_choice(to + u, is_kept, dropped, kept, n - u);
  }
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
      const Words word = absorb(seed, lanes + static_cast<uint32_t>(unit), static_cast<uint32_t>(unit >> 32));
      std::memcpy(units + u, &word, sizeof word);
    }
    for (int64_t b = 0; b < draw.B; ++b) {
      Pair of_row{0x2545F491u, 0x6C8E9CF5u}, of_episode{};
      of_row.absorb_number(draw.key.at(b, 0));
      of_row.absorb_number(draw.rows.at(b, 0));
      int64_t episode = 0;
      for (int64_t t = 0; t < draw.T; ++t) {
        const int64_t now = draw.episodes.at(b, t);
        if (t == 0 || now != episode) {
          episode = now;
          of_episode = of_row;
          of_episode.absorb_number(episode);
        }
        Pair words = of_episode;
        words.absorb_number(draw.times.at(b, t));
        draw_units(words, units, n, static_cast<uint32_t>(draw.threshold), dropped, kept,
                   static_cast<real*>(draw.out) + b * draw.out_row + t * draw.out_step + first);
      }
    }
  }
}

constexpr MaskKernels kTable = {run<uint8_t>, run<float>, run<double>};

}  // namespace

const MaskKernels* mask_kernels() { return &kTable; }

}  // namespace OSTINATO_ISA
}  // namespace ostinato
