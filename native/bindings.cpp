// The module ostinato._native. Each part binds itself in bindings_<part>.cpp and is called once below.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "isa_facts.h"
#include "pool.h"

namespace nb = nanobind;

namespace ostinato {
namespace {

void set_isa_or_raise(const std::string& name, const char* what) {
  if (const char* message = set_isa(name.c_str())) throw nb::value_error((std::string(what) + ": " + message).c_str());
}

void bind_isa(nb::module_& module) {
  module.def(
      "isas",
      [] {
        int n = 0;
        const Isa* compiled = compiled_isas(&n);
        std::vector<std::string> names;
        for (int i = 0; i < n; ++i)
          if (supported(compiled[i])) names.emplace_back(isa_name(compiled[i]));
        return names;
      },
      "Names of the instruction sets that are compiled in and run on this machine, from the plainest to the widest.");
  module.def(
      "isa", [] { return std::string(isa_name(active_isa())); },
      "Name of the instruction set that kernels run on: the widest, unless OSTINATO_ISA or set_isa says otherwise.");
  module.def(
      "set_isa", [](const std::string& name) { set_isa_or_raise(name, "set_isa"); }, nb::arg("name"),
      "Runs kernels on another instruction set of isas(), for the whole process. ValueError: unknown, or not supported.");
  module.def(
      "isa_facts",
      [] {
        const IsaFacts* facts = isa_facts();
        return nb::make_tuple(facts->vector_bytes, facts->has_fma);
      },
      "(width of a vector register in bytes, whether products and sums are fused) of the active instruction set.");
  if (const char* name = std::getenv("OSTINATO_ISA"); name != nullptr && *name != '\0')
    set_isa_or_raise(name, "environment variable OSTINATO_ISA");
}

void bind_pool(nb::module_& module) {
  module.def("usable_cores", &usable_cores,
             "Cores that the calling thread may run on: the most threads that a kernel will use.");
}

}  // namespace

// A part's declaration here, its call below.
void bind_masks(nb::module_& module);
void bind_program(nb::module_& module);
void bind_recurrence(nb::module_& module);
void bind_scan(nb::module_& module);
void bind_session(nb::module_& module);
void bind_tensors(nb::module_& module);

}  // namespace ostinato

NB_MODULE(_native, module) {
  // Caches of Python functions hold layers and packed weights until the interpreter ends; nanobind would call them leaks.
  nb::set_leak_warnings(false);
  module.doc() = "Native kernels of ostinato; ostinato.kernels is their only caller.";
  ostinato::bind_isa(module);
  ostinato::bind_pool(module);
  ostinato::bind_masks(module);
  ostinato::bind_program(module);
  ostinato::bind_recurrence(module);
  ostinato::bind_scan(module);
  ostinato::bind_session(module);
  ostinato::bind_tensors(module);
}
