// A session: packed weights of a stack of layers, the state of B rows, and all scratch, kept from call to call.
//
// What it computes is what the recurrence kernels compute over whole sequences, to the bit (weights as given), however
// the stream is cut: a sum is one chain of multiply-adds, and every way below follows the same chain.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "recurrence.h"
#include "stream.h"

namespace ostinato {

// One layer of the stack, from the input on. Layer `i + 1` takes the P of layer `i` as its D.
struct SessionLayer {
  Layer layer;
  WeightFormat format;  // other than `real`: plain layers of float only
  bool adds_input;      // y = h + x; D == P
};

class Session {
 public:
  // Packs for the instruction set that is active now, and stays with it. The state is zeros.
  Session(std::vector<SessionLayer> layers, const std::vector<Weights>& weights, bool is_double, int64_t B);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // T steps of all rows: x[b, t, :] = x + b·x_row + t·x_step elements with unit stride, y (B, T, P) contiguous. Nothing
  // is allocated but when n_threads is larger than ever before.
  void push(const void* x, int64_t x_row, int64_t x_step, int64_t T, void* y, int n_threads);

  // The state of rows [row, row_end) of a layer: h (n, P) and c (n, H) contiguous, row b at h + b·P; c may be null.
  void read_state(int64_t layer, int64_t row, int64_t row_end, void* h, void* c) const;
  void write_state(int64_t layer, int64_t row, int64_t row_end, const void* h, const void* c);

  // Takes the weights anew; pointers as in the constructor.
  void pack(const std::vector<Weights>& weights);

  int64_t B() const { return B_; }
  int64_t D() const { return parts_.front().layer.D; }
  int64_t P() const { return parts_.back().layer.P; }
  int64_t n_layers() const { return static_cast<int64_t>(parts_.size()); }
  const Layer& layer(int64_t i) const { return parts_[static_cast<size_t>(i)].layer; }
  bool is_double() const { return is_double_; }
  int64_t packed_bytes() const;
  // Multiply-adds of one step of one row.
  double step_work() const { return work_; }

  // Whether some call is at work on it; `enter` is false if so, and true when the caller now may, until `leave`.
  bool enter() { return !is_busy_.exchange(true, std::memory_order_acquire); }
  void leave() { is_busy_.store(false, std::memory_order_release); }

 private:
  struct Part {
    Layer layer;
    WeightFormat format;
    bool adds_input;
    int64_t Hp, Pp, n_blocks;
    Buffer packed;
    Buffer h[2];           // (B, Pp): h[turn_] is the state
    Buffer c;              // (B, Hp)
    Buffer y;              // (B, ahead_, P): what the next layer takes, where that is not h
    Buffer h0, h_final;    // (B, P) contiguous, as the recurrence kernels take them
    Buffer c0, c_final;    // (B, H)
  };
  // T steps of a caller, or some of them.
  struct Stretch {
    const char* x;
    int64_t x_row, x_step;  // elements
    int64_t T;              // steps to take
    char* y;
    int64_t y_row;          // elements from row to row; P from step to step
  };
  struct StepTasks;
  struct BlockTasks;

  void push_steps(const Stretch& stretch, int n_threads);
  bool push_gang(const Stretch& stretch, int n_threads);
  void push_blocks(const Stretch& stretch, int n_threads);
  template <typename Meet>
  void run_steps(const Stretch& stretch, int64_t row, int64_t row_end, int worker, int n_workers, Meet meet);
  void run_blocks(const Stretch& stretch, int64_t row, int64_t row_end, void* scratch);
  void load_rows(Part& part, int64_t row, int64_t row_end);
  void store_rows(Part& part, int64_t row, int64_t row_end);

  bool is_double_;
  bool is_plain_ = true;   // every layer is
  bool is_real_ = true;    // every layer's weights are as given
  int64_t B_;
  int64_t bytes_;          // of an element
  int64_t ahead_;          // steps of a chunk that one layer takes before the next
  int turn_ = 0;
  double work_ = 0;
  const Kernels* kernels_;
  const StreamKernels* stream_;
  std::vector<Part> parts_;
  Buffer scratch_;
  std::vector<int64_t> row_, count_, active_, offset_;
  std::atomic<bool> is_busy_{false};
};

}  // namespace ostinato
