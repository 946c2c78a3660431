#include "program.h"

#include "program_products.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

// Pairs that `before` and `after` work on at once, between two products.
constexpr int64_t kBlockRows = 64;
// What the temporaries of a strip may take of the caches nearest to the core.
constexpr int64_t kStripBytes = 48 * 1024;
constexpr int64_t kMostStripRows = 32;
// Products read whole vectors: what lies behind the last row.
constexpr int64_t kSlack = 64;

int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out aligned parts of one piece of memory; with a null base it only counts.
struct Memory {
  char* base;
  int64_t bytes = 0;

  template <typename T>
  T* take(int64_t n) {
    T* part = base ? reinterpret_cast<T*>(base + bytes) : nullptr;
    bytes += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return part;
  }
};

int64_t padded_width(int64_t width) { return (at_least(width, 1) + 15) / 16 * 16; }

template <typename real>
void copy_line(real* to, const real* from, int64_t n) {
  constexpr int W = kLanes<real>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  if (i < n) store_part(to + i, load_part(from + i, n - i), n - i);
}

template <typename real>
void add_line(real* to, const real* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// One tile of rows over all steps.
template <typename real>
class TileRun {
 public:
  TileRun(const Program& program, const ProgramRun& run, void* scratch) : program_(program), run_(run) {
    Memory memory{static_cast<char*>(scratch)};
    const int64_t R = run.tile_rows, T = run.T, n_buffers = program.n_buffers;
    strip_rows_ = program.strip_width
                      ? at_least(2, at_most(kMostStripRows, kStripBytes / int64_t(sizeof(real)) / program.strip_width))
                      : kMostStripRows;
    block_rows_ = at_least(kBlockRows, R);
    strip_ = memory.take<real>(program.strip_width * strip_rows_ + kSlack);
    block_ = memory.take<real>(program.block_width * block_rows_ + kSlack);
    chunk_ = memory.take<real>(program.chunk_width * run.chunk_rows + kSlack);
    scalars_ = memory.take<real>(program.n_scalars + kSlack);
    base_ = memory.take<real*>(n_buffers);
    stride_ = memory.take<int64_t>(n_buffers);
    offset_ = memory.take<int64_t>(T + 1);
    same_ = memory.take<uint8_t>(T + 1);
    row_ = run.mask ? memory.take<int32_t>(R * T) : nullptr;
    identity_ = memory.take<int32_t>(R);
    state_ = memory.take<real*>(program.n_leaves);
    carry_ = memory.take<real*>(program.n_leaves);
    spill_ = memory.take<real*>(program.n_leaves);
    next_ = memory.take<real*>(program.n_leaves);
    const bool counts = memory.base == nullptr;
    for (int64_t i = 0; i < program.n_leaves; ++i) {
      const int64_t stride = padded_width(program.leaf_widths[i]);
      real* carry = memory.take<real>(R * stride + kSlack);
      real* spill = memory.take<real>(R * stride + kSlack);
      // The pairs of a chunk, a step before and a step behind.
      real* state = run.leaves[i].kept ? nullptr : memory.take<real>((run.chunk_rows + 2 * R) * stride + kSlack);
      if (counts) continue;
      carry_[i] = carry;
      spill_[i] = spill;
      state_[i] = state;
    }
    bytes_ = memory.bytes;
    if (counts) return;
    for (int64_t i = 0; i < program.n_scalars; ++i) scalars_[i] = real(program.scalars[i]);
    for (int64_t i = 0; i < R; ++i) identity_[i] = int32_t(i);
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t tile, int64_t group) {
    tile_ = tile;
    sums_ = static_cast<real*>(run_.sums) + group * program_.sum_width;
    first_row_ = tile * run_.tile_rows;
    n_rows_ = at_most(run_.tile_rows, run_.B - first_row_);
    find_pairs();
    place_buffers();
    for (int64_t i = 0; i < program_.n_leaves; ++i) {
      const int64_t width = program_.leaf_widths[i], stride = padded_width(width);
      const real* start = static_cast<const real*>(run_.leaves[i].start);
      for (int64_t r = 0; r < n_rows_; ++r)
        copy_line(carry_[i] + r * stride, start + (first_row_ + r) * width, width);
    }
    if (run_.is_backward) {
      for (int64_t end = run_.T; end > 0;) {
        int64_t begin = end - 1;
        while (begin > 0 && offset_[end] - offset_[begin - 1] <= run_.chunk_rows) --begin;
        run_chunk(begin, end);
        end = begin;
      }
    } else {
      for (int64_t begin = 0; begin < run_.T;) {
        int64_t end = begin + 1;
        while (end < run_.T && offset_[end + 1] - offset_[begin] <= run_.chunk_rows) ++end;
        run_chunk(begin, end);
        begin = end;
      }
    }
    for (int64_t i = 0; i < program_.n_leaves; ++i) {
      const int64_t width = program_.leaf_widths[i], stride = padded_width(width);
      real* end = static_cast<real*>(run_.leaves[i].end);
      for (int64_t r = 0; r < n_rows_; ++r)
        copy_line(end + (first_row_ + r) * width, carry_[i] + r * stride, width);
    }
  }

 private:
  // Pairs and buffers --------------------------------------------------------------------------------------

  bool resets_at(int64_t t, int64_t r) const { return run_.resets && run_.resets[(first_row_ + r) * run_.T + t]; }

  const int32_t* rows_of(int64_t t) const { return row_ ? row_ + offset_[t] : identity_; }
  int64_t count(int64_t t) const { return offset_[t + 1] - offset_[t]; }

  // offset_[t]: pairs before step t. same_[t]: step t + 1 takes the state as step t leaves it, row by row.
  void find_pairs() {
    const int64_t T = run_.T;
    offset_[0] = 0;
    for (int64_t t = 0; t < T; ++t) {
      int64_t n = offset_[t];
      if (row_) {
        for (int64_t r = 0; r < n_rows_; ++r)
          if (run_.mask[(first_row_ + r) * T + t]) row_[n++] = int32_t(r);
      } else {
        n += n_rows_;
      }
      offset_[t + 1] = n;
    }
    bool sees_every = false;
    for (int64_t i = 0; i < program_.n_leaves; ++i) sees_every = sees_every || run_.leaves[i].every.data;
    for (int64_t t = 0; t + 1 < T; ++t) {
      bool same = !sees_every && count(t) == count(t + 1);
      const int32_t *one = rows_of(t), *other = rows_of(t + 1);
      for (int64_t i = 0; row_ && same && i < count(t); ++i) same = one[i] == other[i];
      for (int64_t r = 0; run_.resets && same && r < n_rows_; ++r) same = !resets_at(t + 1, r);
      same_[t] = same;
    }
    if (T > 0) same_[T - 1] = 0;
  }

  void place_buffers() {
    for (int64_t i = 0; i < program_.n_buffers; ++i) {
      const Buffer& buffer = program_.buffers[i];
      const int64_t place = buffer.place;
      stride_[i] = buffer.stride;
      switch (static_cast<Scope>(buffer.scope)) {
        case Scope::constant:
          base_[i] = static_cast<real*>(const_cast<void*>(run_.constants[place]));
          break;
        case Scope::scalar: base_[i] = scalars_; break;
        case Scope::strip: base_[i] = strip_ + place * strip_rows_; break;
        case Scope::block: base_[i] = block_ + place * block_rows_; break;
        case Scope::chunk: base_[i] = chunk_ + place * run_.chunk_rows; break;
        case Scope::saved:
          base_[i] = static_cast<real*>(run_.saved[place]) + tile_ * run_.pairs_of_tile() * buffer.stride;
          break;
        case Scope::state: base_[i] = nullptr; break;  // by leaf, see `address`
        case Scope::next: base_[i] = nullptr; break;
        case Scope::sum: base_[i] = sums_ + place; break;
      }
    }
  }

  // Rows of each scope's buffers that an instruction's first row is.
  struct Position {
    int64_t strip, block, chunk;
  };

  // The pair of the run that a row of the chunk is.
  int64_t pair(int64_t chunk_row) const { return offset_[begin_] + chunk_row; }

  real* state_row(int64_t leaf, int64_t chunk_row) const {
    const Leaf& own = run_.leaves[leaf];
    const int64_t stride = padded_width(program_.leaf_widths[leaf]);
    if (own.kept) return static_cast<real*>(own.kept) + (tile_ * run_.pairs_of_tile() + pair(chunk_row)) * stride;
    return state_[leaf] + (run_.tile_rows + chunk_row) * stride;
  }

  OSTINATO_INLINE real* address(int64_t buffer, const Position& at) const {
    switch (static_cast<Scope>(program_.buffers[buffer].scope)) {
      case Scope::strip: return base_[buffer] + at.strip * stride_[buffer];
      case Scope::block: return base_[buffer] + at.block * stride_[buffer];
      case Scope::chunk: return base_[buffer] + at.chunk * stride_[buffer];
      case Scope::saved: return base_[buffer] + pair(at.chunk) * stride_[buffer];
      case Scope::state: return state_row(program_.buffers[buffer].place, at.chunk);
      case Scope::next: return next_[program_.buffers[buffer].place] + at.block * stride_[buffer];
      default: return base_[buffer];
    }
  }

  // Instructions -------------------------------------------------------------------------------------------

  void run_instruction(const Instruction& ins, const Position& at, int64_t n_rows) {
    Arguments<real> args;
    const int n = static_cast<int>(ins.n_inputs);
    for (int k = 0; k <= n && k < 4; ++k) {
      const Operand& operand = ins.operand[k];
      if (operand.buffer < 0 || (k == 3 && static_cast<Operator>(ins.op) == Operator::matmul)) continue;
      args.at[k] = address(operand.buffer, at) + operand.offset;
      args.row[k] = stride_[operand.buffer];
    }
    switch (static_cast<Operator>(ins.op)) {
#define OSTINATO_MAP(name)                              \
  case Operator::name:                                  \
    map_rows<real, Apply_##name<real>>(ins, args, n_rows); \
    return;
      OSTINATO_MAP(copy) OSTINATO_MAP(neg) OSTINATO_MAP(reciprocal) OSTINATO_MAP(sqrt) OSTINATO_MAP(rsqrt)
      OSTINATO_MAP(exp) OSTINATO_MAP(expm1) OSTINATO_MAP(log) OSTINATO_MAP(log1p) OSTINATO_MAP(abs)
      OSTINATO_MAP(sign) OSTINATO_MAP(sin) OSTINATO_MAP(cos) OSTINATO_MAP(sigmoid) OSTINATO_MAP(tanh)
      OSTINATO_MAP(relu) OSTINATO_MAP(square) OSTINATO_MAP(softplus) OSTINATO_MAP(erf) OSTINATO_MAP(floor)
      OSTINATO_MAP(add) OSTINATO_MAP(sub) OSTINATO_MAP(mul) OSTINATO_MAP(div) OSTINATO_MAP(max) OSTINATO_MAP(min)
      OSTINATO_MAP(pow) OSTINATO_MAP(gt) OSTINATO_MAP(ge) OSTINATO_MAP(lt) OSTINATO_MAP(le) OSTINATO_MAP(eq)
      OSTINATO_MAP(ne) OSTINATO_MAP(tanh_gradient) OSTINATO_MAP(sigmoid_gradient) OSTINATO_MAP(relu_gradient)
      OSTINATO_MAP(where) OSTINATO_MAP(mul_add) OSTINATO_MAP(negative_mul_add) OSTINATO_MAP(sub_mul)
#undef OSTINATO_MAP
      case Operator::sum:
      case Operator::amax:
      case Operator::amin:
      case Operator::dot:
      case Operator::moments:
      case Operator::cumsum:
      case Operator::normalise_gradient: along_rows<real>(ins, args, n_rows); return;
      case Operator::rowsum: rowsum<real>(ins, args, n_rows); return;
      case Operator::bmm: small_products<real>(ins, args, n_rows); return;
      case Operator::outer: outer<real>(ins, args, n_rows); return;
      case Operator::matmul: {
        const Pack& pack = program_.packs[ins.operand[3].buffer];
        matmul<real>(ins, args, n_rows, static_cast<const real*>(run_.packed) + pack.place);
        return;
      }
      case Operator::n_operators: return;
    }
  }

  // Segments of a phase over the rows [row, row + n) of the chunk, n at most block_rows_.
  void run_block(int64_t phase, int64_t row, int64_t n) {
    for (int64_t s = 0; s < program_.n_segments; ++s) {
      const Segment& segment = program_.segments[s];
      if (segment.phase != phase) continue;
      const int64_t n_strips = segment.is_product ? 1 : (n + strip_rows_ - 1) / strip_rows_;
      const int64_t strip = (n + n_strips - 1) / n_strips;
      for (int64_t i = 0; i < n; i += strip) {
        const Position at{0, i, row + i};
        const int64_t m = at_most(strip, n - i);
        for (int64_t k = segment.first; k < segment.last; ++k) run_instruction(program_.instructions[k], at, m);
      }
    }
  }

  void run_phase(int64_t phase, int64_t n_rows) {
    for (int64_t row = 0; row < n_rows; row += block_rows_)
      run_block(phase, row, at_most(block_rows_, n_rows - row));
  }

  // Chunks -------------------------------------------------------------------------------------------------

  // The row of a tensor that belongs to row i of step t.
  real* outside(const Strided& series, int64_t t, int64_t i) const {
    return static_cast<real*>(series.data) + (first_row_ + rows_of(t)[i]) * series.row + t * series.step;
  }

  void copy_in() {
    for (int64_t k = 0; k < program_.n_inputs; ++k) {
      const StepSeries& own = program_.inputs[k];
      const int64_t stride = stride_[own.buffer];
      real* to = base_[own.buffer];
      for (int64_t t = begin_; t < end_; ++t)
        for (int64_t i = 0; i < count(t); ++i, to += stride) {
          if (run_.inputs[k].data)
            copy_line(to, outside(run_.inputs[k], t, i), own.width);
          else
            for (int64_t j = 0; j < own.width; ++j) to[j] = 0;
        }
    }
  }

  void copy_out() {
    for (int64_t k = 0; k < program_.n_outputs; ++k) {
      if (!run_.outputs[k].data) continue;
      const StepSeries& own = program_.outputs[k];
      const real* from = address(own.buffer, Position{0, 0, 0});
      for (int64_t t = begin_; t < end_; ++t)
        for (int64_t i = 0; i < count(t); ++i, from += stride_[own.buffer])
          copy_line(outside(run_.outputs[k], t, i), from, own.width);
    }
  }

  void run_chunk(int64_t begin, int64_t end) {
    begin_ = begin;
    end_ = end;
    const int64_t n_pairs = offset_[end] - offset_[begin];
    copy_in();
    run_phase(0, n_pairs);
    if (run_.is_backward)
      for (int64_t t = end; t-- > begin;) run_step(t, t == end - 1 || !same_[t], t == begin || !same_[t - 1]);
    else
      for (int64_t t = begin; t < end; ++t) run_step(t, t == begin || !same_[t - 1], t == end - 1 || !same_[t]);
    run_phase(2, n_pairs);
    copy_out();
    if (n_pairs > 0)
      for (int64_t s = 0; s < program_.n_segments; ++s) {
        const Segment& segment = program_.segments[s];
        if (segment.phase != 3) continue;
        for (int64_t k = segment.first; k < segment.last; ++k)
          run_instruction(program_.instructions[k], Position{0, 0, 0}, n_pairs);
      }
  }

  // Step t. `gathers`: its state comes from the rows' own carry; `scatters`: and goes there.
  void run_step(int64_t t, bool gathers, bool scatters) {
    const int64_t row = offset_[t] - offset_[begin_], n = count(t);
    for (int64_t i = 0; i < program_.n_leaves; ++i) {
      if (gathers) gather(i, t, row);
      if (scatters)
        next_[i] = spill_[i];
      else
        next_[i] = state_row(i, run_.is_backward ? row - n : row + n);
    }
    if (n > 0) run_block(1, row, n);
    for (int64_t i = 0; scatters && i < program_.n_leaves; ++i) scatter(i, t);
  }

  void gather(int64_t leaf, int64_t t, int64_t row) {
    const Leaf& own = run_.leaves[leaf];
    const int64_t width = program_.leaf_widths[leaf], stride = padded_width(width);
    if (run_.is_backward && own.every.data)
      for (int64_t r = 0; r < n_rows_; ++r)
        add_line(carry_[leaf] + r * stride,
                 static_cast<const real*>(own.every.data) + (first_row_ + r) * own.every.row + t * own.every.step, width);
    if (!run_.is_backward && run_.resets)
      for (int64_t r = 0; r < n_rows_; ++r)
        if (resets_at(t, r))
          copy_line(carry_[leaf] + r * stride, static_cast<const real*>(own.initial) + (first_row_ + r) * width, width);
    real* to = state_row(leaf, row);
    const int32_t* rows = rows_of(t);
    for (int64_t i = 0; i < count(t); ++i) copy_line(to + i * stride, carry_[leaf] + rows[i] * stride, width);
  }

  void scatter(int64_t leaf, int64_t t) {
    const Leaf& own = run_.leaves[leaf];
    const int64_t width = program_.leaf_widths[leaf], stride = padded_width(width);
    const int32_t* rows = rows_of(t);
    for (int64_t i = 0; i < count(t); ++i) copy_line(carry_[leaf] + rows[i] * stride, spill_[leaf] + i * stride, width);
    if (!run_.is_backward && own.every.data)
      for (int64_t r = 0; r < n_rows_; ++r)
        copy_line(static_cast<real*>(own.every.data) + (first_row_ + r) * own.every.row + t * own.every.step,
                  carry_[leaf] + r * stride, width);
    if (run_.is_backward && run_.resets)
      for (int64_t r = 0; r < n_rows_; ++r) {
        if (!resets_at(t, r)) continue;
        real* carry = carry_[leaf] + r * stride;
        add_line(static_cast<real*>(own.initial) + (first_row_ + r) * width, carry, width);
        for (int64_t j = 0; j < width; ++j) carry[j] = 0;
      }
  }

  const Program& program_;
  const ProgramRun& run_;
  int64_t strip_rows_, block_rows_, bytes_;
  real *strip_, *block_, *chunk_, *scalars_, *sums_ = nullptr;
  real** base_;
  int64_t *stride_, *offset_;
  uint8_t* same_;
  int32_t *row_, *identity_;
  real **state_, **carry_, **spill_, **next_;
  int64_t tile_ = 0, first_row_ = 0, n_rows_ = 0, begin_ = 0, end_ = 0;
};

template <typename real>
int64_t scratch_bytes(const Program& program, const ProgramRun& run) {
  return TileRun<real>(program, run, nullptr).bytes();
}

template <typename real>
void pack(const Program& program, const void* const* constants, void* packed) {
  for (int64_t i = 0; i < program.n_packs; ++i) {
    const Pack& own = program.packs[i];
    pack_blocks(static_cast<const real*>(constants[own.constant]) + own.offset, own.K, own.N, own.k_stride,
                own.n_stride, static_cast<real*>(packed) + own.place);
  }
}

template <typename real>
void run_group(const Program& program, const ProgramRun& run, int64_t group, void* scratch) {
  real* sums = static_cast<real*>(run.sums) + group * program.sum_width;
  for (int64_t i = 0; i < program.sum_width; ++i) sums[i] = 0;
  TileRun<real> tile(program, run, scratch);
  const int64_t first = group * run.tiles_of_group;
  for (int64_t i = first; i < at_most(first + run.tiles_of_group, run.n_tiles()); ++i) tile.run(i, group);
}

template <typename real>
void add_sums(const Program& program, const ProgramRun& run, int64_t first, int64_t last) {
  real* sums = static_cast<real*>(run.sums);
  for (int64_t group = 1; group < run.n_groups(); ++group)
    add_line(sums + first, sums + group * program.sum_width + first, last - first);
}

}  // namespace

const ProgramKernels* program_kernels() {
  static const ProgramKernels kernels = {
      {kLanes<float>, kLanes<double>},
      {scratch_bytes<float>, scratch_bytes<double>},
      {pack<float>, pack<double>},
      {run_group<float>, run_group<double>},
      {add_sums<float>, add_sums<double>},
  };
  return &kernels;
}

}  // namespace OSTINATO_ISA
}  // namespace ostinato
