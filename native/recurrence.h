// The contract between the drivers of a recurrence and the kernels compiled for each instruction set.
//
// Sizes: B rows (sequences), T steps, D input width, H units, P width of h (the projection, or H), G gates that
// the weights hold, Hp and Pp: H and P rounded up to whole vectors of the instruction set.
//
// Rows are worked on in sorted order: `r` counts rows by falling number of real steps, `row[r]` is the row b of
// the caller's tensors. Step s of row r is its s-th real step in the order of work (from the end for the reverse
// direction). What is kept of a step for backward lies at packed row p = offset[s] + r, as in torch's PackedSequence.
#pragma once

#include <cstdint>

#include "isa.h"

namespace ostinato {

enum class Cell : int { rnn = 0, lstm = 1, gru = 2 };

// What is computed; fixed for a layer.
struct Layer {
  Cell cell;
  int64_t D, H, P;
  int gates;          // G: rnn 1, lstm 4 or 3 (coupled), gru 3; order as torch.nn has it
  bool relu;          // rnn: relu rather than tanh
  bool reset_before;  // gru: reset gate before the recurrent product
  bool norm;          // layer normalisation of both products and of c
  bool peephole;      // lstm: gates see c
  bool coupled;       // lstm: f = 1 - i
  bool projected;     // lstm: h = weight_hr (o tanh(c)), P < H
  bool random;        // zoneout by masks rather than by expectation
  double zoneout_h, zoneout_c;

  // Whether the gates can be finished in registers, right after the product.
  bool is_fused() const { return !(reset_before || norm || peephole || coupled || projected); }
  // Whether, moreover, nothing goes past a step.
  bool is_plain() const { return is_fused() && !(zoneout_h > 0 || zoneout_c > 0); }
};

// Which steps are real and in which order they are worked on. Arrays belong to the schedule's owner and live
// as long as the call.
struct Steps {
  int64_t B, T;
  int64_t n_steps;        // the largest number of real steps of any row
  int64_t n_packed;       // real steps of all rows
  bool is_reverse;
  const int64_t* row;     // (B,) r -> b
  const int64_t* count;   // (B,) real steps of row r, falling
  const int64_t* active;  // (n_steps,) rows that have a step s
  const int64_t* offset;  // (n_steps + 1,) packed row of r = 0 at step s
  const int32_t* time;    // (n_packed,) t of a packed row; null: t = s, or count - 1 - s in reverse
  const uint8_t* reset;   // (n_packed,) the state is replaced by the initial one before this step; null: never
  const uint8_t* ends_reset;  // (B,) by r: the same after the last real step; null: never

  int64_t time_of(int64_t s, int64_t r) const {
    if (time) return time[offset[s] + r];
    return is_reverse ? count[r] - 1 - s : s;
  }
  bool resets(int64_t s, int64_t r) const { return reset && reset[offset[s] + r]; }
};

// Parameters as torch.nn lays them out, row-major; null where the layer has none.
struct Weights {
  const void* weight_ih;    // (G·H, D)
  const void* weight_hh;    // (G·H, P)
  const void* bias_ih;      // (G·H,)
  const void* bias_hh;      // (G·H,)
  const void* weight_hr;    // (P, H)
  const void* peephole;     // (3, H) or (2, H)
  const void* norm_ih;      // (G·H,)
  const void* norm_hh;      // (G·H,)
  const void* norm_c;       // (H,)
  const void* norm_c_bias;  // (H,)
};

// Random masks in the order of work: position T - 1 - t in reverse. Contiguous, by row b.
struct Masks {
  const void* recurrent;       // (T or 1, B, P) factors of h on its way into the product; null: none
  int64_t recurrent_step;      // elements from one position to the next; 0 where they do not change
  const uint8_t* zoneout_h;    // (T, B, P) nonzero: the old value stays; null: none
  const uint8_t* zoneout_c;    // (T, B, H)
};

// One direction of one layer. Pointers are to tensors of the layer's real type; the callee keeps none.
struct Forward {
  const void* packed;          // what `pack_forward` wrote
  const void* x;               // x[b, t, :] = x + b·x_row + t·x_step, unit stride in D
  int64_t x_row, x_step;
  const void *h0, *c0;         // (B, P), (B, H) contiguous; c0 null without cell state
  const void *initial_h, *initial_c;  // the same shapes; null unless there are resets
  Masks masks;
  void* y;                     // (B, T, P) contiguous; rows of real steps are written, others left alone
  void *h_final, *c_final;     // (B, P), (B, H) contiguous, may not alias h0, c0
  void* cells;                 // (B, T, H) contiguous or null: c after each real step
  void* gates;                 // (n_packed, saved_width) or null: what backward needs, see `saved_width`
  void* c_before;              // (n_packed, Hp) or null: c before each step, after any reset
};

struct Backward {
  const void* packed;          // what `pack_backward` wrote
  const void* packed_forward;  // what `pack_forward` wrote; needed to recompute gates, else null
  const void* x;
  int64_t x_row, x_step;
  const void *h0, *c0, *initial_h, *initial_c;
  Masks masks;
  const void* y;               // as forward wrote it
  void* gates;                 // as forward wrote it, turned into gradients in place; with `recompute` a buffer
                               // of the largest chunk, (chunk_rows, saved_width)
  const void* c_before;
  bool recompute;              // gates were not kept
  const void* d_y;             // (B, T, P) contiguous or null
  const void* d_cells;         // (B, T, H) contiguous or null
  const void *d_h_final, *d_c_final;    // (B, P), (B, H) contiguous or null
  void* d_x;                   // (B, T, D) contiguous or null; rows of real steps are written
  void *d_h0, *d_c0;           // (B, P), (B, H) contiguous, written
  void *d_initial_h, *d_initial_c;      // the same, written; null without resets
  Weights d_weights;           // written; null members are not wanted (constness is cast away)
};

// Threads that take the same rows through time together, each some of the units.
struct Team {
  int worker = 0, n_workers = 1;
  void (*wait)(void* barrier) = nullptr;
  void* barrier = nullptr;

  void meet() const {
    if (wait) wait(barrier);
  }
};

// The kernels of one real type. Scratch and packed weights are laid out by them and owned by the caller; all such
// pointers are aligned to 64 bytes.
struct Kernels {
  // Elements of a row of `gates`.
  int64_t (*saved_width)(const Layer&);
  // Elements of a row of `c_before`, 0 without cell state.
  int64_t (*saved_cells)(const Layer&);
  // Bytes that the packed weights take, and packing.
  int64_t (*forward_bytes)(const Layer&);
  int64_t (*backward_bytes)(const Layer&);
  void (*pack_forward)(const Layer&, const Weights&, void* packed);
  void (*pack_backward)(const Layer&, const Weights&, void* packed);
  // Bytes of scratch for `forward_rows` with that many rows.
  int64_t (*forward_scratch)(const Layer&, int64_t n_rows);
  // All steps of sorted rows [r_begin, r_end).
  // A team passes the same scratch: forward_scratch(n_rows) bytes for every worker. Only for plain layers without
  // resets and masks.
  void (*forward_rows)(const Layer&, const Steps&, const Forward&, int64_t r_begin, int64_t r_end, void* scratch,
                       const Team&);

  // Backward goes over chunks of steps from the last to the first. For each: recompute (where asked for),
  // rows, weights. `shared` lasts from the first chunk to the last; it is zeroed by `begin_backward`.
  int64_t (*shared_bytes)(const Layer&, int64_t B, int64_t chunk_rows);
  void (*begin_backward)(const Layer&, const Steps&, const Backward&, void* shared, int64_t chunk_rows);
  // The gates of a chunk again, as independent tasks over its packed rows; fills the panel too.
  int64_t (*n_recompute_tasks)(int64_t n_rows);
  void (*recompute_task)(const Layer&, const Steps&, const Backward&, void* shared, int64_t chunk_rows,
                         int64_t s_begin, int64_t s_end, int64_t task);
  // Bytes of scratch for `backward_rows` with that many rows, and for `weight_task`.
  int64_t (*backward_scratch)(const Layer&, int64_t n_rows);
  // For a team as above: backward_scratch(n_rows) for every worker. Steps [s_begin, s_end) of sorted rows [r_begin, r_end): from gates to their gradients, dh and dc.
  void (*backward_rows)(const Layer&, const Steps&, const Backward&, void* shared, int64_t chunk_rows,
                        int64_t s_begin, int64_t s_end, int64_t r_begin, int64_t r_end, void* scratch, const Team&);
  // The products over all rows of the chunk: gradients of weights and of x, as `n_tasks` independent tasks.
  int64_t (*n_weight_tasks)(const Layer&, const Backward&, int64_t n_rows);
  void (*weight_task)(const Layer&, const Steps&, const Backward&, void* shared, int64_t chunk_rows,
                      int64_t s_begin, int64_t s_end, int64_t task, void* scratch);
  // Initial states' gradients, and the weights' gradients in the caller's layout.
  void (*end_backward)(const Layer&, const Steps&, const Backward&, void* shared, int64_t chunk_rows);
};

struct RecurrenceKernels {
  Kernels of_float, of_double;
};

OSTINATO_KERNELS(RecurrenceKernels, recurrence_kernels)

}  // namespace ostinato
