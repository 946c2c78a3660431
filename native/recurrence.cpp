// The kernels of a recurrence for one instruction set, as a table of functions.
#include "recurrence_options.h"
#include "recurrence_weights.h"

namespace ostinato {
namespace OSTINATO_ISA {
namespace {

template <typename real>
int64_t saved_width(const Layer& layer) {
  return Slots<real>(layer).width;
}

template <typename real>
int64_t saved_cells(const Layer& layer) {
  return layer.cell == Cell::lstm ? padded<real>(layer.H) : 0;
}

template <typename real>
int64_t forward_bytes(const Layer& layer) {
  return PackedForward<real>(layer, nullptr).bytes;
}

template <typename real>
int64_t backward_bytes(const Layer& layer) {
  return PackedBackward<real>(layer, nullptr).bytes;
}

template <typename real>
int64_t forward_scratch(const Layer& layer, int64_t n_rows) {
  return Work<real>(layer, Steps{}, Forward{}, 0, n_rows, nullptr).bytes;
}

// A worker's part of n padded units.
template <typename real>
Range share(int64_t n, const Team& team) {
  const int64_t blocks = n / kLanes<real>;
  return {blocks * team.worker / team.n_workers * kLanes<real>,
          blocks * (team.worker + 1) / team.n_workers * kLanes<real>};
}

template <typename real>
void forward_rows(const Layer& layer, const Steps& steps, const Forward& call, int64_t r_begin, int64_t r_end,
                  void* scratch, const Team& team) {
  const Work<real> first(layer, steps, call, r_begin, r_end, scratch);
  Work<real> work(layer, steps, call, r_begin, r_end, static_cast<char*>(scratch) + team.worker * first.bytes);
  work.h[0] = first.h[0], work.h[1] = first.h[1], work.c = first.c;
  work.units = share<real>(work.Hp, team);
  if (team.worker == 0) work.load_states();
  team.meet();
  if (!layer.is_fused())
    rows_with_options(work);
  else if (layer.cell == Cell::lstm)
    plain_rows<real, Cell::lstm>(work, team);
  else if (layer.cell == Cell::gru)
    plain_rows<real, Cell::gru>(work, team);
  else
    plain_rows<real, Cell::rnn>(work, team);
  if (team.worker == 0) work.store_states();
}

template <typename real>
int64_t shared_bytes(const Layer& layer, int64_t B, int64_t chunk_rows) {
  return Shared<real>(layer, B, chunk_rows, nullptr).bytes;
}

// Gradients of the final state are where the walk back in time begins.
template <typename real>
void begin_backward(const Layer& layer, const Steps& steps, const Backward& call, void* base, int64_t chunk_rows) {
  const Shared<real> shared(layer, steps.B, chunk_rows, base);
  const int64_t Hp = padded<real>(layer.H), Pp = padded<real>(layer.P);
  std::memset(shared.d_small, 0,
              (steps.B + shared.kGroup - 1) / shared.kGroup * shared.small_width * sizeof(real));
  std::memset(shared.d_h, 0, steps.B * Pp * sizeof(real));
  if (layer.cell == Cell::lstm) std::memset(shared.d_c, 0, steps.B * Hp * sizeof(real));
  for (int64_t r = 0; r < steps.B; ++r) {
    const int64_t b = steps.row[r];
    const bool to_initial = steps.ends_reset && steps.ends_reset[r];
    const auto put = [&](const void* d_final, real* state, void* initial, int64_t n) {
      real* to = initial ? as<real>(initial) + b * n : nullptr;
      if (to) std::memset(to, 0, n * sizeof(real));
      if (d_final) std::memcpy(to_initial ? to : state, as<real>(d_final) + b * n, n * sizeof(real));
    };
    put(call.d_h_final, shared.d_h + r * Pp, call.d_initial_h, layer.P);
    if (layer.cell == Cell::lstm) put(call.d_c_final, shared.d_c + r * Hp, call.d_initial_c, layer.H);
  }
}

template <typename real>
BackWork<real> back_work(const Layer& layer, const Steps& steps, const Backward& call, void* shared,
                         int64_t chunk_rows, int64_t s_begin, int64_t s_end) {
  return BackWork<real>(layer, steps, call, shared, chunk_rows, s_begin, s_end, 0, 0, nullptr);
}

template <typename real>
int64_t backward_scratch(const Layer& layer, int64_t n_rows) {
  const BackWork<real> work(layer, Steps{}, Backward{}, nullptr, 0, 0, 0, 0, n_rows, nullptr);
  const int64_t of_rows = work.bytes + 4 * padded<real>(layer.H) * static_cast<int64_t>(sizeof(real));
  const int64_t of_products = kRowGroup * padded<real>(layer.D) * static_cast<int64_t>(sizeof(real));
  return of_rows > of_products ? of_rows : of_products;
}

template <typename real>
void backward_rows(const Layer& layer, const Steps& steps, const Backward& call, void* shared, int64_t chunk_rows,
                   int64_t s_begin, int64_t s_end, int64_t r_begin, int64_t r_end, void* scratch, const Team& team) {
  void* own = static_cast<char*>(scratch) + team.worker * backward_scratch<real>(layer, r_end - r_begin);
  BackWork<real> work(layer, steps, call, shared, chunk_rows, s_begin, s_end, r_begin, r_end, own);
  work.units = share<real>(work.Pp, team);
  rows_backward(work, reinterpret_cast<real*>(static_cast<char*>(own) + work.bytes), team);
}

template <typename real>
int64_t n_weight_tasks(const Layer& layer, const Backward& call, int64_t n_rows) {
  return count_weight_tasks<real>(layer, call, n_rows);
}

template <typename real>
void weight_task(const Layer& layer, const Steps& steps, const Backward& call, void* shared, int64_t chunk_rows,
                 int64_t s_begin, int64_t s_end, int64_t task, void* scratch) {
  run_weight_task(back_work<real>(layer, steps, call, shared, chunk_rows, s_begin, s_end), task, as<real>(scratch));
}

int64_t n_recompute_tasks(int64_t n_rows) { return groups_of(n_rows, kRowGroup); }

template <typename real>
void recompute_task(const Layer& layer, const Steps& steps, const Backward& call, void* shared, int64_t chunk_rows,
                    int64_t s_begin, int64_t s_end, int64_t task) {
  recompute_group(back_work<real>(layer, steps, call, shared, chunk_rows, s_begin, s_end), task);
}

template <typename real>
void end_backward(const Layer& layer, const Steps& steps, const Backward& call, void* base, int64_t chunk_rows) {
  const Shared<real> shared(layer, steps.B, chunk_rows, base);
  const Slots<real> slots(layer);
  const int64_t H = layer.H, Hp = slots.Hp, P = layer.P, Pp = padded<real>(P);
  for (int64_t r = 0; r < steps.B; ++r) {
    const int64_t b = steps.row[r];
    std::memcpy(as<real>(call.d_h0) + b * P, shared.d_h + r * Pp, P * sizeof(real));
    if (call.d_c0) std::memcpy(as<real>(call.d_c0) + b * H, shared.d_c + r * Hp, H * sizeof(real));
  }
  const auto put = [&](const void* wanted, int64_t at, const real* from, int64_t n) {
    if (wanted) std::memcpy(as<real>(const_cast<void*>(wanted)) + at, from, n * sizeof(real));
  };
  for (int q = 0; q < layer.gates; ++q) {
    put(call.d_weights.bias_ih, q * H, shared.d_bias + slots.bias_ih(layer, q), H);
    put(call.d_weights.bias_hh, q * H, shared.d_bias + slots.bias_hh(layer, q), H);
  }
  const int64_t groups = (steps.B + shared.kGroup - 1) / shared.kGroup;
  for (int64_t i = 1; i < groups; ++i)
    for (int64_t k = 0; k < shared.small_width; ++k) shared.d_small[k] += shared.d_small[i * shared.small_width + k];
  for (int q = 0; layer.norm && q < layer.gates; ++q) {
    put(call.d_weights.norm_ih, q * H, shared.d_small + shared.small_norm_ih + q * Hp, H);
    put(call.d_weights.norm_hh, q * H, shared.d_small + shared.small_norm_hh + q * Hp, H);
  }
  if (layer.norm && layer.cell == Cell::lstm) {
    put(call.d_weights.norm_c, 0, shared.d_small + shared.small_norm_c, H);
    put(call.d_weights.norm_c_bias, 0, shared.d_small + shared.small_norm_c + Hp, H);
  }
  for (int q = 0; layer.peephole && q < (layer.coupled ? 2 : 3); ++q)
    put(call.d_weights.peephole, q * H, shared.d_small + shared.small_peephole + q * Hp, H);
}

template <typename real>
constexpr Kernels kKernels = {
    saved_width<real>,      saved_cells<real>,    forward_bytes<real>,   backward_bytes<real>,
    pack_forward<real>,     pack_backward<real>,  forward_scratch<real>, forward_rows<real>,
    shared_bytes<real>,     begin_backward<real>, n_recompute_tasks,     recompute_task<real>,
    backward_scratch<real>, backward_rows<real>,  n_weight_tasks<real>,  weight_task<real>,
    end_backward<real>,
};
constexpr RecurrenceKernels kTable = {kKernels<float>, kKernels<double>};

}  // namespace

const RecurrenceKernels* recurrence_kernels() { return &kTable; }

}  // namespace OSTINATO_ISA
}  // namespace ostinato
