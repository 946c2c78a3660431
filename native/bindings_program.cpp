// Step programs for Python: ostinato.kernels.program builds them from a traced step and runs them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "pool.h"
#include "program.h"

namespace nb = nanobind;

namespace ostinato {
namespace {

using Numbers = std::vector<int64_t>;

template <typename T>
std::vector<T> records(const Numbers& numbers, const char* name) {
  static_assert(sizeof(T) % sizeof(int64_t) == 0, "records are whole numbers of 8 bytes");
  constexpr size_t n_fields = sizeof(T) / sizeof(int64_t);
  if (numbers.size() % n_fields) throw nb::value_error((std::string(name) + ": not a whole number of records").c_str());
  std::vector<T> out(numbers.size() / n_fields);
  if (!out.empty()) std::memcpy(static_cast<void*>(out.data()), numbers.data(), numbers.size() * sizeof(int64_t));
  return out;
}

// Owns what `Program` points to.
class OwnedProgram {
 public:
  OwnedProgram(const Numbers& instructions, const Numbers& segments, const Numbers& buffers, const Numbers& inputs,
               const Numbers& outputs, const Numbers& packs, const std::vector<double>& scalars,
               const Numbers& leaf_widths, const Numbers& saved_widths, const Numbers& widths)
      : instructions_(records<Instruction>(instructions, "instructions")),
        segments_(records<Segment>(segments, "segments")),
        buffers_(records<Buffer>(buffers, "buffers")),
        inputs_(records<StepSeries>(inputs, "inputs")),
        outputs_(records<StepSeries>(outputs, "outputs")),
        packs_(records<Pack>(packs, "packs")),
        scalars_(scalars),
        leaf_widths_(leaf_widths),
        saved_widths_(saved_widths) {
    if (widths.size() != 4) throw nb::value_error("widths: expected four numbers");
    const int64_t n_buffers = static_cast<int64_t>(buffers_.size());
    for (const Instruction& ins : instructions_) {
      if (ins.op < 0 || ins.op >= static_cast<int64_t>(Operator::n_operators) || ins.n_inputs < 0 || ins.n_inputs > 3)
        throw nb::value_error("instructions: unknown operator");
      for (const Operand& operand : ins.operand)
        if (operand.buffer < -1 || operand.buffer >= at_least(n_buffers, static_cast<int64_t>(packs_.size())))
          throw nb::value_error("instructions: unknown buffer");
    }
    for (const Segment& segment : segments_)
      if (segment.first < 0 || segment.last < segment.first || segment.last > static_cast<int64_t>(instructions_.size()))
        throw nb::value_error("segments: beyond the instructions");
    program_ = {instructions_.data(), segments_.data(), buffers_.data(), inputs_.data(), outputs_.data(),
                packs_.data(), scalars_.data(), leaf_widths_.data(), saved_widths_.data(),
                size(instructions_), size(segments_), n_buffers, size(inputs_), size(outputs_), size(packs_),
                size(scalars_), size(leaf_widths_), size(saved_widths_), widths[0], widths[1], widths[2], widths[3]};
  }
  OwnedProgram(const OwnedProgram&) = delete;

  const Program& get() const { return program_; }

 private:
  template <typename T>
  static int64_t size(const std::vector<T>& values) { return static_cast<int64_t>(values.size()); }
  static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

  std::vector<Instruction> instructions_;
  std::vector<Segment> segments_;
  std::vector<Buffer> buffers_;
  std::vector<StepSeries> inputs_, outputs_;
  std::vector<Pack> packs_;
  std::vector<double> scalars_;
  Numbers leaf_widths_, saved_widths_;
  Program program_;
};

// Scratch of the calling thread, kept for its next call.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  char* at_least(size_t bytes) {
    if (bytes > bytes_) {
      std::free(memory_);
      bytes_ = 0;
      memory_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (memory_ == nullptr) throw std::bad_alloc();
      bytes_ = bytes;
      std::memset(memory_, 0, bytes);  // padding is worked on too, and should hold no subnormals
    }
    return static_cast<char*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

template <typename T = void>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

std::vector<const void*> constant_pointers(const Numbers& addresses) {
  std::vector<const void*> out;
  for (int64_t address : addresses) out.push_back(pointer(address));
  return out;
}

void pack(const OwnedProgram& program, bool is_double, const Numbers& constants, uintptr_t packed) {
  const std::vector<const void*> pointers = constant_pointers(constants);
  nb::gil_scoped_release release;
  program_kernels()->pack[is_double](program.get(), pointers.data(), reinterpret_cast<void*>(packed));
}

std::vector<Strided> strided(const Numbers& numbers, int64_t n, const char* name) {
  if (static_cast<int64_t>(numbers.size()) != 3 * n)
    throw nb::value_error((std::string(name) + ": expected address, row and step of each").c_str());
  std::vector<Strided> out;
  for (int64_t i = 0; i < n; ++i) out.push_back({pointer(numbers[3 * i]), numbers[3 * i + 1], numbers[3 * i + 2]});
  return out;
}

struct Call {
  const Program& program;
  const ProgramRun& run;
  const ProgramKernels& kernels;
  int is_double;
  char* scratch;
  int64_t scratch_bytes, slice;
};

void run_group(void* context, int index, int worker) {
  const Call& call = *static_cast<const Call*>(context);
  call.kernels.run_group[call.is_double](call.program, call.run, index, call.scratch + worker * call.scratch_bytes);
}

void add_slice(void* context, int index, int) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t first = index * call.slice, end = first + call.slice;
  call.kernels.add_sums[call.is_double](call.program, call.run, first,
                                        end < call.program.sum_width ? end : call.program.sum_width);
}

// sizes: B, T, tile_rows, chunk_rows, tiles_of_group. leaves: start, initial, end, kept, every's address, row, step.
void run_program(const OwnedProgram& owned, bool is_double, bool is_backward, const Numbers& sizes, uintptr_t mask,
                 uintptr_t resets, const Numbers& constants, uintptr_t packed, const Numbers& inputs,
                 const Numbers& outputs, const Numbers& leaves, const Numbers& saved, uintptr_t sums, int n_threads) {
  const Program& program = owned.get();
  if (sizes.size() != 5 || sizes[0] < 0 || sizes[1] < 0 || sizes[2] < 1 || sizes[3] < sizes[2] || sizes[4] < 1)
    throw nb::value_error("sizes: expected B, T, tile_rows, chunk_rows >= tile_rows, tiles_of_group");
  if (leaves.size() != static_cast<size_t>(7 * program.n_leaves)) throw nb::value_error("leaves: expected seven numbers each");
  if (saved.size() != static_cast<size_t>(program.n_saved)) throw nb::value_error("saved: expected one address each");
  for (int64_t i = 0; i < program.n_buffers; ++i)
    if (program.buffers[i].scope == static_cast<int64_t>(Scope::constant) &&
        program.buffers[i].place >= static_cast<int64_t>(constants.size()))
      throw nb::value_error("constants: too few");
  const std::vector<Strided> in = strided(inputs, program.n_inputs, "inputs");
  const std::vector<Strided> out = strided(outputs, program.n_outputs, "outputs");
  const std::vector<const void*> pointers = constant_pointers(constants);
  std::vector<Leaf> leaf;
  for (int64_t i = 0; i < program.n_leaves; ++i) {
    const int64_t* n = leaves.data() + 7 * i;
    leaf.push_back({pointer(n[0]), pointer(n[1]), pointer(n[2]), pointer(n[3]), {pointer(n[4]), n[5], n[6]}});
  }
  std::vector<void*> kept;
  for (int64_t address : saved) kept.push_back(pointer(address));
  const ProgramRun run{sizes[0], sizes[1], sizes[2], sizes[3], is_backward, reinterpret_cast<const uint8_t*>(mask),
                       reinterpret_cast<const uint8_t*>(resets), pointers.data(), reinterpret_cast<const void*>(packed),
                       in.data(), out.data(), leaf.data(), kept.data(), reinterpret_cast<void*>(sums), sizes[4]};
  if (run.B == 0) return;
  nb::gil_scoped_release release;
  const ProgramKernels& kernels = *program_kernels();
  const int64_t n_groups = run.n_groups();
  const int n_workers = static_cast<int>(n_threads < n_groups ? (n_threads < 1 ? 1 : n_threads) : n_groups);
  thread_local Scratch scratch;
  Call call{program, run, kernels, is_double, nullptr, 0, 0};
  call.scratch_bytes = kernels.scratch_bytes[is_double](program, run);
  call.scratch = scratch.at_least(static_cast<size_t>(call.scratch_bytes * n_workers));
  parallel(n_workers, static_cast<int>(n_groups), run_group, &call);
  if (program.sum_width > 0 && n_groups > 1) {
    call.slice = 4096;
    parallel(n_threads, static_cast<int>((program.sum_width + call.slice - 1) / call.slice), add_slice, &call);
  }
}

}  // namespace

void bind_program(nb::module_& module) {
  nb::class_<OwnedProgram>(module, "Program", "A step program; its arrays are described in native/program.h.")
      .def(nb::init<const Numbers&, const Numbers&, const Numbers&, const Numbers&, const Numbers&, const Numbers&,
                    const std::vector<double>&, const Numbers&, const Numbers&, const Numbers&>(),
           nb::arg("instructions"), nb::arg("segments"), nb::arg("buffers"), nb::arg("inputs"), nb::arg("outputs"),
           nb::arg("packs"), nb::arg("scalars"), nb::arg("leaf_widths"), nb::arg("saved_widths"), nb::arg("widths"))
      .def("pack", &pack, nb::arg("is_double"), nb::arg("constants"), nb::arg("packed"),
           "Writes the packed weights. Costs one pass over the weights.")
      .def("run", &run_program, nb::arg("is_double"), nb::arg("is_backward"), nb::arg("sizes"), nb::arg("mask"),
           nb::arg("resets"), nb::arg("constants"), nb::arg("packed"), nb::arg("inputs"), nb::arg("outputs"),
           nb::arg("leaves"), nb::arg("saved"), nb::arg("sums"), nb::arg("n_threads"),
           "Runs all steps of all rows on at most n_threads threads, without the GIL.");
  module.def(
      "program_operators",
      [] {
        std::vector<std::string> names;
#define OSTINATO_LIST(name) names.emplace_back(#name);
        OSTINATO_OPERATORS(OSTINATO_LIST)
#undef OSTINATO_LIST
        return names;
      },
      "Names of the operators of step programs, in the order of their numbers.");
}

}  // namespace ostinato
