// One step of a plain layer for one instruction set: a few rows, the weights read once and in order.
#include "stream.h"

#include "cell_math.h"
#include "pack.h"
#include "stream_weights.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

// A tile of R rows by NB blocks from x and h to the new state, in registers.
template <typename real, Cell kCell, WeightFormat kFormat>
struct StreamTile {
  static constexpr int G = kCell == Cell::rnn ? 1 : kCell == Cell::lstm ? 4 : 3;
  static constexpr int W = kLanes<real>;
  const Layer& layer;
  const StreamStep& call;
  const PackedStream<real> packed;
  const int64_t Hp;

  StreamTile(const Layer& l, const StreamStep& s)
      : layer(l), call(s), packed(l, kFormat, s.packed), Hp(padded<real>(l.H)) {}

  // tile += rows · the weights of blocks [block, block + NB).
  template <int R, int NB>
  OSTINATO_INLINE void add_product(Tile<real, R, NB * G>& tile, const real* const* rows, const char* weights,
                                   int64_t block, int64_t K) {
    if constexpr (kFormat == WeightFormat::real) {
      const int64_t stride = K * G * W;
      accumulate<real, R, NB, G>(tile, rows, reinterpret_cast<const real*>(weights) + block * stride, stride, K);
    } else {
      accumulate_format<kFormat, R, NB, G>(tile, rows, weights + block * block_bytes(kFormat, K, G), K);
    }
  }

  // tile[r][nb·G + g] for gates [first, end) = row of (G, Hp).
  template <int R, int NB>
  OSTINATO_INLINE void start(Tile<real, R, NB * G>& tile, const real* from, int64_t block, int first, int end) {
    for (int nb = 0; nb < NB; ++nb)
      for (int g = first; g < end; ++g) {
        const Vector<real> v = load(from + g * Hp + (block + nb) * W);
        for (int r = 0; r < R; ++r) tile.at[r][nb * G + g] = v;
      }
  }

  // sums = scale · sums + base, where `base` has one row of (G, Hp) or, being null, the tile `on`.
  template <int R, int NB>
  OSTINATO_INLINE void rescale(Tile<real, R, NB * G>& sums, const real* scales, const Tile<real, R, NB * G>& on,
                               int64_t block) {
    for (int nb = 0; nb < NB; ++nb)
      for (int g = 0; g < G; ++g) {
        const Vector<real> scale = load(scales + g * Hp + (block + nb) * W);
        for (int r = 0; r < R; ++r)
          sums.at[r][nb * G + g] = fma(scale, sums.at[r][nb * G + g], on.at[r][nb * G + g]);
      }
  }

  template <int R, int NB>
  __attribute__((noinline)) void run(int64_t row, int64_t block) {
    const real *x_rows[R], *h_rows[R];
    for (int r = 0; r < R; ++r) {
      x_rows[r] = as<real>(call.x) + (row + r) * call.x_row;
      h_rows[r] = as<real>(call.h_before) + (row + r) * Hp;
    }
    Tile<real, R, NB * G> tile;
    [[maybe_unused]] Vector<real> input_n[R][NB];
    if constexpr (kFormat == WeightFormat::int8) {
      Tile<real, R, NB * G> base;
      start<R, NB>(base, packed.bias, block, 0, G);
      tile.clear();
      add_product<R, NB>(tile, x_rows, packed.ih, block, layer.D);
      rescale<R, NB>(tile, packed.scale_ih, base, block);
      base = tile;
      if constexpr (kCell == Cell::gru) split_n<R, NB>(base, input_n, block);
      tile.clear();
      add_product<R, NB>(tile, h_rows, packed.hh, block, layer.P);
      rescale<R, NB>(tile, packed.scale_hh, base, block);
    } else {
      start<R, NB>(tile, packed.bias, block, 0, G);
      add_product<R, NB>(tile, x_rows, packed.ih, block, layer.D);
      if constexpr (kCell == Cell::gru) split_n<R, NB>(tile, input_n, block);
      add_product<R, NB>(tile, h_rows, packed.hh, block, layer.P);
    }
    for (int r = 0; r < R; ++r)
      for (int nb = 0; nb < NB; ++nb)
        finish(&tile.at[r][nb * G], input_n[r][nb], row + r, (block + nb) * W, x_rows[r]);
  }

  // gru: the input's sum of n is set aside, because the reset gate multiplies the recurrent one alone.
  template <int R, int NB>
  OSTINATO_INLINE void split_n(Tile<real, R, NB * G>& tile, Vector<real> (&input_n)[R][NB], int64_t block) {
    for (int r = 0; r < R; ++r)
      for (int nb = 0; nb < NB; ++nb) input_n[r][nb] = tile.at[r][nb * G + 2];
    start<R, NB>(tile, packed.bias_hh, block, 2, 3);
  }

  // From the sums of W units before the activation to the new state.
  OSTINATO_INLINE void finish(const Vector<real>* a, [[maybe_unused]] Vector<real> input_n, int64_t row, int64_t u,
                              const real* x) {
    const int64_t at = row * Hp + u;
    Vector<real> h;
    if constexpr (kCell == Cell::rnn) {
      h = rnn_activation<real>(a[0], layer.relu);
    } else if constexpr (kCell == Cell::lstm) {
      real* c = as<real>(call.c) + at;
      const LstmStep<real> now(a[0], a[1], a[2], a[3], load(c));
      h = now.h;
      store(c, now.c);
    } else {
      h = GruStep<real>(a[0], a[1], input_n, a[2], load(as<real>(call.h_before) + at)).h;
    }
    store(as<real>(call.h_after) + at, h);
    if (!call.y) return;
    const int64_t n = layer.H - u;
    if (call.adds_input) h += load_part(x + u, n);
    store_part(as<real>(call.y) + row * call.y_row + u, h, n);
  }
};

// All rows of the call by blocks [block, block + NB): tiles of R rows, the rest in halves.
template <int R, int NB, typename Body>
OSTINATO_INLINE void stream_rows(Body& body, int64_t row, int64_t block) {
  for (; row + R <= body.call.row_end; row += R) body.template run<R, NB>(row, block);
  if constexpr (R > 1)
    if (row < body.call.row_end) stream_rows<R / 2, NB>(body, row, block);
}

template <int R, int NB, typename Body>
void stream_blocks(Body& body, int64_t block) {
  const int64_t end = body.call.block_end;
  for (; block + NB <= end; block += NB) stream_rows<R, NB>(body, body.call.row, block);
  if constexpr (NB > 1)
    if (block < end) stream_blocks<R, NB / 2>(body, block);
}

template <typename real, Cell kCell, WeightFormat kFormat>
void step_of(const Layer& layer, const StreamStep& call) {
  using Body = StreamTile<real, kCell, kFormat>;
  Body body(layer, call);
  const int64_t n = call.row_end - call.row;
  if (n == 1)
    stream_blocks<1, blocks_of_tile<real>(1, Body::G)>(body, call.block);
  else if (n < 4)
    stream_blocks<2, blocks_of_tile<real>(2, Body::G)>(body, call.block);
  else
    stream_blocks<4, blocks_of_tile<real>(4, Body::G)>(body, call.block);
}

template <typename real, WeightFormat kFormat>
void step_of_cell(const Layer& layer, const StreamStep& call) {
  switch (layer.cell) {
    case Cell::rnn:
      return step_of<real, Cell::rnn, kFormat>(layer, call);
    case Cell::lstm:
      return step_of<real, Cell::lstm, kFormat>(layer, call);
    default:
      return step_of<real, Cell::gru, kFormat>(layer, call);
  }
}

template <typename real>
void step(const Layer& layer, WeightFormat format, const StreamStep& call) {
  if constexpr (sizeof(real) == 4) {
    if (format == WeightFormat::bfloat16) return step_of_cell<real, WeightFormat::bfloat16>(layer, call);
    if (format == WeightFormat::int8) return step_of_cell<real, WeightFormat::int8>(layer, call);
  }
  step_of_cell<real, WeightFormat::real>(layer, call);
}

template <typename real>
int64_t packed_bytes(const Layer& layer, WeightFormat format) {
  return PackedStream<real>(layer, format, nullptr).bytes;
}

template <typename real>
void pack(const Layer& layer, const Weights& w, WeightFormat format, void* base) {
  if (format == WeightFormat::real || sizeof(real) != 4) return pack_forward<real>(layer, w, base);
  const PackedStream<float> packed(layer, format, base);
  pack_format(format, as<float>(w.weight_ih), layer.H, layer.D, layer.gates, packed.ih, packed.scale_ih);
  pack_format(format, as<float>(w.weight_hh), layer.H, layer.P, layer.gates, packed.hh, packed.scale_hh);
  pack_biases<float>(layer, w, packed.bias, packed.bias_hh);
}

template <typename real>
constexpr StreamKernels kStream = {kLanes<real>, packed_bytes<real>, pack<real>, step<real>};
constexpr AllStreamKernels kAllStream = {kStream<float>, kStream<double>};

}  // namespace

const AllStreamKernels* stream_kernels() { return &kAllStream; }

}  // namespace OSTINATO_ISA
}  // namespace ostinato
