#include "session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "pool.h"

namespace ostinato {
namespace {

// Multiply-adds that a thread does in a nanosecond, about: what threads are worth is guessed with it.
constexpr double kWorkPerNs = 20;
// Multiply-adds of a step from which threads that meet after every layer are faster than one.
constexpr double kWorthMeeting = 1.5e5;
// Multiply-adds of a call from which rows are worth dealing out.
constexpr double kWorthThreads = 3e5;
// Rows up to which a step is better taken by the kernels of one step than by those of whole sequences.
constexpr int64_t kFewRows = 4;
// Rows of a task where there are many: about two tiles.
constexpr int64_t kTaskRows = 12;

template <typename T = char>
T* of(const Buffer& buffer) {
  return static_cast<T*>(buffer.data());
}

Buffer zeros(int64_t bytes) {
  Buffer buffer(bytes);
  std::memset(buffer.data(), 0, static_cast<size_t>(bytes));
  return buffer;
}

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// rows of n elements from one stride to another.
void copy_rows(void* to, int64_t to_row, const void* from, int64_t from_row, int64_t n, int64_t n_rows,
               int64_t bytes) {
  for (int64_t r = 0; r < n_rows; ++r)
    std::memcpy(static_cast<char*>(to) + r * to_row * bytes, static_cast<const char*>(from) + r * from_row * bytes,
                static_cast<size_t>(n * bytes));
}

template <typename real>
void add_row(void* y, const void* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) static_cast<real*>(y)[i] += static_cast<const real*>(x)[i];
}

int64_t begin_of(int64_t n, int64_t i, int64_t n_parts) { return n * i / n_parts; }

}  // namespace

Session::Session(std::vector<SessionLayer> layers, const std::vector<Weights>& weights, bool is_double, int64_t B)
    : is_double_(is_double), B_(B), bytes_(is_double ? 8 : 4),
      ahead_(std::clamp<int64_t>(512 / B, 8, 64)), scratch_(0) {
  const RecurrenceKernels* recurrence = recurrence_kernels();
  const AllStreamKernels* stream = stream_kernels();
  kernels_ = is_double ? &recurrence->of_double : &recurrence->of_float;
  stream_ = is_double ? &stream->of_double : &stream->of_float;
  const int64_t W = stream_->lanes;
  for (const SessionLayer& one : layers) {
    const Layer& layer = one.layer;
    const int64_t Hp = round_up(layer.H, W), Pp = round_up(layer.P, W);
    const bool has_c = layer.cell == Cell::lstm;
    const bool is_last = &one == &layers.back();
    is_plain_ = is_plain_ && layer.is_plain();
    is_real_ = is_real_ && one.format == WeightFormat::real;
    work_ += static_cast<double>(layer.gates) * static_cast<double>(layer.H * (layer.D + layer.P));
    const int64_t packed = one.format == WeightFormat::real ? kernels_->forward_bytes(layer)
                                                            : stream_->packed_bytes(layer, one.format);
    parts_.push_back(Part{layer, one.format, one.adds_input, Hp, Pp, Hp / W, Buffer(packed),
                          {zeros(B * Pp * bytes_), zeros(B * Pp * bytes_)}, zeros(has_c ? B * Hp * bytes_ : 0),
                          Buffer(is_last ? 0 : B * ahead_ * layer.P * bytes_), Buffer(B * layer.P * bytes_),
                          Buffer(B * layer.P * bytes_), Buffer(has_c ? B * layer.H * bytes_ : 0),
                          Buffer(has_c ? B * layer.H * bytes_ : 0)});
  }
  for (int64_t r = 0; r < B; ++r) row_.push_back(r);
  count_.assign(static_cast<size_t>(B), 0);
  active_.assign(static_cast<size_t>(ahead_), B);
  for (int64_t s = 0; s <= ahead_; ++s) offset_.push_back(s * B);
  pack(weights);
}

void Session::pack(const std::vector<Weights>& weights) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    if (part.format == WeightFormat::real)
      kernels_->pack_forward(part.layer, weights[i], part.packed.data());
    else
      stream_->pack(part.layer, weights[i], part.format, part.packed.data());
  }
}

int64_t Session::packed_bytes() const {
  int64_t total = 0;
  for (const Part& part : parts_)
    total += part.format == WeightFormat::real ? kernels_->forward_bytes(part.layer)
                                               : stream_->packed_bytes(part.layer, part.format);
  return total;
}

void Session::read_state(int64_t i, int64_t row, int64_t row_end, void* h, void* c) const {
  const Part& part = parts_[static_cast<size_t>(i)];
  const int64_t n = row_end - row;
  copy_rows(h, part.layer.P, of(part.h[turn_]) + row * part.Pp * bytes_, part.Pp, part.layer.P, n, bytes_);
  if (c) copy_rows(c, part.layer.H, of(part.c) + row * part.Hp * bytes_, part.Hp, part.layer.H, n, bytes_);
}

void Session::write_state(int64_t i, int64_t row, int64_t row_end, const void* h, const void* c) {
  Part& part = parts_[static_cast<size_t>(i)];
  const int64_t n = row_end - row;
  copy_rows(of(part.h[turn_]) + row * part.Pp * bytes_, part.Pp, h, part.layer.P, part.layer.P, n, bytes_);
  if (c) copy_rows(of(part.c) + row * part.Hp * bytes_, part.Hp, c, part.layer.H, part.layer.H, n, bytes_);
}

void Session::push(const void* x, int64_t x_row, int64_t x_step, int64_t T, void* y, int n_threads) {
  const Stretch stretch{static_cast<const char*>(x), x_row, x_step, T, static_cast<char*>(y), T * P()};
  // Threads that cut units meet after every layer; where there are rows to cut instead, they need not.
  if (is_plain_ && n_threads > 1 && B_ == 1 && push_gang(stretch, n_threads)) return;
  if (is_plain_ && (!is_real_ || (T == 1 && B_ <= kFewRows))) return push_steps(stretch, n_threads);
  push_blocks(stretch, n_threads);
}

// All layers of a step, one step after the other --------------------------------------------------------------------

// Rows [row, row_end), and of the units the part of `worker`. `meet` returns when all workers have come to it.
template <typename Meet>
void Session::run_steps(const Stretch& stretch, int64_t row, int64_t row_end, int worker, int n_workers, Meet meet) {
  int turn = turn_;
  for (int64_t t = 0; t < stretch.T; ++t, turn ^= 1) {
    StreamStep step{};
    step.x = stretch.x + t * stretch.x_step * bytes_, step.x_row = stretch.x_row;
    step.row = row, step.row_end = row_end;
    for (Part& part : parts_) {
      const bool is_last = &part == &parts_.back();
      step.packed = part.packed.data();
      step.h_before = part.h[turn].data(), step.h_after = part.h[turn ^ 1].data(), step.c = part.c.data();
      step.adds_input = part.adds_input;
      step.y = is_last ? stretch.y + t * part.layer.P * bytes_ : part.adds_input ? part.y.data() : nullptr;
      step.y_row = is_last ? stretch.y_row : part.layer.P;
      step.block = begin_of(part.n_blocks, worker, n_workers);
      step.block_end = begin_of(part.n_blocks, worker + 1, n_workers);
      stream_->step(part.layer, part.format, step);
      meet();
      step.x = step.y ? step.y : step.h_after, step.x_row = step.y ? step.y_row : part.Pp;
    }
  }
}

struct Session::StepTasks {
  Session& session;
  const Stretch& stretch;
  int n;

  static void of_rows(void* context, int index, int) {
    const auto& all = *static_cast<StepTasks*>(context);
    const int64_t B = all.session.B_;
    all.session.run_steps(all.stretch, begin_of(B, index, all.n), begin_of(B, index + 1, all.n), 0, 1, [] {});
  }
  static void of_units(void* context, int worker, Barrier& barrier) {
    const auto& all = *static_cast<StepTasks*>(context);
    all.session.run_steps(all.stretch, 0, all.session.B_, worker, all.n, [&barrier] { barrier.wait(); });
  }
};

bool Session::push_gang(const Stretch& stretch, int n_threads) {
  if (work_ < kWorthMeeting * static_cast<double>(parts_.size())) return false;
  n_threads = static_cast<int>(std::min<double>(n_threads, work_ / (kWorthMeeting / 2)));
  StepTasks tasks{*this, stretch, n_threads};
  const double ns = work_ * static_cast<double>(stretch.T) / kWorkPerNs;
  if (!gang(n_threads, StepTasks::of_units, &tasks, static_cast<int64_t>(ns))) return false;
  turn_ ^= static_cast<int>(stretch.T & 1);
  return true;
}

void Session::push_steps(const Stretch& stretch, int n_threads) {
  const double work = work_ * static_cast<double>(B_ * stretch.T);
  if (n_threads > 1 && B_ > 1 && work >= kWorthThreads) {
    StepTasks tasks{*this, stretch, static_cast<int>(std::min<int64_t>(n_threads, B_))};
    parallel(n_threads, tasks.n, StepTasks::of_rows, &tasks, static_cast<int64_t>(work / kWorkPerNs));
  } else {
    run_steps(stretch, 0, B_, 0, 1, [] {});
  }
  turn_ ^= static_cast<int>(stretch.T & 1);
}

// All steps of a layer, one layer after the other -------------------------------------------------------------------

void Session::load_rows(Part& part, int64_t row, int64_t row_end) {
  const int64_t P = part.layer.P, H = part.layer.H, n = row_end - row;
  copy_rows(of(part.h0) + row * P * bytes_, P, of(part.h[turn_]) + row * part.Pp * bytes_, part.Pp, P, n, bytes_);
  if (part.layer.cell == Cell::lstm)
    copy_rows(of(part.c0) + row * H * bytes_, H, of(part.c) + row * part.Hp * bytes_, part.Hp, H, n, bytes_);
}

void Session::store_rows(Part& part, int64_t row, int64_t row_end) {
  const int64_t P = part.layer.P, H = part.layer.H, n = row_end - row;
  copy_rows(of(part.h[turn_]) + row * part.Pp * bytes_, part.Pp, of(part.h_final) + row * P * bytes_, P, P, n, bytes_);
  if (part.layer.cell == Cell::lstm)
    copy_rows(of(part.c) + row * part.Hp * bytes_, part.Hp, of(part.c_final) + row * H * bytes_, H, H, n, bytes_);
}

void Session::run_blocks(const Stretch& stretch, int64_t row, int64_t row_end, void* scratch) {
  Steps steps{};
  steps.B = B_, steps.n_steps = stretch.T, steps.n_packed = stretch.T * B_;
  steps.row = row_.data(), steps.count = count_.data(), steps.active = active_.data(), steps.offset = offset_.data();
  const char* x = stretch.x;
  int64_t x_row = stretch.x_row, x_step = stretch.x_step;
  for (Part& part : parts_) {
    const bool is_last = &part == &parts_.back();
    const int64_t P = part.layer.P;
    const bool has_c = part.layer.cell == Cell::lstm;
    Forward call{};
    call.packed = part.packed.data();
    call.x = x, call.x_row = x_row, call.x_step = x_step;
    call.h0 = part.h0.data(), call.h_final = part.h_final.data();
    call.c0 = has_c ? part.c0.data() : nullptr, call.c_final = has_c ? part.c_final.data() : nullptr;
    // T is where the kernels find the next row of y.
    steps.T = is_last ? stretch.y_row / P : ahead_;
    char* y = is_last ? stretch.y : of(part.y);
    call.y = y;
    load_rows(part, row, row_end);
    kernels_->forward_rows(part.layer, steps, call, row, row_end, scratch, Team{});
    store_rows(part, row, row_end);
    for (int64_t b = row; part.adds_input && b < row_end; ++b)
      for (int64_t t = 0; t < stretch.T; ++t)
        (is_double_ ? add_row<double> : add_row<float>)(y + (b * steps.T + t) * P * bytes_,
                                                        x + (b * x_row + t * x_step) * bytes_, P);
    x = y, x_row = steps.T * P, x_step = P;
  }
}

struct Session::BlockTasks {
  Session& session;
  const Stretch& stretch;
  int n;
  int64_t scratch_bytes;

  static void run(void* context, int index, int worker) {
    const auto& all = *static_cast<BlockTasks*>(context);
    const int64_t B = all.session.B_;
    all.session.run_blocks(all.stretch, begin_of(B, index, all.n), begin_of(B, index + 1, all.n),
                           of(all.session.scratch_) + worker * all.scratch_bytes);
  }
};

void Session::push_blocks(const Stretch& stretch, int n_threads) {
  const int64_t n_ahead = std::min(ahead_, stretch.T);
  const double work = work_ * static_cast<double>(B_ * n_ahead);
  if (work < kWorthThreads) n_threads = 1;
  int64_t n_tasks = std::min<int64_t>(B_, n_threads);
  if (n_threads > 1) n_tasks = std::max(n_tasks, std::min<int64_t>(4 * n_threads, B_ / kTaskRows));
  int64_t bytes = 0;
  for (const Part& part : parts_)
    bytes = std::max(bytes, kernels_->forward_scratch(part.layer, (B_ + n_tasks - 1) / n_tasks));
  bytes = round_up(bytes, 128);
  if (scratch_.bytes() < bytes * n_threads) scratch_ = Buffer(bytes * n_threads);
  for (int64_t t = 0; t < stretch.T; t += ahead_) {
    Stretch piece = stretch;
    piece.x += t * stretch.x_step * bytes_, piece.y += t * P() * bytes_;
    piece.T = std::min(ahead_, stretch.T - t);
    std::fill(count_.begin(), count_.end(), piece.T);
    BlockTasks tasks{*this, piece, static_cast<int>(n_tasks), bytes};
    if (n_tasks == 1)
      BlockTasks::run(&tasks, 0, 0);
    else
      parallel(n_threads, static_cast<int>(n_tasks), BlockTasks::run, &tasks, static_cast<int64_t>(work / kWorkPerNs));
  }
}

}  // namespace ostinato
