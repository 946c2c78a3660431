// One direction of one layer over a batch: how the work is cut into tasks and given to threads.
//
// No result depends on the cut: an output element is one chain of multiply-adds, and a weight's gradient is summed by
// one task over all rows in their order.
#pragma once

#include "recurrence.h"
#include "schedule.h"

namespace ostinato {

// T of the largest chunk of steps, and its packed rows: the cut of the backward pass.
int64_t largest_chunk(const Kernels& kernels, const Layer& layer, const Steps& steps, int64_t element_bytes);

void run_forward(const Kernels& kernels, const Layer& layer, const Steps& steps, const Forward& call, int n_threads);

void run_backward(const Kernels& kernels, const Layer& layer, const Steps& steps, const Backward& call,
                  int64_t element_bytes, int n_threads);

}  // namespace ostinato
