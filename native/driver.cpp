#include "driver.h"

#include <algorithm>
#include <vector>

#include "memory.h"
#include "pool.h"

namespace ostinato {
namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr double kWorthThreads = 3e5;
// Weights up to this size stay in a core's second cache while rows pass by.
constexpr int64_t kCachedWeights = int64_t{3} << 19;
constexpr int64_t kTaskRows = 12;  // about two tiles
// Multiply-adds of one step that are worth a meeting of the threads, and rows a thread up to which a team is tried.
constexpr double kWorthMeeting = 6e4;
constexpr int64_t kTeamRows = 64;
// Sums of small parameters are taken by groups of rows, each in one task: Shared::kGroup.
constexpr int64_t kGroup = 8;

double multiply_adds(const Layer& layer, const Steps& steps) {
  return static_cast<double>(steps.n_packed) * layer.gates * layer.H * (layer.D + layer.P);
}

// Sorted rows [begin[i], begin[i + 1]) are the i-th task: about equally many steps each, whole granules of rows.
std::vector<int64_t> cut_rows(const Steps& steps, int64_t weight_bytes, int64_t granule, int n_threads) {
  const int64_t B = steps.B;
  // Several tasks a thread even out unequal lengths and busy cores; weights beyond the cache are better read by few.
  int64_t left = n_threads;
  if (n_threads > 1 && weight_bytes <= kCachedWeights) left = std::min<int64_t>(4 * n_threads, B / kTaskRows);
  left = std::max<int64_t>({left, n_threads, 1});
  std::vector<int64_t> begin{0};
  int64_t done = 0;
  for (int64_t r = 0; r < B && left > 1; --left) {
    const int64_t target = (steps.n_packed - done) / left;
    int64_t sum = 0;
    do {
      for (int64_t i = 0; i < granule && r < B; ++i) sum += steps.count[r++];
    } while (r < B && sum + steps.count[r] * granule / 2 < target);
    done += sum;
    if (r < B) begin.push_back(r);
  }
  begin.push_back(B);
  return begin;
}

void wait_at(void* barrier) { static_cast<Barrier*>(barrier)->wait(); }

// Multiply-adds that a core does in a nanosecond, about; for how long a parallel region will take.
constexpr double kPerNanosecond = 50;

// Whether threads share rows, each taking some units, and meet at every step: for few rows, and for weights that no
// core's cache holds but all together may. Bits are the same either way.
bool wants_team(const Layer& layer, const Steps& steps, const Masks& masks, int64_t weight_bytes, int n_threads) {
  if (n_threads < 2 || !layer.is_plain() || steps.reset || masks.recurrent || steps.n_steps < 4) return false;
  const double a_step = static_cast<double>(steps.B) * layer.gates * layer.H * layer.P;
  if (a_step < kWorthMeeting) return false;
  return steps.B < n_threads || (weight_bytes > kCachedWeights && steps.B < kTeamRows * n_threads);
}

struct ForwardTasks {
  const Kernels& kernels;
  const Layer& layer;
  const Steps& steps;
  const Forward& call;
  const std::vector<int64_t>& begin;
  int n_threads;
  char* scratch;
  int64_t scratch_bytes;

  static void run(void* context, int index, int worker) {
    const auto& all = *static_cast<ForwardTasks*>(context);
    all.kernels.forward_rows(all.layer, all.steps, all.call, all.begin[index], all.begin[index + 1],
                             all.scratch + worker * all.scratch_bytes, Team{});
  }
  static void team(void* context, int worker, Barrier& barrier) {
    const auto& all = *static_cast<ForwardTasks*>(context);
    all.kernels.forward_rows(all.layer, all.steps, all.call, 0, all.steps.B, all.scratch,
                             Team{worker, all.n_threads, wait_at, &barrier});
  }
};

struct BackwardTasks {
  const Kernels& kernels;
  const Layer& layer;
  const Steps& steps;
  const Backward& call;
  const std::vector<int64_t>& begin;
  void* shared;
  int64_t chunk_rows, s_begin, s_end;
  int n_threads;
  char* scratch;
  int64_t scratch_bytes;

  static void rows(void* context, int index, int worker) {
    const auto& all = *static_cast<BackwardTasks*>(context);
    all.kernels.backward_rows(all.layer, all.steps, all.call, all.shared, all.chunk_rows, all.s_begin, all.s_end,
                              all.begin[index], all.begin[index + 1], all.scratch + worker * all.scratch_bytes,
                              Team{});
  }
  static void team(void* context, int worker, Barrier& barrier) {
    const auto& all = *static_cast<BackwardTasks*>(context);
    all.kernels.backward_rows(all.layer, all.steps, all.call, all.shared, all.chunk_rows, all.s_begin, all.s_end, 0,
                              all.steps.B, all.scratch, Team{worker, all.n_threads, wait_at, &barrier});
  }
  static void recompute(void* context, int index, int) {
    const auto& all = *static_cast<BackwardTasks*>(context);
    all.kernels.recompute_task(all.layer, all.steps, all.call, all.shared, all.chunk_rows, all.s_begin, all.s_end,
                               index);
  }
  static void weights(void* context, int index, int worker) {
    const auto& all = *static_cast<BackwardTasks*>(context);
    all.kernels.weight_task(all.layer, all.steps, all.call, all.shared, all.chunk_rows, all.s_begin, all.s_end,
                            index, all.scratch + worker * all.scratch_bytes);
  }
};

int64_t widest(const std::vector<int64_t>& begin) {
  int64_t most = 0;
  for (size_t i = 0; i + 1 < begin.size(); ++i) most = std::max(most, begin[i + 1] - begin[i]);
  return most;
}

int64_t rounded(int64_t bytes) { return (bytes + 127) / 128 * 128; }

// First step of the chunk that ends before s_end: about 1 MiB of gradients, which the products then find in the cache.
int64_t chunk_begin(const Steps& steps, int64_t s_end, int64_t row_bytes) {
  const int64_t target = std::max<int64_t>(256, (int64_t{1} << 20) / row_bytes);
  int64_t s = s_end - 1;
  while (s > 0 && steps.offset[s_end] - steps.offset[s - 1] <= target) --s;
  return s;
}

}  // namespace

int64_t largest_chunk(const Kernels& kernels, const Layer& layer, const Steps& steps, int64_t element_bytes) {
  int64_t most = 0;
  for (int64_t s_end = steps.n_steps; s_end > 0;) {
    const int64_t s = chunk_begin(steps, s_end, kernels.saved_width(layer) * element_bytes);
    most = std::max(most, steps.offset[s_end] - steps.offset[s]);
    s_end = s;
  }
  return most;
}

void run_forward(const Kernels& kernels, const Layer& layer, const Steps& steps, const Forward& call,
                 int n_threads) {
  if (steps.B == 0) return;
  const double work = multiply_adds(layer, steps);
  if (work < kWorthThreads) n_threads = 1;
  const int64_t weight_bytes = kernels.forward_bytes(layer), expected_ns = static_cast<int64_t>(work / kPerNanosecond);
  if (wants_team(layer, steps, call.masks, weight_bytes, n_threads)) {
    const Buffer scratch(kernels.forward_scratch(layer, steps.B) * n_threads);
    ForwardTasks tasks{kernels, layer, steps, call, {}, n_threads, static_cast<char*>(scratch.data()), 0};
    if (gang(n_threads, ForwardTasks::team, &tasks, expected_ns)) return;
  }
  const std::vector<int64_t> begin = cut_rows(steps, weight_bytes, 1, n_threads);
  const int64_t bytes = rounded(kernels.forward_scratch(layer, widest(begin)));
  const Buffer scratch(bytes * n_threads);
  ForwardTasks tasks{kernels, layer, steps, call, begin, n_threads, static_cast<char*>(scratch.data()), bytes};
  parallel(n_threads, static_cast<int>(begin.size()) - 1, ForwardTasks::run, &tasks, expected_ns);
}

void run_backward(const Kernels& kernels, const Layer& layer, const Steps& steps, const Backward& call,
                  int64_t element_bytes, int n_threads) {
  if (steps.B == 0) return;
  const double work = multiply_adds(layer, steps);
  if (work < kWorthThreads) n_threads = 1;
  const int64_t weight_bytes = kernels.backward_bytes(layer), expected_ns = static_cast<int64_t>(work / kPerNanosecond);
  bool team = wants_team(layer, steps, call.masks, weight_bytes, n_threads);
  const std::vector<int64_t> begin =
      cut_rows(steps, weight_bytes, layer.norm || layer.peephole ? kGroup : 1, n_threads);
  const int64_t row_bytes = kernels.saved_width(layer) * element_bytes;
  const int64_t chunk_rows = largest_chunk(kernels, layer, steps, element_bytes);
  const Buffer shared(kernels.shared_bytes(layer, steps.B, chunk_rows));
  const int64_t bytes = rounded(kernels.backward_scratch(layer, team ? steps.B : widest(begin)));
  const Buffer scratch(bytes * n_threads);
  BackwardTasks tasks{kernels,    layer, steps, call,      begin,
                      shared.data(), chunk_rows, 0, 0, n_threads, static_cast<char*>(scratch.data()), bytes};
  kernels.begin_backward(layer, steps, call, shared.data(), chunk_rows);
  for (int64_t s_end = steps.n_steps; s_end > 0; s_end = tasks.s_begin) {
    tasks.s_end = s_end;
    tasks.s_begin = chunk_begin(steps, s_end, row_bytes);
    const int64_t n_rows = steps.offset[s_end] - steps.offset[tasks.s_begin];
    if (call.recompute)
      parallel(n_threads, static_cast<int>(kernels.n_recompute_tasks(n_rows)), BackwardTasks::recompute, &tasks,
               expected_ns);
    team = team && gang(n_threads, BackwardTasks::team, &tasks, expected_ns);
    if (!team)
      parallel(n_threads, static_cast<int>(begin.size()) - 1, BackwardTasks::rows, &tasks, expected_ns);
    parallel(n_threads, static_cast<int>(kernels.n_weight_tasks(layer, call, n_rows)), BackwardTasks::weights,
             &tasks, expected_ns);
  }
  kernels.end_backward(layer, steps, call, shared.data(), chunk_rows);
}

}  // namespace ostinato
