// Rows and blocks of units of a scan over the threads.
#include <algorithm>

#include "pool.h"
#include "scan.h"

namespace ostinato {
namespace {

// Under this many elements a second thread costs more than it saves.
constexpr int64_t kSmall = 1 << 14;
// Units are cut at multiples of this: whole vectors and whole cache lines.
constexpr int64_t kUnitGrain = 64;
// Tasks for each thread: one that is put aside should hold up a part of its share only.
constexpr int64_t kTasksPerThread = 4;

template <typename Run>
struct Cut {
  const Run& run;
  int64_t H, blocks, block;

  static void task(void* context, int index, int) {
    const Cut& cut = *static_cast<const Cut*>(context);
    const int64_t row = index / cut.blocks, unit = index % cut.blocks * cut.block;
    cut.run(row, unit, std::min(unit + cut.block, cut.H));
  }
};

// run(row, unit, unit_end) for blocks that cover B rows of H units.
template <typename Run>
void over_blocks(int64_t B, int64_t T, int64_t H, int n_threads, const Run& run) {
  if (B * T * H <= kSmall) n_threads = 1;
  // Whole rows where there are enough of them: a row is one stretch of memory.
  const int64_t wanted = n_threads > 1 ? (kTasksPerThread * n_threads + B - 1) / std::max<int64_t>(B, 1) : 1;
  const int64_t grains = (H + kUnitGrain - 1) / kUnitGrain;
  const int64_t block = std::max<int64_t>((grains + wanted - 1) / wanted, 1) * kUnitGrain;
  Cut<Run> cut{run, H, std::max<int64_t>((H + block - 1) / block, 1), block};
  parallel(n_threads, static_cast<int>(B * cut.blocks), Cut<Run>::task, &cut);
}

template <typename real>
struct Passes;

template <>
struct Passes<float> {
  static auto forward(Gates gates) { return scan_kernels()->forward_f32[static_cast<int>(gates)]; }
  static auto backward(Gates gates) { return scan_kernels()->backward_f32[static_cast<int>(gates)]; }
};

template <>
struct Passes<double> {
  static auto forward(Gates gates) { return scan_kernels()->forward_f64[static_cast<int>(gates)]; }
  static auto backward(Gates gates) { return scan_kernels()->backward_f64[static_cast<int>(gates)]; }
};

}  // namespace

template <typename real>
void scan_forward(Gates gates, int64_t B, const Scan<real>& scan, const ScanOutputs<real>& out,
                  int n_threads) {
  const auto pass = Passes<real>::forward(gates);
  over_blocks(B, scan.T, scan.H, n_threads,
              [&](int64_t row, int64_t unit, int64_t unit_end) { pass(scan, out, row, unit, unit_end); });
}

template <typename real>
void scan_backward(Gates gates, int64_t B, const Scan<real>& scan, const ScanGradients<real>& out,
                   real* d_rate_sum, int n_threads) {
  const auto pass = Passes<real>::backward(gates);
  over_blocks(B, scan.T, scan.H, n_threads,
              [&](int64_t row, int64_t unit, int64_t unit_end) { pass(scan, out, row, unit, unit_end); });
  if (!d_rate_sum) return;
  std::fill(d_rate_sum, d_rate_sum + scan.H, real(0));
  for (int64_t row = 0; row < B; ++row)
    for (int64_t u = 0; u < scan.H; ++u) d_rate_sum[u] += out.d_rate.data[row * out.d_rate.row_stride + u];
}

template void scan_forward<float>(Gates, int64_t, const Scan<float>&, const ScanOutputs<float>&, int);
template void scan_forward<double>(Gates, int64_t, const Scan<double>&, const ScanOutputs<double>&, int);
template void scan_backward<float>(Gates, int64_t, const Scan<float>&, const ScanGradients<float>&, float*,
                                   int);
template void scan_backward<double>(Gates, int64_t, const Scan<double>&, const ScanGradients<double>&,
                                    double*, int);

}  // namespace ostinato
